"""The report's pages on the guidance sweep and on the protocol; the sweep's own picture."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from reporting_helpers import Tree, collect_quickly, collect_tree, made_up_sweep

from hdtrain.config.load import read_yaml
from hdtrain.errors import ManifestError
from hdtrain.formats.manifest import publish, read_manifest
from hdtrain.formats.provenance import record_end
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.sweep import SweepResults
from hdtrain.reporting.render import render
from hdtrain.reporting.sweep import sweep_svg


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def with_sweep(tree: Tree, sweep: SweepResults) -> Path:
    """A published sweep, and a report that names it."""
    root = tree.root
    parents = {"denoiser": "ldm", "decoder": "decoder", "classifier": "phi-latent", "judge": "judge"}
    context = tree.open("sweep", "sweep-guidance", {
        **{key: str(root / name) for key, name in parents.items()}, "real": [str(root / "labelled")],
        "encoder": {"kind": "timm", "name": "resnet18"},
    })  # fmt: skip
    sweep.write(context.run.sweep)
    context.publish(
        files=[context.run.sweep],
        info={"choice": sweep.choice, "chosen_by": sweep.chosen_by, "datasets": []},
    )
    record_end(context.run, "done")
    config = RunDir(root / "report").config
    config.write_text(yaml.safe_dump({**read_yaml(config), "sweep": str(root / "sweep")}))
    return context.run.path


def test_the_sweep_stands_in_the_page_with_its_choice_and_in_the_graph(built: Tree) -> None:
    with_sweep(built, made_up_sweep())
    page = render(collect_quickly(built))
    shown = text_of(page)
    assert "The scale g = 5 was chosen by rule. g = 5 has the best agreement." in shown
    assert "5 chosen 200 0.780 [0.730, 0.830] 18.60 0.600 0.400 0.880" in shown
    assert "real 160 0.970 [0.950, 0.980]" in shown
    assert "sweep sweep-guidance" in shown
    assert "FD-squeezenet, less is better" in shown
    by_user = render(replace(collect_quickly(built), sweep=made_up_sweep(choice=1.0, chosen_by="user")))
    assert "The scale g = 1 was chosen by the user." in text_of(by_user)


def test_images_that_were_sampled_at_another_scale_are_marked(built: Tree) -> None:
    synthetic = built.root / "synthetic"
    with_sweep(built, made_up_sweep())
    for guidance, marked in ((5.0, False), (1.0, True)):
        publish(synthetic, read_manifest(synthetic).model_copy(update={"info": {"guidance": guidance}}))
        shown = text_of(render(collect_quickly(built)))
        assert f"synthetic was sampled with g = {guidance:g}" in shown
        assert ("another scale" in shown) is marked


def test_a_report_without_a_sweep_has_no_such_section(built: Tree) -> None:
    assert 'id="sweep"' not in render(collect_quickly(built))


def test_a_sweep_that_was_altered_is_refused(built: Tree) -> None:
    run = with_sweep(built, made_up_sweep())
    made_up_sweep(choice=10.0).write(RunDir(run).sweep)
    with pytest.raises(ManifestError, match="altered since the sweep was published"):
        collect_tree(built)


def test_a_sweep_file_of_another_version_is_refused(tmp_path: Path) -> None:
    made_up_sweep().write(tmp_path / "sweep.json")
    assert SweepResults.read(tmp_path / "sweep.json") == made_up_sweep()
    text = (tmp_path / "sweep.json").read_text().replace('"version": 1', '"version": 99')
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ManifestError, match="sweep version 99, this hdtrain reads 1"):
        SweepResults.read(tmp_path / "sweep.json")


def test_the_picture_shows_the_scales_and_is_the_same_every_time() -> None:
    svg = sweep_svg(made_up_sweep())
    assert svg == sweep_svg(made_up_sweep())
    words = set(re.findall(r">([^<>]+)</text>", svg))
    assert {"0", "1", "2.5", "5", "10", "guidance g", "chance", "real images"} <= words
    assert svg != sweep_svg(made_up_sweep(choice=1.0))


def test_every_departure_from_the_protocol_is_listed_with_its_runs(built: Tree) -> None:
    def followed(name: str, protocol: str, *departures: str) -> None:
        manifest = read_manifest(built.root / name)
        said = {"name": protocol, "departures": list(departures)}
        publish(built.root / name, manifest.model_copy(update={"protocol": said}))

    for run in (path.parent for path in built.root.rglob("manifest.json")):
        publish(run, read_manifest(run).model_copy(update={"protocol": None}))
    assert 'id="protocol"' not in render(collect_quickly(built))
    followed("vae", "paper")
    followed("ldm", "paper", "preset: tiny (ldm4)", "loss: l1 (mse)")
    for name in ("arms/real", "arms/random-1"):
        followed(name, "paper", "model.name: vit_tiny (vit_base_patch16_224)")
    followed("synthetic", "released_code")
    shown = text_of(render(collect_quickly(built)))
    assert (
        "Of the runs on which paper and released code disagree, 4 runs follow the paper, with 3 departures and 1 run "
        "follows the released code, with no departure. Never done here, although the released code does it: the best "
        "epoch chosen on the test split"
    ) in shown
    assert "train-ldm ldm paper preset: tiny (ldm4) loss: l1 (mse)" in shown
    assert "train-classifier arms/random-1, arms/real paper model.name: vit_tiny (vit_base_patch16_224)" in shown
    assert "sample synthetic released code none" in shown
