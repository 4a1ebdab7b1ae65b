"""A painting has the same bytes from any number of ranks, stopped and continued or not."""

import json
import signal
from pathlib import Path

import pytest
from tiny_painting import DIM, ENCODER_HASH, VIEWS, publish_autoencoder, publish_denoiser, saved_grid

from hdtrain.formats.manifest import read_manifest


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paint")
    vae = publish_autoencoder(folder / "vae")
    return {
        "denoiser": str(publish_denoiser(folder / "denoiser", vae)),
        "decoder": str(vae),
        "grid": {"source": str(saved_grid(folder / "grid.npz", 3, 4))},
        "steps": 4,
        "batch_size": 4,
        "output": "tiff",
        "save_every": 2,
        "preview_every": 2,
    }


@pytest.fixture(scope="module")
def alone(config, ranks, tmp_path_factory):
    return ranks.run("paint", tmp_path_factory.mktemp("alone") / "run", config, 1)


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_ranks_paints_the_same_bytes(config, alone, ranks, tmp_path, size):
    together = ranks.run("paint", tmp_path / "run", config, size)
    assert (together / "painting.tiff").read_bytes() == (alone / "painting.tiff").read_bytes()
    assert read_manifest(together).identity == read_manifest(alone).identity


def test_cells_of_two_tokens_are_painted_the_same_by_two_ranks(config, ranks, tmp_path):
    embedding = {"dim": DIM, "tokens": 2, "token_order": list(VIEWS), "encoder_hash": ENCODER_HASH, "dropout": 0.1}
    denoiser = publish_denoiser(tmp_path / "denoiser", Path(config["decoder"]), embedding=embedding)
    source = saved_grid(tmp_path / "grid.npz", 2, 2, tokens=2)
    config = {**config, "denoiser": str(denoiser), "grid": {"source": str(source)}, "steps": 2}
    alone, together = (ranks.run("paint", tmp_path / str(size), config, size) for size in (1, 2))
    assert (together / "painting.tiff").read_bytes() == (alone / "painting.tiff").read_bytes()
    assert read_manifest(together).identity == read_manifest(alone).identity


@pytest.mark.parametrize("when", ["work/canvas.npz", "work/bands.json"])
def test_a_painting_that_was_stopped_goes_on_to_the_same_bytes_on_other_ranks(config, alone, ranks, tmp_path, when):
    run = tmp_path / "run"
    config = {**config, "save_every": 1}
    reached = lambda: (run / when).exists()  # noqa: E731
    ranks.run("paint", run, config, 2, code=3, signal_when=(signal.SIGTERM, reached))
    assert "and the same command continues" in ranks.said()
    assert not (run / "manifest.json").exists()
    ranks.run("paint", run, config, 1)
    assert (run / "painting.tiff").read_bytes() == (alone / "painting.tiff").read_bytes()
    assert not (run / "work").exists()
    assert len(json.loads((run / "run.json").read_text())["attempts"]) == 2


def test_a_painting_that_was_killed_goes_on_from_its_last_save(config, alone, ranks, tmp_path):
    run = tmp_path / "run"
    reached = lambda: (run / "work" / "canvas.npz").exists()  # noqa: E731
    ranks.run("paint", run, config, 2, code=None, signal_when=(signal.SIGKILL, reached))
    ranks.run("paint", run, config, 3)
    assert (run / "painting.tiff").read_bytes() == (alone / "painting.tiff").read_bytes()
