"""From a recipe, a stage or a sweep to the jobs of a submission; every mistake that can be found before the queue."""

import math
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from hdtrain.config.base import Config, InputFile, InputTree, Kinds, references
from hdtrain.config.batch import BatchPlan
from hdtrain.config.cluster import ClusterConfig, Resources
from hdtrain.config.engine import BatchConfig
from hdtrain.config.stages import STAGES
from hdtrain.errors import ConfigError, HdtrainError
from hdtrain.formats.submission import Job
from hdtrain.run_state import inspect
from hdtrain.text import counted


@dataclass(frozen=True)
class Step:
    """One stage to be run, wherever it came from."""

    name: str
    stage: str
    config: Config
    directory: Path
    parents: tuple[str, ...] = ()
    """Names of steps."""


@dataclass(frozen=True)
class Planned:
    """What becomes of a step: a job, or nothing since it is published."""

    step: Step
    status: str
    """For people: `done`, `to do`, `half done: it goes on`, …"""
    job: Job | None


def plan_jobs(
    steps: Collection[Step], profile: ClusterConfig, source: str, profile_source: str, mistakes: Collection[str] = ()
) -> list[Planned]:
    """Check everything and say what would be submitted.

    Args:
        steps: parents before their children.
        profile: the cluster's.
        source: where the steps come from, for messages.
        profile_source: the profile's file.
        mistakes: found before, to be told with the others.

    Raises:
        ConfigError: with one line for every mistake, of all steps.
    """
    problems, misspelt = list(mistakes), list(_unknown_names(steps, profile))
    planned: dict[str, Planned] = {}
    for step in steps:
        resources = profile.resources_of(step.name, step.stage, STAGES[step.stage].needs_torch)
        waits = [name for name in step.parents if name in planned and planned[name].job]
        status = "to do"
        try:
            if not waits:
                state = inspect(step.stage, step.config, step.directory, source)
                status = str(state)
                if state.status == "done" and not STAGES[step.stage].repeats:
                    planned[step.name] = Planned(step, "done", None)
                    continue
            elif problem := _check_waiting(step, {path for name in waits for path in [planned[name].step.directory]}):
                problems += problem
        except ConfigError as error:
            problems += [f"{step.name}: {problem}" for problem in error.problems]
        except HdtrainError as error:
            problems.append(f"{step.name}: {error}")
        problems += [f"{step.name}: {problem}" for problem in _misfits(step, resources, profile)]
        resources, elements = _shaped(step, resources)
        job = Job(
            name=step.name,
            stage=step.stage,
            directory=step.directory,
            after=waits,
            resources=resources,
            elements=elements,
        )
        planned[step.name] = Planned(step, status, job)
    problems += _disk(steps, profile)
    if misspelt and not problems:
        raise ConfigError(profile_source, misspelt)
    problems += [f"{profile_source}: {problem}" for problem in misspelt]
    if problems:
        raise ConfigError(source, list(dict.fromkeys(problems)))
    return list(planned.values())


def _shaped(step: Step, resources: Resources) -> tuple[Resources, int]:
    """What the stage can use of what the profile gives."""
    spec = STAGES[step.stage]
    elements = resources.array if spec.shared else 1
    if spec.one_process:
        gpus = min(resources.gpus_per_node, 1)
        memory = resources.mem_gb and resources.mem_gb / max(1, resources.gpus_per_node)  # that of its GPU
        resources = resources.model_copy(
            update={"nodes": 1, "max_nodes": None, "tasks_per_node": 1, "gpus_per_node": gpus, "mem_gb": memory}
        )
    return resources.model_copy(update={"array": elements}), elements


def _check_waiting(step: Step, pending: Collection[Path]) -> list[str]:
    """What can be checked of a step whose parents are not there yet: files, and parents from elsewhere."""
    problems = []
    for reference in references(step.config):
        path, marker = reference.path, reference.marker
        if any(path.is_relative_to(place) for place in pending):
            continue
        if isinstance(marker, InputFile) and not path.is_file():
            problems.append(f"{step.name}: {reference.dotted}: no such file: {path}")
        elif isinstance(marker, InputTree) and not path.exists():
            problems.append(f"{step.name}: {reference.dotted}: no such file or folder: {path}")
        elif isinstance(marker, Kinds) and not (path / "manifest.json").exists():
            problems.append(f"{step.name}: {reference.dotted}: {path} is not published")
    return problems


def _misfits(step: Step, resources: Resources, profile: ClusterConfig) -> Iterator[str]:
    """Resources that the stage cannot work with."""
    if profile.kind == "local" and resources.nodes > 1:
        yield f"resources: {resources.nodes} nodes, and the local queue has one"
    batch = getattr(step.config, "batch", None)
    if batch is None or STAGES[step.stage].one_process:
        return
    if resources.max_nodes:
        yield from _elastic_misfit(batch, resources.tasks, range(resources.nodes, resources.max_nodes + 1))
        return
    try:
        BatchPlan.from_config(batch, resources.nodes * resources.tasks)
    except ConfigError as error:
        yield from (f"on {counted(resources.nodes, 'node')}: {problem}" for problem in error.problems)


def _elastic_misfit(batch: BatchConfig, tasks: int, counts: range) -> Iterator[str]:
    """One line for all numbers of nodes that cannot share out the batch."""
    bad = []
    for nodes in counts:
        try:
            BatchPlan.from_config(batch, nodes * tasks)
        except ConfigError:
            bad.append(nodes)
    if bad:
        micro = batch.micro_batch_size
        fits = math.lcm(*(nodes * tasks * (micro or 1) for nodes in counts))
        ranks = ", ".join(str(nodes * tasks) for nodes in bad)
        passes = f" in passes of {micro} (micro_batch_size)" if micro else ""
        yield (
            f"on {', '.join(map(str, bad))} of {counts[0]} to {counts[-1]} nodes: batch: {batch.global_batch_size} "
            f"images cannot be split over {ranks} ranks{passes}; global batch sizes that every number of nodes can "
            f"split: multiples of {fits}"
        )


def _unknown_names(steps: Collection[Step], profile: ClusterConfig) -> Iterator[str]:
    """A misspelt stage in the profile would silently get other resources; a node of another recipe is none of ours."""
    import difflib

    known = {*STAGES, *(step.name for step in steps)}
    for name in profile.stages:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if name not in known and close:
            yield f"stages.{name}: no such stage or node; did you mean '{close[0]}'?"


def _disk(steps: Collection[Step], profile: ClusterConfig) -> list[str]:
    problems = []
    for folder in {step.directory.parent for step in steps}:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free / 1e9
        if free < profile.min_free_gb:
            problems.append(
                f"{folder}: {free:.1f} GB free, and the cluster profile wants {profile.min_free_gb:g} (min_free_gb)"
            )
    return problems
