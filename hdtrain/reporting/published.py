"""The published table to stand beside ours. Its differences between arms can be compared with ours, its values cannot.

Source: Ye, Ni, Jin, Huang, Xue, "Synthetic Augmentation with Large-scale Unconditional Pre-training", MICCAI 2023,
Table 1, and Table 1 of its supplement (ablations).
"""

from dataclasses import dataclass

SOURCE = (
    "Ye, Ni, Jin, Huang, Xue: Synthetic Augmentation with Large-scale Unconditional Pre-training, MICCAI 2023, "
    "Table 1 and supplementary Table 1. Trained on 5 % of NCT-CRC-HE-100K, tested on CRC-VAL-HE-7K, ViT-B/16. "
    "Its FID protocol is not stated, and it gives no intervals."
)
BASELINE_ACCURACY = 0.855


@dataclass(frozen=True)
class PublishedRow:
    """One row as printed; shares in 0..1."""

    method: str
    arm: str
    fid: float | None
    accuracy: float
    f1: float
    sensitivity: float
    specificity: float

    @property
    def ablation(self) -> bool:
        """A part of the method left out."""
        return " without " in self.method

    @property
    def gain(self) -> float | None:
        """Accuracy over the published baseline; None for the baseline itself."""
        return None if self.fid is None else self.accuracy - BASELINE_ACCURACY


_HISTO = "HistoDiffusion"
_NO_TUNING = "HistoDiffusion without conditional fine-tuning"
_NO_PRETRAINING = "HistoDiffusion without pre-training"

PUBLISHED: list[PublishedRow] = [
    PublishedRow("Real images only", "5 % of the labels", None, 0.855, 0.850, 0.855, 0.983),
    PublishedRow("StyleGAN2", "+ random 50 %", 5.714, 0.860, 0.856, 0.860, 0.980),
    PublishedRow("StyleGAN2", "+ selective 50 %", 5.088, 0.868, 0.861, 0.867, 0.978),
    PublishedRow("StyleGAN2", "+ selective 100 %", 5.927, 0.879, 0.876, 0.879, 0.982),
    PublishedRow("StyleGAN2", "+ selective 200 %", 7.550, 0.895, 0.888, 0.895, 0.983),
    PublishedRow("StyleGAN2", "+ selective 300 %", 10.643, 0.898, 0.896, 0.898, 0.987),
    PublishedRow(_HISTO, "+ random 50 %", 4.921, 0.870, 0.869, 0.870, 0.982),
    PublishedRow(_HISTO, "+ selective 50 %", 4.544, 0.891, 0.888, 0.891, 0.983),
    PublishedRow(_HISTO, "+ selective 100 %", 3.874, 0.903, 0.902, 0.903, 0.991),
    PublishedRow(_HISTO, "+ selective 200 %", 4.583, 0.919, 0.916, 0.919, 0.992),
    PublishedRow(_HISTO, "+ selective 300 %", 8.326, 0.910, 0.912, 0.910, 0.988),
    PublishedRow(_NO_TUNING, "+ random 50 %", 18.254, 0.865, 0.867, 0.865, 0.986),
    PublishedRow(_NO_TUNING, "+ selective 50 %", 19.887, 0.875, 0.870, 0.875, 0.982),
    PublishedRow(_NO_TUNING, "+ selective 100 %", 18.418, 0.880, 0.879, 0.880, 0.985),
    PublishedRow(_NO_TUNING, "+ selective 200 %", 19.229, 0.897, 0.892, 0.897, 0.989),
    PublishedRow(_NO_TUNING, "+ selective 300 %", 21.682, 0.905, 0.908, 0.905, 0.988),
    PublishedRow(_NO_PRETRAINING, "+ random 50 %", 5.687, 0.870, 0.867, 0.870, 0.984),
    PublishedRow(_NO_PRETRAINING, "+ selective 50 %", 5.256, 0.884, 0.882, 0.884, 0.986),
    PublishedRow(_NO_PRETRAINING, "+ selective 100 %", 4.387, 0.890, 0.891, 0.890, 0.988),
    PublishedRow(_NO_PRETRAINING, "+ selective 200 %", 3.618, 0.895, 0.894, 0.895, 0.988),
    PublishedRow(_NO_PRETRAINING, "+ selective 300 %", 4.446, 0.892, 0.887, 0.892, 0.983),
]
