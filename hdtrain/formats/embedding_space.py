"""Which embeddings go together: those of one encoder, with as many features and tokens. No torch."""

from collections.abc import Mapping
from typing import Any

from hdtrain.errors import ManifestError
from hdtrain.formats.tokens import Tokens


def check_same_encoder(what: str, found: Mapping[str, Any], whose: str, wanted: Mapping[str, Any]) -> None:
    """Refuse embeddings that a model was not trained with.

    Args:
        what: has them, for the message.
        found: its `dim`, `tokens`, `encoder` and `encoder_hash`, as the manifest of embeddings says, and `token_order`
            if that is known.
        whose: wants others, for the message.
        wanted: the same of the model, as its manifest says.

    Raises:
        ManifestError: says what differs.
    """
    if found["encoder_hash"] != wanted["encoder_hash"] or found["dim"] != wanted["dim"]:
        raise ManifestError(
            f"{what} has embeddings of {name_of(found)}, and {whose} was trained with those of {name_of(wanted)}; "
            "embed the images with the same encoder, weights and input size"
        )
    ours, theirs = Tokens.of(found), Tokens.of(wanted)
    if not ours.fit(theirs):
        raise ManifestError(
            f"{what} has {ours} an image, and {whose} was trained with {theirs}; embed the images with the same views, "
            "in the same order"
        )


def name_of(info: Mapping[str, Any]) -> str:
    """An encoder in words, from what a manifest says of it."""
    return f"{info['encoder']['name']} ({info['dim']} features, {info['encoder_hash'][:12]})"
