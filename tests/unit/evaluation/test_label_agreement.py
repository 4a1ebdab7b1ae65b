"""`evaluate-images` with a judge: its figures are what the classifier says when it is asked directly."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stage_helpers import publish_classifier, publish_images
from tiny_chain import CLASSES, draw, run_here

from hdtrain.config.evaluation import EvaluateImagesConfig
from hdtrain.evaluation.statistics import wilson_interval
from hdtrain.formats.comparison import Comparison
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.shards import open_shards
from hdtrain.models.classifier import load_classifier
from hdtrain.stages.preview_comparison import preview

ENCODER = {"kind": "timm", "name": "test_resnet"}
FAKE, REAL = "label_agreement", "label_agreement_real"


def drawn(seed: int, count: int, wrong: tuple[int, ...] = (), classes: tuple[str, ...] = tuple(CLASSES)) -> list:
    """(key, label, png, slide) of `count` images, dots and stripes in turn; those in `wrong` have the other's label."""
    rng, samples = np.random.default_rng(seed), []
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(draw(number % 2, rng)).save(buffer, "PNG")
        shown = number % 2 if number not in wrong else 1 - number % 2
        samples.append((f"{number:03d}", classes.index(CLASSES[shown]), buffer.getvalue(), "s"))
    return samples


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    return publish_classifier(tmp_path_factory.mktemp("judge") / "judge", drawn(0, 40), (3,), 20, classes=CLASSES)


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> Path:
    """15 images of 4 shards, of which 4 are labelled with the class that they don't show."""
    return publish_images(tmp_path_factory.mktemp("fake") / "fake", drawn(1, 15, (0, 2, 3, 8)), 4, "synthetic", CLASSES)


def compare(out: Path, real: Path, fake: Path, judge: Path, code: int = 0, **config: object) -> Comparison | None:
    """Run the stage here; what it found, if it left with 0."""
    tree = {"real": str(real), "fake": str(fake), "judge": str(judge), "encoder": ENCODER, "batch_size": 3, **config}
    assert run_here("evaluate-images", out, tree) == code
    return Comparison.read(out / "results.json") if code == 0 else None


def asked_directly(judge: Path, images: Path) -> dict[str, list[bool]]:
    """Class name to whether the classifier agrees, image by image."""
    model, classes = load_classifier(judge), read_manifest(images).classes
    hits: dict[str, list[bool]] = {name: [] for name in classes}
    for shard in open_shards(images, read_manifest(images)):
        for i, label in enumerate(shard.sidecar.labels):
            pixels = np.array(Image.open(io.BytesIO(bytes(shard.image(i)))).convert("RGB"))
            x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
            hits[classes[label]].append(model.classes[int(model(x).argmax())] == classes[label])
    return hits


def together(hits: dict[str, list[bool]]) -> list[bool]:
    return [hit for said in hits.values() for hit in said]


def assert_agrees(found: Comparison, figure: str, hits: dict[str, list[bool]]) -> None:
    for metrics, said in [(found.metrics, together(hits)), *((found.per_class[name], hits[name]) for name in hits)]:
        metric = metrics[figure]
        assert (metric.value, metric.n) == (pytest.approx(np.mean(said)), len(said))
        assert metric.interval == wilson_interval(sum(said), len(said))


