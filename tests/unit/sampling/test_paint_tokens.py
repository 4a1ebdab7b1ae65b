"""`paint` and `evaluate-fidelity` with a denoiser that looks at several tokens of every patch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prior_helpers import ENCODER, encoder_hash, publish_grids, publish_slides
from tiny_chain import run_here
from tiny_painting import DIM, VIEWS, publish_autoencoder, publish_denoiser, saved_grid, tiny_grid

from hdtrain.config.painting import BlendEdit, FillEdit, PasteEdit
from hdtrain.formats.embedding_grid import read_grid, write_grid
from hdtrain.formats.fidelity import Fidelity
from hdtrain.formats.manifest import read_manifest
from hdtrain.sampling.painting.grids import edited, fill_holes

HASH = encoder_hash(ENCODER)


def slide(tokens: int = 2, **changes):
    """2 × 3 cells as half precision holds them."""
    grid = tiny_grid(2, 3, tokens=tokens, **{"encoder_hash": HASH, "label": "flat"} | changes)
    return replace(grid, embeddings=grid.embeddings.astype(np.float16).astype(np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An autoencoder, a slide of two tokens a cell, and denoisers of two tokens and of one."""
    folder = tmp_path_factory.mktemp("tokens")
    vae = publish_autoencoder(folder / "vae")
    for name, order in (("two", VIEWS), ("wide", VIEWS[1:]), ("unknown", None)):
        embedding = {"dim": DIM, "tokens": len(order or "1"), "encoder": ENCODER, "encoder_hash": HASH, "dropout": 0.1}
        publish_denoiser(folder / name, vae, embedding=embedding | ({"token_order": list(order)} if order else {}))
    publish_slides(folder / "slides", [slide()])
    return folder


def config_of(folder: Path, denoiser: str, source: Path) -> dict:
    models = {"denoiser": str(folder / denoiser), "decoder": str(folder / "vae")}
    return {**models, "grid": {"source": str(source)}, "steps": 2, "batch_size": 9, "stride": 4}


@pytest.fixture(scope="module")
def painting(folder):
    assert run_here("paint", folder / "painting", config_of(folder, "two", folder / "slides")) == 0
    return folder / "painting"


def test_a_painting_follows_every_token_of_its_cells(folder, painting, tmp_path):
    grid = read_grid(painting / "grid.npz", token=None)
    np.testing.assert_array_equal(grid.embeddings, slide().embeddings)
    assert grid.token_order == VIEWS
    said = read_manifest(painting).info["grid"]
    assert (said["dim"], said["tokens"], said["token_order"]) == (DIM, 2, list(VIEWS))
    for token in (0, 1):
        other = slide()
        other.embeddings[:, :, token] *= -1
        write_grid(tmp_path / f"{token}.npz", other)
        assert run_here("paint", tmp_path / f"run{token}", config_of(folder, "two", tmp_path / f"{token}.npz")) == 0
        painted = (tmp_path / f"run{token}" / "painting.png").read_bytes()
        assert painted != (painting / "painting.png").read_bytes()


def test_a_grid_that_was_painted_paints_the_same_again(folder, painting, tmp_path):
    assert run_here("paint", tmp_path / "run", config_of(folder, "two", painting / "grid.npz")) == 0
    for name in ("painting.png", "grid.npz"):
        assert (tmp_path / "run" / name).read_bytes() == (painting / name).read_bytes()


def test_edits_change_every_token_as_they_would_change_it_alone(tmp_path):
    grid, other = tiny_grid(4, 5, tokens=2), tiny_grid(3, 3, seed=9, tokens=2)
    write_grid(tmp_path / "both.npz", other)
    done = edited(grid, edits(tmp_path / "both.npz"))
    assert done.embeddings.shape == (4, 5, 2, DIM)
    for token in (0, 1):
        write_grid(tmp_path / f"{token}.npz", other.only(token))
        alone = edited(grid.only(token), edits(tmp_path / f"{token}.npz"))
        np.testing.assert_allclose(done.embeddings[:, :, token], alone.embeddings, atol=1e-5)
        np.testing.assert_array_equal(done.x, alone.x)
    assert np.abs(done.embeddings - grid.embeddings).reshape(4, 5, -1).max(axis=2).astype(bool).sum() == 2 + 2 + 2


def edits(source: Path) -> list:
    return [
        PasteEdit(source=source, rows="1-2", columns=2, row=0, column=4),
        BlendEdit(source=source, rows=0, columns="0-1", row=3, column=0, weight=0.25),
        FillEdit(rows="1-2", columns=1),
    ]


def test_a_hole_is_filled_in_every_token_by_itself():
    grid, present = tiny_grid(3, 4, tokens=2).embeddings, np.arange(12).reshape(3, 4) % 5 != 1
    filled = fill_holes(grid, present)
    for token in (0, 1):
        np.testing.assert_allclose(filled[:, :, token], fill_holes(grid[:, :, token], present), atol=1e-5)
    np.testing.assert_array_equal(filled[present], grid[present])


