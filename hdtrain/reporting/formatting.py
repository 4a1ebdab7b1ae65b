"""Numbers as a reader wants them. Minus signs are typographic (U+2212); percentages and points carry one decimal."""

import datetime
import math

MISSING = "–"
MINUTE_SEC, HOUR_SEC = 60, 3600
ROUNDING = 1e-12
"""What is nearer to 0 is an error of rounding: a bound of an interval that should be 0."""


def figure(value: float | None) -> str:
    """Three decimals up to 10, fewer above, two significant digits below 0.01; `–` for None and NaN."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if size < ROUNDING:
        return "0.000"
    if size >= 0.01:
        decimals = 3 if size < 10 else 2 if size < 100 else 1
        return f"{value:.{decimals}f}".replace("-", "−")
    return f"{value:.2g}".replace("-", "−", 1) if size >= 1e-4 else f"{value:.1e}".replace("-", "−")


def interval(bounds: tuple[float, float] | None) -> str:
    """`[0.840, 0.870]`, or nothing."""
    return f"[{figure(bounds[0])}, {figure(bounds[1])}]" if bounds else ""


def percent(value: float) -> str:
    """0.704 to `70.4 %`."""
    return f"{100 * value:.1f} %".replace("-", "−")


def points(value: float) -> str:
    """A difference of two shares in percentage points, always signed: 0.021 to `+2.1`."""
    return f"{100 * value:+.1f}".replace("-", "−")


def signed(value: float | None) -> str:
    """A difference with three decimals and its sign."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:+.3f}".replace("-", "−")


def p_value(p: float | None) -> str:
    """`p = 0.012` or `p < 0.001`; nothing for None."""
    if p is None or not math.isfinite(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def duration(seconds: float | None) -> str:
    """`4.2 s`, `45 s`, `12 min`, `3.1 h`."""
    if seconds is None:
        return MISSING
    if seconds < MINUTE_SEC:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / MINUTE_SEC:.0f} min" if seconds < 2 * HOUR_SEC else f"{seconds / HOUR_SEC:.1f} h"


def count(number: int | None) -> str:
    """Thousands separated by a narrow space; `–` for None."""
    return MISSING if number is None else f"{number:,}".replace(",", "\u202f")


def when(timestamp: float | None) -> str:
    """Seconds since the epoch to `2025-03-01 14:05 UTC`."""
    if timestamp is None:
        return MISSING
    return datetime.datetime.fromtimestamp(timestamp, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def quoted(name: str) -> str:
    """A name that may hold spaces and signs, set off from the sentence around it."""
    return f"“{name}”"


def join(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
