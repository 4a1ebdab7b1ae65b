"""Embedding fidelity: cosines and ranks against a plain count, and the stage through its files."""

import json
import re

import numpy as np
import pytest
from embedding_helpers import write_embeddings
from prior_helpers import CLASSES, publish_grids, toy_grids
from tiny_chain import run_here

from hdtrain.cli import main
from hdtrain.config.fidelity import EvaluateFidelityConfig
from hdtrain.data.embeddings_by_key import embeddings_by_key
from hdtrain.errors import DataError
from hdtrain.evaluation.fidelity import SourceBootstrap, normalised, retrieve
from hdtrain.formats.fidelity import Fidelity
from hdtrain.formats.manifest import FieldSpec, Manifest, ParentEntry, publish, read_manifest
from hdtrain.formats.records import write_record_shard
from hdtrain.formats.shards import ShardWriter, shard_entry
from hdtrain.stages.preview_fidelity import preview


def test_ranks_and_cosines_are_those_of_a_plain_count():
    rng = np.random.default_rng(0)
    candidates, sources = rng.normal(size=(40, 2, 5)), rng.integers(40, size=700)
    made = candidates[sources] + rng.normal(0, 2, (700, 2, 5))
    found = retrieve(normalised(made), normalised(candidates), sources)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]))

    for i in (0, 1, 511, 512, 699):
        cosines = np.array([cosine(made[i], each) for each in candidates])
        assert found.cosine[i] == pytest.approx(cosines[sources[i]], abs=1e-6)
        others = np.delete(cosines, sources[i])
        assert found.cosine_to_others[i] == pytest.approx(others.mean(), abs=1e-6)
        assert found.percentile[i] == pytest.approx((others > cosines[sources[i]]).sum() / 39)
        cosines[sources[i]] = -2
        assert found.nearest[i] == cosines.argmax()


def test_a_source_that_cannot_be_told_from_the_others_ranks_in_the_middle():
    same = np.ones((11, 1, 3))
    assert retrieve(normalised(same[:1]), normalised(same), np.array([4])).percentile == [0.5]
    assert not normalised(np.zeros((2, 1, 3))).any()


def test_images_of_one_source_are_resampled_together():
    values = np.repeat([0.0, 1.0], 500)
    alone = SourceBootstrap(np.arange(1000), 500, 0).metric(values)
    together = SourceBootstrap(np.repeat(np.arange(10), 100), 500, 0).metric(values)
    assert alone.value == together.value == 0.5
    assert together.interval[1] - together.interval[0] > 5 * (alone.interval[1] - alone.interval[0])


@pytest.fixture(scope="module")
def asked(chain, tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("asked") / "run", chain["labelled"], dim=16)


def embedded_from(path: str, images: Manifest) -> dict[str, ParentEntry]:
    return {"images.0": ParentEntry(path=path, kind="images", identity=images.identity)}


def synthetic(folder, asked, noise: float, source_key: str = "source_key"):
    """Two images of each embedding, and their own embeddings: what was asked for with noise."""
    theirs = read_manifest(asked)
    by_key = embeddings_by_key(asked, theirs)
    keys = by_key.keys()
    names = [f"syn-{i}" for i in range(2 * len(keys))]
    (folder / "images/shards").mkdir(parents=True)
    with ShardWriter(folder / "images/shards/synthetic-000000.tar") as shard:
        for i, name in enumerate(names):
            shard.add(name, "png", b"not looked at", {"key": name, source_key: keys[i % len(keys)]}, None)
    entry = shard_entry(folder / "images/shards/synthetic-000000.tar", folder / "images")
    image = FieldSpec(dtype="uint8", shape=[8, 8, 3], range=(0, 255), layout="HWC RGB")
    kinds = {"stage": "sample", "fingerprint": "", "commit": ""}
    images = Manifest(kind="images", **kinds, fields={"image": image}, shards=[entry])
    publish(folder / "images", images)
    rng = np.random.default_rng(1)
    tokens = by_key([keys[i % len(keys)] for i in range(len(names))]).astype(np.float32)
    tokens += rng.normal(0, noise, tokens.shape)
    (folder / "made/shards").mkdir(parents=True)
    part = folder / "made/shards/embeddings-000000.tar"
    write_record_shard(part, tokens.astype(np.float16), names, [None] * len(names), 8)
    field = FieldSpec(dtype="float16", shape=list(tokens.shape[1:]))
    publish(
        folder / "made",
        Manifest(kind="embeddings", **kinds, fields={"embedding": field}, shards=[shard_entry(part, folder / "made")],
                 info=theirs.info, parents=embedded_from("../images", images)),
    )  # fmt: skip
    return {"images": str(folder / "images"), "made": str(folder / "made"), "asked": str(asked)}


