"""More images of some classes, as a finished sampling run would have gone on: image i is a function of (seed, i)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hdtrain.config.base import references
from hdtrain.config.load import read_yaml, validate
from hdtrain.config.synthesis import SampleConfig
from hdtrain.distributed.shared_work import SharedRun, shard_unit
from hdtrain.errors import HdtrainError, ManifestError
from hdtrain.formats.manifest import Manifest, read_manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import open_shards
from hdtrain.sampling.generate import ImageGenerator
from hdtrain.sampling.open import open_generator, open_plan
from hdtrain.sampling.plan import Unit
from hdtrain.sampling.write import write_unit

OWN_KEYS = ("key", "index", "seed", "split", "label", "class_index")
"""What `write_unit` says of each image by itself."""


@dataclass(frozen=True)
class Continuation:
    """A published run of `sample` that can go on behind its last image."""

    directory: Path
    manifest: Manifest
    config: SampleConfig
    """Its own, the models where they lie now."""
    parents: dict[Path, Manifest]

    @classmethod
    def of(cls, directory: Path, manifest: Manifest) -> "Continuation":
        """Find the config and the models that made the images of `directory`; nothing is loaded yet.

        Raises:
            ManifestError: the images are not `sample`'s, or their config or models are gone or not the same any more.
        """
        advice = "mend that, or leave top_up out and let shortfall decide"
        if manifest.stage != "sample" or not manifest.classes:
            raise ManifestError(
                f"top_up: the images of {directory} were made by `hdtrain {manifest.stage}`, so there is no sampler "
                "that could go on; leave top_up out and let shortfall decide, or name a run of `hdtrain sample`"
            )
        source = RunDir(directory).config
        if not source.exists():
            raise ManifestError(f"top_up: {source} is gone, which says how the images were made; {advice}")
        try:
            config = validate(SampleConfig, read_yaml(source), str(source))
            parents, moved = {}, {}
            for reference in references(config):
                entry = manifest.parents[reference.dotted]
                path = (directory / entry.path).resolve()
                parents[path], moved[reference.dotted] = read_manifest(path, (entry.kind,)), path
                if parents[path].identity != entry.identity:
                    raise ManifestError(
                        f"{reference.dotted} {path} has changed since: it was {entry.identity[:12]} and is "
                        f"{parents[path].identity[:12]}"
                    )
        except (HdtrainError, KeyError) as error:
            raise ManifestError(
                f"top_up: what made the images of {directory} is not there: {error}; {advice}"
            ) from None
        config = config.model_copy(update=moved)
        if config.embeddings is not None:
            raise ManifestError(
                f"top_up: {directory} was made from embeddings, of which there are no more of a class; leave top_up out"
            )
        if config.images is not None:
            raise ManifestError(f"top_up: {directory} holds images {config.images} of its plan alone; {advice}")
        said = (open_plan(config, parents.__getitem__).num_images, config.seed)
        published = (manifest.num_samples, manifest.info["seed"])
        if said != published:
            raise ManifestError(
                f"top_up: {source} was edited: it says {said[0]} images of seed {said[1]}, and {published[0]} of seed "
                f"{published[1]} were published; {advice}"
            )
        return cls(directory, manifest, config, parents)

    @cached_property
    def source(self) -> ImageGenerator:
        """The models, loaded when they are first needed.

        Raises:
            ManifestError: they do not fit each other.
        """
        return open_generator(self.config, self.parents.__getitem__)

    @cached_property
    def _common(self) -> dict[str, Any]:
        """What the run's images say of how they were made."""
        meta = open_shards(self.directory, self.manifest)[0].meta(0)
        return {name: value for name, value in meta.items() if name not in OWN_KEYS}

    def units(self, number: int, made: Sequence[int], more: Sequence[int]) -> list[Unit]:
        """The shards of the next `more[k]` images of class k behind the first `made[k]`, each of one class.

        The images of class k are k, k + K, k + 2K, … of K classes.

        Args:
            number: of the first shard.
            made: images a class that there are.
            more: images a class that are wanted besides.
        """
        classes, units = len(made), list[Unit]()
        for label, (have, count) in enumerate(zip(made, more, strict=True)):
            for first in range(have, have + count, self.config.samples_per_shard):
                last = min(first + self.config.samples_per_shard, have + count) - 1
                indices = range(first * classes + label, last * classes + label + 1, classes)
                units.append(Unit(number + len(units), indices))
        return units

    def maker(self, shards: Path, shared: SharedRun) -> Callable[[int, Sequence[int], Sequence[int]], list[Path]]:
        """What writes the shards of `units` below `shards`; those that are there are kept.

        It says what it makes, and returns in every process when all of it is there.
        """

        def make(number: int, made: Sequence[int], more: Sequence[int]) -> list[Path]:
            units, classes = self.units(number, made, more), self.manifest.classes or []
            if shared.world.is_main:
                wanted = [f"{count} of {name}" for name, count in zip(classes, more, strict=True) if count]
                print(f"too few pass the gates: sampling {', '.join(wanted)} besides")

            def write(number: int, _: None) -> None:
                unit = units[number]
                path = shards / unit.name
                write_unit(
                    self.source,
                    unit,
                    path,
                    classes,
                    self._common,
                    lambda made, _: shared.saw(len(made)),
                    shared.writer,
                )

            every = [shard_unit(shards / unit.name, len(unit.indices)) for unit in units]
            shared.make_all("select: topping up", every, write)
            return [shards / unit.name for unit in units]

        return make
