"""Plots of what trust rests on: distances to training images, and colour statistics."""

from collections.abc import Sequence

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hdtrain.formats.results import CANDIDATES, TRAINING, YARDSTICK, ColourStatistic, NearestDistances, Results
from hdtrain.reporting.plots import COLOURS, DASHED, SERIES_COLOURS, STYLE, inline

SHOWN_SETS = 6
"""Lines or boxes of different sets in one panel; more cannot be told apart."""
TITLES = {"features": "in features", "pixels": "in pixels, best of 8 symmetries"}
ALL = "all"


def shown_sets(results: Results) -> list[str]:
    """Sets of synthetic images that the plots hold: the first few, the pool last."""
    names = [name for name in results.image_sets if name not in (YARDSTICK, CANDIDATES)][:SHOWN_SETS]
    return [*names, CANDIDATES] if CANDIDATES in results.image_sets else names


def distance_plot(results: Results) -> Markup | None:
    """Share of images (lower tail, logarithmic) that lie nearer to a training image than x; None if not measured."""
    if not results.distances:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.2), layout="constrained")
        panels = figure.subplots(1, len(results.distances), sharey=True, squeeze=False).flatten()
        for axes, (space, distances) in zip(panels, results.distances.items(), strict=True):
            _lower_tails(axes, distances, shown_sets(results))
            axes.set_title(TITLES.get(space, space), loc="left")
        panels[0].set_ylabel("share of images")
        figure.supxlabel("distance to the nearest training image / mean distance to the next nearest", fontsize=9)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
        return inline(figure, "distances")


def _lower_tails(axes: Axes, distances: NearestDistances, names: Sequence[str]) -> None:
    shares = [i / 100 for i in range(101)]
    axes.plot(distances.real_to_real, shares, color=COLOURS["real"], linewidth=2.4, label="real to real (training)")
    if YARDSTICK in distances.sets:
        axes.plot(distances.sets[YARDSTICK], shares, color=COLOURS["real"], linestyle=DASHED, label=YARDSTICK)
    for i, name in enumerate(names):
        if name in distances.sets:
            colour = SERIES_COLOURS[i % len(SERIES_COLOURS)]
            axes.plot(distances.sets[name], shares, color=colour, linewidth=1.3, label=name)
    axes.axvline(distances.threshold, color=COLOURS["augmentation"], linewidth=1.2, label="flagged left of this")
    axes.set_yscale("log")
    axes.set_ylim(0.008, 1.05)
    axes.set_yticks([0.01, 0.1, 1], ["1 %", "10 %", "100 %"])
    axes.minorticks_off()


def colour_plot(results: Results) -> Markup | None:
    """Every statistic's 5 to 95 % range, quartiles and median, of training, test and synthetic images; all classes."""
    names = [name for name in (TRAINING, YARDSTICK, *shown_sets(results)) if ALL in results.colours.get(name, {})]
    if not names:
        return None
    statistics = list(results.colours[names[0]][ALL])
    columns = 5
    rows = -(-len(statistics) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, rows * (0.7 + 0.17 * len(names))), layout="constrained")
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).T.flatten()
        # Column by column: the mean of a channel stands above its sd.
        for axes, statistic in zip(panels, statistics, strict=False):
            for row, name in enumerate(names):
                real, synthetic = name in (TRAINING, YARDSTICK), shown_sets(results)
                colour = COLOURS["real"] if real else SERIES_COLOURS[synthetic.index(name) % len(SERIES_COLOURS)]
                _box(axes, row, results.colours[name][ALL][statistic], colour)
            axes.set_title(statistic, loc="left")
            axes.grid(visible=False, axis="y")
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.5, -0.5)
        for axes in panels[len(statistics) :]:
            axes.set_visible(False)
        return inline(figure, "colours")


def _box(axes: Axes, row: int, statistic: ColourStatistic, colour: str) -> None:
    low, quarter, median, three_quarters, high = statistic.quantiles
    axes.plot((low, high), (row, row), color=colour, linewidth=1, alpha=0.7)
    axes.plot((quarter, three_quarters), (row, row), color=colour, linewidth=4, alpha=0.55, solid_capstyle="butt")
    axes.plot([median], [row], "o", color=colour, markersize=3.5)
