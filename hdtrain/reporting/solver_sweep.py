"""The solver sweep as a picture, a table and a sentence."""

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from hdtrain.formats.results import Metric
from hdtrain.formats.solver_sweep import SolverResult, SolverSweepResults, Speeds
from hdtrain.reporting.plots import COLOURS, DASHED, STYLE, standalone


def solvers_svg(sweep: SolverSweepResults) -> str:
    """A whole SVG file: the difference of the distance, and that of the pixels, against evaluations of the denoiser."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.4), layout="constrained")
        distance, pixels = figure.subplots(1, 2)
        distance.axhspan(-sweep.limit, sweep.limit, color=COLOURS["real"], alpha=0.18, linewidth=0)
        distance.axhline(0, color=COLOURS["real"], linewidth=1, linestyle=DASHED)
        for solver in sweep.solvers:
            turn = _turn(solver, sweep)
            _dot(distance, solver, solver.difference.value, turn, sweep)
            if solver.difference.interval:
                place = (_place(solver, turn),) * 2
                distance.plot(place, solver.difference.interval, color=_colour(solver, sweep), linewidth=2, alpha=0.55)
            _dot(pixels, solver, solver.pixel_difference.value, turn, sweep)
        distance.set_title(f"{sweep.metric} less that of {sweep.reference.name}; grey: within the limit", loc="left")
        pixels.set_title(f"mean difference from {sweep.reference.name}'s images, of 255", loc="left")
        pixels.set_ylim(bottom=0)
        ticks = sorted({solver.denoiser_evaluations for solver in sweep.solvers})
        for axes in (distance, pixels):
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("evaluations of the denoiser an image")
            axes.margins(x=0.2, y=0.15)
        return standalone(figure)


def _turn(solver: SolverResult, sweep: SolverSweepResults) -> int:
    """How many stand before a solver among those with as many evaluations: they must not cover each other."""
    alike = [one for one in sweep.solvers if one.denoiser_evaluations == solver.denoiser_evaluations]
    return sorted(alike, key=lambda one: (-one.difference.value, one.name)).index(solver)


def _place(solver: SolverResult, turn: int) -> float:
    return solver.denoiser_evaluations * 1.04**turn


def _dot(axes: Axes, solver: SolverResult, value: float, turn: int, sweep: SolverSweepResults) -> None:
    place = _place(solver, turn)
    axes.plot([place], [value], "o", color=_colour(solver, sweep), markersize=5)
    if solver is sweep.chosen:
        axes.plot([place], [value], "o", markersize=12, fillstyle="none", color=COLOURS["augmentation"])
    axes.annotate(solver.name, (place, value), (6, 4 - 11 * turn), textcoords="offset points", fontsize=8)


def _colour(solver: SolverResult, sweep: SolverSweepResults) -> str:
    return COLOURS["real"] if solver is sweep.reference else COLOURS["synthetic"]


def format_table(sweep: SolverSweepResults, speeds: Speeds) -> str:
    """One line a solver; the chosen one is marked."""
    solver_width, width = max(6, *(len(solver.name) for solver in sweep.solvers)), max(9, len(sweep.metric))
    shown = {solver.name: _shown(solver.difference) for solver in sweep.solvers} | {sweep.reference.name: "–"}
    wide = max(map(len, shown.values()))
    head = f"  {'solver':<{solver_width}}  evaluations  images/s   times  {sweep.metric:>{width}}"
    lines = [f"{head}  {'difference':<{wide}}  of 255"]
    for solver in sweep.solvers:
        speed = speeds.solvers[solver.name]
        calls = f"{solver.denoiser_evaluations:g}"
        calls += f" + {solver.classifier_evaluations:g} ϕ" if solver.classifier_evaluations else ""
        verdict = "" if solver is sweep.reference else "  passes" if solver.passed else "  too far"
        lines.append(
            f"{'→' if solver is sweep.chosen else ' '} {solver.name:<{solver_width}}  {calls:>11}  "
            f"{speed.images_per_sec:>8.3g}  {speed.times_faster:>6.3g}  {solver.frechet.value:>{width}.4g}  "
            f"{shown[solver.name]:<{wide}}  {solver.pixel_difference.value:>6.3g}{verdict}"
        )
    return "\n".join(lines)


def _shown(difference: Metric) -> str:
    low, high = difference.interval or (difference.value, difference.value)
    return f"{difference.value:+.4g} [{low:+.4g}, {high:+.4g}]"


def format_choice(sweep: SolverSweepResults, speeds: Speeds) -> str:
    """One sentence of the choice, and what it gains."""
    times = speeds.solvers[sweep.choice].times_faster
    gain = "" if sweep.chosen is sweep.reference else f" It makes {times:.3g} times as many images a second."
    failed = "" if sweep.chosen.passed else " It is not within the limit."
    return f"chosen: {sweep.choice}, by {sweep.chosen_by}. {sweep.reason}.{gain}{failed}"
