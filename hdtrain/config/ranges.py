"""Indices as people write them: `0-999,5000`."""


def parse_ranges(text: str) -> list[range]:
    """The ranges in `text`, in its order.

    Raises:
        ValueError: not of that form.
    """
    found = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ValueError(f"expected indices and ranges as in 0-999,5000, got '{part.strip()}'")
        found.append(range(int(first), int(last if dash else first) + 1))
    return found
