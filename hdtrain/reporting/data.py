"""Everything the report is made of, gathered from published artefacts. Figures come from `results.json` alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hdtrain.config.synthesis import ReportConfig
from hdtrain.errors import ManifestError
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.results import Results
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.sweep import SweepResults
from hdtrain.reporting.runs import Run, follow


@dataclass(frozen=True)
class ReportData:
    """What `render` needs."""

    title: str
    examples_per_class: int
    results: Results
    results_sha256: str
    evaluation: Run
    selection: Run | None
    runs: dict[str, Run]
    """By name, parents before children."""
    warnings: list[str]
    """The evaluation's own, and parents that are gone or that changed after their child was made."""
    sweep: SweepResults | None = None


def collect(config: ReportConfig) -> ReportData:
    """Read results and follow the graph of stages.

    Raises:
        ManifestError: a parent is not published, or results.json or sweep.json was altered after it was.
    """
    evaluation, selection, shown_sweep = (
        path.resolve() if path else None for path in (config.evaluation, config.selection, config.sweep)
    )
    assert evaluation
    path = RunDir(evaluation).results
    results, digest = Results.read(path), sha256_file(path)
    if read_manifest(evaluation).files.get(path.name, digest) != digest:
        raise ManifestError(f"{path}: altered since the evaluation was published; run the evaluation again")
    sweep = _read_sweep(shown_sweep) if shown_sweep else None
    beside = {name: path for name, path in (("selection", selection), ("sweep", shown_sweep)) if path}
    runs, warnings = follow([evaluation, *beside.values()])
    warnings += _strangers(evaluation, beside)
    return ReportData(
        title=config.title,
        examples_per_class=config.examples_per_class,
        results=results,
        results_sha256=digest,
        evaluation=runs[evaluation],
        selection=runs[selection] if selection else None,
        runs={run.name: run for run in runs.values()},
        warnings=[*results.protocol.get("warnings", []), *warnings],
        sweep=sweep,
    )


def _strangers(evaluation: Path, beside: Mapping[str, Path]) -> list[str]:
    """Warnings where what is to be shown has no part in what was evaluated."""
    reached, _ = follow([evaluation])
    return [
        f"{what} {path} has no part in the images that were evaluated: what is shown of it is another run's"
        for what, path in beside.items()
        if path not in reached
    ]


def _read_sweep(directory: Path) -> SweepResults:
    path = RunDir(directory).sweep
    sweep = SweepResults.read(path)
    if read_manifest(directory, ("sweep",)).files.get(path.name) != sha256_file(path):
        raise ManifestError(f"{path}: altered since the sweep was published; run `hdtrain sweep-guidance` again")
    return sweep
