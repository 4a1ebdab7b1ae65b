"""`hdtrain launch --init`: a profile from what a real sinfo said (22.05.8, recorded)."""

import pytest

from hdtrain.config.cluster import ClusterConfig
from hdtrain.config.load import read_yaml, validate

SINFO = """\
batch*|up|2-00:00:00|40|128|257000|(null)|zen4
gpu|up|1-00:00:00|16|192|2051000|gpu:h200:8|h200,ib,avx512
gpu-long|up|7-00:00:00|16|192|2051000|gpu:h200:8|h200,ib,avx512
gpu-long|up|7-00:00:00|4|64|515000|gpu:a100:4(S:0-1)|a100
debug|up|30:00|1|128|257000|(null)|zen4
debug|up|30:00|1|192|2051000|gpu:h200:8|h200,ib,avx512
maint|down|infinite|2|128|257000|(null)|zen4
"""
NO_GPUS = "ci*|up|infinite|2|4+|4000|(null)|(null)\nurgent|up|infinite|2|4|4000|(null)|(null)\n"


@pytest.fixture
def init(hdtrain, tmp_path, monkeypatch):
    """`hdtrain launch --init` where sinfo says `text`; the profile, or the message of its failure."""

    def run(text: str, *args: str, code: int = 0) -> ClusterConfig | str:
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "said").write_text(text)
        sinfo = tmp_path / "bin/sinfo"
        sinfo.write_text(f"#!/bin/sh\ncat {tmp_path}/said\n")
        sinfo.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
        said = hdtrain("launch", "--init", *args, code=code)
        path = tmp_path / (args[0] if args else "configs/cluster/mine.yaml")
        return said.err if code else validate(ClusterConfig, read_yaml(path), "profile")

    return run


def test_a_cluster_with_gpus_gives_kinds_of_jobs_for_its_best_partitions(init, tmp_path):
    profile = init(SINFO)
    gpu, cpu = profile.resources["gpu"], profile.resources["cpu"]
    assert (gpu.partition, gpu.gpus_per_node, gpu.cpus_per_task, gpu.time) == ("gpu", 8, 24, 1440)
    assert (cpu.partition, cpu.gpus_per_node, cpu.time) == ("batch", 0, 1440)
    assert profile.resources_of("candidates", "sample", True).array == 16
    text = (tmp_path / "configs/cluster/mine.yaml").read_text()
    assert "gpu-long: 4 × 64 CPUs, 540 GB, 4 GPUs a100, at most 7-00:00:00, features a100" in text
    assert "# gpu: {partition: gpu-long, gpus_per_node: 4, cpus_per_task: 16" in text
    assert '# cpu: {partition: debug, cpus_per_task: 32, time: "00:30:00"}' in text
    assert "maint" not in text


def test_a_cluster_without_gpus_gives_jobs_for_its_default_partition(init):
    profile = init(NO_GPUS)
    assert list(profile.resources) == ["cpu"]
    assert (profile.resources["cpu"].partition, profile.resources["cpu"].cpus_per_task) == ("ci", 4)
    assert profile.resources_of("ldm", "train-ldm", True).tasks == 1


def test_a_file_that_is_there_stays_and_another_may_be_named(init, tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    assert "is there already and stays as it is" in init(SINFO, "mine.yaml", code=2)
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    assert init(SINFO, "other.yaml").resources


def test_where_nothing_is_up_or_there_is_no_sinfo_it_says_so(init, hdtrain, monkeypatch):
    assert "sinfo lists no partition that is up" in init("maint|down|infinite|2|1|1|(null)|x\n", code=2)
    monkeypatch.setenv("PATH", "/nowhere")
    said = hdtrain("launch", "--init", code=2).err
    assert said.startswith("error: no SLURM here: sinfo not found; run this on a login node of the cluster")
