"""`hdtrain paint`: what it writes, what edits do, and what it refuses before anything is loaded."""

import re
import shutil
from collections import namedtuple

import numpy as np
import openslide
import pytest
from PIL import Image
from tiny_chain import run_here
from tiny_painting import DIM, publish_autoencoder, publish_denoiser, saved_grid, tiny_grid

from hdtrain.config.painting import BlendEdit, FillEdit, PaintConfig, PasteEdit
from hdtrain.diffusion.slerp import slerp
from hdtrain.errors import DataError, HdtrainError
from hdtrain.formats.embedding_grid import read_grid, write_grid
from hdtrain.formats.manifest import read_manifest
from hdtrain.sampling.painting.fit import check_disk
from hdtrain.sampling.painting.grids import edited, fill_holes
from hdtrain.sampling.painting.plan import PaintPlan
from hdtrain.sampling.painting.pyramid import write_pyramid
from hdtrain.sampling.painting.raw import RawPixels
from hdtrain.stages.preview_paint import preview


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    vae = publish_autoencoder(folder / "vae")
    return {"decoder": str(vae), "denoiser": str(publish_denoiser(folder / "denoiser", vae))}


@pytest.fixture
def config(models, tmp_path):
    source = str(saved_grid(tmp_path / "grid.npz", 2, 3))
    return {**models, "grid": {"source": source}, "steps": 2, "batch_size": 9, "stride": 4, "preview_every": 1}


def painted(run, config):
    assert run_here("paint", run, config) == 0
    return np.asarray(Image.open(run / "painting.png"))


def test_a_painting_has_its_image_grid_thumbnail_and_seams(config, tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8)).save(tmp_path / "real.png")
    pixels = painted(tmp_path / "run", config | {"compare_with": str(tmp_path / "real.png")})
    assert pixels.shape == (64, 96, 3)
    assert pixels.std() > 5
    manifest = read_manifest(tmp_path / "run", ("painting",))
    assert set(manifest.files) == {"painting.png", "grid.npz", "thumbnail.png"}
    assert (read_grid(tmp_path / "run" / "grid.npz").embeddings == tiny_grid(2, 3).embeddings).all()
    assert set(manifest.info["seams"]) == {"painting", "real"}
    said = capsys.readouterr().out
    assert "painted 96 × 64 pixels from 2 × 3 cells, 15 windows a step" in said
    assert f"cell borders {manifest.info['seams']['painting']['cells']['ratio']:.3f}" in said
    assert (np.asarray(Image.open(tmp_path / "run" / "thumbnail.png")) == pixels).all()
    assert Image.open(tmp_path / "run" / "painting.png").info["dpi"][0] == pytest.approx(25400 / 0.5, rel=1e-3)
    assert not (tmp_path / "run" / "work").exists()
    assert not (tmp_path / "run" / "preview.png").exists()


def test_the_image_depends_on_every_cell_and_on_the_seed(config, tmp_path):
    first = painted(tmp_path / "a", config).astype(int)
    assert (painted(tmp_path / "seed", config | {"seed": 1}) != first).mean() > 0.5
    grid = tiny_grid(2, 3)
    grid.embeddings[1, 2] *= -1
    write_grid(tmp_path / "other.npz", grid)
    changed = np.abs(painted(tmp_path / "cell", config | {"grid": {"source": str(tmp_path / "other.npz")}}) - first)
    assert changed[40:, 72:].mean() > 5 * max(changed[:20, :20].mean(), 0.01)


def test_a_part_of_a_grid_is_painted_as_that_part(config, tmp_path):
    part = painted(tmp_path / "part", config | {"grid": config["grid"] | {"rows": 1, "columns": "1-2"}})
    grid = tiny_grid(2, 3).crop(slice(1, 2), slice(1, 3))
    write_grid(tmp_path / "cut.npz", grid)
    assert (part == painted(tmp_path / "cut", config | {"grid": {"source": str(tmp_path / "cut.npz")}})).all()


