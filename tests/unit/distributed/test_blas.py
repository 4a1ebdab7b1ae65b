"""Figures that numpy's linear algebra makes don't depend on how many threads a process was started with."""

import os
import subprocess
import sys

import pytest

DIGEST = """
import hashlib, numpy as np
from hdtrain.distributed.blas import set_blas_threads
print(set_blas_threads(1))
x = np.random.default_rng(0).standard_normal((1000, 700))
c = np.cov(x.T)
found = [x @ x[:333].T, np.linalg.cholesky(c), np.linalg.eigvalsh(c)]
print(hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in found)).hexdigest())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which libraries are loaded")
def test_figures_are_the_same_whatever_number_of_threads_the_process_was_started_with():
    said = [
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.split()
        for threads in ("1", "2", "3")
    ]
    assert int(said[0][0]) >= 1, "numpy's OpenBLAS was not found"
    assert said[0] == said[1] == said[2]
