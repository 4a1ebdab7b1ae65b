"""Images to be compared that are no published data set yet: what they are, how many, and packed into shards.

They are packed byte for byte, in the order of their names, duplicates included: the figures are of the images as they
were given. Equal images make equal shards, whether they came from a folder, a zip or a tar.
"""

from pathlib import Path
from typing import Literal

from hdtrain.config.shards import ShardConfig, SourceConfig
from hdtrain.distributed.shared_work import PublishedError, SharedRun
from hdtrain.errors import DataError, HdtrainError
from hdtrain.formats.run_dir import RunDir
from sharding.pack import pack
from sharding.readers import open_source, recognise
from sharding.readers.npz import images_of, list_arrays

NAME = "images"
"""Source and split of whatever is packed: the same images have the same keys, and the same shards."""
SAMPLES_PER_SHARD = 500


def kind_of(path: Path) -> Literal["raw", "moments"]:
    """What an unpublished path is: images, or an `.npz` with nothing but mean and covariance.

    Raises:
        DataError: an `.npz` with neither.
    """
    if path.suffix != ".npz" or not path.is_file():
        return "raw"
    members = list_arrays(path)
    if images_of(members) is not None or not {"mu", "sigma"} <= members.keys():
        return "raw"
    return "moments"


def shard_config(side: str, path: Path, layout: str, max_failed_share: float) -> ShardConfig:
    """How raw images are packed.

    Args:
        side: the key that names them, for messages.
        path: a folder, archive or file.
        layout: as in `SourceConfig`.
        max_failed_share: as there.

    Raises:
        DataError: slides, or a layout that is not plain.
    """
    try:
        found = recognise(path) if layout == "auto" else layout
    except DataError as error:
        raise DataError(_named(side, str(error))) from None
    if found == "slide":
        raise DataError(f"{side}: {path} holds slides; cut them into tiles first with `hdtrain shard`")
    return ShardConfig(
        sources=[SourceConfig.model_validate({"path": path, "layout": found, "name": NAME})],
        split=NAME,
        duplicates="keep",
        shuffle=False,
        samples_per_shard=SAMPLES_PER_SHARD,
        max_failed_share=max_failed_share,
    )


def listed_images(side: str, config: ShardConfig) -> tuple[int, list[str] | None]:
    """How many images are listed, undecoded, and the class folders.

    Raises:
        DataError: none, or what cannot be read.
    """
    try:
        reader = open_source(config.sources[0])
        return sum(unit.num_inputs for unit in reader.units()), reader.classes
    except DataError as error:
        raise DataError(_named(side, str(error))) from None


def pack_side(side: str, config: ShardConfig, run: RunDir, shared: SharedRun) -> None:
    """Return when raw images are packed in a run directory, whoever did it; then `sharding.pack.packed` tells of them.

    Raises:
        DataError, PublishedError: what `sharding.pack.pack` raises.
    """
    try:
        pack(config, run, shared)
    except PublishedError:
        raise
    except HdtrainError as error:
        raise DataError(_named(side, str(error))) from None


def _named(side: str, message: str) -> str:
    """Whose images it is about; the layout's key as it is called here."""
    if message.startswith(f"{side}: "):
        return message
    hint = f" (the key is {side}_layout)" if "say layout" in message or "set layout" in message else ""
    return f"{side}: {message}{hint}"