@pytest.mark.parametrize("compression", ["deflate", "jpeg"])
def test_openslide_opens_the_pyramid_with_its_levels_and_pixels(tmp_path, compression):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (45, 70, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((1400, 900), Image.Resampling.BICUBIC))
    raw = RawPixels(tmp_path / "pixels.raw", pixels.shape)
    raw.make()
    raw.write(0, pixels)
    facts = {"tile_px": 256, "compression": compression, "jpeg_quality": 95, "mpp": 0.25}
    levels = write_pyramid(tmp_path / "slide.tiff", raw, tmp_path, **facts)
    assert levels == [(900, 1400), (450, 700), (225, 350)]
    with openslide.OpenSlide(tmp_path / "slide.tiff") as slide:
        assert slide.level_dimensions == tuple((width, height) for height, width in levels)
        assert slide.level_downsamples == pytest.approx((1, 2, 4))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25, rel=1e-4)
        found = np.asarray(slide.read_region((0, 0), 0, (1400, 900)).convert("RGB")).astype(int)
        half = np.asarray(slide.read_region((0, 0), 1, (700, 450)).convert("RGB")).astype(int)
    mean = pixels.reshape(450, 2, 700, 2, 3).mean(axis=(1, 3))
    if compression == "deflate":
        assert (found == pixels).all()
        assert np.abs(half - mean).max() <= 0.5
    else:
        assert np.abs(found - pixels).mean() < 2
        assert np.abs(half - mean).mean() < 2
    assert {path.name for path in tmp_path.iterdir()} == {"slide.tiff", "pixels.raw"}


def test_edits_paste_blend_and_fill(tmp_path):
    grid = tiny_grid(4, 5)
    other = saved_grid(tmp_path / "other.npz", 3, 3, seed=9)
    theirs = tiny_grid(3, 3, seed=9).embeddings
    edits = [
        PasteEdit(source=other, rows="1-2", columns=2, row=0, column=4),
        BlendEdit(source=other, rows=0, columns="0-1", row=3, column=0, weight=0.25),
        FillEdit(rows="1-2", columns=1),
    ]
    done = edited(grid, edits)
    expected = grid.embeddings.copy()
    expected[0:2, 4] = theirs[1:3, 2]
    import torch

    expected[3, :2] = slerp(torch.from_numpy(grid.embeddings[3, :2]), torch.from_numpy(theirs[0, :2]), 0.25)
    filled = np.zeros((4, 5), bool)
    filled[1:3, 1] = True
    assert np.allclose(done.embeddings[~filled], expected[~filled], atol=1e-5)
    assert np.abs(done.embeddings[filled] - grid.embeddings[filled]).max() > 0.5
    assert (done.x[filled] == -1).all()
    assert (done.x[0, :4] == grid.x[0, :4]).all()


def test_holes_are_filled_between_their_neighbours():
    grid = np.zeros((1, 5, 3), np.float32)
    grid[0, 0], grid[0, 4] = [2, 0, 0], [0, 6, 0]
    filled = fill_holes(grid, np.array([[True, False, False, False, True]]))
    assert np.linalg.norm(filled[0], axis=1) == pytest.approx([2, 3, 4, 5, 6])
    unit = filled[0] / np.linalg.norm(filled[0], axis=1, keepdims=True)
    assert unit[2] == pytest.approx([0.5**0.5, 0.5**0.5, 0])
    assert (np.diff(unit[:, 1]) > 0).all()
    ring = np.ones((3, 3, 4), np.float32) * [1, 2, 3, 4]
    present = np.ones((3, 3), bool)
    present[1, 1] = False
    assert fill_holes(ring.astype(np.float32), present)[1, 1] == pytest.approx([1, 2, 3, 4])


@pytest.mark.parametrize(
    ("changes", "grid", "said"),
    [
        ({}, {"encoder_hash": "7" * 64}, "comes from encoder 777777777777"),
        ({}, {"embeddings": np.ones((2, 3, DIM + 1), np.float32)}, f"{DIM + 1} features, .* trained on {DIM}"),
        ({}, {"present": np.arange(6).reshape(2, 3) != 4}, r"lacks 1 of its 6 cells: \(row 1, column 1\); holes=fill"),
        ({"grid.rows": "0-2"}, {}, "grid.rows: grid 'slide0' has 2 rows, 0-1; got 0-2"),
        ({"edits": "[{kind: fill, rows: 1, columns: 2-3}]"}, {}, "edits.0: ends at row 1, column 3"),
        ({"stride": "9"}, {}, "stride: at most 8, the window of"),
        ({"steps": "7"}, {}, " steps: must divide 1000"),
        ({"decoder": None}, {}, "name an autoencoder of it"),
        ({"guidance": "-1"}, {}, "guidance"),
        ({"noise": "loud"}, {}, "1 problem noise: expected released_code, or η of DDIM from 0 to 1, got 'loud'"),
    ],
)
def test_a_mistake_is_said_in_one_message_before_anything_is_loaded(models, hdtrain, tmp_path, changes, grid, said):
    saved_grid(tmp_path / "g.npz", 2, 3, **grid)
    keys = models | {"grid.source": str(tmp_path / "g.npz")} | changes
    words = [f"{key}={value}" for key, value in keys.items() if value is not None]
    assert_said(hdtrain("paint", *words, "--out", "run", "--dry-run", code=2).err, said)


