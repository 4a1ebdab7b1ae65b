"""`sample` of sampled grids: one image of every cell."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from prior_helpers import CLASSES, DIM, ENCODER, encoder_hash, publish_grids, publish_slides, toy_grid, toy_grids
from tiny_chain import run_here
from tiny_painting import publish_autoencoder, publish_denoiser, tiny_unet

from hdtrain.cli import main
from hdtrain.data.cells_by_key import CellsByKey
from hdtrain.errors import DataError
from hdtrain.formats.manifest import Manifest, publish, read_manifest
from hdtrain.formats.sampled_cells import SampledCells
from hdtrain.formats.shards import open_shards

ROWS, COLUMNS = 1, 2


def drawn() -> list:
    """Three grids, as a prior gives them: of each class one, and one of none."""
    flat, stripes, neither = toy_grids(3, rows=ROWS, columns=COLUMNS)
    return [flat, stripes, replace(neither, label=None)]


def cell_keys() -> list[str]:
    return [f"slide{n:03d}-{row}-{column}" for n in range(3) for row in range(ROWS) for column in range(COLUMNS)]


@pytest.fixture(scope="module")
def grids(tmp_path_factory):
    return publish_grids(tmp_path_factory.mktemp("grids") / "grids", drawn())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Denoiser and decoder, of the grids' encoder."""
    folder = tmp_path_factory.mktemp("models")
    vae = publish_autoencoder(folder / "vae")
    embedding = {"dim": DIM, "tokens": 1, "encoder": ENCODER, "encoder_hash": encoder_hash(ENCODER), "dropout": 0.1}
    denoiser = publish_denoiser(folder / "denoiser", vae, tiny_unet(dim=DIM), embedding=embedding)
    return {"denoiser": str(denoiser), "decoder": str(vae)}


def sampled(folder, models, run, block=None, **changes):
    config = {**models, "embeddings": {"run": str(run), **(block or {})}, "solver": {"steps": 4}, "batch_size": 2}
    assert run_here("sample", folder, {**config, **changes}) == 0
    return folder


def images(run) -> list[tuple[dict, np.ndarray]]:
    """Metadata and pixels of the images, in their order."""
    return [
        (shard.meta(i), np.asarray(Image.open(io.BytesIO(shard.image(i)))))
        for shard in open_shards(run, read_manifest(run))
        for i in range(shard.sidecar.samples)
    ]


def test_every_cell_of_every_grid_is_an_image_with_the_key_of_the_cell_and_the_label_of_the_grid(
    models, grids, tmp_path
):
    run = sampled(tmp_path / "run", models, grids, {"variations": 2}, samples_per_shard=4)
    found = [meta for meta, _ in images(run)]
    assert [meta["source_key"] for meta in found] == 2 * cell_keys()
    assert [meta.get("label") for meta in found] == 2 * ["flat", "flat", "stripes", "stripes", None, None]
    manifest = read_manifest(run)
    assert (manifest.kind, manifest.classes) == ("images", CLASSES)
    assert manifest.info["class_counts"] == {"flat": 4, "stripes": 4}


def test_a_cell_gives_the_image_that_the_same_embedding_of_a_real_image_gives(models, grids, tmp_path):
    real = publish_slides(tmp_path / "slides", [replace(grid, label="flat") for grid in drawn()])
    ours = images(sampled(tmp_path / "ours", models, grids))
    theirs = images(sampled(tmp_path / "theirs", models, real, {"keys": cell_keys()}))
    assert len(ours) == len(theirs) == 6
    for (meta, pixels), (other, same) in zip(ours, theirs, strict=True):
        assert meta["source_key"] == other["source_key"]
        assert np.array_equal(pixels, same)


def test_cells_are_named_by_their_keys_alone_and_on_the_way_from_one_to_another(models, grids, tmp_path):
    a, b = "slide001-0-1", "slide000-0-0"
    ends = images(sampled(tmp_path / "keys", models, grids, {"keys": [a, b]}))
    assert [(meta["source_key"], meta["label"]) for meta, _ in ends] == [(a, "stripes"), (b, "flat")]
    between = images(sampled(tmp_path / "between", models, grids, {"between": [[a, b]], "points": 3}))
    assert [meta["source_keys"] for meta, _ in between] == [[a, b]] * 3
    assert "label" not in between[1][0]
    assert np.array_equal(between[0][1], ends[0][1])


