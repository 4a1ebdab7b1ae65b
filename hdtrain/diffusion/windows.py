"""Where overlapping windows lie along one axis. No torch."""


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First places of the windows: every `stride`, and a last one that ends where the axis does.

    Args:
        length: of the axis; at least `window`.
        window: length of a window.
        stride: from one window to the next.
    """
    starts = list(range(0, length - window + 1, stride))
    return starts if starts[-1] == length - window else [*starts, length - window]
