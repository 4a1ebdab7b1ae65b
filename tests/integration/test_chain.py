"""All stages, from raw images to report.html, through the real command line: a table of runs in order."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from tiny_chain import READER, configs, train_config, write_raw

from hdtrain.config.stages import STAGES
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.results import Results
from hdtrain.reporting.formatting import figure

PHI = {"kind": "classifier", "classifier": "@phi"}
SWEEP = {
    "denoiser": "@ldm",
    "decoder": "@decoder",
    "classifier": "@guide",
    "guidances": [0, 2],
    "per_class": 3,
    "solver": {"steps": 2},
    "real": ["@labelled"],
    "encoder": PHI,
    "judge": "@arm-real",
    "resolution": 32,
}
SOLVERS = {key: SWEEP[key] for key in ("denoiser", "decoder", "classifier", "real", "encoder", "resolution")} | {
    "guidance_from": "@sweep",
    "per_class": 3,
    "reference": {"steps": 4},
    "solvers": [{"kind": "unipc", "steps": 2}],
}


def recipe() -> dict:
    """The tiny chain, two arms and an answer."""
    chain = configs(lambda name: name.replace("raw/", "${data}/") if name.startswith("raw/") else f"@{name}")
    nodes = {name: {"stage": stage, "config": config} for name, (stage, config) in chain.items() if name != "other-vae"}
    nodes["ldm"]["config"] |= train_config(4)  # its pictures cost more than its steps
    model = {"kind": "timm", "name": "test_resnet", "reader": READER}

    def arm(*images: str) -> dict:
        config = {"model": {**model, "images": list(images)}, "seeds": [0, 1], **train_config(16)}
        return {"stage": "train-classifier", "config": config}

    nodes |= {
        "resharded": {"stage": "reshard", "config": {"images": ["@labelled"], "samples_per_shard": 7}},
        "checked": {"stage": "verify", "config": {"images": "@resharded"}},
        "seen": {"stage": "inspect", "config": {"images": "@resharded"}},
        "ldm-ema": {"stage": "rebuild-ema", "config": {"denoiser": "@ldm", "std": 0.1}},
        "selection": {
            "stage": "select",
            "config": {
                "real": ["@labelled"],
                "candidates": ["@candidates"],
                "encoder": PHI,
                "ratios": [0.5],
                "resolution": 32,
            },
        },
        "arm-real": arm("@labelled"),
        "sweep": {"stage": "sweep-guidance", "config": SWEEP},
        "solvers": {"stage": "sweep-solvers", "config": SOLVERS},
        "arm-selective": arm("@labelled", "@selection/selective-0.5"),
        "evaluation": {
            "stage": "evaluate",
            "config": {
                "train": "@labelled",
                "test": "@test",
                "baseline": "real",
                "arms": {
                    "real": {"classifier": "@arm-real"},
                    "selective": {"classifier": "@arm-selective", "synthetic": "@selection/selective-0.5"},
                },
                "encoder": PHI,
                "candidates": "@candidates",
                "resolution": 32,
                "bootstrap_resamples": 200,
                "kid_subset_size": 5,
            },
        },
        "compared": {
            "stage": "evaluate-images",
            "config": {"real": "@labelled", "fake": "@candidates", "encoder": PHI},
        },
        "report": {
            "stage": "report",
            "config": {"evaluation": "@evaluation", "selection": "@selection", "sweep": "@sweep"},
        },
        "exported": {"stage": "export", "config": {"denoiser": "@ldm", "decoder": "@decoder"}},
        "imported": {"stage": "import", "config": {"part": "autoencoder", "path": "@exported/model"}},
    }
    nodes["candidates"]["config"] |= {"guidance_from": "@sweep", "solver_from": "@solvers"}
    return {"name": "tiny", "out": "runs", "variables": {"data": "raw"}, "ranks": {"vae": 2}, "stages": nodes}


@dataclass(frozen=True)
class Row:
    """What is added to `hdtrain run recipe.yaml`, and the nodes that must then run; all others are skipped."""

    name: str
    runs: set[str]
    arguments: list[str] = field(default_factory=list)


EVERYTHING = set(recipe()["stages"])
FROM_DECODER = {
    *(
        "decoder",
        "sweep",
        "solvers",
        "candidates",
        "selection",
        "arm-selective",
        "compared",
        "evaluation",
        "report",
        "exported",
        "imported",
    )
}
WITHOUT_VAE = {"unlabelled", "labelled", "test", "resharded", "checked", "seen", "phi", "arm-real"}
TABLE = [
    Row("from raw images to the report", EVERYTHING),
    Row("the same command again does nothing", set()),
    Row("a changed title makes the report anew", {"report"}, ["report.title=again"]),
    Row("a changed bootstrap would be evaluated anew", {"evaluation", "report"}, ["evaluation.seed=1", "--dry-run"]),
    Row("a changed decoder would make anew what depends on it", FROM_DECODER, ["decoder.seed=1", "--dry-run"]),
    Row(
        "a changed autoencoder would make anew what lives in it", EVERYTHING - WITHOUT_VAE, ["vae.seed=1", "--dry-run"]
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Raw images and the recipe."""
    folder = tmp_path_factory.mktemp("integration")
    write_raw(folder / "raw")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(), sort_keys=False))
    return folder


