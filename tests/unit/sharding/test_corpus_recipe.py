"""The corpus recipe on files in the published layouts, at a thousandth of the published counts."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.run_dir import RunDir

ROOT = Path(__file__).parents[3]
COUNTS = {"num_histotma": 249 + 62, "num_pannuke": 2 + 2 + 2, "num_tcga": 482}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    tool = [sys.executable, ROOT / "tools/make_scale_corpus.py", folder, "--share", "0.001", "--copies", "0.1"]
    subprocess.run(tool, check=True, capture_output=True)
    return folder


def command(raw: Path, **variables: object) -> list[str]:
    sources = {name: raw / name for name in ("histotma", "pannuke", "tcga")}
    return [str(ROOT / "configs/recipe/corpus.yaml"), *(f"{k}={v}" for k, v in {**sources, **variables}.items())]


def test_the_three_sources_are_packed_verified_and_inspected(
    raw: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    done = cli("run", *command(raw, **COUNTS), "--ranks", 2)
    assert "799 ok, 0 rejected" in done.stdout
    assert "duplicates kept" in done.stdout
    assert "verify: 799 samples in 1 shard are whole" in done.stdout
    run = tmp_path / "runs/corpus/unlabelled"
    manifest = read_manifest(run, ("images",))
    assert manifest.split == "unlabelled"
    rows = pq.read_table(RunDir(run).index).to_pylist()
    by_source = {name: [row for row in rows if row["source"] == name] for name in ("histotma", "pannuke", "tcga-brca")}
    assert [len(found) for found in by_source.values()] == list(COUNTS.values())
    assert {row["patient"] for row in by_source["tcga-brca"]} == {"TCGA-A2-0000"}
    assert {row["mpp"] for row in by_source["pannuke"]} == {0.25}
    copies = [row for row in by_source["histotma"] if row["duplicate_of"]]
    assert 10 < len(copies) < 60
    assert len(copies) == manifest.info["num_duplicates"]


def test_a_source_that_is_short_of_its_published_count_is_named(raw: Path, cli: Callable[..., Any]) -> None:
    done = cli("run", *command(raw, num_histotma=COUNTS["num_histotma"]), code=2)
    assert "source 'pannuke': 6 images, expected 7,901: 7,895 short" in done.stdout
    assert "source 'tcga-brca': 482 images, expected 482,958: 482,476 short" in done.stdout
    assert "source 'histotma'" not in done.stdout


def test_the_recipe_asks_for_the_published_counts() -> None:
    import yaml

    variables = yaml.safe_load((ROOT / "configs/recipe/corpus.yaml").read_text())["variables"]
    counts = [variables[name] for name in COUNTS]
    assert counts == [312_320, 7_901, 482_958]
    assert sum(counts) == 803_179
