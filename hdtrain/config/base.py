"""The base of every config model, and the annotations that mark references to artefacts and files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, model_validator


class Config(BaseModel):
    """Frozen, no unknown keys, defaults validated too.

    A block that is given in part keeps what its stage set for the rest: `optim.lr` alone leaves `optim.betas` alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, defer_build=True)

    @property
    def data_sets(self) -> list[str]:
        """Folders of the run directory in which the stage publishes image data sets; none: in the directory itself."""
        return []

    @property
    def publishes(self) -> str | None:
        """Kind of the manifest, where the config decides; None: what the table of stages says."""
        return None

    @model_validator(mode="before")
    @classmethod
    def _complete_blocks(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        completed = dict(data)
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Config) and isinstance(data.get(name), dict):
                completed[name] = {**field.default.model_dump(exclude_unset=True), **data[name]}
        return completed


@dataclass(frozen=True)
class Kinds:
    """Marks a path field as the run directory of a published parent, of one of these manifest kinds."""

    kinds: tuple[str, ...]


@dataclass(frozen=True)
class InputFile:
    """Marks a path field as a file whose content (not its place) belongs to the stage's fingerprint."""


@dataclass(frozen=True)
class InputTree:
    """Marks a path field as raw data whose names and sizes (not their place) belong to the stage's fingerprint."""

    content: bool = False
    """The files' content counts, not only names and sizes: weights of one architecture all have the same size."""


@dataclass(frozen=True)
class PublishedOrRaw:
    """Marks a path field that may be a published parent, or raw data: what lies there says which."""

    kinds: tuple[str, ...]
    arrays: tuple[str, ...] = (".npz", ".npy")
    """Suffixes of files whose content counts: arrays of one shape all have the same size."""
    content: bool = False
    """The content of folders and other files counts too."""

    def at(self, path: Path) -> "Kinds | InputFile | InputTree":
        """What the path is."""
        if any((path / name).exists() for name in ("manifest.json", "run.json")):
            return Kinds(self.kinds)
        return InputFile() if path.suffix in self.arrays else InputTree(self.content)


@dataclass(frozen=True)
class Incidental:
    """Marks a field that cannot change the stage's result, only how it is come by: no part of the fingerprint."""


ImagesParent = Annotated[Path, Kinds(("images",))]
LatentsParent = Annotated[Path, Kinds(("latents",))]
EmbeddingsParent = Annotated[Path, Kinds(("embeddings",))]
EmbeddingsOrGridsParent = Annotated[Path, Kinds(("embeddings", "grids"))]
AutoencoderParent = Annotated[Path, Kinds(("autoencoder",))]
DenoiserParent = Annotated[Path, Kinds(("denoiser",))]
ClassifierParent = Annotated[Path, Kinds(("classifier",))]
SelectionParent = Annotated[Path, Kinds(("selection",))]
SweepParent = Annotated[Path, Kinds(("sweep",))]
SolverSweepParent = Annotated[Path, Kinds(("solver-sweep",))]
EvaluationParent = Annotated[Path, Kinds(("evaluation",))]
WeightsFile = Annotated[Path, InputFile()]
RawData = Annotated[Path, InputTree()]
ForeignModel = Annotated[Path, InputTree(content=True)]


@dataclass(frozen=True)
class Reference:
    """One reference found in a config: where it stands (dotted), where it points, how it is marked."""

    dotted: str
    path: Path
    marker: Kinds | InputFile | InputTree


def references(config: BaseModel) -> Iterator[Reference]:
    """Every parent and input file that `config` names, depth first, in the order of the schema."""
    for name, field in type(config).model_fields.items():
        yield from _walk(getattr(config, name), name, list(field.metadata), field.annotation)


def _walk(value: Any, dotted: str, metadata: list[Any], annotation: Any) -> Iterator[Reference]:
    known = Kinds | InputFile | InputTree | PublishedOrRaw
    markers = [marker for marker in [*metadata, *_markers(annotation)] if isinstance(marker, known)]
    if isinstance(value, BaseModel):
        for child in references(value):
            yield Reference(f"{dotted}.{child.dotted}", child.path, child.marker)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, f"{dotted}.{key}", markers, None)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _walk(item, f"{dotted}.{index}", markers, None)
    elif isinstance(value, Path) and markers:
        yield Reference(dotted, value, markers[0].at(value) if isinstance(markers[0], PublishedOrRaw) else markers[0])


def incidental(value: Any) -> dict[Any, Any]:
    """Where `value` has incidental fields, as pydantic's `exclude` wants it."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        marked = dict.fromkeys((name for name, field in fields.items() if Incidental() in field.metadata), True)
        inner = {name: incidental(getattr(value, name)) for name in fields if name not in marked}
        return marked | {name: found for name, found in inner.items() if found}
    if isinstance(value, dict):
        return {key: found for key, item in value.items() if (found := incidental(item))}
    if isinstance(value, list | tuple):
        return {index: found for index, item in enumerate(value) if (found := incidental(item))}
    return {}


def _markers(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for argument in getattr(annotation, "__args__", ()):
        yield from _markers(argument)
