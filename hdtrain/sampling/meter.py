"""Seconds and network evaluations of sampling, counted where they happen."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from hdtrain.sampling.generate import ImageGenerator

MEASURED = ("seconds", "images", "denoiser", "classifier")


@dataclass
class Meter:
    """What a generator's batches took, one row a batch: `seconds`, `images` that the networks saw (a batch that was
    filled up counts whole), `denoiser` and `classifier` evaluations of single images.

    Classifier-free guidance evaluates the denoiser twice an image and step, and so it is counted. An evaluation of the
    classifier is a forward pass and its gradient.
    """

    batch_size: int
    rows: list[tuple[float, int, int, int]] = field(default_factory=list)
    _calls: dict[str, int] = field(default_factory=lambda: {"denoiser": 0, "classifier": 0})
    _since: float = 0.0

    def batch_done(self) -> None:
        """The images of another batch are there, on the host."""
        now = time.perf_counter()
        self.rows.append((now - self._since, self.batch_size, self._calls["denoiser"], self._calls["classifier"]))
        self._begin(now)

    def arrays(self) -> dict[str, np.ndarray]:
        """By `MEASURED`, one element a batch."""
        columns = zip(*self.rows, strict=True)
        return {name: np.array(column, float) for name, column in zip(MEASURED, columns, strict=True)}

    def _begin(self, now: float) -> None:
        self._since, self._calls = now, dict.fromkeys(self._calls, 0)

    def _count(self, name: str, inputs: tuple[Any, ...]) -> None:
        self._calls[name] += len(inputs[0])


@contextmanager
def metered(source: ImageGenerator) -> Iterator[Meter]:
    """Count the evaluations of the generator's networks; the clock starts here."""
    meter = Meter(source.config.batch_size)
    networks: dict[str, nn.Module] = {"denoiser": source.denoiser}
    if source.classifier is not None:
        networks["classifier"] = source.classifier.classifier
    with ExitStack() as hooks:
        for name, network in networks.items():
            handle = network.register_forward_pre_hook(lambda _, inputs, name=name: meter._count(name, inputs))
            hooks.callback(handle.remove)
        meter._begin(time.perf_counter())
        yield meter


def evaluations_an_image(measured: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Evaluations of `denoiser` and `classifier` an image, from `Meter.arrays`."""
    images = measured["images"].sum()
    return {name: float(measured[name].sum() / images) for name in ("denoiser", "classifier")}


def images_per_sec(measured: Mapping[str, np.ndarray]) -> float:
    """Of one rank, by the median batch: a first one that warms up, or one that was disturbed, makes no difference."""
    return float(np.median(measured["images"] / measured["seconds"]))
