"""Our distances are those of torch-fidelity, torchmetrics and clean-fid, on the same weights and real images."""

import warnings

import numpy as np
import pytest
import torch
from random_inception import inception_file, pil_float, two_tissues  # noqa: F401
from scipy.linalg import sqrtm
from torch import nn
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics
from torch_fidelity.metric_kid import kernel_mmd
from torch_fidelity.metric_prc import calculate_precision_recall_full
from torchmetrics.image.fid import FrechetInceptionDistance

from hdtrain.config.training import InceptionEncoder
from hdtrain.evaluation.frechet import frechet_distance
from hdtrain.evaluation.kid import kernel_distances, polynomial_mmd
from hdtrain.evaluation.moments import Moments
from hdtrain.evaluation.prdc import prdc
from hdtrain.features.encoders import build_encoder

pytestmark = pytest.mark.needs_data
N = 6
TOLERANCE = 1e-3


class Images(Dataset):
    """uint8 CHW, as torch-fidelity wants them."""

    def __init__(self, images):
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.fixture(scope="module")
def features(inception_file, two_tissues):  # noqa: F811
    encoder = build_encoder(InceptionEncoder(weights=inception_file, resize="tensorflow"))
    return [encoder.embed(images[:N]).numpy() for images in two_tissues]


@pytest.fixture(scope="module")
def theirs(inception_file, two_tissues):  # noqa: F811
    """torch-fidelity's own figures: its network, its resize, its arithmetic."""
    synthetic, real = (Images(images[:N]) for images in two_tissues)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return calculate_metrics(
            input1=synthetic, input2=real, cuda=False, fid=True, kid=True, prc=True, kid_subsets=2, kid_subset_size=N,
            feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(inception_file),
            batch_size=N, verbose=False, cache=False, rng_seed=0,
        )  # fmt: skip


def test_fid_agrees_with_torch_fidelity_from_end_to_end(features, theirs):
    synthetic, real = (Moments.of(each) for each in features)
    assert frechet_distance(synthetic, real) == pytest.approx(theirs["frechet_inception_distance"], rel=TOLERANCE)


def test_kid_agrees_with_torch_fidelity_from_end_to_end(features, theirs):
    """Subsets of all images are one and the same, whoever draws them."""
    values = kernel_distances(*features, subset_size=N, seed=0, subsets=3)
    assert values.mean() == pytest.approx(theirs["kernel_inception_distance_mean"], rel=TOLERANCE)


def test_precision_and_recall_agree_with_torch_fidelity_from_end_to_end(features, theirs):
    synthetic, real = features
    figures = prdc(real, synthetic)
    assert (figures["precision"], figures["recall"]) == (theirs["precision"], theirs["recall"])


@pytest.mark.parametrize("shift", [0.0, 0.4, 3.0])
def test_precision_and_recall_agree_on_many_features_in_between(shift):
    rng = np.random.default_rng(0)
    real, synthetic = rng.normal(size=(300, 16)), rng.normal(size=(200, 16)) + shift
    precision, recall = calculate_precision_recall_full(torch.from_numpy(synthetic), torch.from_numpy(real))
    figures = prdc(real, synthetic)
    assert (figures["precision"], figures["recall"]) == pytest.approx((precision, recall), abs=1e-6)


def test_kid_agrees_on_the_very_subsets_and_in_the_mean_over_others(features):
    synthetic, real = features
    rng = np.random.RandomState(2020)
    draws = [(rng.choice(N, 5, replace=False), rng.choice(N, 5, replace=False)) for _ in range(200)]
    expected = [_their_mmd(synthetic[a].astype(np.float64), real[b].astype(np.float64)) for a, b in draws]
    same = [polynomial_mmd(synthetic[a], real[b]) for a, b in draws]
    np.testing.assert_allclose(same, expected, rtol=TOLERANCE)
    ours = kernel_distances(synthetic, real, subset_size=5, seed=0, subsets=200)
    error = np.hypot(ours.std(), np.std(expected)) / np.sqrt(200)
    assert abs(ours.mean() - np.mean(expected)) < 4 * error


def _their_mmd(a, b):
    return kernel_mmd(
        a, b, kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1
    )


class AsTheyAre(nn.Module):
    """In place of a network: features are given instead of images."""

    num_features = 256

    def forward(self, x):
        return x


def test_fid_agrees_with_torchmetrics(features):
    features = [each[:, : AsTheyAre.num_features] for each in features]  # its eigenvalues of all take many seconds
    metric = FrechetInceptionDistance(feature=AsTheyAre()).set_dtype(torch.float64)
    for each, real in zip(features, (False, True), strict=True):
        metric.update(torch.from_numpy(each).double(), real=real)
    ours = frechet_distance(*(Moments.of(each) for each in features))
    assert ours == pytest.approx(float(metric.compute()), rel=TOLERANCE)


def test_fid_with_the_clean_resize_agrees_with_pil_and_a_matrix_square_root(inception_file, two_tissues):  # noqa: F811
    encoder, few = build_encoder(InceptionEncoder(weights=inception_file)), [images[:4] for images in two_tissues]
    ours = frechet_distance(*(Moments.of(encoder.embed(images).numpy()) for images in few))
    expected = []
    for images in few:
        resized = torch.from_numpy(np.stack([pil_float(image) for image in images])).permute(0, 3, 1, 2)
        with torch.no_grad():
            expected.append(encoder.net((resized - 128) / 128).numpy())
    assert ours == pytest.approx(_by_square_root(*expected), rel=TOLERANCE)


def _by_square_root(a, b):
    """The formula as it stands, on the space that the features span: there the covariances have no null space."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    basis = np.linalg.qr(np.concatenate([a - a.mean(0), b - b.mean(0)]).T)[0]
    first, second = np.cov(a @ basis, rowvar=False), np.cov(b @ basis, rowvar=False)
    root = sqrtm(first @ second + 1e-12 * np.eye(len(first)))
    means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return means + np.trace(first) + np.trace(second) - 2 * np.trace(root).real