def test_images_that_are_what_was_asked_for_find_their_source_and_noise_finds_none(asked, tmp_path, capsys):
    assert run_here("evaluate-fidelity", tmp_path / "near", synthetic(tmp_path / "a", asked, 0.01)) == 0
    near = Fidelity.read(tmp_path / "near/results.json")
    said = capsys.readouterr().out
    assert run_here("evaluate-fidelity", tmp_path / "far", synthetic(tmp_path / "b", asked, 50)) == 0
    far = Fidelity.read(tmp_path / "far/results.json")
    assert near.metrics["rank_percentile"].value == 0.0 and near.metrics["top_1"].value == 1.0  # noqa: PT018
    assert near.metrics["cosine"].value > 0.99 > near.metrics["cosine_to_others"].value
    low, high = far.metrics["rank_percentile"].interval
    assert low < 0.5 < high
    assert far.chance["top_1"] == 1 / 20
    assert near.metrics["same_class_nearest"].value > 0.9
    assert set(near.per_class) == {"dots", "stripes"}
    assert (near.num_images, near.num_sources, near.num_candidates) == (40, 20, 20)
    assert re.search(r"rank_percentile +0\.0000 +\[0\.0000, 0\.0000\] +0\.5", said)


def test_images_of_sampled_grids_are_looked_for_among_the_cells(tmp_path):
    grids = publish_grids(tmp_path / "grids", toy_grids(4, rows=2, columns=3))
    assert run_here("evaluate-fidelity", tmp_path / "run", synthetic(tmp_path / "a", grids, 0.01)) == 0
    found = Fidelity.read(tmp_path / "run/results.json")
    assert (found.num_images, found.num_sources, found.num_candidates) == (48, 24, 24)
    assert found.metrics["top_1"].value == 1.0
    assert found.metrics["same_class_nearest"].value == 1.0
    assert set(found.per_class) == set(CLASSES)


def test_a_dry_run_says_what_is_compared_and_refuses_what_the_run_would(chain, asked, tmp_path):
    config = synthetic(tmp_path / "a", asked, 0.01)
    (line,) = preview(EvaluateFidelityConfig(**config), tmp_path / "run")
    assert re.match(r"40 images, each looked for among 20 embeddings of \S+$", line)
    unlabelled = write_embeddings(tmp_path / "of-others", chain["unlabelled"], dim=16)
    with pytest.raises(DataError, match="no embedding of"):
        list(preview(EvaluateFidelityConfig(**config | {"asked": unlabelled}), tmp_path / "run"))


def test_fewer_candidates_hold_the_sources_all_the_same(asked, tmp_path):
    config = synthetic(tmp_path / "a", asked, 0.01)
    assert run_here("evaluate-fidelity", tmp_path / "run", {**config, "max_candidates": 2}) == 0
    assert Fidelity.read(tmp_path / "run/results.json").num_candidates == 20


def test_what_does_not_belong_together_is_named(chain, asked, tmp_path, capsys):
    config = synthetic(tmp_path / "a", asked, 0.01)

    def complaint(**changes) -> str:
        number = len(list(tmp_path.iterdir()))
        assert run_here("evaluate-fidelity", tmp_path / f"run-{number}", {**config, **changes}) == 2
        return capsys.readouterr().err

    other = write_embeddings(tmp_path / "other", chain["labelled"], dim=16, name="another")
    assert " those of " in complaint(asked=str(other))
    of_another_run = synthetic(tmp_path / "b", asked, 50, source_key="told")["made"]
    said = " ".join(complaint(made=of_another_run).split())
    assert f"made {of_another_run} was embedded from {tmp_path}/b/images, and not from {config['images']}" in said
    assert f"run `hdtrain embed 'images=[{config['images']}]' …`" in said
    words = [f"{key}={value}" for key, value in {**config, "made": of_another_run}.items()]
    assert main(["evaluate-fidelity", *words, "--out", str(tmp_path / "dry"), "--dry-run"]) == 2
    assert "was embedded from" in capsys.readouterr().err
    few = json.loads((asked / "manifest.json").read_text())
    real, parents = tmp_path / "of-real", embedded_from("unknown", read_manifest(chain["labelled"]))
    publish(real, read_manifest(asked).model_copy(update={"parents": parents}))
    said = complaint(images=str(chain["labelled"]), made=str(real))
    assert "does not say which embedding it is of" in said
    unlabelled = write_embeddings(tmp_path / "of-others", chain["unlabelled"], dim=16)
    assert few["kind"] == "embeddings"
    assert "no embedding of" in complaint(asked=str(unlabelled))
