"""Which embeddings go together: those of one encoder, with as many features and tokens. No torch."""

from collections.abc import Mapping
from typing import Any

from hdtrain.errors import ManifestError


def check_same_encoder(
    what: str, found: Mapping[str, Any], whose: str, wanted: Mapping[str, Any], sampled: bool = False
) -> None:
    """Refuse embeddings that a model was not trained with.

    Args:
        what: has them, for the message.
        found: its `dim`, `tokens`, `encoder` and `encoder_hash`, as the manifest of embeddings says.
        whose: wants others, for the message.
        wanted: the same of the model, as its manifest says.
        sampled: `found` come from a prior, not from images.

    Raises:
        ManifestError: says what differs.
    """
    if found["encoder_hash"] != wanted["encoder_hash"] or found["dim"] != wanted["dim"]:
        advice = "embed the images with the same encoder, weights and input size"
        raise ManifestError(
            f"{what} has embeddings of {name_of(found)}, and {whose} was trained with those of {name_of(wanted)}; "
            + ("train the prior on embeddings of that encoder" if sampled else advice)
        )
    if found["tokens"] != wanted["tokens"]:
        raise ManifestError(
            f"{what} has {found['tokens']} tokens an image, and {whose} was trained with {wanted['tokens']}; "
            + ("a prior samples one" if sampled else "embed the images with the same views")
        )


def name_of(info: Mapping[str, Any]) -> str:
    """An encoder in words, from what a manifest says of it."""
    return f"{info['encoder']['name']} ({info['dim']} features, {info['encoder_hash'][:12]})"
