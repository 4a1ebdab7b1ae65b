"""Do the runs that `evaluate-fidelity` compares belong together? From their manifests, before anything is read."""

import os
from collections.abc import Callable
from pathlib import Path

from hdtrain.config.fidelity import EvaluateFidelityConfig
from hdtrain.errors import ManifestError
from hdtrain.formats.embedding_grid import GridRun
from hdtrain.formats.embedding_space import check_same_encoder
from hdtrain.formats.manifest import Manifest
from hdtrain.text import first_few


def check(config: EvaluateFidelityConfig, manifest_of: Callable[[Path], Manifest]) -> None:
    """Refuse embeddings of other images than those that are looked at, or of another encoder than what was asked for;
    of more than the one painting.

    Raises:
        ManifestError: says which.
    """
    if config.painting is not None:
        names = GridRun(config.made, manifest_of(config.made)).names
        if len(names) > 1:
            raise ManifestError(
                f"made {config.made} has {len(names)} grids ({first_few(names)}), and the painting {config.painting} "
                "is one; cut the painting into its cells with `hdtrain shard`, embed these, and give that run as made"
            )
    if config.images is None or config.asked is None:
        return
    made, asked = manifest_of(config.made), manifest_of(config.asked)
    check_same_encoder(f"made {config.made}", made.info, f"what was asked for ({config.asked})", asked.info)
    sources = [entry for key, entry in made.parents.items() if key.startswith("images.")]
    if manifest_of(config.images).identity not in {entry.identity for entry in sources}:
        theirs = ", ".join(os.path.normpath(config.made / entry.path) for entry in sources) or "other images"
        raise ManifestError(
            f"made {config.made} was embedded from {theirs}, and not from {config.images} as it is now; run "
            f"`hdtrain embed 'images=[{config.images}]' …` with the encoder of {config.asked}, and give that as made"
        )
