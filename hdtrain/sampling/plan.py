"""The plan of a sampling run: image index → class, and index ranges = output shards. No rank in it anywhere."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """One unit of work: the images `start` … `stop − 1`, or every `step`-th of them, make the output shard `number`."""

    number: int
    start: int
    stop: int
    step: int = 1

    @property
    def indices(self) -> range:
        """Its images."""
        return range(self.start, self.stop, self.step)

    @property
    def name(self) -> str:
        """File name of the shard."""
        return f"synthetic-{self.number:06d}.tar"


@dataclass(frozen=True)
class SamplePlan:
    """`per_class` images of each class, classes in turn, so that more images a class only extend the run."""

    per_class: int
    num_classes: int
    samples_per_shard: int

    @property
    def num_images(self) -> int:
        """Images in all."""
        return self.per_class * self.num_classes

    def label(self, index: int) -> int:
        """The class of image `index`."""
        return index % self.num_classes

    def units(self) -> list[Unit]:
        """Every unit, in order."""
        starts = range(0, self.num_images, self.samples_per_shard)
        return [
            Unit(number, start, min(start + self.samples_per_shard, self.num_images))
            for number, start in enumerate(starts)
        ]
