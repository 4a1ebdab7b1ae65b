"""A recipe: a YAML graph of stages, resolved and checked whole before anything runs.

    name: demo
    out: runs/demo                      # default: runs/NAME; --out overrides
    variables: {data: raw, size: 64}    # `${data}` in any string below; null must be given on the command line
    ranks: {train-ldm: 2}               # by node
    stages:                             # a node's name is its folder below `out`
      shards:
        stage: shard
        config: {sources: [{path: "${data}/labelled"}]}
      vae:
        stage: train-vae
        config: {images: ["@shards"], …}  # "@node" or "@node/data-set"

A string that is exactly `${name}` takes the variable's type. Relative paths are relative to the working directory.
"""

import difflib
import graphlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from hdtrain.config.base import Config, InputFile, InputTree, Kinds, Reference, references
from hdtrain.config.load import parse_overrides, read_yaml, set_dotted, validate
from hdtrain.config.stages import STAGES
from hdtrain.errors import ConfigError, ManifestError
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.prepare import Launcher, Outcome, resolve, run_node
from hdtrain.run_state import State, inspect

_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class NodeFile(Config):
    """One node as written."""

    stage: str
    config: dict[str, Any] = Field(default_factory=dict)


class RecipeFile(Config):
    """A recipe as written, after its variables were put in."""

    name: str
    out: Path | None = None
    variables: dict[str, Any] = Field(default_factory=dict)
    ranks: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    stages: dict[str, NodeFile] = Field(min_length=1)

    @field_validator("stages")
    @classmethod
    def _folder_names(cls, value: dict[str, NodeFile]) -> dict[str, NodeFile]:
        bad = [name for name in value if not _NODE_NAME.fullmatch(name)]
        if bad:
            raise ValueError(f"node names are letters, digits, '-' and '_'; not so: {', '.join(bad)}")
        return value


@dataclass(frozen=True)
class Node:
    """One stage of a resolved recipe."""

    name: str
    stage: str
    config: Config
    directory: Path
    parents: tuple[str, ...]
    ranks: int


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe; every node comes after its parents."""

    name: str
    source: str
    out: Path
    nodes: tuple[Node, ...]

    def choose(self, only: Collection[str] = (), until: Collection[str] = ()) -> list[Node]:
        """The nodes of `only`, and those of `until` with all that these need, in order; all of them when none is named.

        Raises:
            ConfigError: a name that is no node's.
        """
        if unknown := unknown_nodes(only, until, [node.name for node in self.nodes]):
            raise ConfigError(self.source, unknown)
        needed = set(until)
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.parents)
        chosen = needed.union(only)
        return [node for node in self.nodes if not chosen or node.name in chosen]


def unknown_nodes(only: Collection[str], until: Collection[str], names: Collection[str]) -> list[str]:
    """A line for every name after `--only` and `--until` that is no node's."""
    given = [("--only", name) for name in only] + [("--until", name) for name in until]
    return [f"{option}: no node '{name}'{_nearest(name, names)}" for option, name in given if name not in names]


def load_recipe(path: Path, overrides: Iterable[str] = (), out: Path | None = None, ranks: int | None = None) -> Recipe:
    """Read, resolve and check a whole recipe.

    Args:
        path: the YAML file.
        overrides: `VARIABLE=value` or `NODE.dotted.key=value`.
        out: in place of the recipe's own.
        ranks: for every node, in place of the recipe's own.

    Raises:
        ConfigError: one line for every mistake of the recipe and of every stage's config.
    """
    resolver = _Resolver(str(path))
    tree = _unshared(read_yaml(path))
    resolver.override(tree, parse_overrides(map(_quote_reference, overrides)))
    try:
        file = validate(RecipeFile, resolver.substitute_tree(tree), str(path))
    except ConfigError as error:
        raise ConfigError(str(path), [*resolver.problems, *error.problems]) from None
    return resolver.resolve(file, Path(out or file.out or Path("runs") / file.name).expanduser().absolute(), ranks)


def _quote_reference(pair: str) -> str:
    """`key=@node` is what people write, and `@` is no YAML."""
    key, equals, text = pair.partition("=")
    return f"{key}={json.dumps(text)}" if equals and text.startswith("@") else pair


