"""φ's opinion of a shard's candidates: confidence, and predictive entropy over Monte-Carlo dropout.

Gal & Ghahramani 2016: dropout stays on, and the class probabilities are the mean over M passes. Here dropout acts on
the pooled features alone, so M passes cost one pass of the trunk. Both figures are of the calibrated classifier: its
logits are divided by its temperature.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from hdtrain.config.synthesis import SelectConfig
from hdtrain.data.exactly_once import iterate_shard
from hdtrain.distributed.collectives import device
from hdtrain.distributed.seeds import derive_seed
from hdtrain.distributed.transfer import to_device
from hdtrain.errors import ManifestError
from hdtrain.features.parts import Arrays, classify_shard
from hdtrain.formats.shards import ShardReader
from hdtrain.models.autoencoder import to_unit_range
from hdtrain.models.classifier import Classifier, EncoderClassifier, load_classifier
from hdtrain.models.classifiers.encoder import dropout_mask

DECIMALS = 6
"""Below these, float32 figures depend on who shared their batch."""


def load_gate(config: SelectConfig, classes: list[str]) -> Classifier | None:
    """φ on this rank's device, or None.

    Raises:
        ManifestError: it takes latents, knows other classes, or was trained without the dropout that a gate needs.
    """
    if config.classifier is None:
        return None
    classifier = load_classifier(config.classifier)
    if classifier.kind == "latent" or classifier.classes != classes:
        raise ManifestError(
            f"{config.classifier}: gate A needs a classifier of images with the classes {', '.join(classes)}; "
            f"this one is of kind {classifier.kind} with {', '.join(classifier.classes)}"
        )
    if config.gates.entropy is not None and not (isinstance(classifier, EncoderClassifier) and classifier.dropout.p):
        raise ManifestError(
            f"{config.classifier}: gates.entropy asks φ several times under dropout, and this one (kind "
            f"{classifier.kind}) was trained without; train one of kind image with model.dropout=0.2 or so, "
            "or set gates.confidence instead of gates.entropy"
        )
    return classifier.to(device())


def judge_shard(reader: ShardReader, classifier: Classifier, config: SelectConfig) -> Arrays:
    """`confidence`, `predicted_class` and, where its gate is on, `entropy` of one shard's candidates.

    Raises:
        DataError: an image cannot be decoded.
    """
    if config.gates.entropy is None:
        found = classify_shard(reader, [classifier], config.batch_size)
        plain = mean = found["probabilities"][:, 0]
        labels = found["labels"]
    else:
        assert isinstance(classifier, EncoderClassifier), "load_gate refuses the others"
        plain, mean, labels = _under_dropout(reader, classifier, config)
    arrays = {
        "confidence": np.round(plain[np.arange(len(labels)), labels].astype(np.float64), DECIMALS),
        "predicted_class": mean.argmax(axis=1),
    }
    if config.gates.entropy is not None:
        arrays["entropy"] = np.round(entropy(mean), DECIMALS)
    return arrays


@torch.no_grad()
def _under_dropout(
    reader: ShardReader, classifier: EncoderClassifier, config: SelectConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities (n, classes) without dropout, their mean over the passes with it, and the labels."""
    plain, mean, labels = [], [], [np.empty(0, np.int64)]
    for batch in iterate_shard(reader, config.batch_size, classifier.resolution, classifier.resize):
        images = to_device(batch.images).to(next(classifier.parameters()).device)
        features = classifier.features(to_unit_range(images))
        uniform = torch.from_numpy(uniforms(config.seed, batch.keys, config.gates.mc_passes, features.shape[1]))
        masked = features[:, None] * dropout_mask(uniform, classifier.dropout.p).to(features)
        plain.append(_softmax(classifier, features))
        mean.append(_softmax(classifier, masked).mean(axis=1))
        labels.append(batch.labels)
    none = np.empty((0, len(classifier.classes)), np.float32)
    return np.concatenate([none, *plain]), np.concatenate([none, *mean]), np.concatenate(labels)


def _softmax(classifier: EncoderClassifier, features: Tensor) -> np.ndarray:
    logits = classifier.head(features).float() / classifier.temperature
    probabilities: np.ndarray = logits.softmax(-1).cpu().numpy()
    return probabilities


def uniforms(seed: int, keys: Sequence[str], passes: int, dim: int) -> Float32[np.ndarray, "n passes dim"]:
    """Numbers in [0, 1) by (seed, key, pass), never by rank or batch; more passes leave the first as they are."""
    drawn = np.empty((len(keys), passes, dim), np.float32)
    for row, key in enumerate(keys):
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        source = np.random.default_rng(derive_seed(seed, "monte-carlo dropout", number))
        drawn[row] = source.random((passes, dim), np.float32)
    return drawn


def entropy(probabilities: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """−Σ p·log p in nats: 0 where it is certain, log k where it knows nothing."""
    p = np.asarray(probabilities, np.float64)
    return -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1)
