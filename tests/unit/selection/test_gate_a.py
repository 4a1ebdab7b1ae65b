"""Gate A through the stage: φ's confidence, calibrated, and its entropy under Monte-Carlo dropout."""

import json
import shutil

import numpy as np
import pytest
import torch
from select_helpers import config, refused, rows, select

from hdtrain.data.exactly_once import iterate_shard
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.shards import open_shards
from hdtrain.models.autoencoder import to_unit_range
from hdtrain.models.classifier import load_classifier

H, T = 0.6, 0.02
GATES = {"entropy": H, "mc_passes": 6, "nearest_centroid": False}


def calibrate(phi, temperature: float):
    """Publish φ with another temperature."""
    manifest = json.loads((phi / "manifest.json").read_text())
    manifest["info"]["temperature"] = {"0": temperature}
    (phi / "manifest.json").write_text(json.dumps(manifest))
    return phi


@pytest.fixture(scope="module")
def phi(chain, tmp_path_factory):
    """φ with dropout. It learned next to nothing, so a low temperature makes it sure of itself."""
    model = {**chain.config("phi")["model"], "dropout": 0.5}
    return calibrate(chain.make("phi", tmp_path_factory.mktemp("phi") / "phi", model=model), T)


@pytest.fixture(scope="module")
def selection(chain, phi, tmp_path_factory):
    run = tmp_path_factory.mktemp("entropy") / "run"
    select(run, config(chain, classifier=str(phi), gates=GATES))
    return run


def logits(phi, chain) -> dict[str, torch.Tensor]:
    """By key, of the features themselves."""
    model, found = load_classifier(phi), {}
    for reader in open_shards(chain["candidates"], read_manifest(chain["candidates"])):
        for batch in iterate_shard(reader, 3, 32):
            found |= dict(zip(batch.keys, model(to_unit_range(torch.from_numpy(batch.images))), strict=True))
    return found


def test_the_gate_is_the_entropy_of_the_mean_and_its_argmax_the_target_class(selection):
    found = rows(selection)
    for row in found:
        assert 0 <= row["entropy"] <= np.log(2) + 1e-6
        passes = row["entropy"] <= H and row["predicted_class"] == row["class"]
        assert (row["passes_gates"], row["fell_at"]) == (passes, None if passes else "entropy")
    counts = read_manifest(selection).info["per_class"]
    for name, count in counts.items():
        own = [row for row in found if row["class"] == name]
        assert count["fell"] == {
            "confidence": 0,
            "entropy": sum(not row["passes_gates"] for row in own),
            "nearest_centroid": 0,
            "closer_half": 0,
        }


def test_many_passes_come_to_the_mean_over_all_masks(chain, phi, tmp_path):
    """Against φ's own dropout layer, left on."""
    select(tmp_path / "run", config(chain, classifier=str(phi), gates={**GATES, "mc_passes": 2000}))
    model = load_classifier(phi)
    model.dropout.train()
    torch.manual_seed(0)
    reader = open_shards(chain["candidates"], read_manifest(chain["candidates"]))[0]
    batch = next(iter(iterate_shard(reader, 4, 32)))
    with torch.no_grad():
        features = model.features(to_unit_range(torch.from_numpy(batch.images)))
        passes = [(model.head(model.dropout(features)) / T).softmax(1) for _ in range(4000)]
    mean = torch.stack(passes).mean(0).double()
    expected = dict(zip(batch.keys, (-(mean * mean.log()).sum(1)).tolist(), strict=True))
    found = {row["key"]: row["entropy"] for row in rows(tmp_path / "run")}
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=0.01)


def test_neither_the_batch_nor_more_ranks_nor_another_shard_changes_a_figure(chain, phi, selection, tmp_path):
    repacked = chain.make("candidates", tmp_path / "repacked", samples_per_shard=7)
    changes = {"candidates": [str(repacked)], "batch_size": 5, "classifier": str(phi), "gates": GATES}
    select(tmp_path / "run", config(chain, **changes))
    ours, theirs = ([(row["key"], row["entropy"]) for row in rows(run)] for run in (selection, tmp_path / "run"))
    assert [key for key, _ in ours] == [key for key, _ in theirs]
    assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], abs=0.005)  # pixels may round


def test_another_seed_draws_other_masks(chain, phi, selection, tmp_path):
    select(tmp_path / "run", config(chain, classifier=str(phi), gates=GATES, seed=1))
    ours, theirs = ([row["entropy"] for row in rows(run)] for run in (selection, tmp_path / "run"))
    assert ours != theirs


def test_a_temperature_softens_confidence_and_entropy(chain, phi, selection, tmp_path):
    calibrated, raw = calibrate(shutil.copytree(phi, tmp_path / "phi"), 4 * T), logits(phi, chain)
    for name, gates in (("entropy", GATES), ("plain", {"nearest_centroid": False})):
        select(tmp_path / name, config(chain, classifier=str(calibrated), gates=gates))
        for row in rows(tmp_path / name):
            label = ["dots", "stripes"].index(row["class"])
            assert row["confidence"] == pytest.approx(float((raw[row["key"]] / (4 * T)).softmax(0)[label]), abs=1e-5)
    before, after = (np.mean([row["entropy"] for row in rows(run)]) for run in (selection, tmp_path / "entropy"))
    assert after > before


def test_a_classifier_without_dropout_is_refused_with_what_to_do(chain, tmp_path, capsys):
    said = refused(tmp_path / "run", config(chain, gates=GATES), capsys)
    assert f"{chain['phi']}: gates.entropy asks φ several times under dropout" in said
    assert "model.dropout=0.2" in said


def test_a_classifier_of_latents_is_refused(chain, tmp_path, capsys):
    said = refused(tmp_path / "run", config(chain, classifier=str(chain["guide"]), gates=GATES), capsys)
    assert "this one is of kind latent" in said
