"""The documentation says what the program does: commands parse, tables are the schema, links lead somewhere."""

import re
import shlex
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from hdtrain import cli
from hdtrain.config.cluster import ClusterConfig, ContainerConfig, Resources
from hdtrain.config.engine import BatchConfig, DurationConfig, EmaConfig, EngineConfig, GuardConfig, OptimConfig
from hdtrain.config.load import read_yaml, validate
from hdtrain.config.shards import Columns
from hdtrain.config.stages import STAGES
from hdtrain.config.training import NoiseScheduleConfig, ReaderConfig
from hdtrain.errors import ConfigError
from hdtrain.formats.index import SCHEMA
from hdtrain.recipe import load_recipe
from hdtrain.stages.__main__ import MISTAKE, STOPPED

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
BLOCKS: dict[str, type[BaseModel]] = {
    "optim": OptimConfig,
    "batch": BatchConfig,
    "duration": DurationConfig,
    "engine": EngineConfig,
    "ema": EmaConfig,
    "guard": GuardConfig,
    "reader": ReaderConfig,
    "schedule": NoiseScheduleConfig,
    "columns": Columns,
}


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def commands() -> list[tuple[str, str]]:
    lines = [(shown(page), line) for page in PAGES for text in code_blocks(page, "sh") for line in text.splitlines()]
    return [(page, line) for page, line in lines if line.startswith("hdtrain ") and "STAGE" not in line]


def test_there_are_pages_commands_and_recipes_to_check():
    assert len(PAGES) > 15
    assert {line.split()[1] for _, line in commands()} >= {"run", *STAGES}
    assert ROOT / "configs/recipe/demo.yaml" in CONFIGS


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_in_the_docs_parses_and_sets_keys_that_exist(page: str, line: str):
    words = shlex.split(line, comments=True)[1:]
    args, rest = cli._parser().parse_known_args(words)
    overrides = [*args.overrides, *rest, *[text for text in getattr(args, "only", []) if "=" in text]]
    assert not [text for text in overrides if text.startswith("-") or "=" not in text]
    if words[0] in STAGES:
        config = [args.config] if "=" in args.config else []
        keys = [text.partition("=")[0] for text in [*config, *overrides]]
        stage = cli.stage_meant(words[0], keys)
        for key in keys:
            assert fields_at(STAGES[stage].config, key), f"{page}: no key {key}"


@pytest.mark.parametrize("path", CONFIGS, ids=shown)
def test_a_shipped_config_is_valid(path: Path, tmp_path: Path):
    tree = read_yaml(path)
    if path.parent.name == "cluster":
        validate(ClusterConfig, tree, str(path))
        return
    if "stages" not in tree:
        name = max((name for name in STAGES if path.stem.replace("_", "-").startswith(name)), key=len)
        validate(STAGES[name].config, tree, str(path))
        return
    check_recipe(path, tmp_path)


@pytest.mark.parametrize("page", [page for page in PAGES if code_blocks(page, "yaml")], ids=shown)
def test_a_recipe_in_the_docs_is_valid(page: Path, tmp_path: Path):
    for text in code_blocks(page, "yaml"):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        check_recipe(path, tmp_path)


def check_recipe(path: Path, folder: Path) -> None:
    """Files that the user brings need not be there; everything else must be right."""
    needed = [name for name, value in read_yaml(path).get("variables", {}).items() if value is None]
    sources = [name for name in needed if f'sources: "${{{name}}}"' in path.read_text()]
    given = [f"{name}=[{{path: {folder}}}]" if name in sources else f"{name}={folder}" for name in needed]
    problems: list[str] = []
    try:
        load_recipe(path, given, out=folder / "runs")
    except ConfigError as error:
        brought = (": no such file", f"manifest {folder}/")
        problems = [problem for problem in error.problems if not any(text in problem for text in brought)]
    assert not problems


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{shown(page)}: {target}"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{shown(page)}: {target}"


def test_every_stage_has_a_page_and_a_line_in_the_index():
    pages = {path.stem for path in ROOT.glob("docs/stages/*.md")} - {"README", "blocks"}
    assert pages == set(STAGES)
    index = (ROOT / "docs/stages/README.md").read_text()
    row = r"^\| \[([\w-]+)\]\(\1\.md\) \|.*\| `([\w-]+)`(?:,.*)? \| (yes|no) \|$"
    said = re.findall(row, index, re.MULTILINE)
    assert said == [(spec.name, spec.publishes, "yes" if spec.needs_torch else "no") for spec in STAGES.values()]


