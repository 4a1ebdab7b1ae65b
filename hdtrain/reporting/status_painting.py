"""How far a painting is, for `hdtrain status`. No torch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hdtrain.formats.paint_progress import PaintProgress, read_paint_progress
from hdtrain.formats.run_dir import RunDir
from hdtrain.reporting.formatting import duration, percent
from hdtrain.text import counted


@dataclass
class Painting:
    """What rank 0 told last, and the picture of it; None: not known."""

    step: int
    steps: int
    saved_steps: int
    windows: int
    """Of a step, and to decode."""
    decoded: int | None
    """Windows so far; None: the canvas is not solved yet."""
    done_share: float
    """Of all windows that the denoiser or the decoder looks at."""
    windows_per_sec: float | None
    seconds_left: float | None
    """Of solving the canvas, or of decoding it."""
    told_sec: float
    """Since it was told."""
    preview: str | None
    preview_sec: float | None
    """Since it was drawn."""


def read_painting(run: RunDir, now: float) -> Painting | None:
    """Of a run of `paint` that is not published; None where nothing was told yet."""
    told = read_paint_progress(run.work)
    if told is None or not math.isfinite(told.written):
        return None
    preview, drawn = _preview(run)
    before = told.steps * told.windows if told.phase == "decode" else 0
    rate = told.windows_per_sec if 0 < told.windows_per_sec < math.inf else None
    return Painting(
        step=told.step,
        steps=told.steps,
        saved_steps=told.saved_steps,
        windows=told.windows,
        decoded=_decoded(told),
        done_share=min(1.0, (before + told.done) / (told.windows * (told.steps + 1))),
        windows_per_sec=rate,
        seconds_left=max(0, told.total - told.done) / rate if rate else None,
        told_sec=max(0.0, now - told.written),
        preview=preview,
        preview_sec=None if drawn is None else max(0.0, now - drawn),
    )


def _decoded(told: PaintProgress) -> int | None:
    return min(told.done, told.windows) if told.phase == "decode" else None


def _preview(run: RunDir) -> tuple[str | None, float | None]:
    try:
        return str(run.preview), run.preview.stat().st_mtime
    except OSError:  # none was drawn yet, or the painting is published in this moment
        return None, None


def painting_facts(painting: Painting, running: bool) -> Iterator[tuple[str, str]]:
    """Lines of a page: names and texts."""
    windows = counted(painting.windows, "window")
    share = f"({percent(painting.step / painting.steps)})"
    yield "step", f"{painting.step:,} of {painting.steps:,} {share}, {windows} each"
    if painting.decoded is not None:
        yield "decoded", f"{painting.decoded:,} of {windows} ({percent(painting.decoded / painting.windows)})"
    if not running:
        yield "saved", "the canvas, all steps" if painting.saved_steps == painting.steps else _saved(painting)
    elif painting.windows_per_sec is not None:
        yield "speed", f"{painting.windows_per_sec:,.1f} windows/s"
    if running and painting.seconds_left is not None:
        then = f", then {windows} to decode" if painting.decoded is None else ""
        yield "time left", duration(painting.seconds_left) + then
    if running:
        yield "last word", f"{duration(painting.told_sec)} ago"
    if painting.preview is not None and painting.preview_sec is not None:
        yield "preview", f"{painting.preview}, {duration(painting.preview_sec)} old"


def _saved(painting: Painting) -> str:
    if not painting.saved_steps:
        return "nothing yet: it begins anew"
    return f"the canvas after step {painting.saved_steps:,}"
