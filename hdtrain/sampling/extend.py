"""More images of a run that is done: what it made already is linked, not made again."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hdtrain.config.load import read_yaml, validate
from hdtrain.config.synthesis import SampleConfig
from hdtrain.errors import HdtrainError
from hdtrain.formats.atomic import link_or_copy
from hdtrain.formats.manifest import Manifest, read_manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import is_complete, sidecar_path
from hdtrain.sampling.fit import ManifestOf
from hdtrain.sampling.open import open_plan
from hdtrain.sampling.plan import Unit

AMOUNTS = ("per_class", "images", "samples_per_shard")
"""Keys that say how many images there are and how they are packed, but not what they look like."""


def take_over(
    config: SampleConfig, run: RunDir, parents: Mapping[str, tuple[Path, Manifest]], units: Sequence[Unit]
) -> None:
    """Link the shards of a published run that was moved aside and that differs in the number of images alone.

    A shard is taken where it holds the very images that this run's shard is to hold. Files are linked, where the file
    system can, and stay where they are.
    """
    for earlier in sorted(run.path.parent.glob(f"{run.path.name}.previous-*")):
        known = _units(config, RunDir(earlier), parents)
        for unit in units:
            source, target = RunDir(earlier).shards / unit.name, run.shards / unit.name
            if known.get(unit.number) == list(unit.indices) and is_complete(source) and not is_complete(target):
                for path in (source, sidecar_path(source)):  # what says that a shard is whole comes last
                    link_or_copy(path, target.parent / path.name)


def _units(config: SampleConfig, run: RunDir, parents: Mapping[str, tuple[Path, Manifest]]) -> dict[int, list[int]]:
    """Indices of the images of each shard of a run, if the same models made its images in the same way."""
    try:
        manifest = read_manifest(run.path, ("images",))
        theirs = validate(SampleConfig, read_yaml(run.config), str(run.config))
        same = {name: getattr(config, name) for name in AMOUNTS}
        identities = {name: parent.identity for name, (_, parent) in parents.items()}
        if theirs.model_copy(update=same) != config or identities != {
            name: parent.identity for name, parent in manifest.parents.items()
        }:
            return {}
        manifests = dict(parents.values())
        manifest_of: ManifestOf = manifests.__getitem__
        return {unit.number: list(unit.indices) for unit in open_plan(theirs, manifest_of).units()}
    except HdtrainError:
        return {}
