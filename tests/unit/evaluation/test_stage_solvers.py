"""`sweep-solvers`: the same noise by every solver, figures that are right, a gate that opens and shuts, a choice."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_chain import run_here

from hdtrain.cli import main
from hdtrain.config.load import read_yaml
from hdtrain.config.training import ClassifierEncoder
from hdtrain.evaluation.frechet import frechet_distance
from hdtrain.evaluation.moments import Moments
from hdtrain.evaluation.solver_sweep import choose
from hdtrain.features.encoders import build_encoder
from hdtrain.formats.manifest import Manifest, ParentEntry, publish, read_manifest
from hdtrain.formats.results import Metric
from hdtrain.formats.shards import open_shards
from hdtrain.formats.solver_sweep import SolverResult, SolverSweepResults, Speeds
from hdtrain.reporting.runs import Run

REFERENCE, CRUDE, FAST = "ddim-8", "ddim-1", "unipc-4"
SETTINGS = {"batch_size": 5, "clip_latents": 3.0}


@pytest.fixture(scope="module")
def config(chain):
    sampled = chain.config("candidates")
    return {key: sampled[key] for key in ("denoiser", "decoder", "classifier")} | {
        "real": [str(chain["labelled"])],
        "encoder": {"kind": "classifier", "classifier": str(chain["phi"])},
        "per_class": 6,
        "groups": 3,
        "reference": {"steps": 8},
        "solvers": [{"steps": 1}, {"kind": "unipc", "steps": 4}],
        "resolution": 32,
        **SETTINGS,
    }


@pytest.fixture(scope="module")
def swept(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("solvers") / "solvers"
    assert run_here("sweep-solvers", run, config) == 0
    return run


@pytest.fixture(scope="module")
def by_hand(config, swept, tmp_path_factory):
    """The same with a solver more and another one chosen, where the first run was moved aside."""
    folder = tmp_path_factory.mktemp("by-hand")
    shutil.copytree(swept, folder / "solvers.previous-12345678")
    solvers = [*config["solvers"], {"kind": "dpm-solver++", "steps": 2}]
    assert run_here("sweep-solvers", folder / "solvers", {**config, "solvers": solvers, "choice": FAST}) == 0
    return folder / "solvers"


def images(run) -> dict[str, np.ndarray]:
    return {
        key: np.asarray(Image.open(io.BytesIO(bytes(shard.image(i)))))
        for shard in open_shards(run, read_manifest(run))
        for i, key in enumerate(shard.sidecar.keys)
    }


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def test_every_solver_is_a_data_set_of_the_images_that_sample_makes(chain, swept, tmp_path):
    manifest = read_manifest(swept, ("solver-sweep",))
    assert manifest.info["datasets"] == [REFERENCE, CRUDE, FAST]
    assert set(manifest.files) == {"solvers.json", "solvers.svg"}
    data = read_manifest(swept / FAST, ("images",))
    assert (data.num_samples, data.split, data.classes) == (12, "synthetic", ["dots", "stripes"])
    assert data.info["solver"] == "unipc-4-order2"
    assert not same(images(swept / FAST), images(swept / REFERENCE))
    sampled = chain.make("candidates", tmp_path / "sampled", solver={"kind": "unipc", "steps": 4}, **SETTINGS)
    assert same(images(sampled), images(swept / FAST))


def test_the_figures_are_those_of_the_images(chain, swept):
    sweep = SolverSweepResults.read(swept / "solvers.json")
    encoder = build_encoder(ClassifierEncoder(classifier=chain["phi"]))
    assert sweep.metric == "FD-classifier-phi"
    reference, real = images(swept / REFERENCE), images(chain["labelled"])
    moments = {
        name: Moments.of(encoder.embed(np.stack(list(found.values()))).numpy())
        for name, found in {"real": real, **{s.name: images(swept / s.name) for s in sweep.solvers}}.items()
    }
    for solver in sweep.solvers:
        found = images(swept / solver.name)
        assert solver.num_images == 12
        assert solver.frechet.value == pytest.approx(frechet_distance(moments[solver.name], moments["real"]), rel=1e-4)
        assert solver.difference.value == solver.frechet.value - sweep.reference.frechet.value
        pixels = np.mean([np.abs(found[key].astype(float) - reference[key]).mean() for key in reference])
        assert solver.pixel_difference.value == pytest.approx(pixels)
    assert sweep.reference.difference.interval == (0.0, 0.0)
    assert sweep.reference.pixel_difference.value == 0
    assert "<svg" in (swept / "solvers.svg").read_text()
    assert "the encoder has random weights" not in str(sweep.warnings)
    assert "12 images are fewer than twice the encoder's" in sweep.warnings[0]


def test_every_evaluation_is_counted_and_the_speed_is_measured(swept):
    counted = {
        solver.name: (solver.denoiser_evaluations, solver.classifier_evaluations)
        for solver in SolverSweepResults.read(swept / "solvers.json").solvers
    }
    assert counted == {REFERENCE: (8, 8), CRUDE: (1, 1), FAST: (4, 4)}
    speeds = Speeds.read(swept / "speed.json")
    assert speeds.solvers.keys() == counted.keys()
    assert speeds.solvers[REFERENCE].times_faster == 1
    assert {speed.batches for speed in speeds.solvers.values()} == {3}
    assert speeds.solvers[CRUDE].images_per_sec > speeds.solvers[REFERENCE].images_per_sec


def test_one_step_is_refused_and_the_reference_is_chosen(swept):
    sweep, manifest = SolverSweepResults.read(swept / "solvers.json"), read_manifest(swept)
    crude = next(solver for solver in sweep.solvers if solver.name == CRUDE)
    assert not crude.passed
    assert crude.upper > sweep.limit == pytest.approx(0.05 * sweep.reference.frechet.value)
    assert sweep.choice == sweep.rule_choice == choose(sweep.solvers, sweep.metric, 0.05)[0]
    assert (manifest.info["choice"], manifest.info["chosen_by"]) == (sweep.chosen.solver, "rule")


def test_without_classes_a_solver_that_gives_the_same_images_differs_by_exactly_nothing(config, tmp_path, capsys):
    """Without a classifier there is nothing to split, so two names mean one solver."""
    twins = [{"kind": "unipc", "steps": 4, "splitting": value} for value in (False, True)]
    changes = {"reference": twins[0], "solvers": [twins[1], {"steps": 1}], "classifier": None, "tolerance": 0.0}
    assert run_here("sweep-solvers", tmp_path / "run", {**config, **changes}) == 0
    said, sweep = capsys.readouterr().out, SolverSweepResults.read(tmp_path / "run" / "solvers.json")
    reference, twin, crude = sweep.solvers
    assert (twin.difference.value, twin.difference.interval, twin.pixel_difference.value) == (0.0, (0.0, 0.0), 0.0)
    assert (reference.passed, twin.passed, crude.passed) == (True, True, False)
    assert (twin.denoiser_evaluations, twin.classifier_evaluations) == (4, 0)
    assert sweep.choice == "unipc-4"
    assert "chosen: unipc-4, by rule. No solver whose FD-classifier-phi is within 0 % (0)" in said
    assert read_manifest(tmp_path / "run" / "ddim-1").classes is None


def test_another_choice_or_one_solver_more_makes_no_image_anew(swept, by_hand):
    sweep, before = SolverSweepResults.read(by_hand / "solvers.json"), SolverSweepResults.read(swept / "solvers.json")
    assert (sweep.choice, sweep.chosen_by) == (FAST, "user")
    assert sweep.rule_choice == choose(sweep.solvers, sweep.metric, 0.05)[0]
    assert sweep.reason.startswith("The rule ")
    assert sweep.solvers[:3] == before.solvers
    assert [solver.name for solver in sweep.solvers] == [REFERENCE, CRUDE, FAST, "dpm-solver++-2"]
    earlier = by_hand.parent / "solvers.previous-12345678"
    for path in sorted(earlier.glob("*/shards/*")):
        assert (by_hand / path.relative_to(earlier)).samefile(path), "the images were made again"
    speeds = [Speeds.read(run / "speed.json").solvers for run in (swept, by_hand)]
    assert {name: speeds[1][name] for name in speeds[0]} == speeds[0]


def test_sample_takes_the_solver_that_was_chosen_and_every_image_says_so(chain, by_hand, tmp_path, capsys):
    chosen = chain.make("candidates", tmp_path / "chosen", per_class=2, solver_from=str(by_hand), **SETTINGS)
    assert "warning" not in capsys.readouterr().out
    kept = images(by_hand / FAST)
    assert same(images(chosen), {key: kept[key] for key in images(chosen)})
    manifest = read_manifest(chosen)
    assert manifest.info["solver"] == "unipc-4-order2"
    assert open_shards(chosen, manifest)[0].meta(0)["solver_from"] == read_manifest(by_hand).identity[:16]
    assert {"solver.kind: unipc (ddim)", "solver.steps: 4 (200)"} <= set(manifest.protocol["departures"])
    shown = Run(chosen, "candidates", manifest, {}, read_yaml(chosen / "config.yaml"), "", None).highlights
    assert shown["solver"] == "unipc-4-order2", "the report shows what was used"
    assert "solver.steps" not in shown


def test_a_choice_for_another_denoiser_or_guidance_is_doubted(chain, by_hand, tmp_path, capfd):
    manifest, sweep = read_manifest(by_hand), tmp_path / "sweep"
    other = ParentEntry(path="../better-ldm", kind="denoiser", identity="0" * 64)
    publish(sweep, manifest.model_copy(update={"parents": {**manifest.parents, "denoiser": other}}))
    changes = {"per_class": 1, "guidance": 2.0, "solver_from": str(sweep)}
    chain.make("candidates", tmp_path / "run", **changes)
    run = capfd.readouterr().out
    config = chain.config("candidates", **changes)
    words = [f"{key}={config[key]}" for key in ("denoiser", "decoder", "classifier", *changes)]
    assert main(["sample", *words, "--out", str(tmp_path / "other"), "--dry-run"]) == 0
    dry = capfd.readouterr().out
    assert "images: 2 of 2 classes in 1 shard\nguidance: 2\nsolver: unipc-4, chosen in " in dry
    for said in (run, dry):
        assert (
            f"warning: solver_from: {sweep} was made with another denoiser (better-ldm) and with guidance 1, " in said
        )
        assert "where this run has 2: its choice need not be good here; run `hdtrain sweep-solvers`" in said


def test_a_dry_run_of_sample_refuses_a_choice_that_the_schedule_has_no_steps_for(chain, tmp_path, capsys):
    info = {"choice": {"kind": "ddim", "steps": 7}}
    publish(
        tmp_path / "s", Manifest(kind="solver-sweep", stage="sweep-solvers", fingerprint="f", commit="c", info=info)
    )
    words = [f"{key}={chain[name]}" for key, name in {"denoiser": "ldm", "decoder": "decoder"}.items()]
    assert main(["sample", *words, "per_class=1", f"solver_from={tmp_path / 's'}", "--out", "x", "--dry-run"]) == 2
    assert "solver.steps: must divide 1000 timesteps evenly, got 7" in capsys.readouterr().err


MISTAKES = {
    "expected every solver once, and not the reference, which is there anyway, got ddim-8": {"solvers": "[{steps: 8}]"},
    "choice: expected one of ddim-8, unipc-4, got 'unipc-5'": {"choice": "unipc-5"},
    "guidance=3 is the g of a classifier": {"classifier": "null", "guidance": "3"},
    "ddim-7: solver.steps: must divide 1000 timesteps evenly, got 7": {"solvers": "[{steps: 7}]"},
    "the VAE does not match": {"decoder": "other-vae"},
    "and its interval as many without a group of them, there are 1": {"classifier": "null", "per_class": "2"},
    "is not published": {"real": "[nowhere]"},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_dry_run_finds_every_mistake(chain, config, tmp_path, capsys, message):
    given = {key: str(config[key]) for key in ("denoiser", "decoder", "classifier", "real")} | {
        "encoder": f"{{kind: classifier, classifier: {chain['phi']}}}",
        "reference": "{steps: 8}",
        "solvers": "[{kind: unipc, steps: 4}]",
    }
    changes = {key: str(chain[value]) if value == "other-vae" else value for key, value in MISTAKES[message].items()}
    words = [f"{key}={value}" for key, value in {**given, **changes}.items()]
    assert main(["sweep-solvers", *words, "--out", str(tmp_path / "run"), "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_real_images_of_other_classes_are_refused(config, tmp_path, capsys):
    real = Manifest(kind="images", stage="shard", fingerprint="f", commit="c", classes=["cats", "dogs"])
    publish(tmp_path / "real", real)
    assert run_here("sweep-solvers", tmp_path / "run", {**config, "real": [str(tmp_path / "real")]}) == 2
    assert "has cats, dogs; the images are made of dots, stripes" in capsys.readouterr().err
    assert not list(Path(tmp_path / "run").glob("*/shards"))


def result(name: str, evaluations: float, difference: float, half: float, limit: float = 5.0) -> SolverResult:
    interval = (difference - half, difference + half)
    metric = Metric(value=0.0, n=100)
    return SolverResult(
        name=name,
        solver={},
        num_images=100,
        frechet=Metric(value=100 + difference, n=100),
        difference=Metric(value=difference, interval=interval, n=100),
        pixel_difference=metric,
        denoiser_evaluations=evaluations,
        classifier_evaluations=0,
        passed=max(map(abs, interval)) <= limit,
    )


def test_the_rule_takes_the_fewest_evaluations_among_those_that_are_surely_near():
    reference = result("ddim-200", 200, 0, 0)
    solvers = [
        reference,
        result("a", 20, 2, 2.9),
        result("b", 20, -1, 2),
        result("c", 10, 1, 4.1),
        result("d", 50, 0, 1),
    ]
    name, reason = choose(solvers, "FID", 0.05)
    assert name == "b"
    assert reason.startswith("b has the fewest evaluations of the denoiser an image (20, ddim-200 has 200)")
    assert reason.endswith("FID is within 5 % (5) of ddim-200's (100): a, b, d")
    assert choose([reference, result("better", 20, -9, 1)], "FID", 0.05)[0] == "ddim-200", "another kind of images"
    name, reason = choose([reference, solvers[3], result("far", 5, 40, 1)], "FID", 0.05)
    assert name == "ddim-200"
    assert "the nearest is c, which may be off by 5.1. More images may settle it for c" in reason
