"""The plan of a sampling run: image index → class, and runs of images = output shards. No rank in it anywhere.

The j-th image of class k is image j·K + k of K classes: so more images of any class only extend a run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hdtrain.errors import ConfigError

Ranges = Sequence[range]


@dataclass(frozen=True)
class Unit:
    """One unit of work: the images that make the output shard `number`."""

    number: int
    indices: Sequence[int]

    @property
    def name(self) -> str:
        """File name of the shard."""
        return f"synthetic-{self.number:06d}.tar"


def counts_of(per_class: int | Mapping[str, int], classes: Sequence[str] | None) -> list[int]:
    """Images of each class, in the order of the classes; without classes, of the only kind there is.

    Raises:
        ConfigError: `per_class` names a class that the models do not know, or classes where there are none.
    """
    if isinstance(per_class, int):
        return [per_class] * len(classes or [None])
    if not classes:
        raise ConfigError("per_class", ["per_class: names classes, and the models know none; give a number"])
    unknown = [name for name in per_class if name not in classes]
    if unknown:
        raise ConfigError(
            "per_class", [f"per_class: the models do not know {', '.join(unknown)}; they know {', '.join(classes)}"]
        )
    return [per_class.get(name, 0) for name in classes]


@dataclass(frozen=True)
class SamplePlan:
    """`counts[k]` images of class k; classes in turn, a class that has had its count passed over."""

    counts: Sequence[int]
    samples_per_shard: int
    only: Ranges | None = None
    """Of the images of the plan those in these ranges; None: all."""

    @property
    def num_classes(self) -> int:
        """K; 1 where there are no classes."""
        return len(self.counts)

    @cached_property
    def indices(self) -> Sequence[int]:
        """Every image of the run, ascending."""
        last, classes = max(self.counts, default=0), self.num_classes
        everything = range(last * classes)
        if self.only is None and all(count == last for count in self.counts):
            return everything
        wanted = everything if self.only is None else sorted({i for part in self.only for i in part})
        return [i for i in wanted if i // classes < self.counts[i % classes]]

    @property
    def num_images(self) -> int:
        """Images in all."""
        return len(self.indices)

    @property
    def class_counts(self) -> list[int]:
        """Images of each class that the run makes."""
        if self.only is None:
            return list(self.counts)
        counts = [0] * self.num_classes
        for index in self.indices:
            counts[self.label(index)] += 1
        return counts

    def label(self, index: int) -> int:
        """The class of image `index`."""
        return index % self.num_classes

    @property
    def num_units(self) -> int:
        """Units in all."""
        return -(-self.num_images // self.samples_per_shard)

    def units(self) -> list[Unit]:
        """Every unit, in order."""
        size = self.samples_per_shard
        starts = range(0, self.num_images, size)
        return [Unit(number, self.indices[start : start + size]) for number, start in enumerate(starts)]
