"""Diffusion conditioned on embeddings, from training to images: `train-ldm`, `sample`."""

import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from embedding_helpers import write_embeddings
from PIL import Image
from safetensors.torch import load_file
from tiny_chain import run_here

from hdtrain.config.load import validate
from hdtrain.config.synthesis import SampleConfig
from hdtrain.data.latents import TrainingLatents
from hdtrain.data.records_by_key import RecordsByKey
from hdtrain.errors import CheckpointError, ConfigError, DataError, ManifestError
from hdtrain.formats.manifest import Manifest, read_manifest
from hdtrain.formats.shards import open_shards
from hdtrain.models.autoencoder import load_autoencoder, to_uint8
from hdtrain.models.denoiser import as_function, build_denoiser, load_denoiser
from hdtrain.models.start import start_from
from hdtrain.sampling.fit import check, doubts_of_choices
from hdtrain.stages.preview_sample import preview

SOLVER = {"kind": "ddim", "steps": 4}


@pytest.fixture(scope="module")
def embeddings(chain, tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("embeddings") / "run", chain["labelled"])


def conditioned(chain, folder, embeddings, **changes):
    settings = {"latents": str(chain["labelled-latents"]), "preset": "tiny-cond", "embeddings": [str(embeddings)]}
    optim = {"lr": 5e-3, "warmup_images": 0, "weight_decay": 0.0}
    return chain.make("ldm", folder, **{**settings, "optim": optim, "ema": {"decay": 0.5}, **changes})


@pytest.fixture(scope="module")
def denoiser(chain, embeddings, tmp_path_factory):
    return conditioned(chain, tmp_path_factory.mktemp("conditioned") / "ldm", embeddings)


def sample_config(chain, denoiser, run, **changes):
    config = {"denoiser": str(denoiser), "decoder": str(chain["vae"]), "solver": SOLVER, "batch_size": 4}
    block = {"run": str(run), **changes.pop("embeddings", {})}
    return {**config, "embeddings": block, **changes}


def sampled(chain, folder, denoiser, run, **changes):
    assert run_here("sample", folder, sample_config(chain, denoiser, run, **changes)) == 0
    return folder


def images(run) -> dict[int, tuple[dict, np.ndarray]]:
    """Index to metadata and pixels."""
    found = {}
    for shard in open_shards(run, read_manifest(run)):
        for i in range(shard.sidecar.samples):
            meta = shard.meta(i)
            found[meta["index"]] = meta, np.asarray(Image.open(io.BytesIO(shard.image(i))), np.int16)
    return found


def listed(run) -> tuple[list[str], list[int]]:
    return RecordsByKey([(run, read_manifest(run))], "embedding").listing()


def test_every_sample_meets_its_own_embedding_and_a_mirrored_one_that_of_its_image(chain, embeddings):
    by_key = RecordsByKey([(embeddings, read_manifest(embeddings))], "embedding", capacity=1)
    found = [(chain["labelled-latents"], read_manifest(chain["labelled-latents"]))]
    batch = TrainingLatents(found, 0, embeddings=by_key).batch(range(40))
    keys, labels = by_key.listing()
    assert {key.removesuffix("-flip") for key in batch.keys} == set(keys)
    assert len(batch.keys) == 2 * len(keys)
    assert batch.tokens is not None
    for key, label, tokens in zip(batch.keys, batch.labels, batch.tokens, strict=True):
        assert tokens[0, :2].argmax() == label == labels[keys.index(key.removesuffix("-flip"))]
        assert np.array_equal(tokens, by_key([key.removesuffix("-flip")])[0])


def test_an_image_without_embedding_is_named_and_so_is_one_with_two(chain, embeddings):
    by_key = RecordsByKey([(embeddings, read_manifest(embeddings))], "embedding")
    with pytest.raises(DataError, match=r"nothing of 2 images \(there-is-none, nor-here\)"):
        by_key([listed(embeddings)[0][0], "there-is-none", "nor-here"])
    with pytest.raises(DataError, match=r"two records of .*; name each data set once"):
        RecordsByKey([(embeddings, read_manifest(embeddings))] * 2, "embedding")


def test_plain_diffusers_gives_the_same_prediction_for_the_embedding_at_length_1(denoiser):
    ours = as_function(load_denoiser(denoiser))
    plain = UNet2DConditionModel.from_pretrained(denoiser / "model")
    z, t, e = torch.randn(2, 3, 8, 8), torch.tensor([5, 800]), 7 * torch.randn(2, 1, 6)
    with torch.no_grad():
        expected = plain(z, t, e / e.norm(dim=-1, keepdim=True)).sample
        torch.testing.assert_close(ours(z, t, e), expected)
        torch.testing.assert_close(ours(z, t, 3 * e), expected)
        assert not torch.allclose(ours(z, t, torch.zeros_like(e)), expected, atol=1e-4)


