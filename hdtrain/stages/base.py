"""What every stage gets: its run directory, its parents' manifests, its place among the ranks, and `publish`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hdtrain.config.base import Config
from hdtrain.config.load import read_yaml, validate
from hdtrain.config.protocol import FollowsProtocol
from hdtrain.config.stages import STAGES
from hdtrain.distributed.world import World
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.fingerprint import fingerprint, read_parents
from hdtrain.formats.manifest import FieldSpec, Manifest, ParentEntry, ShardEntry, publish, relative
from hdtrain.formats.provenance import git_commit, read_run_json
from hdtrain.formats.run_dir import RunDir


@dataclass(frozen=True)
class StageContext:
    """One stage's surroundings. Stages are functions `run(config, context) -> None` that end with `context.publish`."""

    stage: str
    run: RunDir
    parents: dict[str, tuple[Path, Manifest]]
    """Dotted config key to (run directory, manifest)."""
    fingerprint: str
    world: World
    protocol: dict[str, Any] | None = None
    """Whose settings the stage follows, and every departure from them."""

    @classmethod
    def open(cls, stage: str, directory: Path) -> tuple[Config, "StageContext"]:
        """Read the resolved config of a prepared run directory and check its parents."""
        run = RunDir(directory)
        config = validate(STAGES[stage].config, read_yaml(run.config), str(run.config))
        parents = read_parents(config, str(run.config))
        prepared = read_run_json(run).get("fingerprint") or fingerprint(stage, config, parents)
        context = cls(stage, run, parents, prepared, World.from_environment())
        return config, context.following(config) if isinstance(config, FollowsProtocol) else context

    def following(self, config: FollowsProtocol, *more: str) -> "StageContext":
        """The same, with the protocol of `config` and its departures, `more` and those of the parents among them."""
        parents = [
            f"{dotted}: follows {manifest.protocol['name']} ({config.protocol})"
            for dotted, (_, manifest) in self.parents.items()
            if manifest.protocol and manifest.protocol["name"] != config.protocol
        ]
        protocol = {"name": config.protocol, "departures": [*config.departures(), *more, *parents]}
        return replace(self, protocol=protocol)

    def manifest_of(self, directory: Path) -> Manifest:
        """The manifest of a parent, by the path that the config holds."""
        return next(manifest for path, manifest in self.parents.values() if path == directory)

    def datasets(self, paths: list[Path]) -> list[tuple[Path, Manifest]]:
        """The data sets that the config lists, with their manifests."""
        return [(path, self.manifest_of(path)) for path in paths]

    def publish(
        self,
        *,
        kind: str | None = None,
        fields: dict[str, FieldSpec] | None = None,
        shards: list[ShardEntry] | None = None,
        files: list[Path] | None = None,
        split: str | None = None,
        classes: list[str] | None = None,
        info: dict[str, Any] | None = None,
        directory: Path | None = None,
    ) -> None:
        """Write the manifest on rank 0, last of all; `directory` is the run directory or a data set below it."""
        if not self.world.is_main:
            return
        directory = directory or self.run.path
        for path in files or []:  # safetensors writes for its owner alone
            path.chmod(path.stat().st_mode | 0o044)
        parents = {
            dotted: ParentEntry(path=relative(path, directory), kind=manifest.kind, identity=manifest.identity)
            for dotted, (path, manifest) in self.parents.items()
        }
        manifest = Manifest(
            kind=kind or STAGES[self.stage].publishes,
            stage=self.stage,
            fingerprint=self.fingerprint,
            commit=git_commit(),
            parents=parents,
            fields=fields or {},
            shards=shards or [],
            files={str(path.relative_to(directory)): sha256_file(path) for path in files or []},
            split=split,
            classes=classes,
            protocol=self.protocol,
            info=info or {},
        )
        publish(directory, manifest)
