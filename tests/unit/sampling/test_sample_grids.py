"""`sample-grids`: what a prior is asked for is found in what it gives."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from prior_helpers import CLASSES, DIM, prior_config, publish_grids, toy_grids
from safetensors.numpy import load_file
from tiny_chain import run_here
from tiny_painting import VIEWS, publish_autoencoder, publish_denoiser, tiny_unet

from hdtrain.config.prior import PriorConditions, TextTowerConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.distributed.seeds import generator
from hdtrain.errors import ConfigError, HdtrainError
from hdtrain.features.text_tower import load_text_tower
from hdtrain.formats.embedding_grid import GridRun, read_grid
from hdtrain.formats.manifest import publish, read_manifest
from hdtrain.models.prior import GridPrior
from hdtrain.sampling.prior import one_grid, sample_grids

SLIDES, STEPS = 12, 40
TEXT_DIM = 8
SENTENCES = np.random.default_rng(7).normal(size=(2, TEXT_DIM)).astype(np.float32)


def vectors(path, rows: dict[str, np.ndarray]):
    np.savez(path, **rows)
    return str(path)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A prior of two classes, told in three ways, each hidden half of the time."""
    root = tmp_path_factory.mktemp("prior")
    grids, rng = toy_grids(SLIDES), np.random.default_rng(0)
    text = {
        grid.name: SENTENCES[i % 2] * rng.uniform(1, 9) + 0.1 * rng.normal(size=TEXT_DIM)
        for i, grid in enumerate(grids)
    }
    genes = {grid.name: np.array([100 + 50 * (i % 2) + rng.normal(), 3.0]) for i, grid in enumerate(grids)}
    changes = {
        "text": {"vectors": vectors(root / "text.npz", text), "dropout": 0.5},
        "numeric": {"vectors": vectors(root / "genes.npz", genes), "dropout": 0.5},
        "class_dropout": 0.5,
    }
    run = publish_grids(root / "grids", grids)
    assert run_here("train-prior", root / "prior", prior_config(run, 130 * 8, **changes)) == 0
    return root / "prior"


def nearest_mean(embeddings: np.ndarray) -> int:
    """The class whose mean cell of the training grids is nearest to a grid's."""
    grids = toy_grids(SLIDES)
    means = [np.mean([g.embeddings.mean((0, 1)) for g in grids[label::2]], axis=0) for label in (0, 1)]
    return int(np.argmin([np.linalg.norm(embeddings.mean((0, 1)) - mean) for mean in means]))


def alternation(embeddings: np.ndarray) -> float:
    """How much the second feature differs between neighbours in a row."""
    return float(np.abs(np.diff(embeddings[..., 1], axis=1)).mean())


@pytest.mark.parametrize("told", ["class", "text", "numeric", "all"])
def test_what_is_asked_for_is_recognised_in_the_grids_and_so_is_its_structure(toy, tmp_path, told):
    found = {}
    for label in (0, 1):
        asked = {}
        if told in ("class", "all"):
            asked["label"] = CLASSES[label]
        if told in ("text", "all"):
            asked["text_vectors"] = vectors(tmp_path / "text.npz", {"sentence": SENTENCES[label]})
        if told in ("numeric", "all"):
            asked["numeric"] = vectors(tmp_path / "genes.npz", {"sentence": np.array([100.0 + 50 * label, 3.0])})
        found[label] = [g.embeddings for g in sample_grids(toy, PriorConditions(**asked), 8, steps=STEPS)]
        assert [nearest_mean(embeddings) for embeddings in found[label]] == [label] * 8
    flat, stripes = (np.mean([alternation(embeddings) for embeddings in found[label]]) for label in (0, 1))
    assert stripes > 3 * flat


def test_nothing_asked_for_gives_grids_of_both_classes(toy):
    found = sample_grids(toy, PriorConditions(), 16, steps=STEPS)
    assert {nearest_mean(grid.embeddings) for grid in found} == {0, 1}
    assert {grid.label for grid in found} == {None}


def test_a_grid_depends_on_its_number_and_the_seed_alone(toy):
    three = sample_grids(toy, PriorConditions(label="stripes"), 3, steps=STEPS)
    ten = sample_grids(toy, PriorConditions(label="stripes"), 10, steps=STEPS)
    other = sample_grids(toy, PriorConditions(label="stripes"), 1, steps=STEPS, seed=1)
    assert all(np.array_equal(a.embeddings, b.embeddings) for a, b in zip(three, ten, strict=False))
    assert not np.allclose(three[0].embeddings, three[1].embeddings)
    assert not np.allclose(three[0].embeddings, other[0].embeddings)


