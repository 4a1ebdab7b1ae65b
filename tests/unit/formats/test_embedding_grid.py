"""Grids of embeddings: what is written is read, whoever wrote it; what cannot be used is said in one message."""

import json
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prior_helpers import publish_grids, publish_slides, toy_grids

from hdtrain.errors import DataError, ManifestError
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.embedding_grid import EmbeddingGrid, GridRun, read_grid, write_grid
from hdtrain.formats.lattice import find_lattice
from hdtrain.formats.manifest import Manifest, publish

ROWS, COLUMNS, DIM = 4, 5, 6
HOLES = [(0, 0), (2, 3)]


@pytest.fixture
def grid() -> EmbeddingGrid:
    """4 × 5 cells of 6 features with two holes, tiles 128 px apart."""
    rng = np.random.default_rng(0)
    present = np.ones((ROWS, COLUMNS), bool)
    for hole in HOLES:
        present[hole] = False
    embeddings = rng.standard_normal((ROWS, COLUMNS, DIM)).astype(np.float32) * present[..., None]
    y, x = 1000 + 128 * np.mgrid[:ROWS, :COLUMNS].astype(np.int64)
    x, y = np.where(present, x, -1), np.where(present, y, -1)
    return EmbeddingGrid("slide-1", embeddings, present, x, y, 0.5, "tumour", "ab" * 32)


def assert_same(found: EmbeddingGrid, expected: EmbeddingGrid, places: bool = True) -> None:
    np.testing.assert_array_equal(found.embeddings, expected.embeddings)
    np.testing.assert_array_equal(found.present, expected.present)
    if places:
        np.testing.assert_array_equal(found.x, expected.x)
        np.testing.assert_array_equal(found.y, expected.y)


