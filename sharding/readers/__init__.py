"""One file a layout. `open_source` finds the right one."""

from itertools import islice

from hdtrain.config.shards import Layout, SourceConfig
from hdtrain.errors import DataError
from sharding.images import Alpha
from sharding.readers.base import Reader, Source
from sharding.readers.class_folders import ClassFolderReader
from sharding.readers.flat import FlatReader
from sharding.readers.hdf5 import Hdf5Reader
from sharding.readers.look import recognise
from sharding.readers.npz import NpzReader
from sharding.readers.pannuke import NpyReader
from sharding.readers.parquet import ParquetReader
from sharding.readers.slide import SlideReader
from sharding.readers.tcga import TcgaReader
from sharding.readers.webdataset import WebDatasetReader

__all__ = ["Reader", "open_source", "recognise"]

_READERS: dict[Layout, type[Reader]] = {
    "class-folders": ClassFolderReader,
    "flat": FlatReader,
    "hdf5": Hdf5Reader,
    "npz": NpzReader,
    "pannuke": NpyReader,
    "parquet": ParquetReader,
    "slide": SlideReader,
    "tcga": TcgaReader,
    "webdataset": WebDatasetReader,
}
PATTERN_NAMES, PATTERN_UNITS = 1000, 100
"""How far a pattern is tried before it is refused."""


def open_source(config: SourceConfig, alpha: Alpha = "white") -> Reader:
    """Open a source; nothing is decoded, and with a named layout next to nothing is read.

    Raises:
        DataError: missing path, a bad pattern, or (`auto`) a layout that is not plain; `units` of the reader raises for
            what cannot be read as its layout.
    """
    source = Source(config, alpha)
    try:
        config.path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{config.path}: no such file or folder (source '{config.name or config.path.name}')") from None
    except OSError as error:
        raise DataError(f"{config.path}: unreadable: {error.strerror} (source '{source.name}')") from None
    reader = _READERS[recognise(config.path) if config.layout == "auto" else config.layout](source)
    _check_keys(reader)
    if source.pattern:
        _check_pattern(reader)
    return reader


def _check_keys(reader: Reader) -> None:
    """Raise DataError for keys that this layout has no use for: whoever set them expects something of them."""
    config = reader.source.config
    where = f"source '{reader.source.name}'"
    if config.target_mpp is not None and not isinstance(reader, SlideReader):
        raise DataError(f"{where}: target_mpp resamples slides, but {config.path} is not read as slides; leave it out")
    given = [name for name, value in config.columns if value is not None]
    if given and not isinstance(reader, Hdf5Reader | NpyReader | NpzReader | ParquetReader | WebDatasetReader):
        raise DataError(f"{where}: columns.{given[0]} means nothing to folders of images and slides; leave it out")


def _check_pattern(reader: Reader) -> None:
    """Raise DataError where the pattern finds nothing in the first names; as a rule the first one settles it."""
    source, names = reader.source, set[str]()
    for unit in islice(reader.units(), PATTERN_UNITS):
        for item in islice(reader.read(unit), PATTERN_NAMES - len(names)):
            if source.fields(item.path):
                return
            names.add(item.path)
    if names:
        which = f"none of the first {len(names):,} file names" if len(names) == PATTERN_NAMES else "no file name"
        raise DataError(f"source '{source.name}': pattern '{source.config.pattern}' matches {which} in {source.path}")
