import shutil
from pathlib import Path

import pytest
from reporting_helpers import Tree, make_results


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """An empty folder in which runs can be published."""
    return Tree(tmp_path)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole tree, published once."""
    root = tmp_path_factory.mktemp("template")
    Tree(root).build(make_results())
    return root


@pytest.fixture
def built(template: Path, tmp_path: Path) -> Tree:
    """A copy of the whole tree (manifests name parents relatively, so it can move) with a report ready to run."""
    root = tmp_path / "runs"
    shutil.copytree(template, root, ignore=shutil.ignore_patterns("report"))
    tree = Tree(root)
    tree.prepare_report()
    return tree
