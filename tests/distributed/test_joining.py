"""Jobs that begin at one moment in one run directory, as the elements of an array do: one makes it ready, all work."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from hdtrain.config.load import validate
from hdtrain.config.stages import STAGES
from hdtrain.prepare import run_node

JOBS, TIMES = 8, 10


class Worker:
    """In place of a stage's process: how it ends is not asked here."""

    def run_stage(self, stage, run_dir, ranks):
        time.sleep(0.2)
        return 3


def test_of_jobs_that_begin_at_one_moment_none_is_turned_away(chain, tmp_path):
    config = validate(STAGES["encode"].config, chain.config("latents"), "test")
    together = threading.Barrier(JOBS)

    def job(directory) -> str:
        together.wait()
        return run_node("encode", config, directory, ranks=1, launcher=Worker(), source="test").status

    with ThreadPoolExecutor(JOBS) as jobs:
        for time_ in range(TIMES):
            ended = list(jobs.map(job, [tmp_path / f"run-{time_}"] * JOBS))
            assert ended == ["stopped"] * JOBS
