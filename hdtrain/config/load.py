"""YAML and `key=value` overrides to a validated config; every mistake reported at once with the nearest right key."""

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from hdtrain.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=BaseModel)
_QUOTE = "'"


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML or does not hold a mapping.
    """
    try:
        tree = yaml.load(path.read_text(), _UniqueKeys)
    except FileNotFoundError:
        raise ConfigError(str(path), ["no such file"]) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(str(path), [f"cannot be read as YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError(str(path), [f"expected a mapping of keys, got {type(tree).__name__}"])
    return tree


class _UniqueKeys(yaml.SafeLoader):
    """YAML lets a key occur twice and keeps the last; here it is a mistake. What `<<` merges may be overridden."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        own = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((key for key, _ in node.value if own.count(key.value) > 1), None)
        if twice is not None and not getattr(node, "checked", False):
            raise yaml.YAMLError(
                f"key '{twice.value}' occurs twice, again in line {twice.start_mark.line + 1} or below"
            )
        node.checked = True  # type: ignore[attr-defined]  # merging puts the merged keys into the node
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        """YAML 1.1 reads `24:00:00` as 86400, base 60; here it stays the text that it looks like."""
        return node.value if ":" in node.value else super().construct_yaml_int(node)


_UniqueKeys.add_constructor("tag:yaml.org,2002:int", _UniqueKeys.construct_yaml_int)


def _reason(error: yaml.YAMLError) -> str:
    """What PyYAML found, and where in the value; a backslash wants single quotes or to be doubled."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    where = f" at character {mark.column + 1}" if mark else ""
    hint = "; write \\\\ for a backslash in double quotes" if "escape" in problem else ""
    return f"{problem}{where}{hint}"


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """`["a.b=1"]` to `{"a.b": 1}`; values are YAML, so `[1, 2]`, `true` and `null` mean what they mean there."""
    overrides, problems = {}, []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            problems.append(f"'{pair}': expected key=value")
            continue
        try:
            overrides[key] = yaml.load(text, _UniqueKeys)
        except yaml.YAMLError as error:
            problems.append(f"'{pair}': the value is not YAML: {_reason(error)}")
    if problems:
        raise ConfigError("command line", problems)
    return overrides


def set_dotted(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `tree["a"]["b"] = value` for `a.b`, making the mappings on the way; list positions are numbers.

    Raises:
        ConfigError: a part of the key is a plain value, or no position of its list.
    """
    *parents, last = dotted.split(".")
    node: Any = tree
    for part in parents:
        node = node[_position(node, part, dotted)] if isinstance(node, list) else node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise ConfigError("command line", [f"{dotted}: '{part}' is a value, not a mapping"])
    node[_position(node, last, dotted) if isinstance(node, list) else last] = value


def get_dotted(tree: Mapping[str, Any], dotted: str) -> Any:
    """`tree["a"]["b"]` for `a.b`."""
    value: Any = tree
    for part in dotted.split("."):
        value = value[part]
    return value


def _position(values: list[Any], part: str, dotted: str) -> int:
    if not part.isdecimal() or int(part) >= len(values):
        raise ConfigError("command line", [f"{dotted}: expected a list position 0 to {len(values) - 1}, got '{part}'"])
    return int(part)


def validate(model: type[ConfigT], tree: Mapping[str, Any], source: str) -> ConfigT:
    """`tree` as a `model`.

    Raises:
        ConfigError: with one line for every mistake: dotted path, what was expected, what came, the nearest valid key.
    """
    try:
        return model.model_validate(dict(tree))
    except ValidationError as error:
        raise ConfigError(source, [_problem(model, dict(item)) for item in error.errors()]) from None


