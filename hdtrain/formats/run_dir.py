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

    def ema_snapshot(self, images_seen: int) -> Path:
        """The post-hoc averages as they were after so many images."""
        return self.path / "ema" / f"images-{images_seen:012d}.safetensors"

    @property
    def ema_snapshots(self) -> list[Path]:
        """All of them, oldest first."""
        return sorted((self.path / "ema").glob("images-*.safetensors"))

    @property
    def logs(self) -> Path:
        """What the processes printed."""
        return self.path / "logs"

    @property
    def heartbeats(self) -> Path:
        """Where each rank of a training says every few seconds how far it is (`hdtrain.formats.heartbeats`)."""
        return self.path / "heartbeats"

    @property
    def claims(self) -> Path:
        """Who works on which shard, while several jobs share a run (`hdtrain.formats.claims`)."""
        return self.path / "claims"

    @property
    def contact_sheet(self) -> Path:
        """Images of the newest shard, a row a class."""
        return self.path / "contact_sheet.jpg"

    @property
    def preview(self) -> Path:
        """What a painting would become, while it is made."""
        return self.path / "preview.png"

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
    def sweep(self) -> Path:
        """Figures of every guidance scale, and the choice."""
        return self.path / "sweep.json"

    @property
    def solvers(self) -> Path:
        """Figures of every solver, and the choice."""
        return self.path / "solvers.json"

    @property
    def speed(self) -> Path:
        """How fast each solver was here; no part of what is published, since it differs from run to run."""
        return self.path / "speed.json"

    @property
    def report(self) -> Path:
        """The self-contained HTML report."""
        return self.path / "report.html"
