"""What manifests tell of a sampling run before it begins: mistakes are found, and nothing is moved for them."""

import pytest
from tiny_chain import prepare

from hdtrain.cli import main
from hdtrain.formats.manifest import read_manifest
from hdtrain.reporting.runs import Run

MISTAKES = {
    "the VAE does not match": {"decoder": "other-vae"},
    "name an autoencoder of it": {"decoder": None},
    "guidance needs ϕ": {"classifier": "phi"},
    "knows no classes": {"classifier_free": 2.0},
    "must divide 1000": {"solver.steps": 5000},
    "less than the 1000 timesteps": {"solver.kind": "unipc", "solver.steps": 1000},
}


def arguments(chain, out, **changes) -> list[str]:
    parents = {"denoiser": "ldm", "decoder": "decoder", "classifier": "guide"}
    plain = {"per_class": 2, "solver.steps": 4}
    given = {**{name: str(chain[parent]) for name, parent in parents.items()}, **plain}
    for key, value in changes.items():
        given[key] = str(chain[value]) if key in parents and value else value
    words = [f"{key}={'null' if value is None else value}" for key, value in given.items()]
    return ["sample", *words, "--out", str(out)]


@pytest.mark.parametrize("message", MISTAKES)
def test_a_dry_run_finds_what_the_run_would_refuse(chain, tmp_path, capsys, message):
    assert main([*arguments(chain, tmp_path / "run", **MISTAKES[message]), "--dry-run"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_mistake_moves_no_finished_run_aside(chain, capsys):
    before = read_manifest(chain["candidates"]).identity
    assert main(arguments(chain, chain["candidates"], decoder="other-vae")) == 2
    assert "the VAE does not match" in capsys.readouterr().err
    assert read_manifest(chain["candidates"]).identity == before
    assert not list(chain.root.glob("candidates.previous-*"))


def test_a_scale_without_a_classifier_is_refused(chain, tmp_path, capsys):
    assert main(arguments(chain, tmp_path / "run", classifier=None, guidance=3)) == 2
    assert "guidance=3 is the g of a classifier" in capsys.readouterr().err


def test_infinity_is_refused_in_one_line(chain, tmp_path, capsys):
    assert main(arguments(chain, tmp_path / "run", guidance=".inf")) == 2
    assert "finite" in capsys.readouterr().err


def test_the_manifest_says_what_was_used_and_who_followed_what(chain, tmp_path):
    run = chain.make("candidates", tmp_path / "run", protocol="released_code", classifier=None, per_class=1)
    departures = read_manifest(run).protocol["departures"]
    assert "decoder: adapted (plain)" in departures
    assert "denoiser: follows paper (released_code)" in departures
    assert "classifier: none (ϕ)" in departures
    assert not [line for line in departures if line.startswith("guidance")]


def test_the_report_shows_the_guidance_that_was_used_not_the_one_in_the_config(chain, tmp_path):
    manifest = read_manifest(chain["candidates"])
    swept = manifest.model_copy(update={"info": {**manifest.info, "guidance": 5.0}})
    prepare("sample", tmp_path, chain.config("candidates"))
    run = Run(tmp_path, "candidates", swept, {}, {"guidance": 1.0, "per_class": 6}, "", None)
    assert run.highlights == {"guidance": 5.0, "per_class": 6}
