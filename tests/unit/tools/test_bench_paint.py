"""A painting 4096 pixels wide and high stays within the memory that its plan says."""

import json
import os
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[3] / "tools" / "bench_paint.py"


def test_a_canvas_of_4096_pixels_stays_within_its_bound():
    command = [sys.executable, TOOL, "--preset", "none", "--rows", "16", "--columns", "16", "--stride", "64"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pixels"] == [4096, 4096]
    assert found["windows"] == 256
    allocator_mb = 32  # what malloc keeps of what was freed
    assert 10 < found["peak_above_one_cell_mb"] <= found["bound_mb"] + allocator_mb < 150
