"""`hdtrain launch`: a stage or a recipe to a queue of jobs.

    hdtrain launch RECIPE.yaml --cluster NAME [--out DIR] [--only NODE]… [--dry-run] [key=value …]
    hdtrain launch STAGE [CONFIG.yaml] --out RUN --cluster NAME [--sweep SWEEP.yaml] [--dry-run] [key=value …]
    hdtrain launch --init [PROFILE.yaml]

Everything is checked first. What is published is left out, what is in the queue already is left there, so the same
command again submits what is missing.
"""

import argparse
import difflib
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hdtrain.config.base import Config
from hdtrain.config.cluster import ClusterConfig
from hdtrain.config.load import parse_overrides, read_yaml, set_dotted, validate
from hdtrain.config.stages import STAGES
from hdtrain.config.sweep_file import SweepFile, combinations
from hdtrain.errors import ConfigError, HdtrainError
from hdtrain.formats.submission import Job, SubmissionDir, newest_jobs
from hdtrain.prepare import resolve
from hdtrain.recipe import load_recipe, unknown_nodes
from hdtrain.reporting.status_text import job_ids
from hdtrain.text import table
from launchers.graph import Planned, Step, plan_jobs
from launchers.queue import NOT_NOW, Queue, queue_of
from launchers.submit import describe, groups, open_submission, submit

PROFILES = Path("configs/cluster")
LOCAL = ClusterConfig.model_validate({"kind": "local", "resources": {"here": {}}, "min_free_gb": 1.0})
"""`--cluster local` without a profile."""


@dataclass(frozen=True)
class Target:
    """What was asked for."""

    name: str
    source: str
    folder: Path
    steps: list[Step]
    sweep: dict[str, dict[str, Any]] | None = None
    mistakes: Sequence[str] = ()
    """In the command line, to be told with all others."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Of `hdtrain launch`."""
    command.add_argument("target", nargs="?", metavar="STAGE_OR_RECIPE", help="a stage's name, or a recipe's YAML file")
    command.add_argument("config", nargs="?", default="-", metavar="CONFIG.yaml", help="of a stage")
    command.add_argument("--cluster", metavar="NAME", help="a profile: a file, a name in configs/cluster, or `local`")
    command.add_argument("--out", type=Path, metavar="DIR", help="as for the stage or the recipe")
    command.add_argument("--only", action="append", default=[], metavar="NODE", help="this node of a recipe alone")
    command.add_argument("--until", action="append", default=[], metavar="NODE", help="this node and all that it needs")
    command.add_argument("--sweep", type=Path, metavar="SWEEP.yaml", help="lists and ranges over keys of a stage")
    command.add_argument("--dry-run", action="store_true", help="check everything, show the plan and the scripts")
    command.add_argument(
        "--init", action="store_true", help="write a first profile from what this cluster says of itself"
    )
    command.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="as for the stage or the recipe")


def launch(args: argparse.Namespace) -> int:
    """Check, submit, say what to watch."""
    for name in ("target", "config"):  # `hdtrain launch --init`, or overrides in place of the config
        text = getattr(args, name)
        if text and "=" in text and not Path(text).exists():
            args.overrides.insert(0, text)
            setattr(args, name, "-" if name == "config" else None)
    if args.init:
        from launchers.first_profile import write_first_profile

        print(write_first_profile(args.target))
        return 0
    if args.target is None:
        raise HdtrainError("launch: what? give a stage's name or a recipe's YAML file")
    if args.cluster is None:
        raise HdtrainError(f"launch: where? give --cluster: a profile's file, or one of {_profiles()}")
    profile, profile_source = read_profile(args.cluster)
    target = read_target(args)
    queue = queue_of(profile.kind)
    if not args.dry_run:
        queue.check()
    planned = plan_jobs(target.steps, profile, target.source, profile_source, target.mistakes)
    jobs, waiting = _to_submit(target, planned, queue, args.dry_run)
    if args.dry_run:
        _show(target, profile, planned, jobs, waiting, queue)
        return _test(target, profile, jobs, queue, profile_source)
    if not jobs:
        print(f"nothing to submit in {target.folder}: {_because(planned, waiting)}")
        return 0
    configs = {step.name: step.config for step in target.steps if any(job.name == step.name for job in jobs)}
    record = describe(target.name, target.folder, profile, jobs, sys.argv, sweep=target.sweep)
    _heed(queue.refusals(_no_place(target), record, groups(jobs)), profile_source)
    place = open_submission(record, configs)
    submission = submit(place, record, queue)
    print(
        table(
            [
                ("job", "stage", "id", "after"),
                *((j.name, j.stage, job_ids(j.ids), ", ".join(j.after)) for j in submission.jobs),
            ]
        )
    )
    shown = _shown(target)
    print(f"\nsubmission: {place.path}\nto watch:   hdtrain status {shown}\nto stop:    hdtrain cancel {shown}")
    return 0


