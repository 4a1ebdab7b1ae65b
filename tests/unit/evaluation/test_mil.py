"""Attention-MIL on bags of embeddings: what it learns, that it repeats, and the stage through its files."""

import re

import numpy as np
import pytest
import torch
from tiny_chain import run_here

from hdtrain.config.slides import EvaluateSlidesConfig, MilConfig
from hdtrain.errors import DataError
from hdtrain.evaluation.mil import probabilities, train_mil
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.embedding_grid import EmbeddingGrid, write_grid
from hdtrain.formats.manifest import Manifest, publish
from hdtrain.formats.slide_results import SlideResults
from hdtrain.stages.preview_slides import preview

TINY = MilConfig(hidden=8, attention=4, dropout=0.0, lr=1e-2, steps=150)


def bags(count: int, seed: int, dim: int = 6) -> tuple[list[np.ndarray], list[int]]:
    """Noise; in a bag of class 1 every tenth instance shows it."""
    rng = np.random.default_rng(seed)
    labels = [i % 2 for i in range(count)]
    made = [rng.normal(size=(int(rng.integers(20, 60)), dim)).astype(np.float32) for _ in labels]
    for bag, label in zip(made, labels, strict=True):
        bag[::10, 2] += 5 * label
    return made, labels


def test_a_few_telling_instances_are_found_and_attended_to():
    train, labels = bags(30, 0)
    test, truth = bags(20, 1)
    model = train_mil(train, labels, 2, TINY, seed=0)
    assert (probabilities(model, test).argmax(axis=1) == truth).mean() >= 0.9
    positive = next(bag for bag, label in zip(test, truth, strict=True) if label)
    with torch.no_grad():
        _, attention = model(torch.from_numpy(positive))
    assert attention.sum() == pytest.approx(1, abs=1e-5)
    assert attention[::10].mean() > 3 * attention.mean()


def test_the_same_seed_gives_the_same_weights_and_another_others():
    train, labels = bags(6, 0)
    quick = TINY.model_copy(update={"steps": 5, "dropout": 0.25, "max_instances": 10})
    one, two, other = (train_mil(train, labels, 2, quick, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["classify.weight"], other["classify.weight"])


def test_features_that_do_not_vary_do_no_harm():
    train, labels = bags(4, 0)
    for bag in train:
        bag[:, 0] = 7
    model = train_mil(train, labels, 2, TINY.model_copy(update={"steps": 3}), seed=0)
    assert np.isfinite(probabilities(model, train)).all()


def publish_grids(folder, made: list[np.ndarray], labels: list[int | None], prefix: str, encoder: str = "e" * 64):
    files = {}
    for number, (bag, label) in enumerate(zip(made, labels, strict=True)):
        cells = bag[:20].reshape(4, 5, -1)
        present, unknown = np.ones((4, 5), bool), np.full((4, 5), -1)
        present[0, 0] = False
        name = None if label is None else ("healthy", "ill")[label]
        grid = EmbeddingGrid(f"{prefix}{number}", cells, present, unknown, unknown, None, name, encoder)
        path = folder / "grids" / f"{prefix}{number}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_grid(path, grid)
        files[f"grids/{path.name}"] = sha256_file(path)
    info = {"encoder_hash": encoder, "dim": cells.shape[-1]}
    publish(folder, Manifest(kind="grids", stage="sample-grids", fingerprint="", commit="", files=files, info=info))
    return str(folder)


@pytest.fixture
def config(tmp_path):
    (few, few_labels), (many, many_labels), (test, truth) = bags(2, 0), bags(20, 1), bags(12, 2)
    real = publish_grids(tmp_path / "real", few, few_labels, "real")
    more = publish_grids(tmp_path / "more", many, many_labels, "more")
    held_out = publish_grids(tmp_path / "test", test, truth, "test")
    arms = {"real": {"train": [real]}, "with synthetic": {"train": [real], "synthetic": [more]}}
    return {"test": [held_out], "arms": arms, "baseline": "real", "mil": TINY.model_dump(), "seeds": [0, 1, 2]}


def test_an_arm_with_more_slides_gains_and_the_table_says_so(config, tmp_path, capsys):
    assert run_here("evaluate-slides", tmp_path / "run", config) == 0
    results = SlideResults.read(tmp_path / "run/results.json")
    assert results.classes == ["healthy", "ill"]
    assert [(arm.num_real, arm.num_synthetic) for arm in results.arms.values()] == [(2, 0), (2, 20)]
    more = results.arms["with synthetic"]
    assert more.metrics["accuracy"].value > results.arms["real"].metrics["accuracy"].value
    low, high = more.metrics["accuracy_gain"].interval
    assert low <= more.metrics["accuracy_gain"].value <= high
    assert more.p_value < 0.2
    said = results.predictions["with synthetic"]["test0"]
    assert np.array(said).shape == (3, 2)
    assert np.array(said).sum(axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert re.search(r"with synthetic +2 +20 +[01]\.\d{3} \[", capsys.readouterr().out)


def test_what_would_spoil_the_comparison_is_refused(config, tmp_path, capsys):
    def complaint(**changes) -> str:
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        assert run_here("evaluate-slides", folder, {**config, **changes}) == 2
        return capsys.readouterr().err

    leaking = {"real": {"train": [*config["arms"]["real"]["train"], *config["test"]]}}
    assert "is trained on test0, which is a test slide (and 11 more)" in complaint(arms=leaking)
    made, labels = bags(2, 5)
    other = publish_grids(tmp_path / "other", made, labels, "other", encoder="f" * 64)
    mixed = {"real": config["arms"]["real"], "mixed": {"train": config["arms"]["real"]["train"], "synthetic": [other]}}
    said = f"arm 'mixed': {other} ('other0') was embedded with another encoder than {config['test'][0]} (test)"
    assert said in " ".join(complaint(arms=mixed).split())
    bare = publish_grids(tmp_path / "bare", made, [None, None], "bare")
    assert "no label of 'bare0'" in complaint(test=[bare])
    table = tmp_path / "labels.csv"
    table.write_text("bare0,healthy\nbare1\n")
    assert "labels.csv:2: expected 'bag,class', got 'bare1'" in complaint(test=[bare], labels=str(table))


def test_a_dry_run_counts_the_bags_and_refuses_what_the_run_would(config, tmp_path):
    lines = "\n".join(preview(EvaluateSlidesConfig(**config), tmp_path / "run"))
    assert re.search(r"bags +healthy +ill\ntest +6 +6\n", lines)
    assert re.search(r"with synthetic, synthetic +10 +10\n6 trainings of ", lines)
    leaking = {**config, "test": config["arms"]["real"]["train"]}
    with pytest.raises(DataError, match="which is a test slide"):
        list(preview(EvaluateSlidesConfig(**leaking), tmp_path / "run"))