def test_plain_diffusers_gives_the_same_grid_from_the_published_folder(toy):
    """DDIM of diffusers with prediction_type sample, guidance and scaling written out."""
    network = GridPrior.from_pretrained(toy / "model").eval()
    scheduler = DDIMScheduler.from_pretrained(toy / "model" / "scheduler")
    assert (scheduler.config.prediction_type, scheduler.config.beta_schedule) == ("sample", "squaredcos_cap_v2")
    standard = load_file(toy / "model" / "standard.safetensors")
    z = torch.randn(3, 3, DIM, generator=generator(5, "grid", 0))[None]
    rest = torch.ones(1, 3, 3, dtype=torch.bool), torch.tensor([1]), torch.zeros(1, TEXT_DIM), torch.zeros(1, 2)
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for t in scheduler.timesteps:
            told, hidden = (
                network(z, t[None], rest[0], torch.tensor([[given, False, False]]), *rest[1:])
                for given in (True, False)
            )
            z = scheduler.step(hidden + 3 * (told - hidden), t, z).prev_sample
    expected = z[0].numpy() * standard["embeddings.std"] + standard["embeddings.mean"]
    found = sample_grids(toy, PriorConditions(label="stripes"), guidance=3, seed=5, steps=STEPS)[0]
    assert found.embeddings == pytest.approx(expected, abs=2e-4)


def test_the_cosine_schedule_is_that_of_nichol_and_dhariwal():
    found = NoiseSchedule(NoiseScheduleConfig(kind="squaredcos_cap_v2")).alphas_cumprod.double().numpy()
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    assert found[:998] == pytest.approx(f[1:999] / f[0], rel=2e-3, abs=1e-6)


def test_the_stage_publishes_grids_of_every_class_that_paint_and_train_prior_can_read(toy, tmp_path):
    config = {"prior": str(toy), "every_class": True, "count": 5, "steps": STEPS, "rows": 4, "columns": 6}
    assert run_here("sample-grids", tmp_path / "out", config) == 0
    manifest, grids = read_manifest(tmp_path / "out"), GridRun(tmp_path / "out")
    assert (manifest.kind, manifest.classes, len(grids.names)) == ("grids", CLASSES, 10)
    for name in grids.names:
        grid = grids.read(name)
        assert (grid.rows, grid.columns, grid.dim, bool(grid.present.all())) == (4, 6, DIM, True)
        assert grid.mpp == 0.5  # of the slides that the prior was trained on
        assert CLASSES[nearest_mean(grid.embeddings)] == grid.label == name.split("-")[0]
        grid.check_encoder(DIM, read_manifest(toy).info["embedding"]["encoder_hash"], "a denoiser")


def test_a_stage_that_was_killed_makes_only_what_is_missing(toy, tmp_path):
    config = {"prior": str(toy), "label": "flat", "count": 3, "steps": STEPS, "batch_size": 2}
    assert run_here("sample-grids", tmp_path / "out", config) == 0
    first, _, last = sorted((tmp_path / "out" / "grids").iterdir())
    kept, made = first.stat().st_mtime_ns, last.read_bytes()
    last.unlink()
    (tmp_path / "out" / "manifest.json").unlink()
    assert run_here("sample-grids", tmp_path / "out", config) == 0
    assert first.stat().st_mtime_ns == kept
    assert last.read_bytes() == made


def test_files_with_several_keys_give_a_grid_each_and_paint_must_be_told_which(toy, tmp_path):
    path = vectors(tmp_path / "text.npz", {"one": SENTENCES[0], "two": SENTENCES[1]})
    found = sample_grids(toy, PriorConditions(text_vectors=path), steps=STEPS)
    assert [grid.name for grid in found] == ["one-grid-000000", "two-grid-000001"]
    with pytest.raises(ConfigError, match="key: the files have 2 keys; name one of them: one, two"):
        one_grid(toy, PriorConditions(text_vectors=path), 2, 0, STEPS)
    two = one_grid(toy, PriorConditions(text_vectors=path, key="two"), 2, 0, STEPS)
    assert nearest_mean(two.embeddings) == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"label": "dots"}, "knows no class 'dots'; it knows flat, stripes"),
        ({"key": "a"}, "key: names a row of text_vectors or numeric; neither is given"),
        ({"text": "much tumour"}, "nobody told it which tower made them; give text_vectors=FILE"),
        ({"text_vectors": {"a": np.ones(5)}}, "vectors of 5 features, and .* was trained on text of 8"),
        ({"numeric": {"a": np.ones(2)}, "key": "b"}, "key: 'b' is not in the files; they have a"),
        ({"numeric": {"a": np.ones(2)}, "text_vectors": {"b": SENTENCES[0]}}, "have no key in common"),
        ({"steps": 300}, "must divide 1000 timesteps evenly, got 300"),
        ({"every_class": True, "label": "flat"}, "give one of them"),
    ],
)
def test_what_the_prior_cannot_do_is_one_message(toy, tmp_path, hdtrain, asked, said):
    words = [f"{k}={vectors(tmp_path / f'{k}.npz', v) if isinstance(v, dict) else v}" for k, v in asked.items()]
    error = hdtrain("sample-grids", f"prior={toy}", *words, "--out", "run", code=2).err
    assert re.search(said, error), error


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("text=necrosis", "without texts, and text asks for 'necrosis'; leave text out, or train a prior with text"),
        ("text_vectors=t.npz", "tells some; leave text_vectors out, or train a prior with text"),
        ("label=flat", "asks for 'flat'; leave label out, or train a prior with class_conditional=true"),
    ],
)
def test_a_prior_that_was_told_nothing_is_asked_for_nothing(toy, tmp_path, hdtrain, asked, said):
    trained = read_manifest(toy)
    info = {key: value for key, value in trained.info.items() if key not in ("text", "numeric")}
    bare = trained.model_copy(update={"classes": None, "info": {**info, "class_conditional": False}, "files": {}})
    publish(tmp_path / "bare", bare)
    np.savez(tmp_path / "t.npz", a=np.ones(2))
    asked = asked.replace("=t.npz", f"={tmp_path / 't.npz'}")
    assert said in hdtrain("sample-grids", f"prior={tmp_path / 'bare'}", asked, "--out", "run", code=2).err


