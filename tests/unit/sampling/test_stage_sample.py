"""The stage `sample`: each image a function of (seed, index), and models that do not fit refused."""

import io
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image
from tiny_chain import run_here, run_in_place

from hdtrain.config.synthesis import SampleConfig
from hdtrain.distributed.stop import STOP
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.shards import open_shards
from hdtrain.sampling.generate import ImageGenerator
from hdtrain.sampling.models import load_guide


def images(run) -> dict[str, bytes]:
    return {
        key: bytes(shard.image(i))
        for shard in open_shards(run, read_manifest(run))
        for i, key in enumerate(shard.sidecar.keys)
    }


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)), np.int16)


def test_the_shards_hold_balanced_labelled_lossless_images_that_say_where_they_come_from(chain):
    run = chain["candidates"]
    manifest = read_manifest(run)
    assert (manifest.kind, manifest.split, manifest.classes) == ("images", "synthetic", ["dots", "stripes"])
    assert manifest.info["class_counts"] == {"dots": 6, "stripes": 6}
    index = 0
    for shard in open_shards(run, manifest):
        for i, key in enumerate(shard.sidecar.keys):
            meta = shard.meta(i)
            assert (meta["index"], meta["class_index"], shard.sidecar.labels[i]) == (index, index % 2, index % 2)
            assert meta["key"] == key
            assert meta["denoiser"] == read_manifest(chain["ldm"]).identity[:16]
            with Image.open(io.BytesIO(shard.image(i))) as image:
                assert (image.format, image.size, image.mode) == ("PNG", (32, 32), "RGB")
            index += 1
    assert index == 12
    assert len(set(images(run).values())) == 12


@pytest.mark.parametrize(("per_class", "samples_per_shard"), [(9, 4), (5, 4), (6, 6)], ids=["more", "fewer", "wider"])
def test_an_image_does_not_depend_on_how_many_there_are_or_how_they_are_packed(
    chain, tmp_path, per_class, samples_per_shard
):
    first = images(chain["candidates"])
    other = images(chain.make("candidates", tmp_path / "run", per_class=per_class, samples_per_shard=samples_per_shard))
    assert len(other) == 2 * per_class
    for key in first.keys() & other.keys():
        assert first[key] == other[key]
    assert len(first.keys() & other.keys()) == min(12, 2 * per_class)


def test_another_batch_size_moves_no_pixel_by_more_than_rounding(chain, tmp_path):
    first, other = images(chain["candidates"]), images(chain.make("candidates", tmp_path / "run", batch_size=3))
    assert first.keys() == other.keys()
    assert max(np.abs(pixels(first[key]) - pixels(other[key])).max() for key in first) <= 1


def test_seed_guidance_and_decoder_each_change_the_images(chain, tmp_path):
    first = images(chain["candidates"])
    for i, change in enumerate([{"guidance": 0.0}, {"decoder": str(chain["vae"])}]):
        other = images(chain.make("candidates", tmp_path / str(i), per_class=2, **change))
        assert all(first[key] != image for key, image in other.items())
    other = images(chain.make("candidates", tmp_path / "seed", per_class=2, seed=1))
    assert not set(other.values()) & set(first.values())


def test_without_a_classifier_the_images_have_no_labels(chain, tmp_path):
    run = chain.make("candidates", tmp_path / "run", classifier=None, per_class=3)
    manifest = read_manifest(run)
    assert (manifest.classes, manifest.num_samples, manifest.info["guidance"]) == (None, 3, 0.0)
    sidecar = json.loads((run / "shards" / "synthetic-000000.json").read_text())
    assert sidecar["labels"] == [None] * 3


def refusal(chain, tmp_path, capsys, name: str, **changes) -> str:
    stage, _ = chain.configs[name]
    assert run_here(stage, tmp_path / "run", chain.config(name, **changes)) == 2
    assert not (tmp_path / "run" / "manifest.json").exists()
    return capsys.readouterr().err


def test_a_decoder_of_another_latent_space_is_refused_with_both_encoders_named(chain, tmp_path, capsys):
    said = refusal(chain, tmp_path, capsys, "candidates", decoder=str(chain["other-vae"]))
    ours, theirs = (read_manifest(chain[name]).info["encoder_id"][:12] for name in ("vae", "other-vae"))
    assert f"denoiser {chain['ldm']} belongs to the autoencoder with encoder {ours}" in said
    assert f"{chain['other-vae']} has encoder {theirs}" in said


def test_latents_of_another_autoencoder_are_refused_for_training(chain, tmp_path, capsys):
    said = refusal(chain, tmp_path, capsys, "ldm", vae=str(chain["other-vae"]))
    assert f"latents {chain['latents']} belongs to" in said
    assert "the VAE does not match the latents" in said


def test_a_classifier_of_images_cannot_guide(chain, tmp_path, capsys):
    said = refusal(chain, tmp_path, capsys, "candidates", classifier=str(chain["phi"]))
    assert f"{chain['phi']} is a classifier of kind 'image'; guidance needs ϕ" in said


