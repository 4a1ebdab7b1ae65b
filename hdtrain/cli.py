"""The command line: one stage, or a recipe of them.

    hdtrain STAGE CONFIG.yaml --out DIR [--ranks N] [--machine I/N] [--dry-run [--rate R]] [key=value …]
    hdtrain run RECIPE.yaml [--out DIR] [--ranks N] [--only NODE]… [--dry-run] [key=value …]
    hdtrain status RUN|FOLDER… [--json]
    hdtrain weights list|fetch|add|check
    hdtrain launch STAGE_OR_RECIPE --cluster NAME […]
    hdtrain logs|cancel|retry|tensorboard RUN|FOLDER […]

The same command again continues. Exit codes: 0 done, 1 a bug, 2 a mistake of the user's making, 3 stopped before its
end after saving, 130 interrupted, 128 + n killed by signal n.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from hdtrain import launch_command, logs_command, queue_command, tensorboard_command, weights_command
from hdtrain.config.base import Config
from hdtrain.config.batch import BatchPlan
from hdtrain.config.load import parse_overrides, read_yaml, set_dotted
from hdtrain.config.stages import STAGES
from hdtrain.distributed.world import Machine
from hdtrain.errors import HdtrainError, explain_disk
from hdtrain.formats.run_dir import RunDir
from hdtrain.prepare import await_prepared, resolve, run_node
from hdtrain.recipe import Node, Outcome, Recipe, load_recipe, plan, run_recipe
from hdtrain.run_state import inspect
from hdtrain.stages.__main__ import MISTAKE, STOPPED
from hdtrain.text import table
from launchers.local import LocalLauncher
from launchers.processes import environment

_PATHS = "Relative paths, in files and overrides alike, are relative to the current directory."

_OF_RUNS = (
    ("status", "tell how far runs are", queue_command.status, queue_command.add_status_arguments),
    ("logs", "show what a run printed", logs_command.logs, logs_command.add_arguments),
    ("cancel", "stop jobs; running ones save first", queue_command.cancel, queue_command.add_cancel_arguments),
    ("retry", "submit again what failed or was cancelled", queue_command.retry, queue_command.add_retry_arguments),
    (
        "tensorboard",
        "TensorBoard over all runs of a recipe",
        tensorboard_command.tensorboard,
        tensorboard_command.add_arguments,
    ),
)
"""Name, summary, function, and what adds the arguments: of commands that look at runs and their jobs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    sys.stdout.reconfigure(line_buffering=True, errors="replace")  # type: ignore[union-attr]  # keeps the stages' order
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    args.overrides += rest
    wrong = [text for text in args.overrides if text.startswith("-") or "=" not in text]
    if wrong:
        parser.error(f"expected key=value, got: {' '.join(wrong)}")
    try:
        return int(args.run(args))
    except BrokenPipeError:  # `hdtrain status … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except HdtrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except OSError as error:
        if (explained := explain_disk(error, "the disk of the run directory")) is None:
            raise
        print(f"error: {explained}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hdtrain",
        description="Latent diffusion on image patches, from raw patches to an honest report.",
        epilog="The same command again continues: what is published for the same config and parents is skipped.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = _command(commands, "run", "run a recipe: a YAML graph of stages", run)
    command.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    command.add_argument(
        "--out", type=_folder, metavar="DIR", help="folder of the run directories (default: the recipe's)"
    )
    command.add_argument(
        "--only", action="append", default=[], metavar="NODE", help="run this node alone; may be given again"
    )
    command.add_argument(
        "--until",
        action="append",
        default=[],
        metavar="NODE",
        help="this node and all that it needs; may be given again",
    )
    _common(command, "VARIABLE=value or NODE.dotted.key=value")
    for name, summary, function, arguments in _OF_RUNS:
        command = _command(commands, name, summary, function)
        command.set_defaults(overrides=[])
        arguments(command)
    command = _command(commands, "weights", "list, fetch, add or check files of weights", weights_command.run)
    weights_command.add_arguments(command)
    launch = _command(commands, "launch", "submit a stage or a recipe as jobs", launch_command.launch)
    launch_command.add_arguments(launch)
    for spec in STAGES.values():
        command = _command(commands, spec.name, spec.summary, stage)
        command.set_defaults(stage=spec.name)
        command.add_argument("config", nargs="?", default="-", metavar="CONFIG.yaml", help="`-`: overrides alone")
        command.add_argument("--out", type=_folder, required=True, metavar="DIR", help="the run directory")
        if not (spec.needs_torch or spec.one_process):
            command.add_argument(
                "--machine",
                type=_machine,
                default=Machine(),
                metavar="I/N",
                help="this is machine I of N that run it",
            )
        if spec.trains:
            command.add_argument(
                "--rate", type=_rate, metavar="IMG_PER_SEC", help="of one rank, measured elsewhere; for --dry-run"
            )
        _common(command, "dotted.key=value")
    return parser


def _command(commands: Any, name: str, summary: str, function: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=_PATHS, allow_abbrev=False
    )
    command.set_defaults(run=function)
    return command


def _common(command: argparse.ArgumentParser, overrides: str) -> None:
    command.add_argument("--ranks", type=_positive, metavar="N", help="processes a stage (default: 1)")
    command.add_argument("--dry-run", action="store_true", help="check everything, say what would run, run nothing")
    command.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=overrides)


def _folder(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a folder, got nothing")
    return Path(text)


def _machine(text: str) -> Machine:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"expected I/N, such as 0/4 to 3/4 for four machines, got '{text}'")
    return Machine(int(index), int(count))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got '{text}'")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"expected images a second above 0, got '{text}'")
    return rate


