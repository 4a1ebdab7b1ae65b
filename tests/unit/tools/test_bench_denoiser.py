"""The denoiser's benchmark: it runs from the command line, and an output or a number that differs fails it."""

import json
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[3] / "tools"
sys.path.insert(0, str(TOOLS))  # as for a script that lies there

import bench_denoiser  # noqa: E402
from bench import denoiser  # noqa: E402

SHORT = ["--preset", "tiny", "--size", "8", "--batch", "2", "--rounds", "1", "--passes", "1"]


def test_it_prints_and_writes_rates_of_diffusers_and_of_every_variant(tmp_path, capsys):
    code = bench_denoiser.main(
        [*SHORT, "--variants", "eager,channels_last,checkpointing", "--json", str(tmp_path / "x.json")]
    )
    assert code == 0
    said, figures = capsys.readouterr().out, json.loads((tmp_path / "x.json").read_text())
    assert "274,056,163 parameters, 202.4 GF forward, 607.2 GF training" in said
    assert figures["ldm4"] == ["274,056,163", "202.4", "607.2"]
    (outcome,) = figures["outcomes"]
    assert list(outcome["rates"]) == ["diffusers", "ours, eager", "ours, channels_last", "ours, checkpointing"]
    assert all(len(rates) == 1 and rates[0] > 0 for rates in outcome["rates"].values())
    assert {goal["name"] for goal in outcome["goals"]} == {
        "ours, eager / diffusers", "ours, channels_last / diffusers"
    }  # fmt: skip
    assert figures["versions"].keys() >= {"torch", "diffusers"}


def test_a_model_that_predicts_something_else_fails(monkeypatch, capsys):
    made = denoiser.ours

    def other(*args):
        module = made(*args)
        with torch.no_grad():
            module.conv_out.weight[0, 0, 0, 0] += 0.1
        return module

    monkeypatch.setattr(denoiser, "ours", other)
    assert bench_denoiser.main([*SHORT, "--variants", "eager"]) == 1
    assert "ours, eager: its prediction is" in capsys.readouterr().err


def test_another_number_of_parameters_than_the_published_fails(monkeypatch, capsys):
    monkeypatch.setattr(denoiser, "PUBLISHED", ("274,056,164", "202.4", "607.2"))
    assert bench_denoiser.main(SHORT) == 1
    assert "published are ('274,056,164'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--variants", "eager,fast"], "--variants: unknown fast"),
        (["--size", "10"], "tiny takes multiples of 4, got 10"),
        (["--rounds", "0"], "must be at least 1"),
    ],
)
def test_a_mistake_in_the_arguments_is_said(arguments, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench_denoiser.main([*SHORT, *arguments])
    assert said in capsys.readouterr().err
