"""The shard benchmarks: they run from the command line, and an output that differs fails them."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import simplejpeg
from PIL import Image

TOOLS = Path(__file__).parents[3] / "tools"
sys.path.insert(0, str(TOOLS))  # as for a script that lies there

import bench_shards  # noqa: E402
from bench import compare, encode, latents, pack, read, samples  # noqa: E402

from hdtrain.formats.tar import TarWriter  # noqa: E402


@pytest.mark.slow
def test_all_benchmarks_run_from_the_command_line_and_write_their_figures(tmp_path):
    command = [
        sys.executable,
        str(TOOLS / "bench_shards.py"),
        "--rounds",
        "1",
        "--num",
        "64",
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run([*command, "--json", str(tmp_path / "x.json")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "x.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert {outcome["benchmark"] for outcome in figures["outcomes"]} == {"B1", "B2", "B3", "B4"}
    assert {"webdataset", "simplejpeg", "pillow", "torch", "tar"} <= figures["versions"].keys()
    assert (figures["n"], figures["rounds"], figures["seed"]) == (64, 1, 0)
    for outcome in figures["outcomes"]:
        assert outcome["title"] in done.stdout
        assert all(len(rates) == 1 and rates[0] > 0 for rates in outcome["rates"].values())
    goals = {(outcome["benchmark"], goal["target"]) for outcome in figures["outcomes"] for goal in outcome["goals"]}
    assert goals == {
        *(("B1", 7.0), ("B1", 4.5), ("B2", 1.75), ("B3", 4.5), ("B3", 1.9), ("B4", 50_000), ("B4", 250_000))
    }


def run(*arguments: str) -> int:
    return bench_shards.main(["--rounds", "1", "--num", "16", *arguments])


def flipped(path, items):
    """As `bare_ours`, with one bit of an image flipped."""
    with path.open("wb") as stream:
        writer = TarWriter(stream)
        for number, sample in enumerate(items):
            jpg = bytearray(sample.jpg)
            jpg[500] ^= number == 3
            for name, content in (sample.members() | {f"{sample.key}.jpg": bytes(jpg)}).items():
                writer.add(name, content)
        writer.close()


def one_short(path, items, write=pack.bare_tarfile):
    write(path, items[:-1])


calls = itertools.count()


def another_each_time(path, items):
    with path.open("wb") as stream:
        writer = TarWriter(stream)
        for name, content in itertools.chain.from_iterable(sample.members().items() for sample in items):
            writer.add(name, content)
        writer.close()
        stream.write(bytes(512 * (next(calls) % 5)))


@pytest.mark.parametrize(
    ("only", "module", "name", "replacement", "said"),
    [
        ("B1", pack, "bare_ours", flipped, r"ours: bench_slide03_00000003.jpg differs"),
        ("B1", pack, "bare_tarfile", one_short, r"tarfile: 45 members, expected 48"),
        ("B1", pack, "bare_ours", another_each_time, r"ours wrote other bytes in another round"),
        (
            "B2",
            encode,
            "imagecodecs_jpeg",
            lambda pixels: imagecodecs.jpeg8_encode(pixels, level=94, subsampling="420"),
            r"imagecodecs \+ our writer: .*jpg differs",
        ),
        (
            "B2",
            encode,
            "simplejpeg_jpeg",
            lambda pixels: simplejpeg.encode_jpeg(pixels, quality=70, colorsubsampling="420"),
            r"simplejpeg \+ our writer: .*jpg is \d\d\.\d dB from Pillow's",
        ),
    ],
)
def test_an_archive_that_differs_fails_the_benchmark_and_names_the_member(
    tmp_path, monkeypatch, capsys, only, module, name, replacement, said
):
    monkeypatch.setattr(module, name, replacement)
    assert run("--only", only, "--folder", str(tmp_path), "--json", str(tmp_path / "x.json")) == 1
    assert not (tmp_path / "x.json").exists()
    with pytest.raises(compare.OutputsDifferError, match=said):
        raise compare.OutputsDifferError(capsys.readouterr().err)


@pytest.fixture(scope="module")
def made():
    return samples.make_samples(samples.patches(None, 4, 0), 4)


def epoch(made, change=lambda i, image: image):
    images = [change(i, simplejpeg.decode_jpeg(sample.jpg)) for i, sample in enumerate(made)]
    return [([sample.key for sample in made], np.stack(images))]


def test_pixels_that_pillow_would_not_decode_or_a_missing_sample_fail_the_reader(made):
    read.same_pixels("ours", epoch(made), made)
    read.same_pixels("ours", [(keys, np.float32(x).transpose(0, 3, 1, 2) / 255) for keys, x in epoch(made)], made)
    with pytest.raises(compare.OutputsDifferError, match=f"{made[2].key} is not what Pillow decodes"):
        read.same_pixels("ours", epoch(made, lambda i, image: image ^ np.uint8(i == 2)), made)
    with pytest.raises(compare.OutputsDifferError, match="1 of 4 samples did not come"):
        read.same_pixels("ours", epoch(made[:3]), made)
    with pytest.raises(compare.OutputsDifferError, match="came twice"):
        read.same_pixels("ours", epoch(made) * 2, made)


def test_a_latent_that_differs_or_is_missing_fails_the_reader(tmp_path):
    stored = latents.store(8, (2, 3), tmp_path, seed=0)
    latents.same_records("ours", [(stored.keys, stored.records)], stored)
    with pytest.raises(compare.OutputsDifferError, match="latent-00000000 is not what was stored"):
        latents.same_records("ours", [(stored.keys, stored.records[::-1])], stored)
    with pytest.raises(compare.OutputsDifferError, match="1 of 8 records did not come"):
        latents.same_records("ours", [(stored.keys[:-1], stored.records[:-1])], stored)


def test_images_of_a_folder_are_cut_or_enlarged_and_an_empty_folder_is_a_mistake(tmp_path, capsys):
    Image.fromarray(np.arange(300 * 520 * 3, dtype=np.uint8).reshape(300, 520, 3)).save(tmp_path / "large.png")
    Image.new("RGBA", (40, 30), "red").save(tmp_path / "small.png")
    found = samples.patches(tmp_path, 9, 0)
    assert [image.shape for image in found] == [(256, 256, 3)] * 3
    (tmp_path / "empty").mkdir()
    assert run("--only", "B1", "--data", str(tmp_path / "empty")) == 2
    assert "no image (.png .jpg" in capsys.readouterr().err


def test_contestants_take_turns_in_places_that_change_and_the_first_round_does_not_count():
    order = []
    contestants = [compare.Contestant(name, lambda name=name: order.append(name)) for name in "abc"]
    outcome = compare.compare("t", "x/s", 10, contestants, rounds=3)
    rounds = ["".join(order[i : i + 3]) for i in range(0, 12, 3)]
    assert rounds == ["cab", "abc", "bca", "cab"]
    assert {name: len(rates) for name, rates in outcome.rates.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_goal_is_judged_by_the_median_of_the_ratios_of_each_round():
    outcome = compare.Outcome("t", "x/s", 1, {"ours": [10.0, 40.0, 90.0], "peer": [10.0, 10.0, 30.0]})
    outcome.expect("ours", "peer", 3.0)
    outcome.expect("ours", "peer", 3.1)
    assert outcome.goals[0].figure == compare.Spread(3.0, 1.0, 4.0)
    assert [goal.reached for goal in outcome.goals] == [True, False]