def _unshared(value: Any) -> Any:
    """A copy in which YAML aliases are values of their own, so that an override changes one place only."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


@dataclass
class _Resolver:
    """Gathers problems on the way from the file to the nodes."""

    source: str
    problems: list[str] = field(default_factory=list)
    out: Path = Path()
    stages: dict[str, str] = field(default_factory=dict)
    """Node name to stage name."""
    unplaced: set[str] = field(default_factory=set)
    """Paths of references to nodes that do not exist: reported once, where the reference stands."""

    def override(self, tree: dict[str, Any], overrides: dict[str, Any]) -> None:
        """Put command-line values into variables and node configs."""
        variables, stages = (
            value if isinstance(value := tree.get(key), dict) else {} for key in ("variables", "stages")
        )
        for key, value in overrides.items():
            node, _, dotted = key.partition(".")
            if key in variables:
                variables[key] = value
            elif dotted and isinstance(stages.get(node), dict):
                try:
                    set_dotted(stages[node].setdefault("config", {}), dotted, value)
                except ConfigError as error:
                    self.problems += [f"{node}: {problem}" for problem in error.problems]
            elif dotted:
                self.problems.append(f"{key}=…: no node '{node}'{_nearest(node, stages)}")
            else:
                self.problems.append(f"{key}=…: no such variable{_nearest(key, variables)}; a config key is NODE.KEY=…")

    def substitute_tree(self, tree: dict[str, Any]) -> dict[str, Any]:
        """Every `${name}` outside `variables` replaced."""
        variables = tree.get("variables") or {}
        if isinstance(variables, dict):
            missing = [name for name, value in variables.items() if value is None]
            self.problems += [f"variables.{name}: must be given: add {name}=VALUE to the command" for name in missing]
            rest = {key: self._substitute(item, variables, key) for key, item in tree.items() if key != "variables"}
            return {**rest, "variables": variables}
        return tree

    def _substitute(self, value: Any, variables: dict[str, Any], dotted: str) -> Any:
        if isinstance(value, dict):
            return {key: self._substitute(item, variables, f"{dotted}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [self._substitute(item, variables, f"{dotted}.{index}") for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        names = _VARIABLE.findall(value)
        unknown = [name for name in names if name not in variables]
        self.problems += [f"{dotted}: unknown variable '${{{name}}}'{_nearest(name, variables)}" for name in unknown]
        if not names or unknown or any(variables[name] is None for name in names):
            return value
        if value == f"${{{names[0]}}}":
            return variables[names[0]]
        long = [name for name in names if isinstance(variables[name], dict | list)]
        self.problems += [f"{dotted}: variable '{name}' is a list or mapping inside a longer string" for name in long]
        return _VARIABLE.sub(lambda match: match[0] if match[1] in long else str(variables[match[1]]), value)

    def resolve(self, file: RecipeFile, out: Path, ranks: int | None) -> Recipe:
        """Check everything that can be checked before running, then build the nodes."""
        self.out, self.stages = out, {name: node.stage for name, node in file.stages.items()}
        for name in set(file.ranks) - set(self.stages):
            self.problems.append(f"ranks.{name}: no such node{_nearest(name, self.stages)}")
        nodes: dict[str, Node] = {}
        edges: dict[str, list[str]] = {name: [] for name in self.stages}
        for name, node in file.stages.items():
            tree = self._place(node.config, f"{name}: ", edges[name])
            config = self._configure(name, tree)
            if config:
                wanted = ranks or file.ranks.get(name, 1)
                nodes[name] = Node(name, node.stage, config, out / name, tuple(dict.fromkeys(edges[name])), wanted)
        for name, ready in nodes.items():
            self._check_references(name, ready.config, nodes)
        order = self._order(edges)
        if self.problems:
            raise ConfigError(self.source, self.problems)
        return Recipe(file.name, self.source, out, tuple(nodes[name] for name in order))

    def _place(self, value: Any, where: str, found: list[str]) -> Any:
        """Replace `@node/sub` by its path, and note the node in `found`."""
        if isinstance(value, dict):
            return {key: self._place(item, _join(where, key), found) for key, item in value.items()}
        if isinstance(value, list):
            return [self._place(item, _join(where, index), found) for index, item in enumerate(value)]
        if not (isinstance(value, str) and value.startswith("@")):
            return value
        path = str(self.out / value[1:])
        name = value[1:].partition("/")[0]
        if name in self.stages:
            found.append(name)
        else:
            self.problems.append(f"{where}: no node '{value}'{_nearest(name, self.stages, '@')}")
            self.unplaced.add(path)
        return path

    def _configure(self, node: str, tree: dict[str, Any]) -> Config | None:
        """The node's config."""
        stage = self.stages[node]
        if stage not in STAGES:
            self.problems.append(f"{node}: no stage '{stage}'{_nearest(stage, STAGES)}")
            return None
        try:
            return resolve(STAGES[stage].config, tree, self.source)
        except ConfigError as error:  # a variable that is missing was reported already
            self.problems += [f"{node}: {problem}" for problem in error.problems if not _VARIABLE.search(problem)]
            return None

    def _check_references(self, node: str, config: Config, nodes: Mapping[str, Node]) -> None:
        for reference in references(config):
            unplaced = str(reference.path) in self.unplaced or _VARIABLE.search(str(reference.path))
            packed = isinstance(reference.marker, InputTree) and RunDir(self.out / node).manifest.exists()
            problem = None if unplaced or packed else self._check(reference, nodes)
            if problem:
                self.problems.append(f"{node}: {reference.dotted}: {problem}")

    def _check(self, reference: Reference, nodes: Mapping[str, Node]) -> str | None:
        """A reference to a node must be of the right kind; one to elsewhere must be there already."""
        path = reference.path
        inside = path.relative_to(self.out).parts if path.is_relative_to(self.out) else ()
        in_node = bool(inside) and inside[0] in self.stages
        if isinstance(reference.marker, Kinds):
            kinds = reference.marker.kinds
            return self._check_kind(inside, kinds, nodes) if in_node else _check_published(path, kinds)
        if not in_node and isinstance(reference.marker, InputFile) and not path.is_file():
            return f"no such file: {path}"
        if not in_node and isinstance(reference.marker, InputTree) and not path.exists():
            return f"no such file or folder: {path}"
        return None

    def _check_kind(self, inside: tuple[str, ...], kinds: tuple[str, ...], nodes: Mapping[str, Node]) -> str | None:
        name, *below = inside
        stage, node = self.stages[name], nodes.get(name)
        if stage not in STAGES or (below and node is None):  # its own mistakes were reported
            return None
        shown, data_sets = f"'@{'/'.join(inside)}'", node.config.data_sets if node else []
        if below:
            if "images" in kinds and "/".join(below) in data_sets:
                return None
            there = f"; it has {', '.join(data_sets)}" if data_sets and "images" in kinds else ""
            return f"{shown}: node '{name}' ({stage}) has no such data set for this key{there}"
        publishes = (node.config.publishes if node else None) or STAGES[stage].publishes
        if publishes in kinds and not (publishes == "images" and data_sets):
            return None
        hint = f"; name one of its data sets, such as '@{name}/{data_sets[0]}'" if data_sets else ""
        what = f"{len(data_sets)} data sets" if publishes == "images" else publishes
        return f"{shown} ({stage}) publishes {what}, expected {' or '.join(kinds)}{hint}"

    def _order(self, edges: dict[str, list[str]]) -> list[str]:
        """Parents first, else as in the file."""
        try:
            graphlib.TopologicalSorter(edges).prepare()
        except graphlib.CycleError as error:
            self.problems.append(f"the stages wait for each other: {' → '.join(reversed(error.args[1]))}")
            return []
        order: list[str] = []
        while len(order) < len(edges):
            order.append(next(n for n in edges if n not in order and set(edges[n]) <= set(order)))
        return order


