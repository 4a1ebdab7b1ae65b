"""YAML and overrides to a config: values keep their meaning, mistakes come together."""

import pytest

from hdtrain.config.adaptation import TrainClassifierConfig
from hdtrain.config.load import parse_overrides, read_yaml, set_dotted, validate
from hdtrain.config.shards import ShardConfig
from hdtrain.config.stages import STAGES
from hdtrain.config.synthesis import EvaluateConfig
from hdtrain.config.training import TrainLdmConfig, TrainVaeConfig
from hdtrain.errors import ConfigError

VAE = {"images": ["shards"], "duration": {"images": 10}, "perceptual": {"kind": "none"}}


def problems(model, tree) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(model, tree, "file.yaml")
    return caught.value.problems


def test_overrides_mean_what_they_mean_in_yaml():
    pairs = ["a=1", "b.c=[1, x]", "d=null", "e=x=y", "f=true", "g="]
    assert parse_overrides(pairs) == {"a": 1, "b.c": [1, "x"], "d": None, "e": "x=y", "f": True, "g": None}


def test_all_unreadable_overrides_are_named():
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["lr", "=3", "a=[1"])
    assert caught.value.problems == [
        "'lr': expected key=value",
        "'=3': expected key=value",
        "'a=[1': the value is not YAML: expected ',' or ']', but got '<stream end>' at character 3",
    ]


def test_dotted_keys_reach_into_mappings_and_lists():
    tree = {"sources": [{"path": "a"}, {"path": "b"}]}
    set_dotted(tree, "sources.1.path", "c")
    set_dotted(tree, "sample.per_class", 5)
    assert tree == {"sources": [{"path": "a"}, {"path": "c"}], "sample": {"per_class": 5}}


@pytest.mark.parametrize(
    ("dotted", "said"),
    [("sources.2.path", "0 to 0, got '2'"), ("sources.x", "got 'x'"), ("seed.x", "'seed' is a value")],
)
def test_dotted_keys_that_lead_nowhere_are_refused(dotted, said):
    with pytest.raises(ConfigError, match=said):
        set_dotted({"sources": [{"path": "a"}], "seed": 1}, dotted, 1)


def test_numbers_in_the_form_that_yaml_takes_for_a_string_are_numbers():
    assert validate(TrainVaeConfig, {**VAE, "optim": {"lr": "1e-4"}}, "x").optim.lr == 1e-4


def test_a_block_given_in_part_keeps_what_its_stage_set_for_the_rest():
    config = validate(TrainVaeConfig, {**VAE, "optim": {"lr": 1e-4}, "batch": {"micro_batch_size": 2}}, "x")
    assert (config.optim.lr, config.optim.betas, config.optim.weight_decay) == (1e-4, (0.5, 0.9), 0.0)
    assert (config.batch.global_batch_size, config.batch.micro_batch_size) == (6, 2)


def test_every_mistake_has_its_dotted_path_the_value_and_the_nearest_key():
    tree = {
        **VAE,
        "optim": {"lr": 0},
        "batch": {"global_batchsize": 4},
        "reader": {"resize": "stretch"},
        "duration": {},
        "zeal": 1,
    }
    assert problems(TrainVaeConfig, tree) == [
        "reader.resize: input should be 'squash' or 'crop', got 'stretch'",
        "batch.global_batchsize: unknown key; did you mean 'batch.global_batch_size'?",
        "optim.lr: input should be greater than 0, got 0",
        "duration.images: missing, and it has no default",
        next(p for p in problems(TrainVaeConfig, tree) if p.startswith("zeal: unknown key")),
    ]


def test_the_nearest_key_is_looked_for_in_the_variant_that_was_chosen():
    model = {"kind": "image", "images": ["a"], "redaer": {}}
    found = problems(TrainClassifierConfig, {"model": model, "duration": {"images": 1}})
    assert found == ["model.redaer: unknown key; did you mean 'model.reader'?"]


