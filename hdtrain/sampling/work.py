"""The shards of a sampling run, made by ranks of any number of jobs (`hdtrain.distributed.shared_work`)."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hdtrain.distributed.shared_work import SharedRun, shard_unit
from hdtrain.sampling.generate import ImageGenerator
from hdtrain.sampling.plan import Unit
from hdtrain.sampling.sheet import ContactSheet
from hdtrain.sampling.write import write_unit

SHEET_EVERY_SEC = 60.0


@dataclass
class Worker:
    """This rank at work on a run."""

    source: ImageGenerator
    units: list[Unit]
    shared: SharedRun
    classes: list[str] | None
    common: dict[str, Any]
    _sheet_time: float = field(default=-SHEET_EVERY_SEC)

    def __post_init__(self) -> None:
        self._sheet = ContactSheet(self.shared.run.contact_sheet, self.shared.writer)

    def make_all(self) -> None:
        """As `SharedRun.make_all`."""
        shards = self.shared.run.shards
        units = [shard_unit(shards / unit.name, len(unit.indices)) for unit in self.units]
        self.shared.make_all("sample", units, self._make)

    def _make(self, number: int, _: None) -> None:
        unit = self.units[number]
        run = self.shared.run
        run.work.mkdir(exist_ok=True)
        path, begun = run.shards / unit.name, run.work / unit.name
        write_unit(self.source, unit, path, self.classes, self.common, self._saw, self.shared.writer, begun)
        if self.shared.world.is_main and time.monotonic() - self._sheet_time >= SHEET_EVERY_SEC:
            self._sheet_time = time.monotonic()
            self._sheet.write(self.classes)

    def _saw(self, indices: list[int], images: np.ndarray) -> None:
        if not len(images):
            self.shared.found(len(indices))
            return
        if self.shared.world.is_main:
            for index, image in zip(indices, images, strict=True):
                self._sheet.add(self.source.label(index) or 0, image)
        self.shared.saw(len(indices))