def test_a_classifier_of_another_noise_schedule_cannot_guide(chain, tmp_path, capsys):
    model = {**chain.config("guide")["model"], "schedule": {"beta_end": 0.015}}
    other = chain.make("guide", tmp_path / "guide", model=model, duration={"images": 4})
    said = refusal(chain, tmp_path, capsys, "candidates", classifier=str(other))
    assert f"{other} and {chain['ldm']} were trained with different noise schedules" in said


def test_a_guide_whose_manifest_is_older_than_a_key_of_the_schedule_still_guides(chain):
    manifest = read_manifest(chain["guide"])
    older = {key: value for key, value in manifest.info["schedule"].items() if key != "zero_terminal_snr"}
    manifests = {chain["ldm"]: read_manifest(chain["ldm"]), chain["guide"]: manifest}
    manifests[chain["guide"]] = manifest.model_copy(update={"info": {**manifest.info, "schedule": older}})
    config = SampleConfig(denoiser=chain["ldm"], decoder=chain["vae"], classifier=chain["guide"], per_class=1)
    assert load_guide(config, manifests.__getitem__).classes == ["dots", "stripes"]


def test_steps_that_do_not_fit_the_schedule_are_refused(chain, tmp_path, capsys):
    assert "must divide 1000 timesteps evenly, got 7" in refusal(
        chain, tmp_path, capsys, "candidates", solver={"steps": 7}
    )


def test_a_latent_classifier_cannot_adapt_the_decoder(chain, tmp_path, capsys):
    said = refusal(chain, tmp_path, capsys, "decoder", classifier=str(chain["guide"]))
    assert f"{chain['guide']} is a latent classifier (ϕ); adapt-decoder needs φ" in said


def test_some_images_of_a_run_are_those_of_the_whole_run(chain, tmp_path):
    whole = images(chain["candidates"])
    some = images(chain.make("candidates", tmp_path / "run", images="1-2,7,11"))
    assert [key.rpartition("-")[2] for key in some] == ["000000001", "000000002", "000000007", "000000011"]
    assert all(whole[key] == data for key, data in some.items())


def test_classes_may_have_counts_of_their_own(chain, tmp_path):
    whole = images(chain["candidates"])
    run = chain.make("candidates", tmp_path / "run", per_class={"stripes": 5, "dots": 2})
    assert read_manifest(run).info["class_counts"] == {"dots": 2, "stripes": 5}
    made = images(run)
    assert len(made) == 7
    assert all(whole[key] == data for key, data in made.items())


def test_in_fp64_not_even_the_batch_size_matters(chain, tmp_path):
    first, second = (
        images(chain.make("candidates", tmp_path / str(size), precision="fp64", batch_size=size)) for size in (2, 5)
    )
    assert first == second
    single = images(chain["candidates"])
    assert max(np.abs(pixels(first[key]) - pixels(single[key])).max() for key in first) <= 1


def test_bf16_images_are_near_the_fp32_ones_and_say_what_they_are(chain, tmp_path):
    run = chain.make("candidates", tmp_path / "run", precision="bf16")
    single, half = images(chain["candidates"]), images(run)
    difference = np.mean([np.abs(pixels(half[key]) - pixels(single[key])).mean() for key in single])
    assert 0 < difference < 3
    assert open_shards(run, read_manifest(run))[0].meta(0)["precision"] == "bf16"


def test_a_longer_run_in_the_same_place_makes_the_new_images_alone(chain, tmp_path):
    assert run_in_place("sample", tmp_path / "run", chain.config("candidates")) == 0
    before = {path.name: path.stat().st_ino for path in (tmp_path / "run" / "shards").glob("*.tar")}
    assert run_in_place("sample", tmp_path / "run", chain.config("candidates", per_class=7)) == 0
    after = {path.name: path.stat().st_ino for path in (tmp_path / "run" / "shards").glob("*.tar")}
    assert {name: after[name] for name in before} == before  # linked
    assert len(after) == len(before) + 1
    fresh = images(chain.make("candidates", tmp_path / "fresh", per_class=7))
    assert images(tmp_path / "run") == fresh


@pytest.mark.parametrize(("samples_per_shard", "there"), [(12, []), (6, ["synthetic-000000.tar"])])
def test_a_signal_loses_no_batch_that_was_made(chain, tmp_path, monkeypatch, samples_per_shard, there):
    made, generate = [], ImageGenerator._generate

    def signalled(self: ImageGenerator, indices: list[int]) -> np.ndarray:
        made.append(indices)
        if len(made) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return generate(self, indices)

    monkeypatch.setattr(ImageGenerator, "_generate", signalled)
    run, config = tmp_path / "run", chain.config("candidates", samples_per_shard=samples_per_shard)
    assert run_here("sample", run, config) == 3
    STOP.number = 0
    assert sorted(path.name for path in (run / "shards").glob("*.tar")) == there
    assert run_here("sample", run, config) == 0
    assert len(made) == 6
    assert images(run) == images(chain["candidates"])
    assert not (run / "work").exists()
