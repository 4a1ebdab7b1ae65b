"""A classifier's figures on a validation set, and which sets are refused."""

import json

import numpy as np
import pytest
import torch
from classifier_helpers import column, rows, validated
from tiny_chain import run_here

from hdtrain.config.training import ReaderConfig, ShardAccess
from hdtrain.data.images import TrainingImages
from hdtrain.errors import DataError
from hdtrain.evaluation.downstream import METRICS, confusion_matrix
from hdtrain.formats.manifest import read_manifest
from hdtrain.models.classifier import load_classifier
from hdtrain.training.held_out import check_held_out


@pytest.fixture(scope="module")
def phi(chain, held_out, tmp_path_factory):
    return chain.make("phi", tmp_path_factory.mktemp("phi") / "run", validation=str(held_out), **validated(2, 2))


def test_loss_accuracy_and_macro_f1_are_those_of_the_held_out_images(phi, held_out):
    source = TrainingImages([(held_out, read_manifest(held_out))], ReaderConfig(resolution=32), seed=5)
    batch = source.batch(range(12))
    x = torch.from_numpy(batch.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    logits = load_classifier(phi)(x)
    last = rows(phi)[-1]
    loss = float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels)))
    assert last["validation/loss"] == pytest.approx(loss, rel=1e-5)
    confusion = confusion_matrix(batch.labels, logits.argmax(1).numpy(), 2)
    for name in ("accuracy", "macro_f1"):
        assert last[f"validation/{name}"] == pytest.approx(float(METRICS[name](confusion)))
    names = [name for name in last if name.startswith("validation/")]
    assert names[0] == "validation/loss", "keep_best goes by the first"
    meta = json.loads((phi / "seed-0/checkpoints/step-00000002/meta.json").read_text())
    assert meta["validation"] == last["validation/loss"]
    assert read_manifest(phi).info["validation"]["0"].keys() == {"loss", "accuracy", "macro_f1"}


def test_as_many_images_are_looked_at_as_asked(chain, held_out, phi, tmp_path):
    changes = {"validation": str(held_out), "validation_images": 5, **validated(2, 2)}
    run = chain.make("phi", tmp_path / "run", **changes)
    assert column(run, "validation/loss")[1] != column(phi, "validation/loss")[1]
    assert column(run, "validation/accuracy")[1] * 5 == pytest.approx(round(column(run, "validation/accuracy")[1] * 5))
    assert read_manifest(run).info["calibration"]["0"]["num_images"] == 5


@pytest.fixture(scope="module")
def guides(chain, held_out_latents, tmp_path_factory):
    """ϕ by timesteps and the end of the noise schedule."""
    made = {}
    for name, beta_end in (("uniform", 0.02), ("zero", 0.02), ("zero", 0.03)):
        model = dict(chain.configs["guide"][1]["model"])
        model |= {"preset": "adm-half-unet-tiny", "timesteps": name, "schedule": {"beta_end": beta_end}}
        changes = {"model": model, "validation": str(held_out_latents), **validated(3, 3)}
        made[name, beta_end] = chain.make("guide", tmp_path_factory.mktemp("guide") / "run", **changes)
    return made