@pytest.mark.parametrize(
    ("stage", "given", "said"),
    [
        ("sample", {"embeddings": "RUN"}, "a block of keys, got 'RUN'; write embeddings.run=RUN"),
        ("train-vae", {"images": None}, "a list, got null; give one, or leave the key out"),
        ("train-vae", {"duration": None}, "a block of keys, got null; give one, or leave the key out"),
        ("train-vae", {"images": "RUN"}, "a list, got 'RUN'; write images=[RUN]"),
        ("train-ldm", {"duration": 5}, "a block of keys, got 5; write duration.images=5"),
        ("shard", {"sources": "raw"}, "a list, got 'raw'; write sources=[{path: raw}]"),
        ("shard", {"sources": ["raw"]}, "a block of keys, got 'raw'; write sources.0.path=raw"),
        ("sample", {"embeddings": {"run": "RUN", "between": "a"}}, "a list, got 'a'"),
        ("train-vae", {"engine": ["RUN"]}, "a block of keys, got a list; its keys are "),
    ],
)
def test_a_value_where_a_block_or_a_list_is_wanted_is_told_how_to_write_it(stage, given, said):
    with pytest.raises(ConfigError) as caught:
        validate(STAGES[stage].config, given, "x")
    (found,) = [problem for problem in caught.value.problems if ": expected a " in problem]
    assert found.partition(": expected ")[2].startswith(said)


def test_an_unknown_kind_and_a_short_list_are_told_in_our_words():
    found = problems(TrainClassifierConfig, {"model": {"kind": "pixels"}, "duration": {"images": 1}})
    assert found == ["model.kind: expected one of image, latent, timm, got 'pixels'"]
    found = problems(TrainClassifierConfig, {"model": {"images": ["a"]}, "duration": {"images": 1}, "seeds": []})
    assert found == ["model: 'kind' is missing, which says what it is", "seeds: expected at least 1 values, got 0"]


def test_rules_over_several_keys_say_which_rule():
    assert (
        "takes 'per_class' and not 'fraction'"
        in problems(ShardConfig, {"sources": [{"path": "a"}], "sample": {"fraction": 0.5}})[0]
    )
    arm = {"classifier": "c"}
    evaluate = {
        "test": "t",
        "train": "t",
        "arms": {"real": arm},
        "baseline": "reel",
        "encoder": {"kind": "squeezenet", "weights": "w"},
    }
    assert problems(EvaluateConfig, evaluate) == ["baseline 'reel' is not one of the arms: real"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", "cannot be read as YAML"), ("- 1", "expected a mapping of keys, got list"), (None, "no such file")],
)
def test_files_that_hold_no_mapping_are_refused_by_name(tmp_path, text, said):
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_a_config_cannot_be_changed_after_validation():
    config = validate(TrainVaeConfig, VAE, "x")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def test_a_key_that_occurs_twice_is_a_mistake_and_a_merged_one_is_not(tmp_path):
    (tmp_path / "twice.yaml").write_text("a: 1\nb: {c: 1, c: 2}\n")
    with pytest.raises(ConfigError, match="key 'c' occurs twice"):
        read_yaml(tmp_path / "twice.yaml")
    (tmp_path / "merged.yaml").write_text("a: &a {c: 1, d: 2}\nb: {<<: *a, c: 3}\ne: *a\n")
    assert read_yaml(tmp_path / "merged.yaml") == {"a": {"c": 1, "d": 2}, "b": {"c": 3, "d": 2}, "e": {"c": 1, "d": 2}}


def test_an_override_with_a_key_twice_or_a_wrong_escape_says_why():
    with pytest.raises(ConfigError, match="key 'path' occurs twice"):
        parse_overrides(["sources=[{path: a, path: b}]"])
    with pytest.raises(ConfigError, match=r"unknown escape character 'd' at character 5; write .* for a backslash"):
        parse_overrides(['x=["P\\d"]'])


def test_a_block_that_contradicts_itself_is_told_without_its_type():
    tree = {"denoiser": "x"} | {"engine": {"precision": "bf16", "zero_stage": 0}}
    with pytest.raises(ConfigError) as error:
        validate(TrainLdmConfig, tree, "test")
    (problem,) = [problem for problem in error.value.problems if problem.startswith("engine: ")]
    assert problem.endswith("DeepSpeed's stage 0 accumulates gradients in bf16")
