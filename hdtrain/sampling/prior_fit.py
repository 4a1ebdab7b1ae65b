"""Can a prior be asked for this? And what exactly is asked of it, grid by grid. No torch."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from hdtrain.config.prior import PriorConditions, SampleGridsConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.steps import check_steps
from hdtrain.errors import ConfigError, DataError, ManifestError
from hdtrain.formats.embedding_grid import UNKNOWN_PX, EmbeddingGrid
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.vectors import VectorTable, read_vectors
from hdtrain.sampling.fit import ManifestOf
from hdtrain.text import first_few


@dataclass(frozen=True)
class Wish:
    """What one grid is to be; None: hidden from the prior."""

    label: int | None = None
    text: Float32[np.ndarray, " k"] | None = None
    """As its tower gave it."""
    numeric: Float32[np.ndarray, " m"] | None = None
    """As it was measured."""
    key: str | None = None

    def name(self, number: int, classes: list[str] | None) -> str:
        """Of a grid, good for a file."""
        said = [classes[self.label]] if classes and self.label is not None else []
        said += [self.key] if self.key else []
        return "-".join([re.sub(r"[^\w.]+", "_", part) for part in [*said, "grid"]] + [f"{number:06d}"])


def check(config: SampleGridsConfig, manifest_of: ManifestOf) -> None:
    """Everything that can be known before the prior is loaded.

    Raises:
        ManifestError: the prior knows no such class, or was not trained with such a condition.
        ConfigError: the steps do not fit its schedule, or a key is not there.
        DataError: a file of vectors cannot be read.
    """
    manifest = manifest_of(config.prior)
    if config.every_class and not manifest.classes:
        raise ManifestError(
            f"{config.prior} was trained without classes, and every_class asks for all of them; "
            + _without("every_class")
        )
    check_asked(config, config.prior, manifest, config.guidance, config.steps)


def check_asked(conditions: PriorConditions, prior: Path, manifest: Manifest, guidance: float, steps: int) -> None:
    """Refuse what a prior cannot do; for `sample-grids` and `paint`. Errors as of `check`."""
    info = manifest.info
    schedule = NoiseScheduleConfig(**info["schedule"])
    check_steps("ddim", steps, schedule.num_train_timesteps, schedule.zero_terminal_snr)
    told = [info["class_conditional"], "text" in info, "numeric" in info]
    if guidance != 1 and any(told) and not info["dropout"]:
        raise ManifestError(
            f"guidance={guidance:g}: {prior} was trained with dropout=0 and cannot do without its conditions; give "
            "guidance=1, or train it with a dropout of 0.1"
        )
    if conditions.text is not None:
        _check_tower(conditions, prior, manifest)
    list(wishes_of(conditions, prior, manifest))


def size_asked(conditions: PriorConditions, manifest: Manifest) -> tuple[int, int]:
    """Rows and columns: those that are asked for, else those of the training."""
    return conditions.rows or manifest.info["rows"], conditions.columns or manifest.info["columns"]


def expected_grid(
    conditions: PriorConditions, prior: Path, manifest: Manifest, guidance: float, steps: int
) -> EmbeddingGrid:
    """A grid as `paint` would get it of a prior, but for its embeddings, which are zeros: to check sizes with.

    Raises:
        ConfigError: the files have several keys and none is named; else errors as of `check`.
    """
    check_asked(conditions, prior, manifest, guidance, steps)
    wishes = list(wishes_of(conditions, prior, manifest))
    if len(wishes) > 1:
        named = first_few([str(wish.key) for wish in wishes])
        raise ConfigError("prior", [f"key: the files have {len(wishes)} keys; name one of them: {named}"])
    size, embedding = size_asked(conditions, manifest), manifest.info["embedding"]
    unknown = np.broadcast_to(np.int64(UNKNOWN_PX), size)
    return EmbeddingGrid(
        wishes[0].name(0, manifest.classes),
        np.broadcast_to(np.float32(0), (*size, embedding["dim"])),  # no memory: the size may be absurd
        np.broadcast_to(np.True_, size),
        unknown,
        unknown,
        label=conditions.label,
        encoder_hash=embedding["encoder_hash"],
    )


def _without(key: str) -> str:
    """What to do about a condition that a prior was not trained with."""
    trained = {"text": "text", "text_vectors": "text", "numeric": "numeric"}.get(key, "class_conditional=true")
    return f"leave {key} out, or train a prior with {trained}"


def _check_tower(conditions: PriorConditions, prior: Path, manifest: Manifest) -> None:
    known = manifest.info.get("text")
    if known is None:
        raise ManifestError(
            f"{prior} was trained without texts, and text asks for '{conditions.text}'; {_without('text')}"
        )
    if known["tower"] is None:
        raise ManifestError(
            f"{prior} was trained on vectors of text, and nobody told it which tower made them; give "
            "text_vectors=FILE, or train it with text.tower.folder=FOLDER"
        )


def wishes_of(conditions: PriorConditions, prior: Path, manifest: Manifest) -> Iterator[Wish]:
    """One wish a key of the files, or one; a sentence is not yet a vector.

    Raises:
        ManifestError: no such class, or no such condition, or of another dimension.
        ConfigError: the key is not in the files.
        DataError: a file cannot be read.
    """
    label = _label(conditions.label, prior, manifest)
    text = _table("text", conditions.text_vectors, prior, manifest)
    numeric = _table("numeric", conditions.numeric, prior, manifest)
    tables = [table for table in (text, numeric) if table is not None]
    if not tables:
        if conditions.key is not None:
            raise ConfigError("prior", ["key: names a row of text_vectors or numeric; neither is given"])
        yield Wish(label)
        return
    keys = [key for key in tables[0].keys if all(key in table for table in tables)]
    if conditions.key is not None:
        if conditions.key not in keys:
            raise ConfigError("prior", [f"key: '{conditions.key}' is not in the files; they have {first_few(keys)}"])
        keys = [conditions.key]
    if not keys:
        raise DataError(f"{conditions.text_vectors} and {conditions.numeric} have no key in common")
    for key in keys:
        rows = [None if table is None else table.rows([key])[0][0] for table in (text, numeric)]
        yield Wish(label, rows[0], rows[1], key)


def _label(label: str | None, prior: Path, manifest: Manifest) -> int | None:
    if label is None:
        return None
    classes = manifest.classes
    if not classes:
        raise ManifestError(f"{prior} was trained without classes, and label asks for '{label}'; {_without('label')}")
    if label not in classes:
        raise ManifestError(f"{prior} knows no class '{label}'; it knows {', '.join(classes)}")
    return classes.index(label)


def _table(name: str, path: Path | None, prior: Path, manifest: Manifest) -> VectorTable | None:
    if path is None:
        return None
    known = manifest.info.get(name)
    if known is None:
        key = "text_vectors" if name == "text" else name
        raise ManifestError(f"{prior} was trained without {name}, and {path} tells some; {_without(key)}")
    table = read_vectors(path)
    if table.dim != known["dim"]:
        raise ManifestError(
            f"{path} has vectors of {table.dim} features, and {prior} was trained on {name} of {known['dim']}; make "
            "them as those of the training were made"
        )
    ours, theirs = table.names_hash, known.get("names_hash")
    if name == "numeric" and ours is not None and theirs is not None and ours != theirs:
        raise ManifestError(
            f"{path} has other columns than those that {prior} was trained on, or in another order; give the same"
        )
    return table
