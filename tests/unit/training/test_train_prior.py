"""`train-prior`: its data, its loss, going on, and what it refuses."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from embedding_helpers import write_embeddings
from prior_helpers import CLASSES, prior_config, publish_grids, publish_slides, toy_grids
from safetensors.torch import load_file
from tiny_chain import run_here

from hdtrain.config.load import validate
from hdtrain.config.prior import TrainPriorConfig
from hdtrain.data.grid_sources import SlideCrops
from hdtrain.data.slide_mpp import common_mpp
from hdtrain.data.standard import Standard, measure
from hdtrain.data.training_grids import GridBatch
from hdtrain.errors import ConfigError, DataError
from hdtrain.formats.manifest import read_manifest
from hdtrain.models.prior import build_prior
from hdtrain.stages import estimate
from hdtrain.training.prior import clean, condition_of, masked_errors
from hdtrain.training.prior_space import open_space


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same slides as a run of kind `grids` and as one of kind `embeddings`; every third has a hole."""
    root = tmp_path_factory.mktemp("grids")
    grids = [grid for i in range(6) for grid in toy_grids(i + 1, hole=i % 3 == 0)[-1:]]
    return publish_grids(root / "files", grids), publish_slides(root / "slides", grids), grids


def opened(run, **changes):
    config = validate(TrainPriorConfig, prior_config(run, 8, **changes), "test")
    return open_space(config, read_manifest)


def test_a_dry_run_refuses_what_the_run_would(runs, hdtrain, tmp_path, monkeypatch, capsys):
    for run in runs[:2]:
        config = validate(TrainPriorConfig, prior_config(run, 8, rows=9, columns=9, min_present=1), "test")
        monkeypatch.setattr("sys.stdin", io.StringIO(config.model_dump_json()))
        assert estimate.main(["train-prior", str(tmp_path / "run"), "--rate=1"]) == 2
        refused = capsys.readouterr().err
        assert "no crop of 9 × 9 cells" in refused
        with pytest.raises(DataError) as caught:
            open_space(config, read_manifest)
        assert refused == f"error: {caught.value}\n"

    shutil.copytree(runs[0], tmp_path / "grids")
    (tmp_path / "grids/grids/slide003.npz").unlink()
    words = ["train-prior", "grids=[grids]", "duration.images=8", "--out", "prior"]
    for more in ([], ["--dry-run"]):
        assert "grids/grids/slide003.npz is missing or altered" in hdtrain(*words, *more, code=2).err
    assert not (tmp_path / "prior").exists()


def test_a_prior_knows_the_resolution_that_all_of_its_slides_have(runs):
    files, slides = ((path, read_manifest(path)) for path in runs[:2])
    assert common_mpp([files, slides]) == 0.5
    others = [
        (files[0], files[1].model_copy(update={"info": {**files[1].info, "mpp": mpp}})) for mpp in (0.505, 1, None)
    ]
    assert [common_mpp([slides, other]) for other in others] == [pytest.approx(0.5025), None, None]


def test_slides_in_shards_and_in_files_give_the_same_batches(runs):
    files, slides, _ = runs
    one, other = (opened(run).source for run in (files, slides))
    for batch, twin in ((one.batch(positions), other.batch(positions)) for positions in (range(7), range(90, 120))):
        assert batch.keys == twin.keys
        assert np.array_equal(batch.embeddings, twin.embeddings)
        assert np.array_equal(batch.present, twin.present)
        assert np.array_equal(batch.labels, twin.labels)


def test_an_epoch_shows_every_crop_of_every_slide_once_with_its_cells_and_class(runs):
    files, _, grids = runs
    source = opened(files).source
    total = int(source.sizes.sum())
    assert total == 6 * 16  # 4 × 4 places for a crop of 3 × 3 in 6 × 6 cells
    batch = source.batch(range(total))
    assert len(set(batch.keys)) == total
    by_name = {grid.name: grid for grid in grids}
    for i, key in enumerate(batch.keys):
        name, row, column = key.replace("(row ", "").replace(", column", "").rstrip(")").split()
        part = slice(int(row), int(row) + 3), slice(int(column), int(column) + 3)
        assert np.array_equal(batch.embeddings[i], by_name[name].embeddings[part])
        assert np.array_equal(batch.present[i], by_name[name].present[part])
        assert CLASSES[batch.labels[i]] == by_name[name].label


