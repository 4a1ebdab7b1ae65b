"""The names inside a run directory. No other module writes them out."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDir:
    """One stage's run directory."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config: the only thing a job reads."""
        return self.path / "config.yaml"

    @property
    def run_json(self) -> Path:
        """Stage, fingerprint, commit, versions, hosts, times: how the run came about."""
        return self.path / "run.json"

    @property
    def manifest(self) -> Path:
        """Published last; its presence means done."""
        return self.path / "manifest.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, written together with TensorBoard."""
        return self.path / "metrics.jsonl"

    def seed(self, seed: int) -> "RunDir":
        """Training state and metrics of one seed, where a stage trains several."""
        return RunDir(self.path / f"seed-{seed}")

    @property
    def seeds(self) -> "list[RunDir]":
        """The seeds trained so far, in name order."""
        return [RunDir(path) for path in sorted(self.path.glob("seed-*"))]

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self.path / "tb"

    @property
    def checkpoints(self) -> Path:
        """Training state, one folder a checkpoint."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """What the processes printed."""
        return self.path / "logs"

    @property
    def shards(self) -> Path:
        """Tar shards and their sidecars."""
        return self.path / "shards"

    @property
    def index(self) -> Path:
        """One row a sample, rejected ones included."""
        return self.path / "index.parquet"

    @property
    def work(self) -> Path:
        """What a stage needs to go on after a kill; removed once it has published."""
        return self.path / "work"

    @property
    def model(self) -> Path:
        """Published weights and their architecture."""
        return self.path / "model"

    @property
    def results(self) -> Path:
        """Measured figures with interval, n, seeds and hashes."""
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        """The self-contained HTML report."""
        return self.path / "report.html"