def _problem(model: type[BaseModel], item: dict[str, Any]) -> str:
    location, kind, context = tuple(item["loc"]), item["type"], item.get("ctx", {})
    parent, valid = _valid_keys(model, location[:-1])
    dotted = ".".join([*parent, *map(str, location[-1:])])
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(location[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean '{'.'.join([*parent, close[0]])}'?" if close else f"valid keys: {', '.join(valid)}"
        return f"{dotted}: unknown key; {hint}"
    if kind in _TOLD:
        return f"{dotted}{_TOLD[kind](context)}"
    if kind in _LISTS | _BLOCKS:
        return f"{dotted}: {_other_shape(model, location, dotted, item)}"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if kind != "value_error" or not (isinstance(item["input"], dict) or ", got " in message):
        shown = repr(item["input"]) if not isinstance(item["input"], dict | list) else type(item["input"]).__name__
        message += f", got {shown}"
    return f"{dotted}: {message}" if dotted else message


_TOLD: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda _: ": missing, and it has no default",
    "union_tag_invalid": lambda context: (
        f".{context['discriminator'].strip(_QUOTE)}: expected one of {context['expected_tags'].replace(_QUOTE, '')}, "
        f"got '{context['tag']}'"
    ),
    "union_tag_not_found": lambda context: f": {context['discriminator']} is missing, which says what it is",
    "too_short": lambda context: f": expected at least {context['min_length']} values, got {context['actual_length']}",
}
"""Kinds of pydantic's mistakes that we tell in our own words, from their context."""


_LISTS = {"list_type", "tuple_type"}
_BLOCKS = {"model_type", "model_attributes_type", "dict_type"}
"""Kinds of pydantic's mistakes where a list, or a block of keys, is wanted, and something else is given."""


def _other_shape(model: type[BaseModel], location: tuple[Any, ...], dotted: str, item: Mapping[str, Any]) -> str:
    """What is wanted in place of a value of another shape, and how to write the value that is given."""
    _, models, annotation = _follow(model, location)
    given, wants_list = item["input"], item["type"] in _LISTS
    plain = not isinstance(given, dict | list)
    got = repr(given) if plain else f"a {'block' if isinstance(given, dict) else 'list'}"
    message = f"expected a {'list' if wants_list else 'block of keys'}, got {got}"
    if given is None:
        return f"{message.removesuffix('None')}null; give one, or leave the key out"
    required = [name for name, field in models[0].model_fields.items() if field.is_required()] if models else []
    if plain and wants_list and not models and not re.search(r"\[.*(list|tuple)\[", str(annotation)):
        return f"{message}; write {dotted}=[{given}]"
    if plain and required and len(models) == 1:
        return f"{message}; write {dotted}" + (
            f"=[{{{required[0]}: {given}}}]" if wants_list else f".{required[0]}={given}"
        )
    keys = sorted({key for each in models for key in each.model_fields})
    return f"{message}; its keys are {', '.join(keys)}" if keys and not wants_list else message


def _valid_keys(model: type[BaseModel], location: tuple[Any, ...]) -> tuple[list[str], list[str]]:
    """Follow `location` through the schema; return its dotted form without union tags, and the keys valid there."""
    dotted, candidates, _ = _follow(model, location)
    return dotted, sorted({key for m in candidates for key in m.model_fields})


def _follow(model: type[BaseModel], location: tuple[Any, ...]) -> tuple[list[str], list[type[BaseModel]], Any]:
    """The dotted form of `location`, without union tags; the blocks that may be there; the annotation of its field."""
    candidates: list[type[BaseModel]] = [model]
    dotted: list[str] = []
    annotation: Any = None
    for part in location:
        fields = [m.model_fields[part] for m in candidates if isinstance(part, str) and part in m.model_fields]
        if fields:
            annotation = fields[0].annotation
            candidates = [found for field in fields for found in _models_in(field.annotation)]
            dotted.append(str(part))
        elif isinstance(part, int):
            dotted.append(str(part))
        else:
            tagged = [m for m in candidates if _has_tag(m, part)]
            if tagged:
                candidates = tagged
            elif part not in {m.__name__ for m in candidates}:
                dotted.append(str(part))
    return dotted, candidates, annotation


def _has_tag(model: type[BaseModel], tag: Any) -> bool:
    return any(tag in typing.get_args(field.annotation) for field in model.model_fields.values())


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for argument in typing.get_args(annotation) for found in _models_in(argument)]