def stage(args: argparse.Namespace) -> int:
    """`hdtrain STAGE`: one run directory."""
    if "=" in args.config and not Path(args.config).exists():
        args.overrides, args.config = [args.config, *args.overrides], "-"
    source = "command line" if args.config == "-" else args.config
    tree = {} if args.config == "-" else read_yaml(Path(args.config))
    for key, value in parse_overrides(args.overrides).items():
        set_dotted(tree, key, value)
    args.stage = stage_meant(args.stage, tree)
    config: Config = resolve(STAGES[args.stage].config, tree, source)
    directory = args.out.expanduser().absolute()
    if getattr(args, "rate", None) and not args.dry_run:
        raise HdtrainError("--rate says how fast a --dry-run is to expect training; give both")
    if args.dry_run:
        return _dry_run(args, config, directory, source)
    machine: Machine = getattr(args, "machine", Machine())
    with LocalLauncher(machine=machine) as launcher:
        if machine.index:
            return _help_out(args, config, directory, source, launcher)
        outcome = run_node(
            args.stage,
            config,
            directory,
            ranks=args.ranks or 1,
            launcher=launcher,
            source=source,
            again=STAGES[args.stage].repeats,
        )
    if outcome.code:
        print(_failure(directory.name, args.stage, directory, outcome), file=sys.stderr)
    return _exit_code(outcome)


def stage_meant(stage: str, keys: Collection[str]) -> str:
    """The stage that a command stands for: `evaluate` with `real` or `fake` compares images, and no arms."""
    return "evaluate-images" if stage == "evaluate" and {"real", "fake"} & set(keys) else stage


def _dry_run(args: argparse.Namespace, config: Any, directory: Path, source: str) -> int:
    """The state of the run directory, and what the stage finds or will take: that in a process of its own, since it
    needs torch.
    """
    state, spec = inspect(args.stage, config, directory, source), STAGES[args.stage]
    found, code = "", 0
    if spec.previews or spec.trains:
        command = [sys.executable, "-m"]
        command += [spec.previews, str(directory)] if spec.previews else _estimate(args, config, directory)
        aside = subprocess.run(
            command, input=config.model_dump_json(), stdout=subprocess.PIPE, text=True, env=environment(), check=False
        )
        found, code = aside.stdout, aside.returncode
    if not code:
        print(f"{directory} ({args.stage}): {state}")
    print(found, end="")
    return code


def _estimate(args: argparse.Namespace, config: Any, directory: Path) -> list[str]:
    """The module that says what a training will take, and its arguments."""
    ranks = args.ranks or 1
    BatchPlan.from_config(config.batch, ranks)  # its mistakes at once
    rate = [f"--rate={args.rate}"] if args.rate else []
    return ["hdtrain.stages.estimate", args.stage, str(directory), f"--ranks={ranks}", *rate]


def _help_out(args: argparse.Namespace, config: Config, directory: Path, source: str, launcher: LocalLauncher) -> int:
    """Ranks of a machine other than the first, which prepares the run directory and publishes."""
    state = await_prepared(args.stage, config, directory, source, STAGES[args.stage].repeats)
    print(f"── {directory.name} ({args.stage}): {'skip, done' if state.status == 'done' else 'helping'}")
    return 0 if state.status == "done" else launcher.run_stage(args.stage, directory, args.ranks or 1)


def run(args: argparse.Namespace) -> int:
    """`hdtrain run`: a recipe."""
    recipe = load_recipe(args.recipe, args.overrides, args.out, args.ranks)
    nodes = recipe.choose(args.only, args.until)
    if args.dry_run:
        rows = [(node.name, node.stage, str(state or "to do")) for node, state in plan(recipe, nodes)]
        print(table([("node", "stage", f"in {recipe.out}"), *rows]))
        return 0
    with LocalLauncher(warm=True) as launcher:
        ended = run_recipe(recipe, nodes, launcher)
    return _summary(recipe, ended)


def _summary(recipe: Recipe, ended: list[tuple[Node, Outcome | None]]) -> int:
    rows = [
        (node.name, node.stage, outcome.status if outcome else "not run", f"{outcome.seconds:.1f}" if outcome else "")
        for node, outcome in ended
    ]
    print(f"\n{recipe.name} in {recipe.out}\n" + table([("node", "stage", "status", "seconds"), *rows]))
    for node, outcome in ended:
        if outcome and outcome.code:
            print(_failure(node.name, node.stage, node.directory, outcome), file=sys.stderr)
            left = [other.name for other, result in ended if result is None]
            if left:
                print(f"not run: {', '.join(left)}", file=sys.stderr)
            return _exit_code(outcome)
    for node, _ in ended:
        if node.stage == "report":
            print(RunDir(node.directory).report)
    return 0


def _failure(name: str, stage: str, directory: Path, outcome: Outcome) -> str:
    log = max(RunDir(directory).logs.glob("*.log"), default=RunDir(directory).logs)
    if outcome.code == STOPPED:
        return f"{name} ({stage}) was stopped after saving; the same command continues"
    how = f"was killed by {signal.Signals(-outcome.code).name}" if outcome.code < 0 else f"failed ({outcome.code})"
    return f"{name} ({stage}) {how}; its log: {log}; the same command tries again"


def _exit_code(outcome: Outcome) -> int:
    return 128 - outcome.code if outcome.code < 0 else outcome.code


if __name__ == "__main__":
    sys.exit(main())