def test_a_tower_that_is_not_installed_says_which_extra(toy, tmp_path, monkeypatch):
    for kind in ("transformers", "open_clip"):
        monkeypatch.setitem(sys.modules, kind, None)
        with pytest.raises(HdtrainError, match=r"needs the package .*: pip install 'hdtrain\[text\]'"):
            load_text_tower(TextTowerConfig(kind=kind, folder=tmp_path))


@pytest.fixture(scope="module")
def painter(toy, tmp_path_factory):
    """Config of `paint`, with a denoiser of the prior's encoder."""
    folder = tmp_path_factory.mktemp("paint")
    vae, encoder = publish_autoencoder(folder / "vae"), read_manifest(toy).info["embedding"]["encoder_hash"]
    embedding = {"dim": DIM, "tokens": 1, "encoder": {"name": "made-up"}, "encoder_hash": encoder, "dropout": 0.1}
    denoiser = publish_denoiser(folder / "denoiser", vae, tiny_unet(dim=DIM), embedding=embedding)
    return {"denoiser": str(denoiser), "decoder": str(vae), "prior": str(toy), "steps": 4, "prior_steps": STEPS}


def test_paint_asks_a_prior_for_its_grid(toy, painter, tmp_path):
    config = {**painter, "label": "stripes", "rows": 2, "columns": 4, "seed": 3}
    assert run_here("paint", tmp_path / "run", config) == 0
    painted = read_grid(tmp_path / "run" / "grid.npz")
    asked = PriorConditions(label="stripes", rows=2, columns=4)
    steps = []
    drawn = sample_grids(toy, asked, seed=3, steps=STEPS, batch_size=1, saw=lambda: steps.append(1))
    assert np.array_equal(painted.embeddings, drawn[0].embeddings)
    assert len(steps) == STEPS
    manifest = read_manifest(tmp_path / "run")
    assert (manifest.info["grid"]["rows"], manifest.info["grid"]["columns"], manifest.info["label"]) == (
        2,
        4,
        "stripes",
    )


def test_a_painting_too_large_for_the_disk_is_refused_before_its_grid_is_drawn(painter, tmp_path, capsys):
    assert run_here("paint", tmp_path / "run", {**painter, "rows": 8000, "columns": 8000}) == 2
    said = capsys.readouterr()
    assert "needs up to" in said.err
    assert "ask the prior for fewer rows and columns" in said.err
    assert "prior:" not in said.out + said.err


def test_paint_asks_no_prior_for_several_tokens(painter, hdtrain, tmp_path):
    embedding = read_manifest(Path(painter["denoiser"])).info["embedding"] | {"tokens": 2, "token_order": list(VIEWS)}
    several = publish_denoiser(tmp_path / "several", Path(painter["decoder"]), embedding=embedding)
    words = [f"{key}={value}" for key, value in (painter | {"denoiser": several}).items()]
    said = " ".join(hdtrain("paint", *words, "--out", "run", "--dry-run", code=2).err.split())
    assert "was trained on 2 tokens (whole, context-4) an image, and" in said
    assert "draws one a cell; take a denoiser that was trained on one embedding an image" in said


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["label=dots"], "knows no class 'dots'; it knows flat, stripes"),
        (["text=necrosis"], "nobody told it which tower made them"),
        (["grid.source=g.npz"], "give grid.source, or prior and what it is told; one of them"),
        (["edits=[{kind: fill, rows: 5, columns: 0}]"], "ends at row 5"),
    ],
)
def test_paint_refuses_what_the_prior_cannot_do_before_it_starts(painter, hdtrain, asked, said):
    words = [f"{key}={value}" for key, value in painter.items()]
    assert said in hdtrain("paint", *words, *asked, "--out", "run", code=2).err