def test_a_process_opens_the_grids_of_its_own_images_only_and_says_which_was_altered(models, tmp_path, capsys):
    grids = publish_grids(tmp_path / "grids", drawn())
    (grids / "grids/slide001.npz").write_bytes(b"altered")
    (grids / "grids/slide002.npz").unlink()
    assert len(images(sampled(tmp_path / "first", models, grids, images="0-1"))) == 2
    config = {**models, "embeddings": {"run": str(grids)}, "solver": {"steps": 4}, "batch_size": 2}
    assert run_here("sample", tmp_path / "all", config) == 2
    assert "slide001.npz is missing or altered since it was published" in capsys.readouterr().err


def test_the_key_of_a_cell_is_told_from_what_only_looks_like_one():
    cells = SampledCells(["a", "a-1", "a-1-1"], 2, 3)
    assert len(cells) == len(set(cells.keys())) == 18
    assert cells.keys()[:4] == ["a-0-0", "a-0-1", "a-0-2", "a-1-0"]
    assert cells.place("a-1-1") == ("a", 1, 1)
    assert cells.place("a-1-1-1") == ("a-1", 1, 1)
    assert cells.place("a-1-1-1-2") == ("a-1-1", 1, 2)
    assert not [key for key in ("a", "a-1", "b-0-0", "a-2-0", "a-0-3", "a-00-1", "a--1-0", "") if cells.place(key)]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hole": True}, r"grid 'slide001' has 3 cells .* the manifest says \(2, 2, 6\) with every cell"),
        ({"rows": 3}, r"grid 'slide001' has 6 cells and shape \(3, 2, 6\)"),
        ({"label": "dots"}, "grid 'slide001' is of class 'dots', and the run knows flat, stripes"),
    ],
)
def test_a_grid_that_is_not_as_its_manifest_says_is_named(tmp_path, changed, said):
    label = changed.pop("label", "stripes")
    odd = replace(toy_grid(1, **{"rows": 2, "columns": 2, **changed}), label=label)
    run = publish_grids(tmp_path / "grids", [toy_grid(0, rows=2, columns=2), odd])
    with pytest.raises(DataError, match=said):
        CellsByKey(run, read_manifest(run))(["slide000-0-0", "slide001-0-0"])


def words(models, run, *more: str) -> list[str]:
    return [*(f"{key}={value}" for key, value in models.items()), f"embeddings.run={run}", "solver.steps=4", *more]


def test_a_dry_run_counts_the_cells(models, grids, tmp_path, capfd):
    asked = words(models, grids, "embeddings.variations=3")
    assert main(["sample", *asked, "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    assert "images: 18 from 6 embeddings in 1 shard" in capfd.readouterr().out


def test_grids_of_another_encoder_and_strength_are_refused_before_anything_is_made(models, tmp_path, hdtrain):
    def complaint(run, *more: str) -> str:
        return hdtrain("sample", *words(models, run, *more), "--out", "run", code=2).err

    other = publish_grids(tmp_path / "other", drawn(), name="another")
    assert "has embeddings of another (6 features" in (said := complaint(other))
    assert "train the prior on embeddings of that encoder" in said
    grids = publish_grids(tmp_path / "grids", drawn())
    (tmp_path / "latents").mkdir()
    publish(tmp_path / "latents", Manifest(kind="latents", stage="encode", fingerprint="", commit=""))
    said = complaint(grids, "embeddings.strength=0.5", f"embeddings.latents={tmp_path / 'latents'}")
    assert "embeddings.strength=0.5 begins from the latent of the image that an embedding is of" in said
    assert "were sampled, of no image; leave strength and latents out" in said
    assert not (tmp_path / "run").exists()


def test_a_cell_that_is_not_there_ends_the_run_with_its_name(models, grids, tmp_path, capsys):
    config = {**models, "embeddings": {"run": str(grids), "keys": ["slide000-0-0", "slide000-7-0"]}}
    assert run_here("sample", tmp_path / "run", config) == 2
    said = capsys.readouterr().err
    assert "has no cell slide000-7-0; a cell is NAME-ROW-COLUMN, and the first of its 6 is slide000-0-0" in said