def test_crops_cover_the_edge_and_those_with_too_few_cells_are_left_out():
    slide = type("Slide", (), {})()
    slide.name, slide.present = "s", np.ones((7, 2), np.bool_)
    slide.present[:3] = False
    slide.labels = np.where(slide.present, 0, -1)
    slide.read = lambda rows, columns: np.ones((len(rows), 4), np.float32)
    crops = SlideCrops([slide], (3, 3), 2, 0.4)
    samples = [crops.sample(0, number) for number in range(int(crops.sizes[0]))]
    assert [sample.name for sample in samples] == ["s (row 2, column 0)", "s (row 4, column 0)"]
    assert samples[1].present.tolist() == [[True, True, False]] * 3


def test_mean_and_std_are_those_of_all_cells(runs):
    _, slides, grids = runs
    cells = np.concatenate([grid.embeddings[grid.present] for grid in grids]).astype(np.float64)
    found = opened(slides).embeddings
    assert found.mean == pytest.approx(cells.mean(0), abs=1e-6)
    assert found.std == pytest.approx(cells.std(0), rel=1e-6)
    back = found.undo(found.apply(cells.astype(np.float32)))
    assert back == pytest.approx(cells, abs=1e-5)


def test_a_feature_that_never_varies_stays_finite():
    found = measure(3, 2, lambda group: np.array([[5.0, group]], np.float32))
    assert found.std.tolist() == pytest.approx([1.0, np.std([0, 1, 2])])
    assert found.mean.tolist() == [5.0, 1.0]


def test_holes_make_no_difference_to_the_loss():
    torch.manual_seed(0)
    prior = build_prior("dit-tiny", 4, num_classes=2).eval()
    with torch.no_grad():
        for p in prior.parameters():
            p.add_(0.1 * torch.randn_like(p))
    rng = np.random.default_rng(0)
    embeddings, present = rng.normal(0, 1, (2, 3, 3, 4)).astype(np.float32), np.ones((2, 3, 3), np.bool_)
    present[0, 0, 1] = present[1, 2] = False
    noise, t = torch.randn(2, 3, 3, 4), torch.tensor([300, 700])
    standard = Standard(np.full(4, 0.5, np.float32), np.full(4, 2, np.float32))

    def loss(filling: float, noise_there: float) -> torch.Tensor:
        filled = np.where(present[..., None], embeddings, np.float32(filling))
        nothing = np.zeros((2, 0), np.float32)
        batch = GridBatch(filled, present, ["a", "b"], np.ones((2, 3), np.bool_), np.array([0, 1]), nothing, nothing)
        z0 = clean(batch, standard)
        noisy = z0 + torch.where(torch.from_numpy(present)[..., None], noise, noise_there)
        return masked_errors(prior(noisy, t, *condition_of(batch)), z0, condition_of(batch)[0])

    assert torch.equal(loss(0, 0), loss(1e3, -1e3))
    assert (loss(0, 0) > 0).all()


def test_ten_steps_and_ten_more_end_byte_for_byte_as_twenty(runs, tmp_path):
    files, _, _ = runs
    config = prior_config(files, 20 * 8)
    assert run_here("train-prior", tmp_path / "whole", config) == 0
    half = {**config, "duration": {**config["duration"], "images": 10 * 8}}
    assert run_here("train-prior", tmp_path / "parts", half) == 0
    assert run_here("train-prior", tmp_path / "parts", config) == 0
    whole, parts = (tmp_path / name / "model" for name in ("whole", "parts"))
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert {str(name) for name in names} >= {"config.json", "standard.safetensors", "scheduler/scheduler_config.json"}
    assert all((whole / name).read_bytes() == (parts / name).read_bytes() for name in names)
    rows = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[-1]["fixed_noise/loss"] < rows[0]["fixed_noise/loss"]


@pytest.mark.parametrize(
    "engine",
    [
        {"precision": "bf16", "zero_stage": 2, "activation_checkpointing": True},
        {"zero_stage": 3},
    ],
    ids=["bf16", "zero-3"],
)
def test_other_ways_to_compute_a_step_train_the_same_prior(runs, tmp_path, engine):
    first = {}
    for name, chosen in (("usual", {}), ("other", engine)):
        config = prior_config(runs[0], 3 * 8, engine=chosen)
        assert run_here("train-prior", tmp_path / name, config) == 0
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        first[name] = [row["loss/diffusion"] for row in rows]
    assert first["other"] == pytest.approx(first["usual"], rel=0.03 if "precision" in engine else 1e-4)


