"""From slides to large images by way of embeddings: every stage of it by one recipe, in real processes."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from test_chain import EVERYTHING, hdtrain, recipe
from tiny_chain import READER, draw, train_config

from hdtrain.config.stages import STAGES
from hdtrain.formats.embedding_grid import GridRun, read_grid
from hdtrain.formats.fidelity import Fidelity
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.slide_results import SlideResults

ENCODER = {"kind": "timm", "name": "test_resnet.r160_in1k"}
TILES = {"layout": "class-folders", "tile_images": True, "tile_px": 32, "stride_px": 32, "min_tissue": 0}
PRIOR = {"grids": ["@embeddings"], "rows": 2, "columns": 2, "class_conditional": True, "preset": "dit-tiny"}
SIZE = {"denoiser": "@ldm", "decoder": "@vae", "steps": 2, "stride": 4}
TRAINING = {"latents": "@latents", "vae": "@vae", "preset": "tiny-cond", "embeddings": ["@embeddings"]}


def slides_recipe() -> dict:
    vae = {"preset": "kl-f4-tiny", "reader": READER, "perceptual": {"kind": "none"}, **train_config(8)}

    def node(stage: str, **config: object) -> dict:
        return {"stage": stage, "config": config}

    def embed(images: str) -> dict:
        return node("embed", images=[images], encoder=ENCODER, batch_size=8)

    small = {"hidden": 8, "attention": 4, "steps": 10}
    arms = {"real": {"train": ["@embeddings"]}, "more": {"train": ["@embeddings"], "synthetic": ["@grids"]}}
    nodes = {
        "tiles": node("shard", sources=[{"path": "raw/slides", **TILES}], samples_per_shard=20),
        "test-tiles": node("shard", sources=[{"path": "raw/test", **TILES}], split="test", samples_per_shard=20),
        "vae": node("train-vae", images=["@tiles"], **vae),
        "latents": node("encode", images=["@tiles"], vae="@vae"),
        "embeddings": embed("@tiles"),
        "test-embeddings": embed("@test-tiles"),
        "ldm": node("train-ldm", **TRAINING, **train_config(8)),
        "variations": node(
            "sample", denoiser="@ldm", decoder="@vae", embeddings={"run": "@test-embeddings"}, solver={"steps": 2}
        ),
        "variations-embeddings": embed("@variations"),
        "fidelity": node(
            "evaluate-fidelity", images="@variations", made="@variations-embeddings", asked="@test-embeddings"
        ),
        "prior": node("train-prior", **PRIOR, **train_config(16)),
        "grids": node("sample-grids", prior="@prior", count=2, every_class=True, steps=4, rows=3, columns=3),
        "patch-prior": node("train-prior", **{**PRIOR, "rows": 1, "columns": 1}, unit="images", **train_config(16)),
        "cells": node("sample-grids", prior="@patch-prior", count=3, every_class=True, steps=4),
        "patches": node("sample", denoiser="@ldm", decoder="@vae", embeddings={"run": "@cells"}, solver={"steps": 2}),
        "painting": node("paint", **SIZE, grid={"source": "@embeddings", "name": "slides-dots-1"}),
        "painting-cells": node(
            "shard", sources=[{**TILES, "path": "@painting/painting.png", "layout": "flat"}], duplicates="keep"
        ),
        "painting-cells-embeddings": embed("@painting-cells"),
        "painting-fidelity": node("evaluate-fidelity", painting="@painting", made="@painting-cells-embeddings"),
        "invented": node("paint", **SIZE, prior="@prior", label="stripes", rows=2, columns=3, prior_steps=4),
        "slides": node(
            "evaluate-slides", test=["@test-embeddings"], arms=arms, baseline="real", mil=small, seeds=[0, 1]
        ),
    }
    return {"name": "slides", "out": "runs", "stages": nodes}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Slides of 96 × 128 px of two classes, and the recipe, which was run."""
    folder = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(0)
    for split, count in (("slides", 3), ("test", 2)):
        for label, name in enumerate(("dots", "stripes")):
            (folder / "raw" / split / name).mkdir(parents=True)
            for number in range(count):
                slide = Image.fromarray(draw(label, rng, 128)[:96])
                slide.save(folder / "raw" / split / name / f"{split}-{name}-{number}.png")
    tree = slides_recipe()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    hdtrain(folder, "run", "recipe.yaml")
    return folder


def test_every_stage_took_part_here_or_in_the_other_chain(folder):
    manifests = {name: read_manifest(folder / "runs" / name) for name in slides_recipe()["stages"]}
    stages = {manifest.stage for manifest in manifests.values()}
    assert stages | {node["stage"] for node in recipe()["stages"].values()} == set(STAGES)
    assert EVERYTHING
    for manifest in manifests.values():
        assert manifest.kind == STAGES[manifest.stage].publishes


def test_a_slide_is_a_grid_with_its_class_and_the_prior_makes_such_grids(folder):
    real = read_grid(folder / "runs/embeddings", "slides-dots-1")
    assert real.embeddings.shape[:2] == (3, 4)
    assert real.present.all()
    assert real.label == "dots"
    grids = GridRun(folder / "runs/grids")
    made = [grids.read(name) for name in grids.names]
    assert sorted(grid.label or "" for grid in made) == ["dots", "dots", "stripes", "stripes"]
    assert {grid.embeddings.shape for grid in made} == {(3, 3, real.embeddings.shape[2])}
    assert {grid.encoder_hash for grid in made} == {real.encoder_hash}


def test_a_prior_of_images_makes_labelled_patches(folder):
    patches = read_manifest(folder / "runs/patches")
    assert (patches.kind, patches.classes) == ("images", ["dots", "stripes"])
    assert patches.info["class_counts"] == {"dots": 3, "stripes": 3}


@pytest.mark.parametrize(("name", "size"), [("painting", (128, 96)), ("invented", (96, 64))])
def test_a_painting_has_32_pixels_a_cell_whether_the_grid_is_a_slides_or_the_priors(folder, name, size):
    assert "painting.png" in read_manifest(folder / "runs" / name).files
    assert Image.open(folder / "runs" / name / "painting.png").size == size


def test_the_cells_of_a_painting_are_compared_with_its_grid(folder):
    fidelity = Fidelity.read(folder / "runs/painting-fidelity/results.json")
    assert fidelity.num_images == fidelity.num_candidates == 12
    assert 0 <= fidelity.metrics["rank_percentile"].value <= 1


def test_variations_inherit_and_the_figures_are_there(folder):
    fidelity = Fidelity.read(folder / "runs/fidelity/results.json")
    assert fidelity.num_images == fidelity.num_candidates == 48
    assert set(fidelity.per_class) == {"dots", "stripes"}
    slides = SlideResults.read(folder / "runs/slides/results.json")
    assert [(arm.num_real, arm.num_synthetic) for arm in slides.arms.values()] == [(6, 0), (6, 4)]
    assert slides.num_test == 4
    assert json.loads((folder / "runs/variations/manifest.json").read_text())["info"]["class_counts"] == {
        "dots": 24,
        "stripes": 24,
    }
