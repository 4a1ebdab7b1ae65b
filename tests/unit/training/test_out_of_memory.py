"""A training that doesn't fit says what to change."""

import os
import re
import resource
import subprocess
import sys

import pytest
from tiny_chain import prepare

ADDRESS_SPACE = 9 * 10**9
"""Torch maps some 5 GB of libraries; the batch below needs 6.6 GiB more."""


@pytest.mark.slow
def test_out_of_memory_names_settings_that_would_fit(chain, tmp_path):
    config = chain.config("vae", batch={"global_batch_size": 1024}, preset="kl-f4-small", duration={"images": 2048})
    run = prepare("train-vae", tmp_path / "vae", config)
    done = subprocess.run(
        [sys.executable, "-m", "hdtrain.stages", "train-vae", run],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE)),
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "train-vae: out of memory in step 1. It needs about 6.7 GiB a rank" in message
    for setting in ("batch.micro_batch_size=512", "engine.activation_checkpointing=true"):
        needed = re.search(rf"{setting} \(([\d.]+) GiB\)", message)
        assert needed, message
        assert float(needed[1]) < 4
    assert not (run / "manifest.json").exists()