def test_single_images_are_grids_of_one_cell(chain, tmp_path):
    embeddings = write_embeddings(tmp_path / "embeddings", chain["labelled"])
    config = prior_config(embeddings, 16, unit="images")
    del config["rows"], config["columns"]
    source = opened(embeddings, unit="images", rows=1, columns=1).source
    batch = source.batch(range(20))
    assert batch.embeddings.shape == (20, 1, 1, 6)
    assert len(set(batch.keys)) == 20
    assert (batch.embeddings[:, 0, 0, :2].argmax(1) == batch.labels).all()
    assert run_here("train-prior", tmp_path / "prior", config) == 0
    manifest = read_manifest(tmp_path / "prior")
    assert (manifest.kind, manifest.classes) == ("prior", read_manifest(chain["labelled"]).classes)
    assert [manifest.info[key] for key in ("rows", "columns", "unit")] == [1, 1, "images"]
    assert load_file(tmp_path / "prior" / "model" / "standard.safetensors")["embeddings.mean"].shape == (6,)


def refused(capsys, tmp_path, config) -> str:
    assert run_here("train-prior", tmp_path / "prior", config) == 2
    return capsys.readouterr().err


def test_grids_of_another_encoder_are_refused(runs, tmp_path, capsys):
    other = publish_grids(tmp_path / "other", toy_grids(2), name="another")
    said = refused(capsys, tmp_path, prior_config(runs[0], 8, grids=[str(runs[0]), str(other)]))
    assert "has embeddings of another (6 features" in said
    assert "embed the images with the same encoder" in said


def test_a_slide_that_is_named_twice_is_refused(runs, tmp_path, capsys):
    said = refused(capsys, tmp_path, prior_config(runs[0], 8, grids=[str(runs[0]), str(runs[1])]))
    assert "more than one grid of slide000" in said


def test_crops_larger_than_any_slide_say_what_to_do(runs, tmp_path, capsys):
    said = refused(capsys, tmp_path, prior_config(runs[0], 8, rows=12, columns=12))
    assert "no crop of 12 × 12 cells has 50% of its cells, in 6 slides (the largest is of 6 × 6," in said
    assert "smaller rows and columns, or a smaller min_present" in said


def test_keys_that_are_no_slides_are_refused(runs, tmp_path, capsys):
    (tmp_path / "genes.csv").write_text("key,gene0\npatient7,1\n")
    numeric = {"vectors": str(tmp_path / "genes.csv")}
    said = refused(capsys, tmp_path, prior_config(runs[0], 8, numeric=numeric))
    assert (
        "numeric: none of its 1 keys (patient7) is that of a grid (slide000, slide001, slide002, slide003 and 2 more)"
        in said
    )


def test_a_token_that_is_not_there_and_images_of_grids_are_refused(runs, tmp_path, capsys):
    assert "token: " in refused(capsys, tmp_path, prior_config(runs[1], 8, token=2))
    config = prior_config(runs[0], 8, unit="images", rows=1, columns=1)
    assert "holds grids of slides, no images; leave unit out" in refused(capsys, tmp_path, config)


def test_the_config_says_what_goes_together(runs):
    for changes, said in (
        ({"unit": "images"}, "unit=images trains on single images"),
        ({"text": {}}, "give vectors or captions"),
        ({"text": {"captions": "c.csv"}}, "captions need a tower"),
    ):
        with pytest.raises(ConfigError, match=said):
            validate(TrainPriorConfig, prior_config(runs[0], 8, **changes), "test")


def test_one_condition_is_hidden_a_tenth_of_the_time_several_also_alone(runs):
    numeric = {"vectors": "genes.csv", "dropout": 0.5}
    one = validate(TrainPriorConfig, prior_config(runs[0], 8), "test")
    two = validate(TrainPriorConfig, prior_config(runs[0], 8, numeric=numeric), "test")
    assert (one.dropout, one.dropouts) == (0.1, (0, 0, 0))
    assert two.dropouts == (0.1, 0, 0.5)