@pytest.fixture(scope="module")
def compared(chain, judge, fake, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("compared") / "run"
    compare(out, chain.root / "raw" / "test", fake, judge)
    return out


def test_agreement_is_what_the_classifier_says_when_asked_directly(chain, judge, fake, compared):
    found = Comparison.read(compared / "results.json")
    of_fake, of_real = asked_directly(judge, fake), asked_directly(judge, chain["test"])
    assert [len(said) for said in of_fake.values()] == [8 - 3 + 1, 7 - 1 + 3]
    assert 0 < np.mean(together(of_fake)) < np.mean(together(of_real)), "the judge sees what is wrong"
    assert_agrees(found, FAKE, of_fake)
    assert_agrees(found, REAL, of_real)
    assert found.protocol["judge"]["identity"] == read_manifest(judge).identity
    assert not any("judge" in warning for warning in found.warnings)


def test_the_table_and_the_dry_run_tell_of_the_judge(chain, judge, fake, tmp_path, capsys):
    found = compare(tmp_path / "out", chain["test"], fake, judge)
    said = capsys.readouterr().out
    low, high = found.metrics[FAKE].interval
    assert f"{found.metrics[FAKE].value:<12.6g}  [{low:.4g}, {high:.4g}]  n 15; judge's most probable class" in said
    assert f"judge: {judge}, {read_manifest(judge).identity[:12]}" in said
    (header,) = (line for line in said.splitlines() if line.startswith("class "))
    assert header.split()[-2:] == [FAKE, REAL]
    encoder = {"kind": "timm", "name": "test_resnet"}
    config = EvaluateImagesConfig(real=fake, fake=chain["test"], encoder=encoder, judge=judge)
    planned = list(preview(config, tmp_path / "run"))
    assert f"judge: {judge}, of classes dots, stripes: {FAKE}, {REAL}" in planned


def test_classes_go_by_name_in_whichever_order_they_stand(chain, judge, fake, compared, tmp_path):
    turned = publish_images(
        tmp_path / "turned", drawn(1, 15, (0, 2, 3, 8), ("stripes", "dots")), 4, "synthetic", ["stripes", "dots"]
    )
    found = compare(tmp_path / "out", chain["test"], turned, judge)
    whole = Comparison.read(compared / "results.json")
    assert found.metrics[FAKE] == whole.metrics[FAKE]
    for name in CLASSES:
        assert found.per_class[name][FAKE] == whole.per_class[name][FAKE]
        assert found.per_class[name][REAL] == whole.per_class[name][REAL]


def test_without_images_or_labels_of_real_the_yardstick_is_left_out(chain, judge, fake, compared, tmp_path):
    whole = Comparison.read(compared / "results.json")
    found = compare(tmp_path / "statistics", compared / "real", fake, judge)
    assert f"{REAL} needs the images themselves, and real {compared / 'real'} is statistics" in found.left_out
    assert (found.metrics[FAKE], REAL in found.metrics) == (whole.metrics[FAKE], False)
    unlabelled = compare(tmp_path / "unlabelled", chain["unlabelled"], fake, judge)
    assert f"{REAL} needs labels, and real {chain['unlabelled']} has none" in unlabelled.left_out
    assert unlabelled.per_class == {name: {FAKE: whole.per_class[name][FAKE]} for name in CLASSES}
    assert "real has no classes, so there are no figures by class but the judge's" in unlabelled.warnings


def test_per_class_false_leaves_the_figures_of_the_sets_as_wholes(chain, judge, fake, compared, tmp_path):
    found = compare(tmp_path / "out", chain["test"], fake, judge, per_class=False)
    whole = Comparison.read(compared / "results.json")
    assert [found.metrics[name] for name in (FAKE, REAL)] == [whole.metrics[name] for name in (FAKE, REAL)]
    assert found.per_class == {}


def test_what_the_judge_said_is_kept_when_a_run_goes_on(chain, judge, fake, tmp_path):
    out = tmp_path / "out"
    whole = compare(out, chain["test"], fake, judge)
    (out / "manifest.json").unlink()
    first, *others = sorted(out.glob("parts/*/judge-*.npz"))
    assert len(others) == 5, "4 shards of fake, 2 of real"
    first.unlink()
    before = {path: path.stat().st_mtime_ns for path in others}
    assert compare(out, chain["test"], fake, judge) == whole
    assert first.exists()
    assert {path: path.stat().st_mtime_ns for path in others} == before


def refused(chain, judge: Path, fake: Path, compared: Path, how: str, at: Path) -> dict[str, Path]:
    """What is given instead, for each way in which it doesn't fit."""
    if how == "unlabelled":
        return {"fake": chain["unlabelled"]}
    if how == "statistics":
        return {"fake": compared / "fake"}
    if how == "moments":
        np.savez(at / "moments.npz", mu=np.zeros(96), sigma=np.eye(96))
        return {"fake": at / "moments.npz"}
    if how == "classes":
        return {"judge": publish_classifier(at / "other", drawn(0, 4), (0,), 1, classes=["dots", "waves"])}
    return {"judge": chain["guide"]}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unlabelled", "unlabelled has no labels, and the judge's agreement is with labels; give a folder a class"),
        ("statistics", "fake is statistics, and the judge looks at the images themselves"),
        ("moments", "moments.npz is statistics, and the judge looks at the images themselves"),
        ("classes", "fake has dots, stripes; judge"),
        ("latents", "guide is a classifier of latents (ϕ); a judge looks at images"),
    ],
)
def test_what_the_judge_cannot_judge_is_one_message(chain, judge, fake, compared, tmp_path, capsys, how, message):
    given = {"real": chain["test"], "fake": fake, "judge": judge}
    given |= refused(chain, judge, fake, compared, how, tmp_path)
    capsys.readouterr()
    compare(tmp_path / "out", code=2, **given)
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("error: ") == 1
    assert message in said
    assert not (tmp_path / "out" / "features").exists()


def test_a_judge_that_is_not_independent_is_a_warning(chain, fake, tmp_path):
    fed = publish_classifier(tmp_path / "fed", drawn(0, 4), (0,), 1, num_synthetic=3, classes=CLASSES)
    found = compare(tmp_path / "a", chain["test"], fake, fed)
    assert any(text.startswith(f"judge {fed} was trained on 3 synthetic images") for text in found.warnings)
    phi = chain["phi"]  # of the labelled images; the candidates' decoder was adapted under it
    found = compare(tmp_path / "b", chain["labelled"], chain["candidates"], phi)
    judged = [text for text in found.warnings if "judge" in text]
    assert [text.split(":")[0] for text in judged] == [
        "the judge had a part in making the images of fake",
        "the judge was trained with the images of real",
    ]
    packed = compare(tmp_path / "c", chain.root / "raw" / "test", chain.root / "raw" / "labelled", phi)
    assert not any("judge" in text for text in packed.warnings), "images that were only packed beside it"
