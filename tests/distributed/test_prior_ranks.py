"""The prior and its grids do not depend on the number of ranks."""

import json

import pytest
from prior_helpers import DIM, prior_config, publish_slides, toy_grids
from safetensors.numpy import load_file
from tiny_painting import publish_autoencoder, publish_denoiser, tiny_unet

from hdtrain.formats.manifest import read_manifest


@pytest.fixture(scope="module")
def trained(ranks, tmp_path_factory):
    """By number of ranks."""
    root = tmp_path_factory.mktemp("prior")
    config = prior_config(publish_slides(root / "slides", toy_grids(4, hole=True)), 6 * 8)
    return {size: ranks.run("train-prior", root / str(size), config, size) for size in (1, 2)}


def test_two_ranks_train_the_same_prior_as_one(trained):
    one, two = ((trained[size] / "model") for size in (1, 2))
    assert (one / "standard.safetensors").read_bytes() == (two / "standard.safetensors").read_bytes()
    ours, theirs = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (one, two))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert theirs[name] == pytest.approx(value, abs=2e-4), name
    losses = [
        [json.loads(line)["loss/diffusion"] for line in (trained[size] / "metrics.jsonl").read_text().splitlines()]
        for size in (1, 2)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_any_number_of_ranks_samples_the_same_bytes(trained, ranks, tmp_path):
    config = {"prior": str(trained[1]), "every_class": True, "count": 3, "steps": 20, "batch_size": 2}
    one, two = (ranks.run("sample-grids", tmp_path / str(size), config, size) for size in (1, 2))
    names = sorted(read_manifest(one).files)
    assert len(names) == 6
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    assert read_manifest(one).identity == read_manifest(two).identity


def test_any_number_of_ranks_makes_the_same_images_of_sampled_grids(trained, ranks, tmp_path):
    prior = {"prior": str(trained[1]), "every_class": True, "count": 2, "rows": 1, "columns": 2, "steps": 4}
    grids = ranks.run("sample-grids", tmp_path / "grids", prior)
    vae, embedding = publish_autoencoder(tmp_path / "vae"), read_manifest(trained[1]).info["embedding"]
    looks_at = {"dim": DIM, "tokens": 1, "dropout": 0.1, **{k: embedding[k] for k in ("encoder", "encoder_hash")}}
    denoiser = publish_denoiser(tmp_path / "denoiser", vae, tiny_unet(dim=DIM), embedding=looks_at)
    config = {"denoiser": str(denoiser), "decoder": str(vae), "embeddings": {"run": str(grids)}, "solver": {"steps": 4}}
    config |= {"samples_per_shard": 3, "batch_size": 2}
    one, two = (read_manifest(ranks.run("sample", tmp_path / str(size), config, size)) for size in (1, 2))
    assert one.num_samples == 8
    assert one.info["class_counts"] == {"flat": 4, "stripes": 4}
    assert one.shards == two.shards
