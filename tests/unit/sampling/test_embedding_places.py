"""`embedding_places`: whether a denoiser knows which of several tokens is which, from training to images."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from embedding_helpers import write_embeddings
from tiny_chain import run_here
from torch.nn import functional

from hdtrain.config.load import validate
from hdtrain.config.training import TrainLdmConfig
from hdtrain.errors import ConfigError, ManifestError
from hdtrain.formats.manifest import publish, read_manifest
from hdtrain.models.denoiser import as_function, load_denoiser
from hdtrain.training.diffusion_space import embedding_of

TOKENS, DIM = 4, 6


@pytest.fixture(scope="module")
def embeddings(chain, tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("views") / "run", chain["labelled"], tokens=TOKENS)


def config(chain, embeddings, **changes):
    settings = {"latents": str(chain["labelled-latents"]), "preset": "tiny-cond", "embeddings": [str(embeddings)]}
    return chain.config("ldm", **settings, optim={"lr": 5e-3, "warmup_images": 0}, **changes)


@pytest.fixture(scope="module")
def trained(chain, embeddings, tmp_path_factory):
    """Told the places, and not."""
    root, runs = tmp_path_factory.mktemp("denoisers"), {}
    for told in (True, False):
        runs[told] = root / str(told)
        assert run_here("train-ldm", runs[told], config(chain, embeddings, embedding_places=told)) == 0
    return runs


def inputs():
    torch.manual_seed(0)
    return torch.randn(2, 3, 8, 8), torch.tensor([5, 800]), 7 * torch.randn(2, TOKENS, DIM)


@pytest.mark.parametrize("told", [True, False])
def test_tokens_in_another_order_are_another_condition_only_for_one_that_is_told(trained, told):
    denoiser, (z, t, tokens) = as_function(load_denoiser(trained[told])), inputs()
    with torch.no_grad():
        first, turned = denoiser(z, t, tokens), denoiser(z, t, tokens.flip(1))
    assert torch.allclose(first, turned, atol=1e-5) is not told
    assert read_manifest(trained[told]).info["embedding"].get("places", False) is told


def test_plain_diffusers_gives_the_same_prediction_for_one_hot_numbers_beside_the_embeddings(trained):
    plain = UNet2DConditionModel.from_pretrained(trained[True] / "model")
    denoiser, (z, t, tokens) = as_function(load_denoiser(trained[True])), inputs()
    numbered = torch.cat([functional.normalize(tokens, dim=-1), torch.eye(TOKENS).expand(2, -1, -1)], dim=-1)
    nothing = torch.zeros(2, TOKENS, DIM)
    with torch.no_grad():
        torch.testing.assert_close(denoiser(z, t, tokens), plain(z, t, numbered).sample)
        hidden = plain(z, t, torch.zeros(2, TOKENS, DIM + TOKENS)).sample
        torch.testing.assert_close(denoiser(z, t, nothing), hidden)


def test_images_are_made_of_it_as_of_any_other(chain, embeddings, trained, tmp_path):
    models = {"denoiser": str(trained[True]), "decoder": str(chain["vae"])}
    asked = {"embeddings": {"run": str(embeddings)}, "solver": {"steps": 2}, "classifier_free": 2.0}
    assert run_here("sample", tmp_path / "images", {**models, **asked}) == 0
    assert read_manifest(tmp_path / "images", ("images",)).num_samples == 20


def test_what_would_contradict_the_places_is_refused(chain, embeddings, trained, tmp_path):
    def complaint(run, **changes) -> str:
        with pytest.raises((ConfigError, ManifestError)) as caught:
            embedding_of(validate(TrainLdmConfig, config(chain, run, **changes), "test"), read_manifest)
        return str(caught.value)

    one = write_embeddings(tmp_path / "one", chain["labelled"])
    assert "embedding_places: tells several tokens apart, and" in complaint(one, embedding_places=True)
    parts = write_embeddings(tmp_path / "parts", chain["labelled"], tokens=TOKENS)
    manifest = read_manifest(parts)
    order = [f"grid-2[{row},{column}]" for row in (0, 1) for column in (0, 1)]
    publish(parts, manifest.model_copy(update={"info": {**manifest.info, "token_order": order}}))
    assert "holds mirrored images, whose parts lie elsewhere; encode with flips=false" in complaint(
        parts, embedding_places=True
    )
    start = str(trained[True])
    assert "is told which of its tokens is which; give embedding_places=true" in complaint(embeddings, start=start)
    start = str(trained[False])
    said = complaint(embeddings, start=start, embedding_places=True)
    assert "is not told which of its tokens is which; give embedding_places=false" in said
