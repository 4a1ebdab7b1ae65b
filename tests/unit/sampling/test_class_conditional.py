"""A class-conditional denoiser, from its training to its images: `train-ldm`, `rebuild-ema`, `export`, `sample`."""

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_chain import READER, run_here, train_config

from hdtrain.config.load import validate
from hdtrain.config.synthesis import SampleConfig
from hdtrain.config.training import NoiseScheduleConfig, TrainLdmConfig
from hdtrain.data.latents import TrainingLatents
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.seeds import generator
from hdtrain.errors import ConfigError, ManifestError
from hdtrain.formats.manifest import Manifest, publish, read_manifest
from hdtrain.formats.shards import open_shards
from hdtrain.models.autoencoder import load_autoencoder
from hdtrain.models.classifier import load_classifier
from hdtrain.models.denoiser import build_denoiser, hidden_class, load_denoiser
from hdtrain.models.start import start_from
from hdtrain.sampling.fit import classes_of
from hdtrain.sampling.models import load_guide
from hdtrain.sampling.open import open_generator
from hdtrain.training.workload import costs_of

EMBEDDING = "class_embedding.weight"
CLASSES = ["dots", "stripes"]


def conditional(chain, folder, **changes):
    """Fine-tuned from the chain's unconditional denoiser."""
    settings = {"latents": str(chain["labelled-latents"]), "class_conditional": True, "start": str(chain["ldm"])}
    return chain.make("ldm", folder, **{**settings, **changes})


@pytest.fixture(scope="module")
def denoiser(chain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional") / "ldm"
    optim = {"lr": 1e-2, "warmup_images": 0, "weight_decay": 0.0}
    # The moments are large enough for the class to show in a published average of so few steps.
    return conditional(chain, folder, label_dropout=0.3, optim=optim, ema={"decay": 0.5, "snapshots": 2})


def pixels(run) -> np.ndarray:
    found = [shard.image(i) for shard in open_shards(run, read_manifest(run)) for i in range(shard.sidecar.samples)]
    return np.stack([np.asarray(Image.open(io.BytesIO(one)), np.int16) for one in found])


def weights(run) -> dict[str, torch.Tensor]:
    return load_file(run / "model/diffusion_pytorch_model.safetensors")


def test_with_the_class_hidden_it_begins_as_the_unconditional_denoiser(chain):
    unet = start_from(build_denoiser("tiny", 3, 8, num_classes=2), chain["ldm"]).eval()
    plain = load_denoiser(chain["ldm"])
    assert hidden_class(unet) == 2
    assert all(parameter.requires_grad for parameter in unet.parameters())
    unet.requires_grad_(False)  # as `plain` is: with a gradient wanted, torch rounds otherwise on some CPUs
    z, t = torch.randn(3, 3, 8, 8), torch.tensor([7, 300, 900])
    with torch.no_grad():
        first, second, hidden = (unet(z, t, torch.full((3,), label)).sample for label in range(3))
    torch.testing.assert_close(hidden, plain(z, t).sample, rtol=0, atol=0)
    assert not torch.equal(first, hidden), "from one point they would be told apart late"
    assert not torch.equal(first, second)


def test_training_makes_the_classes_differ_and_the_manifest_names_them(denoiser):
    manifest = read_manifest(denoiser)
    assert manifest.classes == CLASSES
    assert (manifest.info["class_conditional"], manifest.info["label_dropout"]) == (True, 0.3)
    rows = weights(denoiser)[EMBEDDING]
    assert rows.shape == (3, 128)
    assert all(float((rows[i] - rows[j]).abs().max()) > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))
    assert (denoiser / "model/scheduler/scheduler_config.json").exists()


@pytest.mark.slow
def test_a_class_is_hidden_as_often_as_asked(chain, tmp_path):
    """Embeddings move only where their class was seen: then they depend on the learning rate."""

    def embeddings(label_dropout: float, lr: float) -> torch.Tensor:
        settings = {"optim": {"lr": lr, "weight_decay": 0.0, "warmup_images": 0}, "duration": {"images": 8}}
        run = conditional(chain, tmp_path / f"{label_dropout}-{lr}", label_dropout=label_dropout, **settings)
        return weights(run)[EMBEDDING]

    for label_dropout, moved in ((0.0, [True, True, False]), (0.999, [False, False, True])):
        slow, fast = (embeddings(label_dropout, lr) for lr in (1e-3, 2e-3))
        assert [not torch.equal(a, b) for a, b in zip(slow, fast, strict=True)] == moved
    assert embeddings(0.0, 1e-3)[2].count_nonzero() == 0