def hdtrain(folder: Path, *arguments: str) -> str:
    """The command line in a process of its own; when it fails, the command and the last 50 lines are shown."""
    command = [sys.executable, "-m", "hdtrain", *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=400, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-50:])
        pytest.fail(f"{' '.join(command)} left with {done.returncode}\n{tail}", pytrace=False)
    return done.stdout


def rows_of(table: str) -> dict[str, str]:
    """Node to status, from the table at the end of the output."""
    lines = [line.split(maxsplit=2) for line in table.splitlines()]
    return {parts[0]: parts[2] for parts in lines if len(parts) == 3 and parts[0] in EVERYTHING and parts[1] in STAGES}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_run(folder, row):
    statuses = rows_of(hdtrain(folder, "run", "recipe.yaml", *row.arguments))
    assert statuses.keys() == EVERYTHING
    skipped = ("done",) if "--dry-run" in row.arguments else ("skipped",)
    ran = {name for name, status in statuses.items() if not status.startswith(skipped)}
    assert ran == row.runs


def test_every_node_published_what_its_stage_publishes(folder):
    manifests = {name: read_manifest(folder / "runs" / name) for name in EVERYTHING}
    for name, manifest in manifests.items():
        assert manifest.kind == STAGES[manifest.stage].publishes
        for parent in manifest.parents.values():
            assert read_manifest(folder / "runs" / name / parent.path).identity == parent.identity
    for dataset in ("selective-0.5", "random-0.5"):
        assert read_manifest(folder / "runs/selection" / dataset, ("images",)).num_samples == 10


def test_the_report_holds_the_measured_figures(folder):
    results = Results.read(folder / "runs/evaluation/results.json")
    page = re.sub(r"<[^>]+>", " ", (folder / "runs/report/report.html").read_text())
    assert set(results.arms) == {"real", "selective"}
    for arm in results.arms.values():
        assert sum(map(sum, arm.confusion)) == 12 * 2  # test images × seeds
        for name in ("accuracy", "macro_f1"):
            assert figure(arm.metrics[name].value) in page
    assert results.arms["selective"].num_synthetic == 10
    assert results.image_sets
    for image_set in results.image_sets.values():
        for name, metric in image_set.metrics.items():
            assert figure(metric.value) in page, name


def test_the_old_report_is_kept_beside_the_new(folder):
    (old,) = (folder / "runs").glob("*.previous-*")
    assert old.name.startswith("report.previous-")
    assert "again" not in re.findall("<title>(.*)</title>", (old / "report.html").read_text())[0]
    assert "again" in re.findall("<title>(.*)</title>", (folder / "runs/report/report.html").read_text())[0]
