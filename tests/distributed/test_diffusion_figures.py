"""Figures of `train-ldm` that ranks make together: the same from one rank and from two."""

import json

import pytest


def last_row(run) -> dict:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_two_ranks_share_out_the_validation_loss_and_the_loss_by_noise_level(chain, ranks, tmp_path):
    config = chain.config("ldm", validation=str(chain["labelled-latents"]), min_snr_gamma=5.0)
    config["duration"] = {"images": 4, "log_every_steps": 1}
    one, two = (last_row(ranks.run("train-ldm", tmp_path / str(n), config, n)) for n in (1, 2))
    names = {name for name in one if name.startswith(("validation/", "loss_by_noise/"))}
    assert names >= {"validation/loss", "validation/loss_ema"}
    assert len(names) > 3
    assert {name for name in two if name.startswith(("validation/", "loss_by_noise/"))} == names
    assert {name: two[name] for name in names} == pytest.approx({name: one[name] for name in names}, rel=1e-4)
