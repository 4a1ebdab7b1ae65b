"""The guidance sweep as a picture: agreement, Fréchet distance and diversity against g."""

from collections.abc import Mapping

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from hdtrain.formats.sweep import AGREEMENT, DIVERSITY, SweepResults
from hdtrain.reporting.plots import COLOURS, DASHED, STYLE, inline, standalone
from hdtrain.reporting.runs import Run


def sweep_plot(sweep: SweepResults) -> Markup:
    """For the page."""
    return inline(_figure(sweep), "sweep")


def sweep_svg(sweep: SweepResults) -> str:
    """A whole SVG file, to be looked at by itself."""
    return standalone(_figure(sweep))


def sampled_scales(runs: Mapping[str, Run]) -> dict[str, float]:
    """Every sampling run of the graph that a classifier guided, with its scale."""
    return {
        name: float(run.manifest.info["guidance"])
        for name, run in runs.items()
        if run.manifest and run.stage == "sample" and "classifier" in run.parents and "guidance" in run.manifest.info
    }


def _figure(sweep: SweepResults) -> Figure:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 2.9), layout="constrained")
        agreement, frechet, diversity = figure.subplots(1, 3)
        _curve(agreement, sweep, AGREEMENT)
        _curve(frechet, sweep, sweep.frechet)
        _curve(diversity, sweep, DIVERSITY)
        agreement.set_title("judge agrees with the class asked for", loc="left")
        _level(agreement, 1 / len(sweep.classes), "chance")
        _level(agreement, sweep.real[AGREEMENT].value, "real images")
        agreement.set_ylim(0, 1.04)
        frechet.set_title(f"{sweep.frechet}, less is better", loc="left")
        smallest = min(scale.metrics[sweep.frechet].value for scale in sweep.scales)
        frechet.axhspan(smallest, smallest * (1 + sweep.tolerance), color=COLOURS["real"], alpha=0.18, linewidth=0)
        frechet.set_ylim(0, 1.06 * max(scale.metrics[sweep.frechet].value for scale in sweep.scales))
        diversity.set_title("diversity within a class, real images are 1", loc="left")
        _level(diversity, 1.0, "")
        diversity.set_ylim(0, 1.06 * max(1, *(scale.metrics[DIVERSITY].value for scale in sweep.scales)))
        return figure


def _curve(axes: Axes, sweep: SweepResults, key: str) -> None:
    """Dots by scale, whiskers where there is an interval, a ring around the choice."""
    scales = [scale.guidance for scale in sweep.scales]
    metrics = [scale.metrics[key] for scale in sweep.scales]
    axes.plot(scales, [metric.value for metric in metrics], "o-", color=COLOURS["synthetic"], markersize=5)
    for place, metric in zip(scales, metrics, strict=True):
        if metric.interval:
            axes.plot((place, place), metric.interval, color=COLOURS["synthetic"], linewidth=2, alpha=0.55)
    chosen = sweep.chosen.metrics[key].value
    axes.plot([sweep.choice], [chosen], "o", markersize=12, fillstyle="none", color=COLOURS["augmentation"])
    smallest = min(scale for scale in scales if scale > 0)
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.6)
    axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("guidance g")


def _level(axes: Axes, value: float, name: str) -> None:
    axes.axhline(value, color=COLOURS["real"], linewidth=1, linestyle=DASHED)
    place = {"xy": (1, value), "xycoords": ("axes fraction", "data"), "xytext": (0, 2), "textcoords": "offset points"}
    axes.annotate(name, **place, ha="right", fontsize=8, color=COLOURS["real"])  # type: ignore[arg-type]
