"""Adapting the decoder to the labelled set: reconstruction + λ_CE · CE through φ (HistoDiffusion eq. 5–6)."""

import numpy as np
import torch
from torch import Tensor, nn

from hdtrain.config.adaptation import AdaptDecoderConfig
from hdtrain.config.batch import BatchPlan
from hdtrain.data.images import ImageBatch
from hdtrain.distributed.collectives import device
from hdtrain.distributed.seeds import Draws
from hdtrain.distributed.transfer import to_device
from hdtrain.features.perceptual import Perceptual
from hdtrain.models.autoencoder import Autoencoder, LatentCodec, to_uint8, to_unit_range
from hdtrain.models.classifier import Classifier
from hdtrain.training.augment import random_symmetry
from hdtrain.training.engine import Engine
from hdtrain.training.metrics import image_grid
from hdtrain.training.task import Task


class Decoder(nn.Module):
    """D with its post-quant convolution: what is fine-tuned while E stays."""

    def __init__(self, vae: Autoencoder):
        super().__init__()
        assert vae.post_quant_conv is not None
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, z: Tensor) -> Tensor:
        """Unscaled z, as `LatentCodec.decoder_input` gives it, to x̂."""
        decoded: Tensor = self.decoder(self.post_quant_conv(z))
        return decoded


class DecoderTask(Task):
    """E, ε_θ and φ are frozen; latent space and scale stay what they were."""

    def __init__(
        self,
        codec: LatentCodec,
        classifier: Classifier,
        perceptual: Perceptual | None,
        config: AdaptDecoderConfig,
        plan: BatchPlan,
        examples: ImageBatch,
    ):
        self.codec, self.classifier, self.config = codec, classifier.to(device()), config
        self.perceptual = perceptual.to(device()) if perceptual else None
        self.decoder = Decoder(codec.vae)
        self.decoder.requires_grad_(True)
        self.engine = Engine("decoder", self.decoder, config.optim, plan, config.engine)
        self.engines = {"decoder": self.engine}
        self.examples = to_unit_range(to_device(examples.images))

    def micro_step(self, batch: ImageBatch, draws: Draws, images_seen: int) -> dict[str, Tensor]:
        """One pass."""
        x = to_unit_range(to_device(batch.images))
        if self.config.reader.flips:
            x = random_symmetry(x, draws)
        with torch.no_grad():
            mean, std = self.codec.moments(x)
            z = self.codec.decoder_input(mean + std * draws.normal("posterior", tuple(mean.shape[1:])))
        decoded = self.engine(z).float()
        l1 = (x - decoded).abs().mean()
        loss, logs = l1, {"loss/l1": l1}
        if self.perceptual is not None:
            distance = self.perceptual(x, decoded)
            loss = loss + self.config.perceptual_weight * distance
            logs[f"loss/{self.perceptual.name}"] = distance
        if self.config.classifier_weight > 0:
            logits, labels = self.classifier(decoded), to_device(batch.labels)
            cross_entropy = torch.nn.functional.cross_entropy(logits, labels)
            loss = loss + self.config.classifier_weight * cross_entropy
            logs["loss/cross_entropy"] = cross_entropy
            logs["accuracy/reconstructions"] = (logits.argmax(1) == labels).float().mean()
        self.engine.backward(loss)
        return {"loss/total": loss, **logs}

    def adapt(self, vae: Autoencoder) -> None:
        """Give `vae`, a copy of what training began with, the decoder as it is now. A collective."""
        Decoder(vae).load_state_dict(self.engine.replica().state_dict())

    @torch.no_grad()
    def visualise(self) -> dict[str, np.ndarray]:
        """Fixed labelled images above their reconstructions."""
        reconstructed = self.engine.replica()(self.codec.decoder_input(self.codec.moments(self.examples)[0]))
        both = torch.cat([to_uint8(self.examples), to_uint8(reconstructed)]).cpu().numpy()
        return {"reconstructions": image_grid(both, columns=len(self.examples))}