def test_the_accuracy_of_phi_on_latents_is_measured_by_noise_level_and_on_clean_ones(guides):
    for (name, _), run in guides.items():
        last = rows(run)[-1]
        bins = [last[f"validation/accuracy_by_noise/{number}"] for number in range(10)]
        assert all(0 <= accuracy <= 1 for accuracy in bins)
        assert 0 <= last["validation/accuracy_t0"] <= 1
        assert next(key for key in last if key.startswith("validation/")) == "validation/loss"
        assert read_manifest(run).info["timesteps"] == name
        assert "temperature" not in read_manifest(run).info
    uniform, zero = rows(guides["uniform", 0.02])[-1], rows(guides["zero", 0.02])[-1]
    assert zero["validation/accuracy"] == zero["validation/accuracy_t0"], "its own validation is without noise"
    shares = [uniform[f"validation/accuracy_by_noise/{number}"] for number in range(10)]
    counts = np.bincount((2 * np.arange(24) + 1) * 1000 // 48 * 10 // 1000, minlength=10)
    assert uniform["validation/accuracy"] == pytest.approx(np.dot(shares, counts) / 24)


def test_with_timesteps_zero_the_noise_is_never_seen(guides):
    one, other = (load_classifier(guides["zero", beta_end]).state_dict() for beta_end in (0.02, 0.03))
    assert all(torch.equal(one[name], other[name]) for name in one)
    noisy = load_classifier(guides["uniform", 0.02]).state_dict()
    assert any(not torch.equal(one[name], noisy[name]) for name in one)
    trained = [key for key in rows(guides["zero", 0.02])[-1] if key.startswith("accuracy_by_noise/")]
    assert trained == ["accuracy_by_noise/0"]


def test_without_a_validation_set_the_figures_by_noise_are_of_training_latents(chain):
    last = rows(chain["guide"])[-1]
    assert {"fixed_noise/accuracy_t0", "fixed_noise/accuracy_by_noise/9"} <= last.keys()
    assert not any(key.startswith("validation/") for key in last)
    assert "validation" not in read_manifest(chain["guide"]).info


def test_sets_that_do_not_go_with_the_training_set_are_refused(
    chain, held_out, held_out_latents, tmp_path, capsys, make_images
):
    other_classes = tmp_path / "other"
    raw = make_images("raw", {"dots": 3, "waves": 3}, size_px=32)
    assert run_here("shard", other_classes, {"sources": [{"path": str(raw)}], "split": "validation"}) == 0
    other_space = tmp_path / "other-space"
    chain.make("labelled-latents", other_space, images=[str(held_out)], vae=str(chain["other-vae"]))
    for name, validation, said in [
        ("phi", held_out_latents, "is of kind 'latents', but training is on images"),
        ("guide", held_out, "is of kind 'images', but training is on latents"),
        ("phi", chain["test"], "is the test split"),
        ("phi", chain["labelled"], "holds the same samples as the training set"),
        ("phi", other_classes, "has dots, waves; training is on dots, stripes"),
        ("guide", other_space, "does not match"),
    ]:
        capsys.readouterr()
        assert run_here("train-classifier", tmp_path / "run", chain.config(name, validation=str(validation))) == 2
        message = capsys.readouterr().err
        assert said in message
        assert str(validation) in message
    assert not (tmp_path / "run/seed-0").exists()


PATTERN = r"(?P<patient>p\d+)_(?P<slide>s\d+)_"


@pytest.fixture
def pack(tmp_path, make_images):
    """Images of patients: `pack("train", ["p1_s1", "p2_s3"])`, a few each."""

    def run(name, owners, pattern=PATTERN):
        folder = make_images(name, {"a": len(owners), "b": len(owners)}, seed=len(name))
        for path in sorted(folder.rglob("*.png")):
            path.rename(path.with_name(f"{owners[int(path.stem)]}_{name}{path.name}"))
        source = {"path": str(folder), **({"pattern": pattern} if pattern else {})}
        out = tmp_path / f"{name}-packed"
        assert run_here("shard", out, {"sources": [source], "samples_per_shard": 3}) == 0
        return out, read_manifest(out)

    return run


def test_a_patient_or_slide_in_both_sets_is_found_and_named(pack, capsys):
    train, access = pack("train", ["p1_s1", "p2_s2"]), ShardAccess()
    check_held_out([train], pack("clean", ["p3_s1"]), access)
    with pytest.raises(DataError, match=r"1 patients or slides are in the training set .*train-packed too: p2;"):
        check_held_out([train], pack("leaky", ["p3_s3", "p2_s9"]), access)
    by_slide = pack("slides", ["p1_s1"], r"_(?P<slide>s\d+)_")
    with pytest.raises(DataError, match=r"slides are in the training set .* too: s1;"):
        check_held_out([by_slide], pack("again", ["p7_s1"], r"_(?P<slide>s\d+)_"), access)
    with pytest.raises(DataError, match="4 samples are in the training set"):
        check_held_out([train], train, access)


def test_latents_are_compared_by_the_patients_of_their_images(chain, pack, tmp_path, capsys):
    def encoded(name, owners):
        images, _ = pack(name, owners)
        config = {"images": [str(images)], "vae": str(chain["vae"]), "flips": name == "train"}
        assert run_here("encode", tmp_path / f"{name}-latents", config) == 0
        return tmp_path / f"{name}-latents", read_manifest(tmp_path / f"{name}-latents")

    train, access = encoded("train", ["p1_s1", "p2_s2"]), ShardAccess()
    check_held_out([train], encoded("clean", ["p3_s1"]), access)
    leaky = encoded("leaky", ["p2_s9"])
    with pytest.raises(DataError, match=r"patients or slides are in the training set .*train-latents too: p2;"):
        check_held_out([train], leaky, access)
    (tmp_path / "leaky-packed").rename(tmp_path / "moved")
    capsys.readouterr()
    check_held_out([train], leaky, access)
    assert "leaky-packed are gone, so patients could not be compared" in capsys.readouterr().err
