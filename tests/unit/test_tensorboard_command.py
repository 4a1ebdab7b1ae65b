"""`hdtrain tensorboard`: the real TensorBoard over several runs."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from urllib.request import urlopen

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


def test_tensorboard_shows_all_runs_by_readable_names(hdtrain, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    for name in ("ldm", "arm/seed-0", "arm/seed-1", "ldm.previous-1234"):
        writer = EventFileWriter(str(tmp_path / "runs" / name / "tb"))
        writer.add_event(Event(step=1, summary=Summary(value=[Summary.Value(tag="loss", simple_value=1.0)])))
        writer.close()
    said = hdtrain("tensorboard", "runs", "--port", 7007, "--dry-run").out
    assert re.findall(r"^(\S+)  .*/tb$", said, re.MULTILINE) == ["ldm", "arm/seed-0", "arm/seed-1"]
    assert re.search(r" -m tensorboard\.main --logdir=\S+ --host=localhost --port=7007$", said, re.MULTILINE)
    assert not list((tmp_path / "tmp").iterdir())

    process = subprocess.Popen(
        [sys.executable, "-m", "hdtrain", "tensorboard", "runs"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    killer = threading.Timer(90, process.kill)
    killer.start()
    try:
        assert process.stdout
        assert process.stdout.readline() == "3 runs: ldm, arm/seed-0, arm/seed-1\n"
        address = re.search(r"http://localhost:(\d+)/", process.stdout.readline())
        assert address
        tunnel = process.stdout.readline()
        assert f"ssh -N -L {address[1]}:localhost:{address[1]} " in tunnel
        found: list[str] = []
        end = time.monotonic() + 60
        while len(found) < 3 and time.monotonic() < end:
            time.sleep(0.5)
            try:
                found = json.load(urlopen(f"{address[0]}data/runs", timeout=5))
            except OSError:
                continue
        assert sorted(found) == ["arm/seed-0", "arm/seed-1", "ldm"]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        killer.cancel()
