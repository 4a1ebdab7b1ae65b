"""The shards of a sampling run, made by ranks of any number of jobs (`hdtrain.distributed.shared_work`)."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hdtrain.distributed.shared_work import SharedUnit, SharedWork
from hdtrain.distributed.world import World
from hdtrain.formats.claims import Claims
from hdtrain.formats.run_dir import RunDir
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
    run: RunDir
    world: World
    claims: Claims
    classes: list[str] | None
    common: dict[str, Any]
    _sheet_time: float = field(default=-SHEET_EVERY_SEC)

    def __post_init__(self) -> None:
        shared = [SharedUnit(unit.name, len(unit.indices)) for unit in self.units]
        self.work = SharedWork("sample", shared, self.run, self.world, self.claims)
        self._sheet = ContactSheet(self.run.contact_sheet, self.claims.token)

    def make_all(self) -> None:
        """As `SharedWork.make_all`."""
        self.work.make_all(self._make)

    def _make(self, number: int, _: None) -> None:
        unit = self.units[number]
        path = self.run.shards / unit.name
        write_unit(self.source, unit, path, self.classes, self.common, self._saw, self.work.writer)
        if self.world.is_main and time.monotonic() - self._sheet_time >= SHEET_EVERY_SEC:
            self._sheet_time = time.monotonic()
            self._sheet.write(self.classes)

    def _saw(self, indices: list[int], images: np.ndarray) -> None:
        if self.world.is_main:
            for index, image in zip(indices, images, strict=True):
                self._sheet.add(self.source.plan.label(index), image)
        self.work.saw(len(indices))