@pytest.mark.parametrize("stage", STAGES)
def test_the_table_of_a_stage_is_its_schema(stage: str):
    rows = key_rows((ROOT / f"docs/stages/{stage}.md").read_text())
    model = STAGES[stage].config
    check_rows(model, rows)
    assert {key for key in rows if "." not in key} == set(model.model_fields)
    for block in (key for key in rows if "." not in key):
        documented = {key.rpartition(".")[2] for key in rows if re.match(rf"{block}(\[\]|\.NAME)?\.", key)}
        valid = {name for found in models_in(model.model_fields[block].annotation) for name in found.model_fields}
        assert not documented or documented == valid


@pytest.mark.parametrize("block", BLOCKS)
def test_the_table_of_a_block_is_its_schema(block: str):
    text = (ROOT / "docs/stages/blocks.md").read_text()
    section = re.search(rf"^## {block}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section
    rows = key_rows(section[1])
    check_rows(BLOCKS[block], rows)
    assert set(rows) == set(BLOCKS[block].model_fields)


@pytest.mark.parametrize(
    ("heading", "model"),
    [("## A profile", ClusterConfig), ("### resources", Resources), ("### container", ContainerConfig)],
)
def test_the_tables_of_a_cluster_profile_are_its_schema(heading: str, model: type[BaseModel]):
    _, _, rest = (ROOT / "docs/launching.md").read_text().partition(f"{heading}\n")
    rows = key_rows(re.split(r"^##", rest, maxsplit=1, flags=re.MULTILINE)[0])
    for key, cell in rows.items():
        field = model.model_fields[key]
        assert (
            cell == "required"
            if field.is_required()
            else parsed(cell.strip("`")) == field.get_default(call_default_factory=True)
        )
    assert set(rows) == set(model.model_fields)


def key_rows(text: str) -> dict[str, str]:
    """Key to the cell `default`, of the tables that begin with `key`."""
    rows = {}
    for table in re.findall(r"^\| key \| default \|.*?\n\|[-|]+\n((?:\|.*\n?)+)", text, re.MULTILINE):
        for line in table.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows.update(dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells[1]))
    return rows


def check_rows(model: type[BaseModel], rows: dict[str, str]) -> None:
    assert rows
    for key, cell in rows.items():
        fields = fields_at(model, key)
        assert fields, f"no key {key}"
        assert any(is_default(cell, field) for field in fields), f"{key}: {cell} is not the schema's default"


def is_default(cell: str, field: FieldInfo) -> bool:
    """Whether a cell (`required`, `block`, `block` with values in braces, or a value) says what the schema does."""
    value = re.search(r"`(.*)`", cell)
    if cell == "required" or field.is_required():
        # A union's tag has a default in each of its models, and still must be written.
        return cell == "required" and (field.is_required() or typing.get_origin(field.annotation) is typing.Literal)
    if cell.startswith("block"):
        if not isinstance(field.default, BaseModel):
            return False
        return type(field.default).model_validate(parsed(value[1]) if value else {}) == field.default
    assert value, f"a default without backticks: {cell}"
    annotation: Any = field.annotation
    found = TypeAdapter(annotation).validate_python(parsed(value[1]))
    return bool(found == field.default) and isinstance(found, bool) == isinstance(field.default, bool)


def parsed(text: str) -> Any:
    return yaml.safe_load(text)


def fields_at(model: type[BaseModel], dotted: str) -> list[FieldInfo]:
    """The fields that a dotted key may mean; more than one where a block is a choice of several."""
    models, fields = [model], []
    for part in dotted.replace("[]", "").split("."):
        if part.isdecimal() or part == "NAME":
            continue
        fields = [found.model_fields[part] for found in models if part in found.model_fields]
        models = [found for field in fields for found in models_in(field.annotation)]
    return fields


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
    else:
        for argument in typing.get_args(annotation):
            yield from models_in(argument)


def test_the_columns_of_the_index_and_the_exit_codes_are_as_documented():
    text = (ROOT / "docs/formats.md").read_text()
    section = re.search(r"^## index.parquet$(.*?)^From `select`", text, re.MULTILINE | re.DOTALL)
    assert section
    rows = re.findall(r"^\| (`.*?`) \| ([\w\[\]]+) \|", section[1], re.MULTILINE)
    columns = {name: kind.replace("float64", "double") for cell, kind in rows for name in re.findall(r"`(\w+)`", cell)}
    assert columns == {field.name: str(field.type) for field in SCHEMA}
    recipes = (ROOT / "docs/recipes.md").read_text()
    assert f"| {MISTAKE} | a mistake that you can mend" in recipes
    assert f"| {STOPPED} | stopped before its end, after saving |" in recipes