@pytest.mark.parametrize(("denoiser", "token"), [("wide", 1), ("unknown", 0)])
def test_a_denoiser_of_one_token_gets_the_one_of_its_view_and_else_the_first(folder, tmp_path, denoiser, token):
    assert run_here("paint", tmp_path / "run", config_of(folder, denoiser, folder / "slides")) == 0
    painted = read_grid(tmp_path / "run" / "grid.npz", token=None)
    np.testing.assert_array_equal(painted.embeddings, slide().embeddings[:, :, token])
    made = publish_slides(tmp_path / "made", [slide().only(token)])
    config = {"painting": str(tmp_path / "run"), "made": str(made)}
    assert run_here("evaluate-fidelity", tmp_path / "fidelity", config) == 0
    fidelity = Fidelity.read(tmp_path / "fidelity" / "results.json")
    assert fidelity.metrics["cosine"].value == pytest.approx(1, abs=1e-5)
    assert "tokens" not in fidelity.protocol


def test_an_order_that_nobody_knows_is_warned_of(folder, tmp_path, capsys):
    saved_grid(tmp_path / "g.npz", 1, 2, tokens=2, encoder_hash=HASH, token_order=None)
    assert run_here("paint", tmp_path / "run", config_of(folder, "two", tmp_path / "g.npz")) == 0
    assert "warning: nobody knows whether grid and denoiser have their 2 tokens in one order" in capsys.readouterr().out


def test_other_tokens_than_the_denoisers_are_refused_before_anything_is_loaded(folder, hdtrain, tmp_path):
    def complaint(denoiser: str, *words: str) -> str:
        models = (f"denoiser={folder / denoiser}", f"decoder={folder / 'vae'}")
        return " ".join(hdtrain("paint", *models, *words, "--out", "run", "--dry-run", code=2).err.split())

    turned, parts = tmp_path / "turned.npz", tmp_path / "parts.npz"
    saved_grid(turned, 2, 3, tokens=2, encoder_hash=HASH, token_order=VIEWS[::-1])
    names = tuple(f"grid-2[{row},{column}]" for row in (0, 1) for column in (0, 1))
    saved_grid(parts, 2, 3, tokens=4, encoder_hash=HASH, token_order=names)
    np.save(tmp_path / "elsewhere.npy", slide(1).embeddings)
    trained = "a cell, and the denoiser was trained on 2 tokens (whole, context-4)"
    assert f"has 2 tokens (context-4, whole) {trained}" in complaint("two", f"grid.source={turned}")
    assert "has 4 tokens (grid-2[0,0], grid-2[0,1], grid-2[1,0], grid-2[1,1]) a cell" in complaint(
        "two", f"grid.source={parts}"
    )
    assert f"has 1 token {trained}" in complaint("two", f"grid.source={tmp_path / 'elsewhere.npy'}")
    assert "was trained on 1 token (context-4); embed the slide" in complaint("wide", f"grid.source={parts}")
    pasted = f"edits=[{{kind: paste, source: {turned}, row: 0, column: 0}}]"
    assert f"has 2 tokens (context-4, whole) {trained}" in complaint("two", f"grid.source={folder / 'slides'}", pasted)
    one = publish_grids(tmp_path / "grids", [slide(1)])
    assert f"has 1 token {trained}" in complaint("two", f"grid.source={one}")


def test_cells_of_a_painting_are_compared_by_the_tokens_that_both_have(painting, tmp_path, capsys):
    grid = slide()
    for name, order in (("same", VIEWS), ("turned", VIEWS[::-1]), ("narrow", VIEWS[:1])):
        embeddings = np.stack([grid.embeddings[:, :, VIEWS.index(view)] for view in order], axis=2)
        found = replace(grid, embeddings=embeddings if len(order) > 1 else embeddings[:, :, 0], token_order=order)
        config = {"painting": str(painting), "made": str(publish_slides(tmp_path / name, [found]))}
        assert run_here("evaluate-fidelity", tmp_path / f"{name}-fidelity", config) == 0
        fidelity = Fidelity.read(tmp_path / f"{name}-fidelity" / "results.json")
        compared = [view for view in VIEWS if view in order]
        assert fidelity.protocol["tokens"] == compared
        assert fidelity.metrics["cosine"].value == pytest.approx(1, abs=1e-5)
        assert fidelity.metrics["top_1"].value == 1
        assert f"among 6 embeddings of made-up; tokens {', '.join(compared)}" in capsys.readouterr().out


def test_cells_that_share_no_token_with_the_painting_are_refused(painting, tmp_path, capsys):
    other = publish_slides(tmp_path / "other", [replace(slide(), token_order=("centre-1/2", "context-2"))])
    config = {"painting": str(painting), "made": str(other)}
    assert run_here("evaluate-fidelity", tmp_path / "run", config) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "has 2 tokens (centre-1/2, context-2) a cell, and" in said
    assert "painting was painted from 2 tokens (whole, context-4); embed the cells with the views" in said
    two = publish_slides(tmp_path / "two", [slide(), slide(name="another")])
    assert run_here("evaluate-fidelity", tmp_path / "run", {**config, "made": str(two)}) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"made {two} has 2 grids (another, " in said
    assert f"and the painting {painting} is one; cut the painting into its cells" in said