def read_profile(name: str) -> tuple[ClusterConfig, str]:
    """A profile by its file, by its name in configs/cluster, or the built-in `local`; and its file, for messages.

    Raises:
        ConfigError: its mistakes, or no such profile.
    """
    path = Path(name)
    if not path.is_file():
        path = PROFILES / f"{name}.yaml"
    if path.is_file():
        return validate(ClusterConfig, read_yaml(path), str(path)), str(path)
    if name == "local":
        return LOCAL, name
    close = difflib.get_close_matches(name, _profiles().split(", "), n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"there are: {_profiles()}"
    raise ConfigError("--cluster", [f"no profile '{name}', neither a file nor in {PROFILES}; {hint}"])


def _profiles() -> str:
    return ", ".join(dict.fromkeys(["local", *(path.stem for path in sorted(PROFILES.glob("*.yaml")))]))


def read_target(args: argparse.Namespace) -> Target:
    """The steps that the command line names, resolved.

    Raises:
        ConfigError: every mistake in their configs.
    """
    if args.target in STAGES:
        return _stage_target(args)
    path = Path(args.target)
    if not path.is_file():
        close = difflib.get_close_matches(args.target, STAGES, n=1, cutoff=0.6)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise HdtrainError(f"launch: '{args.target}' is neither a stage nor a recipe's file{hint}")
    if args.sweep:
        raise HdtrainError("--sweep is over a stage's keys; for a recipe, launch it with other overrides and --out")
    nodes = read_yaml(path).get("stages")
    mistakes = unknown_nodes(args.only, args.until, nodes) if isinstance(nodes, dict) else []
    try:
        recipe = load_recipe(path, args.overrides, args.out)
    except ConfigError as error:
        raise ConfigError(error.source, [*mistakes, *error.problems]) from None
    known = {node.name for node in recipe.nodes}
    chosen = recipe.choose(*(known.intersection(names) for names in (args.only, args.until)))
    names = {node.name for node in chosen}
    steps = [
        Step(node.name, node.stage, node.config, node.directory, tuple(p for p in node.parents if p in names))
        for node in chosen
    ]
    return Target(recipe.name, recipe.source, recipe.out, steps, mistakes=mistakes)


def _stage_target(args: argparse.Namespace) -> Target:
    if args.out is None:
        raise HdtrainError("launch: --out is missing: the run directory of the stage")
    if args.only or args.until:
        raise HdtrainError("--only and --until belong to a recipe")
    source = "command line" if args.config == "-" else args.config
    tree = {} if args.config == "-" else read_yaml(Path(args.config))
    for key, value in parse_overrides(args.overrides).items():
        set_dotted(tree, key, value)
    stage, out = args.target, args.out.expanduser().absolute()
    if stage == "evaluate" and {"real", "fake"} & set(tree):
        stage = "evaluate-images"
    if args.sweep is None:
        config: Config = resolve(STAGES[stage].config, tree, source)
        return Target(out.name, source, out.parent, [Step(out.name, stage, config, out)])
    sweep = validate(SweepFile, read_yaml(args.sweep), str(args.sweep))
    named = combinations(sweep)
    steps, problems = [], []
    for name, values in named.items():
        try:
            own = yaml.safe_load(yaml.safe_dump(tree))
            for key, value in values.items():
                set_dotted(own, key, value)
            steps.append(Step(name, stage, resolve(STAGES[stage].config, own, source), out / name))
        except ConfigError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(str(args.sweep), problems)
    return Target(out.name, str(args.sweep), out, steps, sweep=named)


def _to_submit(
    target: Target, planned: Collection[Planned], queue: Queue, dry_run: bool
) -> tuple[list[Job], dict[str, list[str]]]:
    """The jobs that are not in the queue already, and the ids of those that are.

    Raises:
        HdtrainError: one is in the queue with another config.
    """
    newest = newest_jobs(target.folder)
    ours = {name: found for name, found in newest.items() if any(p.step.name == name and p.job for p in planned)}
    known = {i for _, submission, job in ours.values() if submission.queue == _kind(queue) for i in job.ids}
    states = queue.states(known) if known and not dry_run else {}
    active = {i for i, state in states.items() if state.kind in ("waiting", "running")}
    waiting = {name: own for name, (_, _, job) in ours.items() if (own := [i for i in job.ids if i in active])}
    for name in waiting:
        step = next(one.step for one in planned if one.step.name == name)
        _check_same(step, ours[name][0], waiting[name])
        asked = next(one.job for one in planned if one.step.name == name)
        if asked and asked.resources != ours[name][2].resources:
            print(f"warning: {name} is in the queue with other resources; to change them, `hdtrain cancel` it first")
    jobs = []
    for one in planned:
        if one.job is None or one.step.name in waiting:
            continue
        after = [name for name in one.job.after if name not in waiting]
        ids = [i for name in one.job.after if name in waiting for i in waiting[name]]
        array = "sweep" if target.sweep else None
        jobs.append(one.job.model_copy(update={"after": after, "after_ids": ids, "array": array}))
    return jobs, waiting


def _check_same(step: Step, place: SubmissionDir, ids: Sequence[str]) -> None:
    submitted = read_yaml(place.config(step.name))
    if submitted != yaml.safe_load(yaml.safe_dump(step.config.model_dump(mode="json"))):
        raise HdtrainError(
            f"{step.name} is in the queue (job {', '.join(ids)}) with another config, {place.config(step.name)}; "
            f"cancel it first (hdtrain cancel {step.directory}), or give another --out"
        )


def _kind(queue: Queue) -> str:
    return "slurm" if type(queue).__name__ == "SlurmQueue" else "local"


def _show(
    target: Target,
    profile: ClusterConfig,
    planned: Collection[Planned],
    jobs: Sequence[Job],
    waiting: dict[str, list[str]],
    queue: Queue,
) -> None:
    """`--dry-run`: the plan, and what would be sent."""
    sent = {job.name: job for job in jobs}
    rows = [
        (
            one.step.name,
            one.step.stage,
            f"in the queue: {', '.join(waiting[one.step.name])}" if one.step.name in waiting else one.status,
            _resources(sent[one.step.name]) if one.step.name in sent else "",
            ", ".join(sent[one.step.name].after) if one.step.name in sent else "",
        )
        for one in planned
    ]
    print(table([("job", "stage", f"in {target.folder}", "asks for", "after"), *rows]))
    place = _no_place(target)
    record = describe(target.name, target.folder, profile, jobs, sys.argv, sweep=target.sweep)
    for group in groups(jobs):
        after = [*group[0].after_ids, *(f"<id of {name}>" for name in group[0].after)]
        print(f"\n── {group[0].array or group[0].name}\n{queue.script(place, record, group, after)}")


def _test(target: Target, profile: ClusterConfig, jobs: Sequence[Job], queue: Queue, source: str) -> int:
    """`--dry-run`: what the cluster would say.

    Raises:
        ConfigError: it would not take a job, or never begin it.
    """
    if profile.kind != "slurm" or not jobs:
        return 0
    if not shutil.which("sbatch"):
        print("\nnot held against the cluster: sbatch is not found here")
        return 0
    record = describe(target.name, target.folder, profile, jobs, sys.argv, sweep=target.sweep)
    try:
        refused = queue.refusals(_no_place(target), record, groups(jobs))
    except HdtrainError as error:
        print(f"\nnot held against the cluster: {error}")
        return 0
    if refused:
        raise ConfigError(source, [f"{name}: {_refusal(why)}" for name, why in refused.items()])
    print("\nSLURM would take them (sbatch --test-only)")
    return 0


def _heed(refused: dict[str, str], source: str) -> None:
    """Before anything is sent: nodes may only be down; everything else is a mistake.

    Raises:
        ConfigError: SLURM would refuse a job.
    """
    for name, why in refused.items():
        if NOT_NOW in why:
            print(f"warning: {name}: {_refusal(why)}", file=sys.stderr)
    if wrong := [f"{name}: {_refusal(why)}" for name, why in refused.items() if NOT_NOW not in why]:
        raise ConfigError(source, wrong)


def _refusal(why: str) -> str:
    hint = "; those that it asks for are down, or there are none such: see `sinfo -N -l`" if NOT_NOW in why else ""
    return f"SLURM would not take the job, or never begin it: {why}{hint}"


def _no_place(target: Target) -> SubmissionDir:
    return SubmissionDir(target.folder / ".launch" / "NNN")


def _resources(job: Job) -> str:
    wanted = job.resources
    nodes = f"{wanted.nodes}-{wanted.max_nodes}" if wanted.max_nodes else str(wanted.nodes)
    hours, minutes = divmod(wanted.time, 60)
    gpus = f" on {wanted.gpus_per_node} GPU{'s' if wanted.gpus_per_node > 1 else ''}" if wanted.gpus_per_node else ""
    elements = f"{job.elements} × " if job.elements > 1 else ""
    ranks = f"{wanted.tasks} rank{'s' if wanted.tasks > 1 else ''}"
    return f"{elements}{nodes} node{'s' if nodes != '1' else ''} × {ranks}{gpus}, {hours}:{minutes:02d} h"


def _because(planned: Collection[Planned], waiting: dict[str, list[str]]) -> str:
    done = sum(one.job is None for one in planned)
    parts = [f"{done} published"] if done else []
    return ", ".join([*parts, *([f"{len(waiting)} in the queue already"] if waiting else [])])


def _shown(target: Target) -> str:
    return str(target.folder if len(target.steps) != 1 or target.sweep else target.steps[0].directory)
