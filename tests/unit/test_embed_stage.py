"""The stage `embed`: every image once, as its encoder says, in the cells of its slide, whoever does the work."""

import io
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from PIL import Image
from tiny_chain import prepare, run_here
from torch import nn

from hdtrain.config.load import validate
from hdtrain.config.stages import STAGES
from hdtrain.config.training import TorchScriptEncoder
from hdtrain.data.decode import fit
from hdtrain.distributed.world import World
from hdtrain.errors import ConfigError, ManifestError
from hdtrain.features.encoders import build_encoder
from hdtrain.formats.claims import Claims
from hdtrain.formats.embedding_grid import GridRun, read_grid
from hdtrain.formats.embedding_space import other_sizes
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.records import RecordReader
from hdtrain.formats.shards import Sidecar, open_shards, sidecar_path
from hdtrain.stages import embed
from hdtrain.stages.base import StageContext

TILE_PX, ROWS, COLUMNS = 16, 5, 7
INPUT_PX, DIM = 16, 6


class Net(nn.Module):
    """Features of the four quarters of an image, as tokens behind their mean; `poison` gives NaN or huge values."""

    def __init__(self, tokens: bool = False, poison: str = ""):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, DIM, 8, stride=8)
        self.tokens, self.poison = tokens, poison

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.conv(x).flatten(2).transpose(1, 2)
        cls = maps.amax(1, keepdim=True)
        if self.poison == "nan":
            cls = torch.where(x[:, :1, :1, 0, None].squeeze(-1) > 2.0, float("nan"), cls)
        if self.poison == "huge":
            cls = 1e6 + cls
        return torch.cat([cls, maps], 1) if self.tokens else cls[:, 0]


def script(path, **options) -> dict:
    """The encoder's config."""
    torch.jit.script(Net(**options)).save(str(path))
    return {"kind": "torchscript", "file": str(path), "input_px": INPUT_PX}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> dict:
    return script(tmp_path_factory.mktemp("encoder") / "net.pt")


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> dict[str, np.ndarray]:
    """Two slides of 5 × 7 tiles with a column left over, the second with two tiles of glass."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("slides")
    found = {}
    for name in ("a", "b"):
        low = rng.integers(60, 200, (ROWS * 4, COLUMNS * 4 + 1, 3)).astype(np.uint8)
        low[..., 1] //= 2  # tissue is coloured
        found[name] = np.ascontiguousarray(low.repeat(4, 0).repeat(4, 1))
    for row, column in ((0, 0), (2, 3)):
        found["b"][row * TILE_PX : (row + 1) * TILE_PX, column * TILE_PX : (column + 1) * TILE_PX] = 255
    for name, pixels in found.items():
        tifffile.imwrite(root / f"{name}.tif", pixels, photometric="rgb", tile=(16, 16))
    found["root"] = root
    return found


def cut(slides, directory, **source):
    """Tiles of the slides, published."""
    source = {"path": str(slides["root"]), "layout": "slide", "tile_px": TILE_PX, "mpp": 0.5, "name": "s", **source}
    assert run_here("shard", directory, {"sources": [source], "samples_per_shard": 16, "duplicates": "keep"}) == 0
    return directory


@pytest.fixture(scope="module")
def tiles(slides, tmp_path_factory):
    """All of them but the glass, mixed over five shards."""
    return cut(slides, tmp_path_factory.mktemp("tiles") / "run", min_tissue=0.5)


@pytest.fixture(scope="module")
def run(tiles, encoder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("embedded") / "run"
    assert run_here("embed", directory, {"images": [str(tiles)], "encoder": encoder, "batch_size": 8}) == 0
    return directory


def embedded(run) -> dict[str, np.ndarray]:
    """Key to (tokens, features)."""
    found = {}
    for entry in read_manifest(run).shards:
        reader = RecordReader(run / entry.name)
        records = [record for array in reader.arrays() for record in array]
        assert len(records) == len(reader.sidecar.keys) == entry.samples
        found |= dict(zip(reader.sidecar.keys, records, strict=True))
    return found


def pixels_of(run) -> dict[str, np.ndarray]:
    found = {}
    for shard in open_shards(run, read_manifest(run)):
        for i, key in enumerate(shard.sidecar.keys):
            found[key] = np.asarray(Image.open(io.BytesIO(shard.image(i))).convert("RGB"))
    return found


def place(key: str) -> tuple[str, int, int]:
    """Slide, x and y in a tile's key."""
    slide, x, y = key.rsplit("_", 2)
    return slide[-1], int(x[1:]), int(y[1:])


