"""Which embeddings go together: those of one encoder, with as many features and tokens. No torch."""

from collections.abc import Mapping
from typing import Any

from hdtrain.errors import ManifestError
from hdtrain.formats.tokens import Tokens
from hdtrain.text import first_few


def check_same_encoder(
    what: str, found: Mapping[str, Any], whose: str, wanted: Mapping[str, Any], sampled: bool = False
) -> None:
    """Refuse embeddings that a model was not trained with.

    Args:
        what: has them, for the message.
        found: its `dim`, `tokens`, `encoder` and `encoder_hash`, as the manifest of embeddings says, and `token_order`
            if that is known.
        whose: wants others, for the message.
        wanted: the same of the model, as its manifest says.
        sampled: `found` come from a prior, not from images.

    Raises:
        ManifestError: says what differs.
    """
    if found["encoder_hash"] != wanted["encoder_hash"] or found["dim"] != wanted["dim"]:
        advice = "embed the images with the same encoder, weights and input size"
        raise ManifestError(
            f"{what} has embeddings of {name_of(found)}, and {whose} those of {name_of(wanted)}; "
            + ("train the prior on embeddings of that encoder" if sampled else advice)
        )
    ours, theirs = Tokens.of(found), Tokens.of(wanted)
    if not ours.fit(theirs):
        raise ManifestError(
            f"{what} has {ours} an image, and {whose} {theirs}; "
            + ("a prior samples one" if sampled else "embed the images with the same views, in the same order")
        )


def other_sizes(what: str, found: Mapping[str, Any], whose: str, wanted: Mapping[str, Any]) -> list[str]:
    """A warning where embeddings are of images of other sizes (`image_px`): an encoder sees other detail in these.

    Args:
        what: has the embeddings, for the message.
        found: what its manifest says of them.
        whose: has others, for the message.
        wanted: what its manifest says of those.
    """
    ours, theirs = found.get("image_px"), wanted.get("image_px")
    if not ours or not theirs or ours == theirs:
        return []
    size = theirs[0][0] if len(theirs) == 1 and len(set(theirs[0])) == 1 else None
    return [
        f"{what} has embeddings of images of {_pixels(ours)}, and {whose} those of {_pixels(theirs)}, so the encoder "
        f"saw other detail in them; embed both at one size{f', as with resolution={size}' if size else ''}"
    ]


def _pixels(sizes: list[list[int]]) -> str:
    return f"{first_few([f'{height}×{width}' for height, width in sizes])} px"


def name_of(info: Mapping[str, Any]) -> str:
    """An encoder in words, from what a manifest says of it."""
    return f"{info['encoder']['name']} ({info['dim']} features, {info['encoder_hash'][:12]})"