def assert_said(text: str, pattern: str) -> None:
    assert re.search(pattern, " ".join(text.split())), text


def test_a_dry_run_says_how_large_the_image_is_and_what_it_needs(config, hdtrain, tmp_path):
    words = [f"{key}={value}" for key, value in config.items() if key != "grid"]
    said = hdtrain("paint", *words, f"grid.source={config['grid']['source']}", "--out", "new/run", "--dry-run").out
    assert "new/run (paint): to do\nimage: 96 × 64 pixels from 2 × 3 cells, a PNG\nwork: 15 windows a step" in said
    assert re.search(r"needs: up to 1 MB of disk while it is made; \d+ MB of memory", said)
    assert not (tmp_path / "new").exists()


def test_a_dry_run_looks_at_the_disk_and_at_the_image_to_compare_with(config, tmp_path, monkeypatch):
    Image.new("RGB", (95, 64)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match="95 × 64"):
        list(preview(PaintConfig(**config, compare_with=tmp_path / "small.png"), tmp_path / "run"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 0, 0))
    with pytest.raises(HdtrainError, match="cut the grid"):
        list(preview(PaintConfig(**config), tmp_path / "run"))


def test_models_that_do_not_fit_are_refused(models, hdtrain, tmp_path):
    saved_grid(tmp_path / "g.npz", 2, 3)
    plain = publish_denoiser(tmp_path / "plain", tmp_path.__class__(models["decoder"]), embedding=None)
    facts = {"dim": DIM, "tokens": 16, "encoder_hash": None, "encoder": {}, "dropout": 0.1}
    many = publish_denoiser(tmp_path / "many", tmp_path.__class__(models["decoder"]), embedding=facts)
    sure = publish_denoiser(
        tmp_path / "sure", tmp_path.__class__(models["decoder"]), embedding=facts | {"tokens": 1, "dropout": 0.0}
    )
    other = publish_autoencoder(tmp_path / "other", seed=5)
    for changed, said in (
        ({"denoiser": plain}, "is not conditioned on embeddings"),
        ({"denoiser": many}, "has 1 token a cell, and the denoiser was trained on 16 tokens; embed the slide"),
        ({"denoiser": sure}, "no dropout of the embedding"),
        ({"decoder": other}, "the VAE does not match"),
    ):
        keys = models | {"grid.source": tmp_path / "g.npz"} | changed
        words = [f"{key}={value}" for key, value in keys.items()]
        assert_said(hdtrain("paint", *words, "--out", "run", "--dry-run", code=2).err, said)


def test_a_canvas_that_the_disk_cannot_hold_is_refused(monkeypatch, tmp_path):
    plan = PaintPlan(64, 64, 3, 64, 4, 16, 16)
    config = PaintConfig(denoiser=tmp_path, grid={"source": tmp_path})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 0, 2 * 10**9))
    with pytest.raises(HdtrainError, match=r"16,384 × 16,384 pixels needs up to 2\.\d GB .* 2\.0 GB free"):
        check_disk(plan, config, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 0, 4 * 10**9))
    check_disk(plan, config, tmp_path)


@pytest.mark.parametrize(
    ("rows", "window", "stride"), [(4, 64, 16), (3, 8, 2), (2, 8, 5), (1, 16, 4), (5, 8, 8), (3, 8, 3)]
)
def test_bands_complete_every_row_once_and_reach_one_band_at_most(rows, window, stride):
    plan = PaintPlan(rows, 2, 3, window, 4, stride, 4)
    complete = [row for band in range(plan.num_bands) for row in plan.band_rows(band)]
    assert complete == list(range(plan.height))
    windows = [n for band in range(plan.num_bands) for n in plan.band_windows(band)]
    assert windows == list(range(plan.num_windows))
    for band in range(plan.num_bands):
        starts = {i for i, _ in plan.places(*(lambda r: (r.start, r.stop))(plan.band_windows(band)))}
        assert min(starts) == plan.band_rows(band).start
        assert max(starts) + window == plan.band_reach(band).stop
        if band + 2 < plan.num_bands:
            assert plan.band_reach(band).stop <= plan.band_rows(band + 2).start