def test_the_loss_on_fixed_noise_is_that_with_every_samples_own_class(chain, denoiser):
    source = TrainingLatents([(chain["labelled-latents"], read_manifest(chain["labelled-latents"]))], 0)
    count = read_manifest(chain["labelled-latents"]).num_samples
    codec, unet = load_autoencoder(chain["vae"]).codec, load_denoiser(denoiser)
    schedule = NoiseSchedule(NoiseScheduleConfig())

    def loss(label_of) -> float:
        losses = []
        for i in range(count):
            batch = source.batch(range(i, i + 1))
            draw = {
                name: torch.randn(1, 3, 8, 8, generator=generator(0, f"fixed-{name}", i))
                for name in ("posterior", "noise")
            }
            z0 = codec.latent(torch.from_numpy(batch.mean), torch.from_numpy(batch.std), draw["posterior"])
            t = torch.tensor([(2 * i + 1) * 1000 // (2 * count)])
            z_t = schedule.add_noise(z0, draw["noise"], t)
            output = unet(z_t, t, torch.tensor([label_of(int(batch.labels[0]))])).sample
            losses.append((output - draw["noise"]).square().mean())
        return float(torch.stack(losses).mean())

    rows = [json.loads(line) for line in (denoiser / "metrics.jsonl").read_text().splitlines()]
    found = [row["fixed_noise/loss_ema"] for row in rows if "fixed_noise/loss_ema" in row][-1]
    assert found == pytest.approx(loss(lambda label: label), rel=1e-5)
    assert found != pytest.approx(loss(lambda label: 1 - label), rel=1e-5)


def test_it_goes_on_from_a_checkpoint_to_the_same_weights(chain, tmp_path):
    settings = {"duration": {"images": 16, "checkpoint_every_images": 8}, "label_dropout": 0.5}
    run = conditional(chain, tmp_path / "run", **settings)
    whole = weights(run)
    (run / "manifest.json").unlink()
    last = max((run / "checkpoints").glob("step-*"))
    for path in sorted(last.rglob("*"), reverse=True):
        path.unlink()
    last.rmdir()
    again = weights(conditional(chain, run, **settings))
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_without_a_classifier_its_images_are_labelled_and_the_class_changes_them(chain, denoiser, tmp_path):
    plain = {"denoiser": str(denoiser), "classifier": None, "per_class": 3}
    run = chain.make("candidates", tmp_path / "run", **plain)
    manifest = read_manifest(run)
    assert (manifest.classes, manifest.num_samples) == (CLASSES, 6)
    assert manifest.info["class_counts"] == {"dots": 3, "stripes": 3}
    assert (manifest.info["guidance"], manifest.info["classifier_free"]) == (0.0, 1.0)
    assert json.loads((run / "shards/synthetic-000000.json").read_text())["labels"] == [0, 1, 0, 1]
    meta = open_shards(run, manifest)[0].meta(1)
    assert (meta["label"], meta["classifier_free"]) == ("stripes", 1.0)
    found = {
        weight: pixels(chain.make("candidates", tmp_path / str(weight), classifier_free=weight, **plain))
        for weight in (1.0, 0.0, 6.0)
    }
    assert np.array_equal(pixels(run), found[1.0])
    away = np.abs(found[1.0] - found[0.0]).mean()
    assert 0 < away < np.abs(found[6.0] - found[0.0]).mean()


def test_a_classifier_and_classifier_free_guidance_go_together_and_each_changes_the_images(chain, denoiser, tmp_path):
    settings = {"denoiser": str(denoiser), "per_class": 2, "solver": {"kind": "unipc", "steps": 4}}
    both, guided, free = (
        pixels(chain.make("candidates", tmp_path / f"{g}-{weight}", guidance=g, classifier_free=weight, **settings))
        for g, weight in ((50.0, 6.0), (50.0, None), (0.0, 6.0))
    )
    assert not np.array_equal(both, guided)
    assert not np.array_equal(both, free)


def sampling(chain, **changes) -> SampleConfig:
    config = {"denoiser": str(chain["ldm"]), "decoder": str(chain["vae"]), "per_class": 1}
    return validate(SampleConfig, {**config, **changes}, "x")


def test_what_a_denoiser_has_not_learned_is_refused(chain, denoiser, tmp_path, capsys):
    config = chain.config("candidates", classifier_free=2.0)
    assert run_here("sample", tmp_path / "run", config) == 2
    said = capsys.readouterr().err
    assert f"classifier_free=2: {chain['ldm']} knows no classes; fine-tune it with class_conditional=true" in said
    manifest = read_manifest(denoiser)
    always = manifest.model_copy(update={"info": {**manifest.info, "label_dropout": 0.0}})
    asked = sampling(chain, denoiser=str(denoiser), classifier_free=2.0)
    with pytest.raises(ManifestError, match="was trained with label_dropout=0 and cannot do without the class"):
        classes_of(asked, lambda path: always)
    assert classes_of(asked.model_copy(update={"classifier_free": 1.0}), lambda path: always) == CLASSES


def test_a_classifier_of_other_classes_is_refused_with_both_lists(chain, denoiser):
    manifests = {path: read_manifest(path) for path in (denoiser, chain["guide"])}
    manifests[chain["guide"]] = manifests[chain["guide"]].model_copy(update={"classes": ["stripes", "dots"]})
    config = sampling(chain, denoiser=str(denoiser), classifier=str(chain["guide"]))
    with pytest.raises(ManifestError, match=r"knows the classes stripes, dots, and .* is conditional on dots, stripes"):
        classes_of(config, manifests.__getitem__)


@pytest.mark.parametrize("conditional_run", [True, False])
def test_a_start_of_other_classes_is_refused_before_training(chain, denoiser, tmp_path, capsys, conditional_run):
    manifest = read_manifest(denoiser)
    (tmp_path / "start").mkdir()
    (tmp_path / "start/model").symlink_to(denoiser / "model")
    publish(tmp_path / "start", manifest.model_copy(update={"classes": ["tumour", "stroma"]}))
    changes = {"start": str(tmp_path / "start"), "class_conditional": conditional_run}
    config = chain.config("ldm", latents=str(chain["labelled-latents"]), **changes)
    assert run_here("train-ldm", tmp_path / "run", config) == 2
    said = capsys.readouterr().err
    assert "is conditional on tumour, stroma, and" in said
    assert ("the samples have the classes dots, stripes" if conditional_run else "training is unconditional") in said


def test_unlabelled_samples_are_refused_by_name(chain, tmp_path, capsys):
    for changes in ({}, {"latents": str(chain["labelled-latents"]), "validation": str(chain["latents"])}):
        config = chain.config("ldm", class_conditional=True, **changes)
        assert run_here("train-ldm", tmp_path / "run", config) == 2
        said = capsys.readouterr().err
        assert f"class_conditional=true needs labelled samples; unlabelled: {chain['latents']}" in said


def test_its_size_is_counted_before_training(chain, denoiser):
    tree = chain.config("ldm", latents=str(chain["labelled-latents"]), class_conditional=True)
    costs = costs_of(validate(TrainLdmConfig, tree, "x"), read_manifest)
    assert costs.trained == {"denoiser": read_manifest(denoiser).info["parameters"]}
    assert costs.training_flops() > 0


def test_an_ema_of_another_length_keeps_the_classes(chain, denoiser, tmp_path):
    assert run_here("rebuild-ema", tmp_path / "ema", {"denoiser": str(denoiser), "std": 0.1}) == 0
    assert read_manifest(tmp_path / "ema").classes == CLASSES
    rebuilt = weights(tmp_path / "ema")[EMBEDDING]
    assert rebuilt.any()
    assert not torch.equal(rebuilt, weights(denoiser)[EMBEDDING])


def test_the_loop_in_the_card_of_its_export_draws_what_sample_draws(chain, denoiser, tmp_path):
    out = tmp_path / "export"
    assert run_here("export", out, {"denoiser": str(denoiser), "decoder": str(chain["vae"])}) == 0
    card = (out / "model/README.md").read_text()
    assert "A class-conditional latent diffusion model" in card
    assert "| classes | 0 dots, 1 stripes |" in card
    assert "class-conditional-image-generation" in card
    assert read_manifest(out).classes == CLASSES
    code = re.search(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    assert code
    labels, noise = [0, 1, 0, 1], [torch.randn(3, 8, 8, generator=generator(0, "sample", i)) for i in range(4)]
    script = code[1].replace('"FOLDER"', repr(str(out / "model"))).replace("[0, 0, 0, 0]", str(labels))
    script = script.replace("set_timesteps(200)", "set_timesteps(4)").replace("weight = 1.0", "weight = 3.0")
    script = re.sub(r"z = torch\.randn\(.*\)", "z = NOISE", script)
    names = {"NOISE": torch.stack(noise)}
    exec(script, names)
    config = {"denoiser": str(denoiser), "decoder": str(chain["vae"]), "classifier": None, "classifier_free": 3.0}
    run = chain.make("candidates", tmp_path / "run", per_class=2, solver={"steps": 4}, batch_size=4, **config)
    theirs = np.stack([np.asarray(image, np.int16) for image in names["images"]])
    assert np.abs(theirs - pixels(run)).max() <= 1


def test_pixels_have_classes_too(chain, tmp_path):
    config = {"images": [str(chain["labelled"])], "reader": {**READER, "resolution": 16}, "preset": "tiny"}
    config |= {**train_config(4), "class_conditional": True}
    assert run_here("train-ldm", tmp_path / "ldm", config) == 0
    settings = {"decoder": None, "classifier": None, "per_class": 1, "solver": {"steps": 2}, "classifier_free": 2.0}
    run = chain.make("candidates", tmp_path / "run", denoiser=str(tmp_path / "ldm"), **settings)
    assert read_manifest(run).classes == CLASSES
    assert pixels(run).shape == (2, 16, 16, 3)


def test_a_guide_that_was_trained_on_clean_latents_is_asked_with_t_zero(chain):
    manifests = {path: read_manifest(path) for path in (chain["ldm"], chain["guide"])}
    config, phi = sampling(chain, classifier=str(chain["guide"])), load_classifier(chain["guide"])
    z, t = torch.randn(2, 3, 8, 8), torch.tensor([900, 900])
    noisy = load_guide(config, manifests.__getitem__)
    torch.testing.assert_close(noisy(z, t), phi(z, t))
    info = {**manifests[chain["guide"]].info, "timesteps": "zero"}
    manifests[chain["guide"]] = manifests[chain["guide"]].model_copy(update={"info": info})
    clean = load_guide(config, manifests.__getitem__)
    torch.testing.assert_close(clean(z, t), phi(z, torch.zeros_like(t)))
    assert not torch.equal(phi(z, t), phi(z, torch.zeros_like(t)))


def sweep_with_choice(folder, choice: float):
    folder.mkdir()
    publish(
        folder, Manifest(kind="sweep", stage="sweep-guidance", fingerprint="f", commit="c", info={"choice": choice})
    )
    return folder


def test_guidance_is_what_a_sweep_chose_and_every_image_says_so(chain, tmp_path):
    sweep = sweep_with_choice(tmp_path / "sweep", 7.5)
    chosen = chain.make("candidates", tmp_path / "chosen", per_class=2, guidance_from=str(sweep))
    given = chain.make("candidates", tmp_path / "given", per_class=2, guidance=7.5)
    assert np.array_equal(pixels(chosen), pixels(given))
    manifest = read_manifest(chosen)
    assert manifest.info["guidance"] == 7.5
    assert open_shards(chosen, manifest)[0].meta(0)["guidance"] == 7.5
    assert manifest.parents["guidance_from"].identity == read_manifest(sweep).identity
    config = sampling(chain, classifier=str(chain["guide"]), guidance_from=str(sweep))
    manifests = {path: read_manifest(path) for path in (chain["ldm"], chain["vae"], chain["guide"], sweep)}
    assert open_generator(config, manifests.__getitem__).config.guidance == 7.5


def test_a_sweeps_choice_without_a_classifier_is_refused(chain):
    with pytest.raises(ConfigError, match="guidance_from is the g of a classifier"):
        sampling(chain, guidance_from="sweep")