def expected(encoder: dict, images: list[np.ndarray]) -> np.ndarray:
    return build_encoder(TorchScriptEncoder(**encoder)).embed(np.stack(images)).numpy()


def test_every_image_is_embedded_once_as_its_encoder_says(run, tiles, encoder):
    ours, images = embedded(run), pixels_of(tiles)
    assert ours.keys() == images.keys()
    assert len(ours) == 2 * ROWS * COLUMNS - 2
    plain = expected(encoder, [images[key] for key in ours])
    np.testing.assert_allclose(np.stack(list(ours.values()))[:, 0].astype(np.float32), plain, rtol=2e-3, atol=1e-4)
    manifest = read_manifest(run)
    assert manifest.fields["embedding"].shape == [1, DIM]
    assert manifest.info["token_order"] == manifest.info["views"] == ["whole"]
    assert manifest.info["encoder"]["resolution"] == INPUT_PX


def test_images_are_brought_to_a_resolution_first_and_the_manifest_says_their_size(run, tiles, encoder, tmp_path):
    small = {"images": [str(tiles)], "encoder": encoder, "batch_size": 8, "resolution": TILE_PX // 2}
    assert run_here("embed", tmp_path / "small", small) == 0
    ours, images = embedded(tmp_path / "small"), pixels_of(tiles)
    halved = [fit(images[key], TILE_PX // 2, "squash") for key in ours]
    found = np.stack(list(ours.values()))[:, 0].astype(np.float32)
    np.testing.assert_allclose(found, expected(encoder, halved), rtol=2e-3, atol=1e-4)
    whole, reduced = (read_manifest(path).info for path in (run, tmp_path / "small"))
    assert (whole["image_px"], reduced["image_px"]) == ([[TILE_PX] * 2], [[TILE_PX // 2] * 2])
    [doubt] = other_sizes("these", whole, "those", reduced)
    assert f"these has embeddings of images of {TILE_PX}×{TILE_PX} px, and those" in doubt
    assert f"resolution={TILE_PX // 2}" in doubt
    assert not other_sizes("these", whole, "those", whole)
    assert [GridRun(path).read("a").mpp for path in (run, tmp_path / "small")] == [0.5, 1.0]


def test_the_resolution_is_that_of_the_images_that_are_stored(slides, encoder, tmp_path):
    source = {"path": str(slides["root"]), "layout": "slide", "tile_px": TILE_PX, "mpp": 0.5}
    assert run_here("shard", tmp_path / "tiles", {"sources": [source], "resize_px": 8, "duplicates": "keep"}) == 0
    assert run_here("embed", tmp_path / "run", {"images": [str(tmp_path / "tiles")], "encoder": encoder}) == 0
    assert GridRun(tmp_path / "run").read("a").mpp == 0.5 * TILE_PX / 8


def test_the_index_tells_record_and_cell_of_every_image(run):
    ours = embedded(run)
    rows = pq.read_table(run / "index.parquet").to_pylist()
    assert [row["key"] for row in rows] == list(ours)
    for row in rows:
        assert (row["slide"], row["x"], row["y"]) == place(row["key"])
        assert (row["row"], row["column"]) == (row["y"] // TILE_PX, row["x"] // TILE_PX)
        reader = RecordReader(run / "shards" / row["shard"])
        assert reader.sidecar.keys[row["record"]] == row["key"]
        assert (row["mpp"], row["label"]) == (0.5, None)


def test_a_slide_is_read_as_a_grid_with_its_holes(run):
    ours, grids = embedded(run), GridRun(run)
    assert grids.names == ["a", "b"]
    for name, holes in (("a", []), ("b", [(0, 0), (2, 3)])):
        grid = grids.read(name)
        assert grid.embeddings.shape == (ROWS, COLUMNS, DIM)
        assert np.argwhere(~grid.present).tolist() == [list(hole) for hole in holes]
        for key, record in ours.items():
            slide, x, y = place(key)
            if slide == name:
                cell = y // TILE_PX, x // TILE_PX
                np.testing.assert_array_equal(grid.embeddings[cell], record[0].astype(np.float32))
                assert (grid.x[cell], grid.y[cell]) == (x, y)
        assert (grid.mpp, grid.label) == (0.5, None)
        assert grid.encoder_hash == read_manifest(run).info["encoder_hash"]


def test_tokens_are_the_views_in_their_order_and_a_context_is_that_part_of_the_slide(slides, encoder, tmp_path):
    whole = cut(slides, tmp_path / "tiles")
    views = ["context-3", "whole", "centre-1/2", "grid-2", "context-2"]
    config = {"images": [str(whole)], "encoder": encoder, "views": views, "batch_size": 5}
    assert run_here("embed", tmp_path / "run", config) == 0
    info = read_manifest(tmp_path / "run").info
    parts = ["grid-2[0,0]", "grid-2[0,1]", "grid-2[1,0]", "grid-2[1,1]"]
    assert info["token_order"] == ["context-3", "whole", "centre-1/2", *parts, "context-2"]
    assert info["tokens"] == 8
    ours, half = embedded(tmp_path / "run"), TILE_PX // 2
    assert len(ours) == 2 * ROWS * COLUMNS
    for key in list(ours)[::5]:
        name, x, y = place(key)
        pixels = np.full(((ROWS + 2) * TILE_PX, (COLUMNS + 2) * TILE_PX, 3), 255, np.uint8)
        tiled = slides[name][: ROWS * TILE_PX, : COLUMNS * TILE_PX]
        pixels[TILE_PX:-TILE_PX, TILE_PX:-TILE_PX] = tiled
        wide = pixels[y : y + 3 * TILE_PX, x : x + 3 * TILE_PX]
        tile = tiled[y : y + TILE_PX, x : x + TILE_PX]
        quarters = [tile[i : i + half, j : j + half] for i in (0, half) for j in (0, half)]
        crops = [wide, tile, tile[4:12, 4:12], *quarters, wide[half:-half, half:-half]]
        plain = np.concatenate([expected(encoder, [crop]) for crop in crops])
        np.testing.assert_allclose(ours[key].astype(np.float32), plain, rtol=2e-3, atol=1e-3)
    every, second = (read_grid(tmp_path / "run", "a", token=token) for token in (None, 1))
    assert (every.embeddings.shape, every.tokens.order) == ((ROWS, COLUMNS, 8, DIM), tuple(info["token_order"]))
    assert every.embeddings.any(axis=-1).all()
    np.testing.assert_array_equal(every.embeddings[:, :, 1], second.embeddings)
    assert second.token_order == ("whole",)
    with pytest.raises(ManifestError, match=r"has 8 tokens \(context-3, .*\) an image, .* there is no token 8"):
        read_grid(tmp_path / "run", "a", token=8)


def test_any_number_of_ranks_and_a_restart_make_the_same_bytes(run, tiles, encoder, tmp_path):
    config = {"images": [str(tiles)], "encoder": encoder, "batch_size": 8}
    prepare("embed", tmp_path / "three", config)
    resolved, context = StageContext.open("embed", tmp_path / "three")
    with Claims(context.run.claims) as others:  # somebody else has these in hand, and then does not finish them
        assert others.take("embeddings-000001.tar")
    for rank in (2, 1, 0):
        embed.run(resolved, replace(context, world=World(rank=rank, size=3)))
    assert read_manifest(tmp_path / "three").identity == read_manifest(run).identity
    for path in sorted((run / "shards").iterdir()):
        assert path.read_bytes() == (tmp_path / "three" / "shards" / path.name).read_bytes()


def test_a_labelled_set_without_slides_has_labels_and_no_grid(chain, tmp_path, encoder, capsys):
    assert run_here("embed", tmp_path / "run", {"images": [str(chain["labelled"])], "encoder": encoder}) == 0
    assert "embedded 20 images in 4 shards: 1 token of 6 features by torchscript-net-" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "run")
    assert (manifest.classes, manifest.info["grids"]) == (["dots", "stripes"], {})
    rows = pq.read_table(tmp_path / "run" / "index.parquet").to_pylist()
    assert all(row["label"] in row["key"] for row in rows)
    assert all(row["slide"] is row["row"] is row["x"] is None for row in rows)
    with pytest.raises(ManifestError, match="has no grid: its tiles have no slide, x and y"):
        read_grid(tmp_path / "run")
    with pytest.raises(ManifestError, match="has no grid: its tiles have no slide"):
        read_grid(tmp_path / "run", "a")


def by_name(root, places) -> list[dict]:
    """Images whose names tell slide, x and y."""
    root.mkdir()
    rng = np.random.default_rng(3)
    for slide, x, y in places:
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(root / f"{slide}_{x}_{y}.png")
    return [{"path": str(root), "layout": "flat", "pattern": r"(?P<slide>\w+)_(?P<x>\d+)_(?P<y>\d+)"}]


def test_a_slide_on_no_lattice_is_said_and_its_context_refused(tmp_path, encoder, capsys):
    sources = by_name(
        tmp_path / "raw", [("odd", 0, 0), ("odd", 16, 0), ("odd", 41, 0), ("even", 0, 0), ("even", 16, 32)]
    )
    assert run_here("shard", tmp_path / "tiles", {"sources": sources}) == 0
    config = {"images": [str(tmp_path / "tiles")], "encoder": encoder}
    assert run_here("embed", tmp_path / "run", config) == 0
    said = capsys.readouterr().out
    assert "slide even: 2 rows × 2 columns, 50.0% present" in said
    assert "warning: no grid: slide 'odd': the tiles lie on no regular lattice: their smallest distance along x" in said
    assert GridRun(tmp_path / "run").names == ["even"]
    assert list(read_manifest(tmp_path / "run").info["off_lattice"]) == ["odd"]
    assert run_here("embed", tmp_path / "wide", {**config, "views": ["whole", "context-3"]}) == 2
    said = capsys.readouterr().err
    assert "views with a context need its place among the tiles of its slide: slide 'odd'" in said


def test_tiles_in_one_place_have_no_grid_and_no_context(slides, tiles, encoder, tmp_path, capsys):
    finer = cut(slides, tmp_path / "finer", tile_px=32, name="t")
    config = {"images": [str(tiles), str(finer)], "encoder": encoder}
    assert run_here("embed", tmp_path / "run", config) == 0
    said = capsys.readouterr().out
    assert "warning: no grid: slide 'a': 12 tiles lie where another one does: regions of the slide that" in said
    assert said.count("The images are embedded all the same") == 1
    info = read_manifest(tmp_path / "run").info
    assert (info["grids"], list(info["off_lattice"])) == ({}, ["a", "b"])
    assert run_here("embed", tmp_path / "wide", {**config, "views": ["context-3"]}) == 2
    assert "tiles lie where another one does, as" in capsys.readouterr().err


def test_regions_of_a_slide_that_count_from_one_corner_have_grids_once_they_have_names_of_their_own(
    tmp_path, encoder, capsys
):
    places = [(f"{slide}_{region}", x, 0) for slide in (1, 2) for region in (3, 4) for x in (0, 16)]
    sources = by_name(tmp_path / "raw", places)
    for name, pattern, grids in (
        ("slides", r"^(?P<slide>\d+)_\d+_(?P<x>\d+)_(?P<y>\d+)", {}),
        ("regions", r"^(?P<slide>(?P<patient>\d+)_\d+)_(?P<x>\d+)_(?P<y>\d+)",
         {f"{slide}_{region}": [1, 2] for slide in (1, 2) for region in (3, 4)}),
    ):  # fmt: skip
        sources[0]["pattern"] = pattern
        assert run_here("shard", tmp_path / f"{name}-tiles", {"sources": sources}) == 0
        capsys.readouterr()
        config = {"images": [str(tmp_path / f"{name}-tiles")], "encoder": encoder}
        assert run_here("embed", tmp_path / name, config) == 0
        said = capsys.readouterr().out
        assert read_manifest(tmp_path / name).info["grids"] == grids
        assert len(embedded(tmp_path / name)) == 8
        assert ("note: 2 slides without a grid. The images are embedded all the same" in said) == (not grids)


def test_overlapping_tiles_have_a_grid_but_no_context(slides, encoder, tmp_path, capsys):
    overlapping = cut(slides, tmp_path / "tiles", stride_px=8)
    config = {"images": [str(overlapping)], "encoder": encoder}
    assert run_here("embed", tmp_path / "run", config) == 0
    assert read_manifest(tmp_path / "run").info["grids"]["a"] == [2 * ROWS - 1, 2 * COLUMNS - 1]
    capsys.readouterr()
    assert run_here("embed", tmp_path / "wide", {**config, "views": ["context-3"]}) == 2
    assert "tiles of 16 px were cut every 8 px; views with a context need" in capsys.readouterr().err


def test_a_broken_image_is_left_out_and_counted_and_too_many_stop_the_stage(tiles, encoder, run, tmp_path, capsys):
    damaged = tmp_path / "tiles"
    shutil.copytree(tiles, damaged)
    reader = open_shards(damaged, read_manifest(damaged))[1]
    lost = reader.sidecar.keys[3]
    with (damaged / read_manifest(damaged).shards[1].name).open("r+b") as stream:
        stream.seek(reader.sidecar.offsets[3])
        stream.write(b"\0" * 64)
    config = {"images": [str(damaged)], "encoder": encoder, "batch_size": 8, "max_failed_share": 0.02}
    assert run_here("embed", tmp_path / "run", config) == 0
    assert "skipped 1 image: image cannot be decoded" in capsys.readouterr().out
    ours, whole = embedded(tmp_path / "run"), embedded(run)
    assert ours.keys() == whole.keys() - {lost}
    for key, record in ours.items():
        np.testing.assert_array_equal(record, whole[key])
    failed = [
        Sidecar.read(sidecar_path(tmp_path / "run" / e.name)).failed for e in read_manifest(tmp_path / "run").shards
    ]
    assert [sum(counts.values()) for counts in failed] == [0, 1, 0, 0, 0]
    name, x, y = place(lost)
    assert not read_grid(tmp_path / "run", name).present[y // TILE_PX, x // TILE_PX]
    assert run_here("embed", tmp_path / "strict", {**config, "max_failed_share": 0}) == 2
    assert "1 broken images of 68, more than max_failed_share 0 allows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("poison", "message"),
    [("nan", "NaN or infinity for s_"), ("huge", r"e\+06, more than fp16 holds \(65504\) for s_")],
)
def test_embeddings_that_are_no_numbers_are_one_message_with_the_key(tiles, tmp_path, capsys, poison, message):
    encoder = {**script(tmp_path / "net.pt", poison=poison), "mean": [0, 0, 0], "std": [0.2, 0.2, 0.2]}
    assert run_here("embed", tmp_path / "run", {"images": [str(tiles)], "encoder": encoder}) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "check its weights" in said
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (["all"], "'all' is no view; expected whole, centre-1/N"),
        (["grid-1"], "'grid-1' is no view"),
        (["context-40"], "'context-40' is no view"),
        (["whole", "whole"], "whole twice; name every view once"),
        ([], "expected at least 1 values, got 0"),
    ],
)
def test_views_that_are_none_are_refused(views, message):
    with pytest.raises(ConfigError, match=message):
        validate(
            STAGES["embed"].config, {"images": ["x"], "encoder": {"kind": "timm", "name": "n"}, "views": views}, "t"
        )


@pytest.mark.needs_data
def test_neighbours_in_a_real_slide_are_more_alike_than_tiles_far_apart(real_data, tmp_path, capsys):
    source = {"path": str(real_data / "wsi" / "CMU-1-Small-Region.svs"), "layout": "slide", "tile_px": 64}
    config = {"sources": [{**source, "target_mpp": 2.0, "min_tissue": 0.3}], "samples_per_shard": 20}
    assert run_here("shard", tmp_path / "tiles", config) == 0
    encoder = {"kind": "squeezenet", "weights": str(real_data / "weights" / "squeezenet_v1.1_notop_oihw.npz")}
    assert run_here("embed", tmp_path / "run", {"images": [str(tmp_path / "tiles")], "encoder": encoder}) == 0
    assert "slide CMU-1-Small-Region: 11 rows × 8 columns, 44.3% present" in capsys.readouterr().out
    grid = read_grid(tmp_path / "run")
    assert (grid.embeddings.shape, int(grid.present.sum())) == ((11, 8, 512), 39)
    cells = np.argwhere(grid.present)
    unit = grid.embeddings[grid.present] - grid.embeddings[grid.present].mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    apart = np.abs(cells[:, None] - cells[None]).sum(-1)
    cosine = unit @ unit.T
    assert cosine[apart == 1].mean() > cosine[apart >= 4].mean() + 0.1
