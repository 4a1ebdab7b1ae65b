"""Publishing an autoencoder, wherever it comes from: trained, adapted or imported."""

from typing import Any

from hdtrain.models.autoencoder import Autoencoder, encoder_id
from hdtrain.stages.base import StageContext


def publish_autoencoder(vae: Autoencoder, context: StageContext, info: dict[str, Any]) -> None:
    """Write the diffusers folder, then the manifest; `encoder_id` names the latent space."""
    folder = context.run.model
    vae.float().register_to_config(scaling_factor=info["latent_scale"])
    vae.save_pretrained(folder, safe_serialization=True)
    info = {"encoder_id": encoder_id(vae), **info}
    context.publish(kind="autoencoder", files=sorted(folder.iterdir()), info=info)
    print(f"autoencoder: latent scale {info['latent_scale']:.4f}, encoder {info['encoder_id'][:12]}")