def test_the_manifest_says_what_the_denoiser_looks_at(denoiser, embeddings):
    info = read_manifest(denoiser).info["embedding"]
    theirs = read_manifest(embeddings).info
    said = ("dim", "tokens", "token_order", "encoder", "encoder_hash")
    assert info == {**{key: theirs[key] for key in said}, "dropout": 0.1}


def test_an_embedding_is_hidden_as_often_as_asked(chain, embeddings, tmp_path):
    """The projection's matrix moves only where an embedding was seen."""

    def projection(dropout: float, lr: float) -> torch.Tensor:
        changes = {"optim": {"lr": lr, "weight_decay": 0.0, "warmup_images": 0}, "embedding_dropout": dropout}
        run = conditioned(chain, tmp_path / f"{dropout}-{lr}", embeddings, **changes, duration={"images": 8})
        return load_file(run / "model/diffusion_pytorch_model.safetensors")["encoder_hid_proj.weight"]

    hidden = projection(0.9999, 1e-3)
    assert torch.equal(hidden, projection(0.9999, 2e-3))
    assert not torch.equal(hidden, projection(0.0, 1e-3))


def test_with_classes_too_it_goes_on_from_a_checkpoint_to_the_same_weights(chain, embeddings, tmp_path):
    settings = {"duration": {"images": 16, "checkpoint_every_images": 8}, "class_conditional": True}
    settings |= {"label_dropout": 0.5, "embedding_dropout": 0.5}
    run = conditioned(chain, tmp_path / "run", embeddings, **settings)
    whole = load_file(run / "model/diffusion_pytorch_model.safetensors")
    assert whole["class_embedding.weight"].shape[0] == 3
    (run / "manifest.json").unlink()
    last = max((run / "checkpoints").glob("step-*"))
    for path in sorted(last.rglob("*"), reverse=True):
        path.unlink()
    last.rmdir()
    again = conditioned(chain, run, embeddings, **settings)
    found = load_file(again / "model/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_from_the_same_preset_without_embeddings_it_begins_as_that_one(chain, tmp_path):
    run = chain.make("ldm", tmp_path / "plain", preset="tiny-cond")
    plain = as_function(load_denoiser(run))
    fresh = as_function(start_from(build_denoiser("tiny-cond", 3, 8, embedding_dim=6), run)).eval()
    z, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(fresh(z, t, torch.zeros(2, 1, 6)), plain(z, t))
        assert not torch.equal(fresh(z, t, torch.ones(2, 1, 6)), plain(z, t))


def test_from_an_unconditional_denoiser_of_the_same_channels_it_takes_the_convolutions(chain, capsys):
    plain = load_denoiser(chain["ldm"]).state_dict()
    fresh = start_from(build_denoiser("tiny-cond", 3, 8, embedding_dim=6), chain["ldm"]).state_dict()
    shared = [name for name in plain if name in fresh and "attentions" not in name]
    assert len(shared) > 100
    assert all(torch.equal(plain[name], fresh[name]) for name in shared)
    assert "start: the convolutions of" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="other channels or another form"):
        start_from(build_denoiser("small-cond", 3, 8, embedding_dim=6), chain["ldm"])


def test_variations_inherit_the_label_and_more_of_them_change_none(chain, denoiser, embeddings, tmp_path):
    two = sampled(chain, tmp_path / "two", denoiser, embeddings, embeddings={"variations": 2})
    three = sampled(chain, tmp_path / "three", denoiser, embeddings, embeddings={"variations": 3}, samples_per_shard=7)
    keys, labels = listed(embeddings)
    found, more = images(two), images(three)
    assert len(found) == 2 * len(keys)
    assert len(more) == 3 * len(keys)
    for index, (meta, pixels) in found.items():
        assert meta["source_key"] == keys[index % len(keys)]
        assert meta["class_index"] == labels[index % len(keys)]
        assert np.array_equal(pixels, more[index][1])
    assert not np.array_equal(found[0][1], found[len(keys)][1]), "each variation has noise of its own"
    manifest = read_manifest(two)
    assert manifest.classes == ["dots", "stripes"]
    assert manifest.info["class_counts"] == {"dots": 20, "stripes": 20}
    assert manifest.info["classifier_free"] == 1.0


def test_between_two_images_the_ends_are_their_own_embeddings(chain, denoiser, embeddings, tmp_path):
    keys, labels = listed(embeddings)
    a, b = keys[labels.index(0)], keys[labels.index(1)]
    between = {"between": [[a, b]], "points": 3}
    run = sampled(chain, tmp_path / "between", denoiser, embeddings, embeddings=between, classifier_free=3.0)
    found = images(run)
    assert [found[i][0]["tau"] for i in range(3)] == [0.0, 0.5, 1.0]
    assert found[0][0]["source_keys"] == [a, b]
    assert "class_index" not in found[1][0]
    ends = sampled(chain, tmp_path / "ends", denoiser, embeddings, embeddings={"keys": [a, b]},
                   classifier_free=3.0)  # fmt: skip
    assert np.array_equal(images(ends)[0][1], found[0][1]), "image 0 has the same noise in both runs"