def shuffled(grid: EmbeddingGrid) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) and coords (n, 2) of the present cells, in no order."""
    order = np.random.default_rng(1).permutation(int(grid.present.sum()))
    coords = np.stack([grid.x[grid.present], grid.y[grid.present]], axis=1)
    return grid.embeddings[grid.present][order], coords[order]


def test_a_grid_that_was_written_is_read_as_it_was_and_the_same_grid_gives_the_same_bytes(grid, tmp_path):
    write_grid(tmp_path / "a.npz", grid)
    write_grid(tmp_path / "b" / "a.npz", grid)
    found = read_grid(tmp_path / "a.npz")
    assert_same(found, grid)
    assert (found.name, found.mpp, found.label, found.encoder_hash) == ("slide-1", 0.5, "tumour", "ab" * 32)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b" / "a.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b"]


def test_the_cells_of_an_npz_are_there_for_plain_numpy(grid, tmp_path):
    write_grid(tmp_path / "a.npz", replace(grid, embeddings=grid.embeddings + 1))
    with np.load(tmp_path / "a.npz") as archive:
        assert not archive["embeddings"][HOLES[0]].any()
        np.testing.assert_array_equal(archive["embeddings"][1, 2], grid.embeddings[1, 2] + 1)


def test_a_cell_may_hold_several_tokens_and_one_of_them_is_a_grid_too(grid, tmp_path):
    both = np.stack([grid.embeddings, 2 * grid.embeddings[..., ::-1]], axis=2)
    several = replace(grid, embeddings=both, token_order=("whole", "context-4"))
    write_grid(tmp_path / "a.npz", several)
    found = read_grid(tmp_path / "a.npz", token=None)
    assert_same(found, several)
    assert (found.tokens.count, found.token_order, found.dim) == (2, ("whole", "context-4"), DIM)
    second = read_grid(tmp_path / "a.npz", token=1)
    assert_same(second, replace(grid, embeddings=both[:, :, 1]))
    assert second.token_order == ("context-4",)
    assert_same(read_grid(tmp_path / "a.npz"), grid)
    assert found.crop(slice(1, 2), slice(2, 5)).embeddings.shape == (1, 3, 2, DIM)
    with pytest.raises(ManifestError, match=r"has 2 tokens \(whole, context-4\) a cell.* there is no token 2"):
        read_grid(tmp_path / "a.npz", token=2)
    with pytest.raises(DataError, match="1 names for 2 tokens"):
        write_grid(tmp_path / "b.npz", replace(several, token_order=("whole",)))
    with pytest.raises(DataError, match=r"shape \(4, 5, 1, 6\), expected \(rows, columns, features\)"):
        write_grid(tmp_path / "b.npz", replace(grid, embeddings=both[:, :, :1]))
    both[1, 2, 1, 3] = np.nan
    with pytest.raises(DataError, match=r"NaN or infinity in 1 of 20 cells: \(row 1, column 2\)"):
        write_grid(tmp_path / "b.npz", several)


def test_a_file_with_one_token_a_cell_is_of_version_1_and_says_nothing_of_tokens(grid, tmp_path):
    facts = {"name": "slide-1", "mpp": 0.5, "label": "tumour", "encoder_hash": "ab" * 32}
    two = np.stack([grid.embeddings] * 2, axis=2)
    for changes, expected in (
        ({"token_order": ("whole",)}, {"version": 1, **facts}),
        ({"embeddings": two}, {"version": 2, **facts, "token_order": None}),
    ):
        write_grid(tmp_path / "a.npz", replace(grid, **changes))
        with np.load(tmp_path / "a.npz") as archive:
            assert json.loads(archive["info"].tobytes()) == expected
            arrays = {**archive, "info": np.frombuffer(json.dumps({**expected, "version": 3}).encode(), np.uint8)}
        np.savez(tmp_path / "later.npz", **arrays)
        with pytest.raises(DataError, match="of another version, this hdtrain reads versions 1 and 2"):
            read_grid(tmp_path / "later.npz")


def test_a_whole_array_is_a_grid_and_its_cells_of_zeros_are_holes(grid, tmp_path):
    np.save(tmp_path / "s.npy", grid.embeddings)
    found = read_grid(tmp_path / "s.npy")
    assert_same(found, grid, places=False)
    assert (found.name, found.encoder_hash) == ("s", None)
    assert (found.x == -1).all()


@pytest.mark.parametrize("dataset", ["features", "embeddings", "feats"])
@pytest.mark.parametrize("leading", [(), (1,)])
def test_features_with_coords_as_clam_and_trident_write_them_find_their_cells(grid, tmp_path, dataset, leading):
    features, coords = shuffled(grid)
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file[dataset] = features.reshape(*leading, *features.shape)
        file["coords"] = coords.astype(np.int32)
        file["coords"].attrs["patch_size"] = 256
    assert_same(read_grid(tmp_path / "slide.h5"), grid)


def test_an_hdf5_file_may_hold_a_whole_grid(grid, tmp_path):
    with h5py.File(tmp_path / "slide.hdf5", "w") as file:
        file["features"] = grid.embeddings
    assert_same(read_grid(tmp_path / "slide.hdf5"), grid, places=False)


@pytest.mark.parametrize("columns", ["list", "each"])
@pytest.mark.parametrize("place", ["xy", "cells"])
def test_a_parquet_table_gives_the_same_grid_however_it_names_places_and_features(grid, tmp_path, columns, place):
    row, column = np.nonzero(grid.present)
    table = {"x": grid.x[grid.present], "y": grid.y[grid.present]} if place == "xy" else {"row": row, "column": column}
    features = grid.embeddings[grid.present]
    table |= {"embedding": list(features)} if columns == "list" else {f"f{i}": features[:, i] for i in range(DIM)}
    table["label"] = ["tumour"] * len(row)
    pq.write_table(pa.table(table), tmp_path / "slide.parquet")
    found = read_grid(tmp_path / "slide.parquet")
    assert_same(found, grid, places=place == "xy")
    assert found.label == "tumour"


def test_one_of_several_slides_in_a_parquet_table_is_named(tmp_path):
    table = {"slide": ["a", "a", "b"], "row": [0, 0, 0], "column": [0, 1, 0], "embedding": [[1.0], [2.0], [3.0]]}
    pq.write_table(pa.table(table), tmp_path / "all.parquet")
    assert read_grid(tmp_path / "all.parquet", "a").embeddings[0, :, 0].tolist() == [1, 2]
    assert read_grid(tmp_path / "all.parquet", "b").embeddings[0, :, 0].tolist() == [3]
    with pytest.raises(ManifestError, match="has 2 slides; name one of them: a, b"):
        read_grid(tmp_path / "all.parquet")
    with pytest.raises(ManifestError, match="no slide 'c'"):
        read_grid(tmp_path / "all.parquet", "c")


def test_a_zarr_group_and_a_zarr_array_are_read(grid, tmp_path):
    zarr = pytest.importorskip("zarr", reason="the extra hdtrain[grids] is not installed")
    features, coords = shuffled(grid)
    group = zarr.open_group(str(tmp_path / "slide.zarr"), mode="w")
    group.create_array("features", data=features)
    group.create_array("coords", data=coords)
    assert_same(read_grid(tmp_path / "slide.zarr"), grid)
    zarr.save_array(str(tmp_path / "whole.zarr"), grid.embeddings)
    assert_same(read_grid(tmp_path / "whole.zarr"), grid, places=False)


def test_without_the_package_zarr_the_message_says_which_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    (tmp_path / "slide.zarr").mkdir()
    with pytest.raises(DataError, match=r"pip install 'hdtrain\[grids\]'"):
        read_grid(tmp_path / "slide.zarr")


def test_the_grids_of_a_published_run_are_read_by_name_and_an_altered_one_is_refused(grid, tmp_path):
    run = tmp_path / "run"
    for name in ("a", "b"):
        write_grid(run / "grids" / f"{name}.npz", replace(grid, name=name))
    files = {f"grids/{name}.npz": sha256_file(run / f"grids/{name}.npz") for name in ("a", "b")}
    publish(run, Manifest(kind="grids", stage="train-prior", fingerprint="f", commit="c", files=files))
    assert GridRun(run).names == ["a", "b"]
    assert read_grid(run, "b").name == "b"
    with pytest.raises(ManifestError, match="has 2 grids; name one of them: a, b"):
        read_grid(run)
    with pytest.raises(ManifestError, match="no grid 'c'; it has a, b"):
        read_grid(run, "c")
    write_grid(run / "grids" / "a.npz", replace(grid, name="other"))
    with pytest.raises(ManifestError, match="altered since it was published"):
        read_grid(run, "a")


@pytest.mark.parametrize("publish_run", [publish_grids, publish_slides])
def test_a_run_that_is_open_reads_manifest_index_and_sidecars_once(publish_run, tmp_path):
    made = toy_grids(6, hole=True)
    run = GridRun(publish_run(tmp_path / "run", made))
    assert run.names == [grid.name for grid in made]
    run.read("slide000")
    for file in [*run.path.glob("*.*"), *run.path.glob("shards/*.json")]:
        file.unlink()
    for grid in made[1:]:
        found = run.read(grid.name)
        assert_same(found, grid, places=False)
        assert (found.name, found.label, found.mpp) == (grid.name, grid.label, 0.5)
        np.testing.assert_array_equal(found.x[grid.present], grid.x[grid.present])
        np.testing.assert_array_equal(found.y[grid.present], grid.y[grid.present])


def test_nan_is_one_message_with_the_cells(grid, tmp_path):
    poisoned = grid.embeddings.copy()
    poisoned[1, 2, 0], poisoned[3, 4, 5] = np.nan, np.inf
    np.save(tmp_path / "s.npy", poisoned)
    with pytest.raises(DataError, match=r"NaN or infinity in 2 of 20 cells: \(row 1, column 2\), \(row 3, column 4\)"):
        read_grid(tmp_path / "s.npy")
    with pytest.raises(DataError, match="grid 'slide-1': NaN or infinity in 2 of 20 cells"):
        write_grid(tmp_path / "s.npz", replace(grid, embeddings=poisoned))
    assert not (tmp_path / "s.npz").exists()


def test_features_that_no_float16_holds_are_one_message_before_a_network_sees_them(grid, tmp_path):
    huge = grid.embeddings.copy()
    huge[1, 2, 0] = -1e30
    np.save(tmp_path / "s.npy", huge)
    said = r"features up to 1e\+30 in 1 of 20 cells: \(row 1, column 2\); .* float16, which ends at 65,504"
    with pytest.raises(DataError, match=said):
        read_grid(tmp_path / "s.npy")


def test_a_grid_without_any_cell_is_refused(grid, tmp_path):
    np.save(tmp_path / "s.npy", np.zeros((2, 3, 4), np.float32))
    with pytest.raises(DataError, match="no cell of 2 × 3 is present"):
        read_grid(tmp_path / "s.npy")
    with pytest.raises(DataError, match="no cell of 1 × 1 is present"):
        grid.crop(slice(0, 1), slice(0, 1))
    assert grid.crop(slice(1, 3), slice(2, 5)).x.tolist() == [[1256, 1384, 1512], [1256, -1, 1512]]


def test_two_embeddings_for_one_cell_are_refused_and_named(tmp_path):
    table = {"row": [0, 1, 1], "column": [0, 2, 2], "embedding": [[1.0], [2.0], [3.0]]}
    pq.write_table(pa.table(table), tmp_path / "s.parquet")
    with pytest.raises(DataError, match=r"1 cells have more than one embedding: \(row 1, column 2\)"):
        read_grid(tmp_path / "s.parquet")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4)), r"shape \(3, 4\) and float64; expected numbers \(rows, columns, features\)"),
        (np.array([[["a"]]]), "expected numbers"),
    ],
)
def test_an_array_of_another_layout_is_refused(tmp_path, array, message):
    np.save(tmp_path / "s.npy", array)
    with pytest.raises(DataError, match=message):
        read_grid(tmp_path / "s.npy")


def test_files_that_hold_something_else_are_refused_with_what_was_expected(grid, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = np.zeros(3)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["features"], file["coords"] = np.zeros((4, 2)), np.zeros((3, 2))
    (tmp_path / "c.h5").write_bytes(b"nothing")
    np.savez(tmp_path / "d.npz", x=np.zeros(3))
    pq.write_table(pa.table({"embedding": [[1.0], [2.0, 3.0]], "x": [0, 1], "y": [0, 1]}), tmp_path / "e.parquet")
    pq.write_table(pa.table({"embedding": [[1.0]]}), tmp_path / "f.parquet")
    (tmp_path / "g.txt").write_text("")
    expected = {
        "a.h5": "no dataset features, embeddings, feats; it has images",
        "b.h5": r"features of shape \(4, 2\) and coords of shape \(3, 2\)",
        "c.h5": "cannot be read as h5 of embeddings",
        "d.npz": "cannot be read as a grid of hdtrain's",
        "e.parquet": "embeddings of different dimensions",
        "f.parquet": "no columns x and y, or row and column",
        "g.txt": "not a grid of embeddings; expected a run, .npz, .h5",
        "h.npy": "no such file",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message):
            read_grid(tmp_path / name)


def test_another_dimension_or_encoder_than_the_models_is_refused(grid):
    grid.check_encoder(DIM, "ab" * 32, "runs/ldm")
    grid.check_encoder(DIM, None, "runs/ldm")
    replace(grid, encoder_hash=None).check_encoder(DIM, "cd" * 32, "runs/ldm")
    with pytest.raises(ManifestError, match="has embeddings of 6 features, runs/ldm was trained on 384"):
        grid.check_encoder(384, None, "runs/ldm")
    with pytest.raises(ManifestError, match="comes from encoder abababababab, runs/ldm was trained on encoder cdcd"):
        grid.check_encoder(DIM, "cd" * 32, "runs/ldm")


@pytest.mark.parametrize("step", [64.0, 128.256, 257.31, 1.0])
def test_rows_and_columns_are_found_from_rounded_places_with_gaps(step):
    rng = np.random.default_rng(2)
    row, column = rng.permutation(np.argwhere(rng.random((60, 90)) < 0.2)).T
    row, column = np.append(row, [0, 0, 1]), np.append(column, [0, 1, 0])
    column[column > 40] += 200  # a wide gap
    x, y = (np.rint(step * number).astype(np.int64) + 17 for number in (column, row))
    lattice = find_lattice(x, y, "slide")
    found = lattice.cells(x, y)
    np.testing.assert_array_equal(found[0], row)
    np.testing.assert_array_equal(found[1], column)
    assert (lattice.rows, lattice.columns) == (row.max() + 1, column.max() + 1)
    assert abs(lattice.step_x - step) < 0.01


def test_one_tile_and_one_row_are_lattices_too():
    one = find_lattice(np.array([7]), np.array([9]), "slide")
    assert (one.rows, one.columns) == (1, 1)
    line = find_lattice(np.array([0, 100, 300]), np.array([5, 5, 5]), "slide")
    assert (line.rows, line.columns, round(line.step_y)) == (1, 4, 100)


def test_tiles_on_no_lattice_are_said_and_not_guessed(tmp_path):
    x, y = np.array([0, 100, 200, 350]), np.array([0, 0, 100, 100])
    with pytest.raises(DataError, match="no regular lattice: their smallest distance along x is 100, and x = "):
        find_lattice(x, y, "slide")
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["features"], file["coords"] = np.ones((4, 3)), np.stack([x, y], axis=1)
    with pytest.raises(DataError, match=r"s\.h5: the tiles lie on no regular lattice"):
        read_grid(tmp_path / "s.h5")


def test_reading_grids_needs_no_torch():
    code = "import sys, hdtrain.formats.embedding_grid; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
