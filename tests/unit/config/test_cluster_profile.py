"""Cluster profiles: what is wrong with one is told, with the key; shipped ones are right."""

import re
from pathlib import Path

import pytest
import yaml

from hdtrain.config.cluster import ClusterConfig, ContainerConfig, Resources
from hdtrain.config.load import read_yaml, validate
from hdtrain.errors import ConfigError

TEMPLATE = Path(__file__).parents[3] / "configs/cluster/template.yaml"


def read(text: str, folder: Path) -> ClusterConfig:
    (folder / "profile.yaml").write_text(text)
    return validate(ClusterConfig, read_yaml(folder / "profile.yaml"), "profile")


def problems(text: str, folder: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, folder)
    return caught.value.problems


@pytest.mark.parametrize(
    ("written", "minutes"),
    [
        ("90", 90), ('"90"', 90), ("1:30:00", 90), ("24:00:00", 1440), ('"90:30"', 91), ("2-00:00:00", 2880),
        ("2-12", 3600), ("1-2:03:01", 1564),
    ],
)  # fmt: skip
def test_a_time_is_read_as_sbatch_reads_it_quoted_or_not(written, minutes, tmp_path):
    assert read(f"resources: {{cpu: {{time: {written}}}}}", tmp_path).resources["cpu"].time == minutes


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ("time: a day", "resources.cpu.time: expected minutes, 'HH:MM:SS' or 'D-HH:MM:SS', got 'a day'"),
        ("time: 2", "resources.cpu.time: expected more than signal_sec (120 s), got 2 minutes"),
        ("gpus_per_node: 8, tasks_per_node: 4", "tasks_per_node: expected one a GPU (8), got 4"),
        ("nodes: 4, max_nodes: 2", "max_nodes: expected at least nodes (4), got 2"),
        ("options: {--signal: x}", "options: 'signal' is set by the launcher itself; leave it out"),
        ("options: {cpus_per_task: 2}", "options: 'cpus-per-task' has a key of its own, cpus_per_task; set that"),
        ("gpu_per_node: 8", "resources.cpu.gpu_per_node: unknown key; did you mean 'resources.cpu.gpus_per_node'?"),
    ],
)
def test_a_mistake_in_resources_is_told_with_its_key(resources, said, tmp_path):
    found = problems(f"resources: {{cpu: {{{resources}}}}}", tmp_path)
    assert len(found) == 1
    assert said in found[0]


def test_a_name_that_is_not_in_resources_and_a_script_for_the_local_queue_are_mistakes(tmp_path):
    assert problems("{resources: {cpu: {}}, stages: {sample: big}}", tmp_path) == [
        "stages.sample: no 'big' in resources; there are cpu"
    ]
    assert problems("{kind: local, resources: {cpu: {}}, setup: [x]}", tmp_path) == [
        "setup: kind local starts its jobs without a script; leave it out"
    ]


def test_a_node_goes_before_its_stage_and_a_kind_of_job_before_the_profile(tmp_path):
    profile = read(
        """
        partition: main
        account: histo
        resources: {cpu: {partition: small}, gpu: {gpus_per_node: 8}, one: {gpus_per_node: 1}, big: {nodes: 4}}
        stages: {train-ldm: big, arm: one, train-classifier: gpu}
        """,
        tmp_path,
    )
    assert profile.resources_of("arm", "train-classifier", True).gpus_per_node == 1
    assert profile.resources_of("phi", "train-classifier", True).tasks == 8
    assert profile.resources_of("ldm", "train-ldm", True).nodes == 4
    assert profile.resources_of("vae", "train-vae", True).gpus_per_node == 8
    shard = profile.resources_of("shards", "shard", False)
    assert (shard.partition, shard.account, shard.tasks) == ("small", "histo", 1)
    assert profile.resources_of("vae", "train-vae", True).partition == "main"


def test_the_template_has_every_key_and_is_right_with_all_of_them_uncommented(tmp_path):
    text = re.sub(r"^( *)# ?( *(?:- |\w[\w-]*:))", r"\1\2", TEMPLATE.read_text(), flags=re.MULTILINE)
    text = text.replace("tasks_per_node: 1 ", "tasks_per_node: 8 ").replace("kind: slurm", "kind: slurm #")
    tree = yaml.safe_load("\n".join(line for line in text.splitlines() if "hdtrain launch" not in line))
    read(yaml.safe_dump(tree), tmp_path)
    assert set(tree) == set(ClusterConfig.model_fields)
    assert {key for kind in tree["resources"].values() for key in kind} == set(Resources.model_fields)
    assert set(tree["container"]) == set(ContainerConfig.model_fields)
    defaults = {name: value for name, value in tree.items() if not isinstance(value, dict | list | str)}
    assert {name: ClusterConfig.model_fields[name].default for name in defaults} == defaults
