"""Finding slides in folders, with the files that belong to one slide and those that are none."""

from collections.abc import Iterator
from pathlib import Path

from hdtrain.errors import DataError

TIFF_SUFFIXES = frozenset({".svs", ".tif", ".tiff"})
VENDOR_SUFFIXES = frozenset({".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi"})
SLIDE_SUFFIXES = TIFF_SUFFIXES | VENDOR_SUFFIXES
OTHER_IMAGES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".jp2", ".jpx", ".avif", ".heic", ".dcm", ".zvi", ".isyntax"}
)
"""Listed, so that they are rejected and counted instead of overlooked."""


def slide_files(folder: Path) -> Iterator[Path]:
    """Slides and other images below `folder`, in the order of their names, without hidden ones and parts of slides."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read: {error.strerror}") from None
    parts = {part for entry in entries for part in _beside(entry)}
    for entry in entries:
        if entry in parts:
            continue
        if entry.is_dir():
            yield from slide_files(entry)
        elif entry.suffix.lower() in SLIDE_SUFFIXES | OTHER_IMAGES:
            yield entry


def parts_of(slide: Path) -> list[Path]:
    """The other files of one slide: those in the folder beside an `.mrxs`, and what a `.vms` or `.vmu` names."""
    parts = []
    for part in _beside(slide):
        parts.extend(sorted(part.iterdir()) if part.is_dir() else [part])
    return parts


def _beside(slide: Path) -> list[Path]:
    suffix = slide.suffix.lower()
    if suffix == ".mrxs":
        folder = slide.with_suffix("")
        return [folder] if folder.is_dir() else []
    if suffix not in (".vms", ".vmu"):
        return []
    try:
        lines = slide.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    named = [value.strip() for _, _, value in (line.partition("=") for line in lines) if value.strip()]
    return sorted({part for name in named if (part := slide.parent / name).is_file()})
