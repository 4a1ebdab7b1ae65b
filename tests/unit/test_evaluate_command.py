"""`hdtrain evaluate real=… fake=…`: the real command, from folders and archives to a table."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_inception import inception_file  # noqa: F401
from scipy.linalg import sqrtm
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full

from hdtrain.formats.comparison import Comparison

COUNT = 10


@pytest.fixture
def tissues(real_data: Path, tmp_path: Path) -> Path:
    """`tumour`, a folder of ten real images, and `stroma.zip` with ten others, in a folder of that name too."""
    for name, folder in (("tumour", "01_TUMOR"), ("stroma", "02_STROMA")):
        (tmp_path / name).mkdir()
        for file in sorted((real_data / "kather2016_crc8" / "train" / folder).iterdir())[:COUNT]:
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    with zipfile.ZipFile(tmp_path / "stroma.zip", "w") as archive:
        for file in sorted((tmp_path / "stroma").iterdir()):
            archive.write(file, file.name)
    return tmp_path


@pytest.fixture
def theirs(tissues: Path, inception_file: Path) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: F811
    """torch-fidelity's features of tumour and stroma: its network, its resize."""
    network = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(inception_file))
    images = [
        np.stack([np.asarray(Image.open(file).convert("RGB")) for file in sorted((tissues / name).iterdir())])
        for name in ("tumour", "stroma")
    ]
    real, fake = (network(torch.from_numpy(each).permute(0, 3, 1, 2))[0] for each in images)
    return real, fake


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """The formula as it stands, on the space that the features span: there the covariances have no null space."""
    a, b = a.double().numpy(), b.double().numpy()
    basis = np.linalg.qr(np.concatenate([a - a.mean(0), b - b.mean(0)]).T)[0]
    first, second = np.cov(a @ basis, rowvar=False), np.cov(b @ basis, rowvar=False)
    root = sqrtm(first @ second + 1e-12 * np.eye(len(first)))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * np.trace(root).real)


@pytest.mark.needs_data
@pytest.mark.slow
def test_a_folder_against_a_zip_agrees_with_torch_fidelity(hdtrain, tissues, theirs, inception_file):  # noqa: F811
    real, fake = theirs
    encoder = ("encoder.kind=inception", f"encoder.weights={inception_file}", "encoder.resize=tensorflow")
    said = hdtrain(
        "evaluate", "real=tumour", "fake=stroma.zip", *encoder, f"kid_subset_size={COUNT}", f"batch_size={COUNT}",
        "--out", "run",
    )  # fmt: skip
    found = Comparison.read(tissues / "run" / "results.json")
    digest = found.encoder["weights"][:8]
    ours = [found.metrics[f"{kind}-inception-{digest}-tensorflow"].value for kind in ("FD", "KD")]
    assert ours[0] == pytest.approx(frechet(fake, real), rel=1e-3)
    kid = kid_features_to_metric(fake, real, kid_subsets=2, kid_subset_size=COUNT, verbose=False)
    assert ours[1] == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-3)
    precision, recall = calculate_precision_recall_full(fake, real)
    assert found.metrics["precision"].value == pytest.approx(precision, abs=1e-6)
    assert found.metrics["recall"].value == pytest.approx(recall, abs=1e-6)
    assert "torch-fidelity's" in found.encoder["resize"]
    assert "FID" not in said.out  # the weights are none of the usual ones


def test_a_dry_run_says_what_is_found_and_what_will_be_left_out_and_writes_nothing(cli, make_images, tmp_path):
    make_images("real", {"a": 4, "b": 8})
    make_images("fake", 7)
    command = ("evaluate", "real=real", "fake=fake", "encoder.kind=timm", "encoder.name=test_resnet", "--out", "run")
    said = cli(*command, "--dry-run").stdout
    assert "run (evaluate-images): to do" in said
    assert f"real: 12 images in 2 classes in {tmp_path / 'real'}: raw; packed into packed/real" in said
    assert f"fake: 7 images in {tmp_path / 'fake'}" in said
    assert "figures: FD-timm-test_resnet-random, precision, recall, density, coverage" in said
    assert "left out: KD-timm-test_resnet-random needs 10 images a set, there are 7" in said
    assert "warning: fake has no classes, so there are no figures by class" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("real=real", "fake=nowhere"), "fake: no such file or folder: "),
        (("real=real", "fake=real"), "real and fake are the same: "),
        (("real=real",), "fake: missing, and it has no default"),
        (("real=real", "fake=real.zip", "encoder.kind=squeezenet", "encoder.weights=none.npz"),
         "encoder.weights: no such file: "),
        (("real=real", "fake=real.zip", "arms=1"), "arms: unknown key"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_runs(hdtrain, make_images, tmp_path, arguments, message):
    folder = make_images("real", 3)
    with zipfile.ZipFile(tmp_path / "real.zip", "w") as archive:
        archive.write(folder / "000.png", "000.png")
    encoder = () if any("encoder" in text for text in arguments) else ("encoder.kind=timm", "encoder.name=test_resnet")
    assert message in hdtrain("evaluate", *arguments, *encoder, "--out", "run", code=2).err
    assert not (tmp_path / "run").exists()


def test_in_a_recipe_a_set_is_a_node_or_the_statistics_of_one(hdtrain, make_images, tmp_path):
    raw = make_images("raw", {"a": 4, "b": 8})
    encoder = "encoder: {kind: timm, name: test_resnet}"
    recipe = f"""
name: compared
stages:
  sharded: {{stage: shard, config: {{sources: [{{path: {raw}}}]}}}}
  compared: {{stage: evaluate-images, config: {{real: "@sharded", fake: {raw}, {encoder}}}}}
  again: {{stage: evaluate-images, config: {{real: "@compared/real", fake: "@sharded", {encoder}}}}}
"""
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert hdtrain("run", "recipe.yaml", "--dry-run", "--out", "runs").out.count("to do") == 3
    hdtrain("run", "recipe.yaml", "--only", "sharded", "--out", "runs")
    assert hdtrain("run", "recipe.yaml", "--dry-run", "--out", "runs").out.count("to do") == 2
    (tmp_path / "recipe.yaml").write_text(recipe.replace('"@sharded", fake', '"@shard", fake'))
    assert "compared: real: no node '@shard'" in hdtrain("run", "recipe.yaml", "--dry-run", code=2).err


def test_evaluate_without_real_and_fake_is_still_about_arms(hdtrain):
    said = hdtrain("evaluate", "test=a", "--out", "run", code=2).err
    assert "arms: missing, and it has no default" in said
