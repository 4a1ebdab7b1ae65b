"""The tool that sends a large set through `select` and `evaluate`: its sets are what the stages take."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).parents[3] / "tools"
sys.path.insert(0, str(TOOLS))

from bench.drawn_sets import CLASSES, publish_drawn  # noqa: E402
from bench.peak import run_watched  # noqa: E402

from hdtrain.data.exactly_once import decode_sample  # noqa: E402
from hdtrain.formats.manifest import read_manifest  # noqa: E402
from hdtrain.formats.shards import open_shards  # noqa: E402

HOLD = "import time; block = bytearray(200 * 2**20); time.sleep(1.5)"


def test_drawn_sets_are_published_images_of_every_class_and_the_same_again(tmp_path):
    one, two = (publish_drawn(tmp_path / name, 1100, "synthetic", 3) for name in ("one", "two"))
    manifest = read_manifest(one, ("images",))
    assert [shard.samples for shard in manifest.shards] == [1000, 100]
    assert (manifest.split, manifest.classes) == ("synthetic", CLASSES)
    assert manifest.identity == read_manifest(two).identity
    assert manifest.identity != read_manifest(publish_drawn(tmp_path / "other", 1100, "synthetic", 4)).identity
    reader = open_shards(one, manifest)[1]
    assert sorted(set(reader.sidecar.labels)) == [0, 1, 2, 3]
    means = [np.mean([decode_sample(reader, i) for i in range(k, 100, 4)]) for k in range(4)]
    assert means[0] > means[2] > means[1]


def test_memory_and_time_of_a_command_are_those_of_its_children_too():
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}], check=True)"
    ran = run_watched([sys.executable, "-c", child], {})
    assert 200 * 2**20 < ran.peak_process_bytes < 400 * 2**20
    assert ran.peak_tree_bytes > 200 * 2**20
    assert 1.5 < ran.seconds < 30
    with pytest.raises(subprocess.CalledProcessError):
        run_watched([sys.executable, "-c", "raise SystemExit(3)"], {})


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--only", "report"], "unknown report"), (["--num", "10"], "at least 1000")]
)
def test_what_it_cannot_do_is_refused(arguments, said):
    done = subprocess.run(
        [sys.executable, TOOLS / "bench_select_evaluate.py", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
