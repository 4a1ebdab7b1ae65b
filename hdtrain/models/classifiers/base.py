"""What every classifier offers."""

from jaxtyping import Float
from torch import Tensor, nn

from hdtrain.data.decode import Resize


class Classifier(nn.Module):
    """Logits, features before the last layer, and intermediate maps."""

    resize: Resize = "squash"
    """How its images are brought to `resolution`; restored from the manifest."""
    temperature: float = 1.0
    """What its logits are to be divided by, so that their softmax says how often it is right (Guo et al. 2017); 1 until
    it was calibrated on a validation set. Restored from the manifest; `forward` does not apply it."""

    def __init__(self, kind: str, classes: list[str], resolution: int):
        super().__init__()
        self.kind, self.classes, self.resolution = kind, classes, resolution

    def feature_maps(self, x: Tensor, t: Tensor | None = None) -> list[Tensor]:
        """Intermediate maps (n, c, h, w), fine to coarse."""
        raise NotImplementedError

    def features(self, x: Tensor, t: Tensor | None = None) -> Float[Tensor, "n d"]:
        """The vector that the last layer sees."""
        raise NotImplementedError
