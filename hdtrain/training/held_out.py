"""Whether a validation set is of other patients than what is trained on: read from the samples themselves."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hdtrain.config.training import ShardAccess
from hdtrain.data.pool import ShardPool
from hdtrain.errors import DataError, ManifestError
from hdtrain.formats.manifest import Manifest, read_manifest
from hdtrain.formats.shards import ShardReader
from hdtrain.text import first_few

Dataset = tuple[Path, Manifest]
FLIP = "-flip"
"""What `encode` adds to the key of a flipped image."""


def check_held_out(train: Sequence[Dataset], validation: Dataset, access: ShardAccess) -> None:
    """Compare keys and groups (patient, else slide) of images, or of the images that latents were made from.

    Where those images are gone their keys alone are compared, and that is said. Synthetic images are of no patient.

    Raises:
        DataError: a sample, patient or slide is in both.
    """
    held_out = _samples(validation, access)
    groups = set(held_out.values()) - {""}
    for dataset in train:
        if dataset[1].split == "synthetic":
            continue
        found = _samples(dataset, access)
        _refuse("samples", sorted(held_out.keys() & found.keys()), dataset[0], validation[0])
        _refuse("patients or slides", sorted(groups & set(found.values())), dataset[0], validation[0])


def _refuse(what: str, shared: list[str], train: Path, validation: Path) -> None:
    if shared:
        raise DataError(
            f"validation {validation}: {len(shared)} {what} are in the training set {train} too: {first_few(shared)}; "
            "weights chosen on what was trained on say nothing, so cut the split by patient (`splits` of "
            "`hdtrain shard`)"
        )


def _samples(dataset: Dataset, access: ShardAccess) -> dict[str, str]:
    """Key to group, empty where a sample tells none."""
    directory, manifest = dataset
    if manifest.kind == "images":
        return _of_images(dataset, access)
    keys = {key.removesuffix(FLIP) for opened in _opened(dataset, access) for key in opened.keys}
    groups: dict[str, str] = {}
    for images in _encoded_images(directory, manifest):
        groups |= _of_images(images, access)
    return {key: groups.get(key, "") for key in keys}


def _of_images(dataset: Dataset, access: ShardAccess) -> dict[str, str]:
    groups = {}
    for opened in _opened(dataset, access):
        for i, key in enumerate(opened.keys):
            meta = opened.reader.meta(i)
            groups[key] = str(meta.get("patient") or meta.get("slide") or "")
    return groups


def _opened(dataset: Dataset, access: ShardAccess) -> Iterator[Any]:
    pool = ShardPool([dataset], access, 1, ShardReader)
    for number in range(len(pool.places)):
        with pool.use(number) as opened:
            yield opened


def _encoded_images(directory: Path, manifest: Manifest) -> Iterator[Dataset]:
    """The image data sets that latents were made from."""
    for entry in manifest.parents.values():
        if entry.kind != "images":
            continue
        path = directory / entry.path
        try:
            images = read_manifest(path, ("images",))
        except ManifestError:
            images = None
        if images is None or images.identity != entry.identity:
            print(f"{directory}: its images {path} are gone, so patients could not be compared", file=sys.stderr)
            continue
        yield path, images
