"""The judge: a published classifier of images that says which class an image shows.

How often that is the class of the label is the label agreement of `evaluate`, `evaluate-images` and `sweep-guidance`.
"""

from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from hdtrain.errors import ManifestError
from hdtrain.evaluation.statistics import share_metric
from hdtrain.features.parts import Unit, classify_shard, shard_units
from hdtrain.formats.manifest import Manifest
from hdtrain.formats.results import Metric
from hdtrain.models.classifier import Classifier


def refuse_latents(path: Path, manifest: Manifest) -> None:
    """Refuse a judge that cannot look at images.

    Raises:
        ManifestError: it is a classifier of latents.
    """
    if manifest.info.get("kind") == "latent":
        raise ManifestError(
            f"judge {path} is a classifier of latents (ϕ); a judge looks at images: give one of kind image or timm"
        )


def judge_units(dataset: tuple[Path, Manifest], judge: Classifier, batch_size: int) -> list[Unit]:
    """One unit a shard: `keys`, `labels`, and `probabilities` float32 (n, 1, classes) as the judge has them.

    Named after the images' identity, so what stands for the same images is judged once.
    """
    classify = partial(classify_shard, classifiers=[judge], batch_size=batch_size)
    return shard_units(f"judge-{dataset[1].identity[:16]}", dataset, classify)


def agreement_metric(predicted: Int64[np.ndarray, " n"], labels: Int64[np.ndarray, " n"]) -> Metric:
    """Share of images (n ≥ 1) whose label is the judge's most probable class, with Wilson's 95 % interval."""
    return share_metric(predicted == labels, "judge's most probable class is the label")
