"""`tcga`: tiles of slides of The Cancer Genome Atlas, with the slide's barcode somewhere in each path.

A barcode goes from the patient to the slide: `TCGA-CR-7395-01A-01-TS1` is slide TS1 (frozen, top) of portion 01 of
sample 01A (primary tumour) of patient `TCGA-CR-7395` (https://docs.gdc.cancer.gov/Encyclopedia/pages/TCGA_Barcode).

- patient: its first 12 characters, in capitals.
- slide: the barcode as far as the path has it, without the `.UUID` that names a file of it; none where the path says
  no more than the patient.
- x, y: from `pattern`; else from the end of the file's name behind the barcode, `_X_Y`, `(X,Y)` or `x123_y456`, taken
  as pixels. Names that end in more or fewer numbers, or consist of numbers alone (DeepZoom's `COLUMN_ROW`), give none.
"""

import re
from functools import lru_cache
from typing import Any

from sharding.readers.base import as_text
from sharding.readers.image_files import ImageFileReader

_BARCODE = re.compile(
    r"(?<![A-Z0-9])TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])"
    r"(?:-\d\d[A-Z]?(?![A-Z0-9])(?:-\d\d[A-Z]?(?![A-Z0-9])(?:-[A-Z]{2}[A-Z0-9]{1,2}(?![A-Z0-9]))?)?)?",
    re.IGNORECASE,
)
_UUID = r"(?:\.[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})?"
_TAIL = re.compile(
    rf"^{_UUID}(?P<before>.*?)(?:_(\d+)_(\d+)|\((\d+), ?(\d+)\)|(?<![A-Z0-9])x_?(\d+)[_,-]y_?(\d+))$", re.IGNORECASE
)
_NUMBER = re.compile(r"\d$")
_PATIENT_CHARS = 12


class TcgaReader(ImageFileReader):
    """A folder, zip or tar of tiles, at any depth."""

    def about(self, path: str) -> dict[str, Any]:
        """`slide`, `patient`, and `x`, `y` where the file's name ends in them."""
        barcode = self._barcode(path)
        if barcode is None:
            return {}
        known: dict[str, Any] = {"patient": barcode[:_PATIENT_CHARS]}
        if len(barcode) > _PATIENT_CHARS:
            known["slide"] = barcode
        return known | position(path)

    def problem(self, path: str) -> str | None:
        """No barcode, or those of two patients."""
        if self.source.fields(path).get("patient"):
            return None
        if self._barcode(path) is None:
            return "no TCGA barcode in its path"
        return "barcodes of two patients in its path" if len({b[:_PATIENT_CHARS] for b in barcodes(path)}) > 1 else None

    def _barcode(self, path: str) -> str | None:
        found = barcodes(path) or barcodes(as_text(self.source.path.name))
        return max(found, key=len) if found else None


@lru_cache(1024)
def barcodes(path: str) -> tuple[str, ...]:
    """The TCGA barcodes in a path, in capitals."""
    return tuple(found[0].upper() for found in _BARCODE.finditer(path))


def position(path: str) -> dict[str, int]:
    """x and y from the end of a tile's name; empty where it is not plain which numbers they are."""
    stem = path.rpartition("/")[2].rpartition(".")[0]
    ends = [found.end() for found in _BARCODE.finditer(stem)]
    found = _TAIL.match(stem[ends[-1] :] if ends else stem)
    if not found:
        return {}
    unnamed = found[2] is not None
    if unnamed and (_NUMBER.search(found["before"]) or not (ends or found["before"])):
        return {}
    x, y = (int(number) for number in found.groups()[1:] if number is not None)
    return {"x": x, "y": y}