def test_the_smaller_the_strength_the_nearer_to_the_original(chain, denoiser, embeddings, tmp_path):
    latents = chain.make("labelled-latents", tmp_path / "latents", flips=False)
    keys, _ = listed(embeddings)
    codec = load_autoencoder(chain["vae"]).codec
    moments = torch.from_numpy(RecordsByKey([(latents, read_manifest(latents))], "moments")(keys)).float()
    with torch.no_grad():
        z0 = codec.latent(moments[:, 0], moments[:, 1], torch.zeros_like(moments[:, 0]))
        originals = to_uint8(codec.decode(z0)).numpy().astype(np.int16)
    distances = []
    for strength in (0.1, 0.6, 1.0):
        block = {"strength": strength, **({"latents": str(latents)} if strength < 1 else {})}
        run = sampled(chain, tmp_path / f"s{strength}", denoiser, embeddings, embeddings=block,
                      solver={"kind": "ddim", "steps": 20})  # fmt: skip
        found = images(run)
        distances.append(np.mean([np.abs(found[i][1] - originals[i]).mean() for i in range(len(keys))]))
    assert distances[0] < distances[1] < distances[2]
    assert distances[0] < 0.5 * distances[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": {"strength": 0.5}}, "give latents=RUN (`hdtrain encode`), or leave strength out, as"),
        ({"per_class": 3}, "per_class does not go with embeddings"),
        ({"embeddings": {"between": [["a", "b"]], "keys": ["c"]}}, "between names its own keys"),
    ],
)
def test_what_does_not_go_together_is_said(chain, denoiser, embeddings, changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate(SampleConfig, sample_config(chain, denoiser, embeddings, **changes), "test")


def test_embeddings_that_the_denoiser_was_not_trained_with_are_refused(chain, denoiser, embeddings, tmp_path):
    def complain(denoiser, run) -> str:
        config = validate(SampleConfig, sample_config(chain, denoiser, run), "test")
        with pytest.raises(ManifestError) as error:
            check(config, read_manifest)
        return str(error.value)

    other = write_embeddings(tmp_path / "other", chain["labelled"], name="another")
    assert "has embeddings of another (6 features" in complain(denoiser, other)
    wider = write_embeddings(tmp_path / "wider", chain["labelled"], dim=8)
    assert "8 features" in complain(denoiser, wider)
    more = write_embeddings(tmp_path / "more", chain["labelled"], tokens=2)
    assert "has 2 tokens (view-0, view-1) an image, and" in complain(denoiser, more)
    other = shutil.copytree(embeddings, tmp_path / "other-view")
    told = (other / "manifest.json").read_text().replace('"view-0"', '"centre-1/2"')
    (other / "manifest.json").write_text(told)
    assert "1 token (view-0); embed the images with the same views" in complain(denoiser, other)
    assert "looks at no embeddings" in complain(chain["ldm"], embeddings)
    plain = {"denoiser": str(denoiser), "decoder": str(chain["vae"]), "per_class": 2, "solver": SOLVER}
    with pytest.raises(ManifestError, match=r"looks at embeddings of made-up; give embeddings\.run=RUN"):
        check(validate(SampleConfig, plain, "test"), read_manifest)


def test_embeddings_of_images_of_another_size_are_a_warning(chain, denoiser, embeddings, tmp_path):
    of_small = json.loads((denoiser / "manifest.json").read_text())
    of_small["info"]["embedding"]["image_px"] = [[32, 32]]
    large = read_manifest(write_embeddings(tmp_path / "large", chain["labelled"]))
    large.info["image_px"] = [[150, 150]]
    found = {denoiser: Manifest(**of_small), tmp_path / "large": large}
    config = validate(SampleConfig, sample_config(chain, denoiser, tmp_path / "large"), "test")
    [doubt] = doubts_of_choices(config, found.__getitem__)
    assert "150×150 px" in doubt
    assert doubt.endswith("embed both at one size, as with resolution=32")
    own = validate(SampleConfig, sample_config(chain, denoiser, embeddings), "test")
    assert not doubts_of_choices(own, read_manifest)


def test_a_key_that_is_not_there_ends_the_run_with_its_name(chain, denoiser, embeddings, tmp_path, capsys):
    config = sample_config(chain, denoiser, embeddings, embeddings={"keys": ["nobody"]})
    assert run_here("sample", tmp_path / "run", config) == 2
    assert "has no embedding of 'nobody'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "manifest.json").exists()
    with pytest.raises(DataError, match="has no embedding of 'nobody'"):
        list(preview(validate(SampleConfig, config, "test"), tmp_path / "run"))


def test_tensorboard_shows_what_is_made_beside_what_it_is_made_from(denoiser):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(denoiser / "tb"), size_guidance={"images": 0})
    events.Reload()
    shown = Image.open(io.BytesIO(events.Images("samples/ema")[-1].encoded_image_string))
    rows = [json.loads(line) for line in (denoiser / "metrics.jsonl").read_text().splitlines()]
    assert rows
    assert shown.height > 32
