"""`sweep-guidance`: the same noise at every scale, figures that are right, a judge that is independent, a choice."""

import numpy as np
import pytest
from tiny_chain import run_here

from hdtrain.evaluation.statistics import wilson_interval
from hdtrain.evaluation.sweep import choose, mean_distance
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.results import Metric
from hdtrain.formats.shards import open_shards
from hdtrain.formats.sweep import ScaleResult, SweepResults

SCALES = [4.0, 0.0, 1.0]


@pytest.fixture(scope="module")
def judge(chain, tmp_path_factory):
    return chain.make("phi", tmp_path_factory.mktemp("judge") / "judge", seeds=[7])


@pytest.fixture(scope="module")
def config(chain, judge):
    sampled = chain.config("candidates")
    kept = {key: sampled[key] for key in ("denoiser", "decoder", "classifier", "solver")}
    chain["candidates"]
    return kept | {
        "guidances": SCALES,
        "per_class": 3,
        "real": [str(chain["labelled"])],
        "encoder": {"kind": "classifier", "classifier": str(judge)},
        "judge": str(judge),
        "resolution": 32,
        "batch_size": 2,
    }


@pytest.fixture(scope="module")
def swept(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("sweep") / "sweep"
    assert run_here("sweep-guidance", run, config) == 0
    return run


def images(run) -> dict[str, bytes]:
    return {
        key: bytes(shard.image(i))
        for shard in open_shards(run, read_manifest(run))
        for i, key in enumerate(shard.sidecar.keys)
    }


def test_every_scale_is_a_data_set_and_the_images_are_those_that_sample_makes(chain, swept):
    manifest = read_manifest(swept, ("sweep",))
    assert manifest.info["datasets"] == ["g-0", "g-1", "g-4"]
    assert set(manifest.files) == {"sweep.json", "sweep.svg"}
    sets = {name: images(swept / name) for name in manifest.info["datasets"]}
    keys = sets["g-0"].keys()
    for name, found in sets.items():
        data = read_manifest(swept / name, ("images",))
        assert (data.num_samples, data.split, data.classes) == (6, "synthetic", ["dots", "stripes"])
        assert data.info["guidance"] == float(name.removeprefix("g-"))
        assert found.keys() == keys, "the same noise has the same key"
        assert found != sets["g-0"] or name == "g-0"
    sampled = images(chain["candidates"])
    assert {key: sampled[key] for key in keys} == sets["g-1"]


def test_the_figures_are_those_of_the_images(swept):
    sweep = SweepResults.read(swept / "sweep.json")
    assert [scale.guidance for scale in sweep.scales] == [0, 1, 4]
    for scale in sweep.scales:
        agreement = scale.metrics["label_agreement"]
        hits = round(agreement.value * agreement.n)
        assert agreement.n == scale.num_images == 6
        assert agreement.interval == wilson_interval(hits, 6)
        by_class = [scale.per_class[name]["label_agreement"] for name in sweep.classes]
        assert sum(round(metric.value * metric.n) for metric in by_class) == hits
        assert scale.metrics["diversity"].value == pytest.approx(
            np.mean([scale.per_class[name]["diversity"].value for name in sweep.classes])
        )
        assert {"precision", "recall", sweep.frechet} <= scale.metrics.keys()
    assert len({scale.metrics[sweep.frechet].value for scale in sweep.scales}) == 3
    assert sweep.real["label_agreement"].n == 20


def test_the_rule_chose_and_the_manifest_and_the_table_say_so(swept, config, tmp_path, capsys):
    manifest, sweep = read_manifest(swept), SweepResults.read(swept / "sweep.json")
    assert (manifest.info["choice"], manifest.info["chosen_by"]) == (sweep.choice, "rule")
    assert sweep.choice == sweep.rule_choice == choose(sweep.scales, sweep.frechet, 0.1)[0]
    assert "<svg" in (swept / "sweep.svg").read_text()
    other = next(scale for scale in SCALES if scale != sweep.choice)
    capsys.readouterr()
    swept.rename(tmp_path / "sweep.previous-12345678")
    before = {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "sweep.previous-12345678").glob("g-*/shards/*")
    }
    assert run_here("sweep-guidance", tmp_path / "sweep", {**config, "choice": other}) == 0
    said = capsys.readouterr().out
    assert "images and scores are those of sweep.previous-12345678" in said
    assert f"chosen: g = {other:g}, by user. The rule would have chosen another: g = {sweep.choice:g} has" in said
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "sweep").glob("g-*/shards/*")}
    assert after == before, "the images were made again"
    again = SweepResults.read(tmp_path / "sweep" / "sweep.json")
    assert (again.choice, again.chosen_by, again.scales) == (other, "user", sweep.scales)
    assert read_manifest(tmp_path / "sweep").info["choice"] == other
    (tmp_path / "sweep.previous-12345678").rename(swept)


@pytest.mark.parametrize(
    ("judged_by", "message"),
    [
        ("guide", "is a classifier of latents (ϕ); a judge looks at images"),
        ("phi", "had a part in making the images: decoder"),
        ("given-synthetic", "was trained on 12 synthetic images"),
    ],
)
def test_a_judge_that_is_not_independent_is_refused(chain, config, tmp_path, capsys, judged_by, message):
    if judged_by == "given-synthetic":
        model = {**chain.config("phi")["model"], "images": [str(chain["labelled"]), str(chain["candidates"])]}
        path = chain.make("phi", tmp_path / "given-synthetic", model=model, duration={"images": 4})
    else:
        path = chain[judged_by]
    assert run_here("sweep-guidance", tmp_path / "run", {**config, "judge": str(path)}) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "g-0").exists()


def scale(guidance: float, agreement: float, frechet: float) -> ScaleResult:
    metrics = {"label_agreement": Metric(value=agreement, n=100), "FD-x": Metric(value=frechet, n=100)}
    return ScaleResult(guidance=guidance, num_images=100, metrics=metrics)


def test_the_rule_takes_the_best_agreement_among_the_scales_near_the_smallest_distance():
    scales = [scale(0, 0.2, 10.5), scale(1, 0.6, 10.0), scale(2.5, 0.7, 11.0), scale(5, 0.9, 11.01)]
    assert choose(scales, "FD-x", 0.1)[0] == 2.5
    assert choose(scales, "FD-x", 0.0)[0] == 1
    assert choose(scales, "FD-x", 0.2)[0] == 5
    tied = [scale(1, 0.7, 10), scale(2, 0.7, 9.9)]
    assert choose(tied, "FD-x", 0.1)[0] == 1
    assert "within 10 % of the smallest (10, at g = 1): 0, 1, 2.5" in choose(scales, "FD-x", 0.1)[1]


def test_agreement_that_is_not_above_chance_is_said_to_be_so(swept):
    sweep = SweepResults.read(swept / "sweep.json")
    low = sweep.chosen.metrics["label_agreement"].interval[0]
    assert (f"the agreement at g = {sweep.choice:g} is not above chance (0.500)" in sweep.reason) is (low <= 0.5)


def test_the_mean_distance_of_pairs_is_what_a_loop_finds():
    rows = np.random.default_rng(0).normal(size=(1500, 3))
    some = rows[:40]
    pairs = [np.linalg.norm(a - b) for i, a in enumerate(some) for b in some[:i]]
    assert mean_distance(some) == pytest.approx(np.mean(pairs))
    blocks = np.concatenate([rows, rows])
    assert mean_distance(blocks) == pytest.approx(mean_distance(rows) * 2 * 1499 / 2999)
