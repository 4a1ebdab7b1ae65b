"""Keys that images are asked of by name: an unknown one is named with its run and its neighbour."""

import pytest
from prior_helpers import publish_grids, publish_slides, toy_grids

from hdtrain.config.synthesis import FromEmbeddingsConfig
from hdtrain.data.embeddings_by_key import open_asked
from hdtrain.errors import DataError
from hdtrain.formats.manifest import read_manifest


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"keys": ["slide001-0-00"]},
            "has no embedding of 'slide001-0-00'; the nearest is 'slide001-0-0'; all are in ",
        ),
        ({"keys": ["slide000-0-0", "%", "&"]}, "has no embedding of '%' and 1 other key; the first of its 72 keys is "),
        ({"between": [("slide000-0-0", "slide000-9-9")]}, "has no embedding of 'slide000-9-9'"),
    ],
)
def test_an_unknown_key_is_named_with_its_run_and_the_nearest_one(tmp_path, asked, said):
    run = publish_slides(tmp_path / "run", toy_grids(2))
    with pytest.raises(DataError) as caught:
        open_asked(FromEmbeddingsConfig(run=run, **asked), (run, read_manifest(run)), None)
    assert str(caught.value).startswith(f"{run}: {said}")


def test_an_unknown_cell_is_told_how_cells_are_called(tmp_path):
    run = publish_grids(tmp_path / "run", toy_grids(2))
    with pytest.raises(DataError, match="has no cell slide001; a cell is NAME-ROW-COLUMN"):
        open_asked(FromEmbeddingsConfig(run=run, keys=["slide001"]), (run, read_manifest(run)), None)
