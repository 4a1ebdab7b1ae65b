"""The FID benchmarks: they run from the command line, and an output that differs fails them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[3] / "tools"
sys.path.insert(0, str(TOOLS))  # as for a script that lies there

import bench_fid  # noqa: E402
from bench import frechet, resize  # noqa: E402

SMALL = ("--rounds", "1", "--num", "8", "--dim", "48")


@pytest.mark.slow
def test_both_run_from_the_command_line_and_write_their_figures(tmp_path):
    command = [sys.executable, str(TOOLS / "bench_fid.py"), *SMALL, "--json", str(tmp_path / "x.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "x.json").read_text())
    assert (figures["n"], figures["dim"], figures["rounds"], figures["seed"]) == (8, 48, 1, 0)
    assert {"scipy", "pillow", "torch"} <= figures["versions"].keys()
    distance, resized = figures["outcomes"]
    assert set(distance["rates"]) == {frechet.OURS, frechet.SQRTM, frechet.EIGVALS}
    assert [goal["target"] for goal in distance["goals"]] == [10.0]
    assert any("bit-identical" in note for note in distance["notes"])
    assert set(resized["rates"]) == {resize.OURS, resize.PILLOW}
    assert all(f"{side} px" in resized["notes"][1] for side in (64, 150, 224, 256, 512))


def test_a_distance_that_is_off_fails(monkeypatch, capsys):
    true = frechet.frechet_distance
    monkeypatch.setattr(frechet, "frechet_distance", lambda a, b: true(a, b) * (1 + 1e-8))
    assert bench_fid.main([*SMALL, "--only", "B5"]) == 1
    assert "outputs differ: ours gives" in capsys.readouterr().err


def test_sums_that_depend_on_the_order_of_their_shards_fail(monkeypatch, capsys):
    class Hasty(frechet.Moments):
        """Adds as the sums come: the first one twice."""

        @classmethod
        def of(cls, features):
            found = frechet_moments(features)
            Hasty.last = found
            return found

        @classmethod
        def merged(cls, parts, dim):
            return merged([Hasty.last, *parts], dim)

    frechet_moments, merged = frechet.Moments.of, frechet.Moments.merged
    monkeypatch.setattr(frechet, "Moments", Hasty)
    assert bench_fid.main([*SMALL, "--only", "B5"]) == 1
    assert "orders of 64 shards" in capsys.readouterr().err


def test_a_resize_that_rounds_fails(monkeypatch, capsys):
    true = resize.resize_float
    monkeypatch.setattr(resize, "resize_float", lambda images, size: true(images, size).round())
    assert bench_fid.main([*SMALL, "--only", "B6"]) == 1
    assert "on 0..255, allowed 0.0001" in capsys.readouterr().err


def test_an_unknown_benchmark_is_named(capsys):
    with pytest.raises(SystemExit):
        bench_fid.main(["--only", "B7"])
    assert "unknown B7" in capsys.readouterr().err
