"""The page that a person opens, made by the real stage."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reporting_helpers import Tree, arm, collect_tree, image_set, make_results

from hdtrain.formats.manifest import publish, read_manifest
from hdtrain.formats.run_dir import RunDir
from hdtrain.reporting.render import render
from hdtrain.stages.__main__ import run_stage

VOID = {"meta", "img", "br", "link", "input", "hr"}
SVG_LEAVES = {"path", "rect", "use", "line", "circle"}


class Page(HTMLParser):
    """Checks that tags close in order, and collects references and ids."""

    def __init__(self, html: str):
        super().__init__()
        self.open_tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            if key in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                self.references.append(value or "")
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open_tags.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags, f"</{tag}> without a start"
        assert self.open_tags.pop() == tag, f"</{tag}> closes another tag, line {self.getpos()[0]}"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report's run directory, after the stage's own command ran in its own process."""
    report = Tree(tmp_path_factory.mktemp("runs")).build(make_results())
    command = [sys.executable, "-m", "hdtrain.stages", "report", str(report)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "RANK": "0"}
    )
    assert done.returncode == 0, done.stderr
    return report


@pytest.fixture(scope="module")
def html(published: Path) -> str:
    return RunDir(published).report.read_text()


def test_the_stage_publishes_its_file(published: Path) -> None:
    manifest = read_manifest(published, ("report",))
    assert list(manifest.files) == ["report.html"]
    assert set(manifest.parents) == {"evaluation", "selection"}


def test_the_page_is_well_formed_and_refers_to_nothing_outside_itself(html: str) -> None:
    page = Page(html)
    assert page.open_tags == []
    assert len(page.ids) == len(set(page.ids))
    assert page.references
    for reference in page.references:
        assert reference.startswith("data:image/") or reference.removeprefix("#") in page.ids, reference[:80]
    for used in re.findall(r"url\(([^)]*)\)", html):
        assert used.strip("'\"").removeprefix("#") in page.ids
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_figures_of_results_json_stand_in_the_page(html: str) -> None:
    text = text_of(html)
    for expected in (
        "0.735 [0.705, 0.765]",
        "+0.033 [0.012, 0.054]",
        "p = 0.004",
        "0.550 [0.500, 0.600]",
        "12.35 [11.00, 13.50]",
    ):
        assert expected in text
    assert "0.0021 [0.0011, 0.0032]" in text
    assert "Synthetic images made the classifier better in 2 of 3 arms: “selective-0.5” +3.3 points" in text
    assert "Images trustworthy" in text
    assert "Published, another data set: compare differences between arms, not values" in text
    assert "+ selective 200 % 4.583 0.919 0.916 0.919 0.992 +0.064" in text


def test_every_section_has_its_content(html: str) -> None:
    text = text_of(html)
    assert html.count('class="matrix"') == 5
    assert html.count('class="node ') == 19
    assert html.count('class="plot"') == 1 + 4 + 5
    assert html.count("memorised?") == 4
    assert html.count("data:image/png;base64,") == 4 * (3 + 3 + 3 + 3) + 2 * 12
    assert "ab" * 32 in text
    assert "preset: kl-f4-tiny" in text
    assert "seeds 0, 1, 2" in text or "seeds [0, 1, 2]" in text
    assert "bootstrap resamples 2000" in text


def test_the_same_inputs_give_the_same_page(published: Path, html: str) -> None:
    assert run_stage("report", published) == 0
    assert RunDir(published).report.read_text() == html


def test_names_from_outside_are_escaped(built: Tree) -> None:
    arms = {"real": arm(0.7, None, None), "<i>x</i>": arm(0.7, (0.0, -0.1, 0.1), 0.9, 10)}
    classes = ["<b>bold</b>", "a & b", "'quoted\"", "</td>"]
    results = make_results(classes=classes, arms=arms, image_sets={"<u>": image_set()}, protocol={"<s>": "<s>"})
    html = render(replace(collect_tree(built), results=results, title="<script>alert(1)</script>"))
    page = Page(html)
    assert not page.tags & {"b", "i", "u", "s", "script"}
    assert "&lt;b&gt;bold&lt;/b&gt;" in html


def test_warnings_of_the_evaluation_stand_above_the_tables(built: Tree) -> None:
    results = make_results(protocol={"warnings": ["3 slides stand in both train and test"]})
    evaluation = RunDir(built.root / "evaluation")
    results.write(evaluation.results)
    publish(evaluation.path, read_manifest(evaluation.path).model_copy(update={"files": {}}))
    page = render(collect_tree(built))
    assert page.index("3 slides stand in both train and test") < page.index('id="arms"')


def test_unequal_steps_are_said(built: Tree, html: str) -> None:
    results = make_results()
    arms = {**results.arms, "random-1": results.arms["random-1"].model_copy(update={"steps": 900})}
    page = render(replace(collect_tree(built), results=results.model_copy(update={"arms": arms})))
    assert "The arms differ in optimizer steps" in page
    assert "The arms differ in optimizer steps" not in html


def test_an_unpublished_evaluation_is_one_clear_error(built: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    report = built.root / "report"
    RunDir(built.root / "evaluation").manifest.unlink()
    assert run_stage("report", report) == 2
    assert "evaluation: manifest" in (error := capsys.readouterr().err)
    assert "is not published" in error
    assert not RunDir(report).report.exists()


def test_reporting_needs_no_torch() -> None:
    code = "import sys, hdtrain.stages.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