def _join(where: str, key: str | int) -> str:
    return f"{where}{key}" if where.endswith(": ") else f"{where}.{key}"


def _check_published(path: Path, kinds: tuple[str, ...]) -> str | None:
    try:
        read_manifest(path, kinds)
    except ManifestError as error:
        return str(error)
    return None


def _nearest(name: str, valid: Iterable[str], prefix: str = "") -> str:
    names = [str(item) for item in valid]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{prefix}{close[0]}'?"
    return f"; there are: {', '.join(names)}" if names else ""


def plan(recipe: Recipe, nodes: Sequence[Node]) -> list[tuple[Node, State | None]]:
    """What `run_recipe` would find; None where a parent must run first."""
    pending: set[str] = set()
    found: list[tuple[Node, State | None]] = []
    for node in nodes:
        state = None if pending & set(node.parents) else inspect(node.stage, node.config, node.directory, recipe.source)
        if state is None or state.status != "done":
            pending.add(node.name)
        found.append((node, state))
    return found


def run_recipe(
    recipe: Recipe, nodes: Sequence[Node], launcher: Launcher, say: Callable[[str], None] = print
) -> list[tuple[Node, Outcome | None]]:
    """Run what is not done yet, parents first, up to the first stage that fails; None stands for `not run`."""
    ended: list[tuple[Node, Outcome | None]] = []
    for node in nodes:
        source = f"{recipe.source}: {node.name}"
        outcome = run_node(
            node.stage, node.config, node.directory, ranks=node.ranks, launcher=launcher, source=source, say=say
        )
        ended.append((node, outcome))
        if outcome.code:
            break
    return [*ended, *((node, None) for node in nodes[len(ended) :])]
