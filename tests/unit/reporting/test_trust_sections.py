"""What the page shows of memorisation, colours and failures."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from reporting_helpers import CLASSES, Tree, collect_quickly, drawn_image, image_set, make_results, metric

from hdtrain.formats.results import TRAINING, ColourStatistic, Failure, NearestDistances, NearestPair, Results
from hdtrain.reporting.images import nearest_pairs
from hdtrain.reporting.render import image_columns, render
from hdtrain.reporting.trust_plots import colour_plot, distance_plot

STATISTICS = ("OD red mean", "OD red sd", "eosin mean", "eosin sd")


def with_trust(results: Results) -> Results:
    ramp = [i / 100 for i in range(101)]
    distances = {
        space: NearestDistances(threshold=0.01, real_to_real=ramp, sets=dict.fromkeys(results.image_sets, ramp))
        for space in ("features", "pixels")
    }
    real = ColourStatistic(n=160, mean=0.3, sd=0.1, quantiles=[0.1, 0.2, 0.3, 0.4, 0.5])
    shifted = real.model_copy(update={"effect_size": 1.234, "ks": 0.456})
    groups = ["all", *CLASSES]
    colours = {TRAINING: {group: dict.fromkeys(STATISTICS, real) for group in groups}} | {
        name: {group: dict.fromkeys(STATISTICS, shifted) for group in groups} for name in results.image_sets
    }
    failures = [
        Failure(synthetic="synthetic-0-101", label="tumour", kind="judge", taken_for="stroma", confidence=0.987),
        Failure(synthetic="synthetic-3-102", label="adipose", kind="far", taken_for="stroma", distance=0.9),
    ]
    return results.model_copy(update={"distances": distances, "colours": colours, "failures": failures})


@pytest.fixture
def text(built: Tree) -> str:
    page = render(replace(collect_quickly(built), results=with_trust(make_results())))
    assert page.count('id="failures"') == page.count('id="colours"') == 1
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_failures_say_what_they_were_taken_for(text: str) -> None:
    assert "tumour taken for stroma (98.7 %)" in text
    assert "adipose, nearest stroma" in text


def test_colour_differences_stand_by_class_with_the_yardstick(text: str) -> None:
    assert text.count("+1.234 KS 0.456") == 4 * 4 * 5
    assert "stroma: differences from the real training images" in text


def test_shares_by_space_stand_in_the_section_on_nearest_images_alone(built: Tree) -> None:
    images = image_set()
    by_space = {"memorised_share_features": metric(0.0111), "memorised_share_pixels": metric(0.0222)}
    images = images.model_copy(update={"metrics": images.metrics | by_space})
    results = make_results(image_sets={"selective-1": images})
    assert not [key for key in image_columns(results) if key in by_space]
    page = render(replace(collect_quickly(built), results=results))
    section = page[page.index('id="nearest"') :]
    assert "0.011" in section
    assert "0.022" in section


def test_a_results_file_without_them_has_no_such_sections(built: Tree) -> None:
    results = make_results()
    assert distance_plot(results) is None
    assert colour_plot(results) is None
    page = render(replace(collect_quickly(built), results=results))
    assert 'id="colours"' not in page
    assert 'id="failures"' not in page


def test_the_real_image_of_a_pair_is_turned_as_the_pair_says(built: Tree) -> None:
    pair = NearestPair(
        synthetic="synthetic-1-100", real="labelled-2-3", label="stroma", space="pixels", distance=4.0, relative=0.2,
        memorised=True, quarter_turns=1, mirrored=True,
    )  # fmt: skip
    (shown,) = nearest_pairs(collect_quickly(built).evaluation, [pair])["pixels"]
    assert shown.real.uri
    pixels = Image.open(io.BytesIO(base64.b64decode(shown.real.uri.partition(",")[2])))
    original = np.asarray(Image.open(io.BytesIO(drawn_image(2, 3))))
    assert np.array_equal(np.asarray(pixels)[::2, ::2], np.rot90(original)[:, ::-1])
