"""Text for terminals."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def counted(number: int, noun: str) -> str:
    """`1 shard`, `1,351 latents`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
