"""Artefacts that several tests of training share."""

import pytest


@pytest.fixture(scope="session")
def held_out(chain, tmp_path_factory):
    """Labelled images that nothing was trained on, as a split of their own."""
    return chain.make("test", tmp_path_factory.mktemp("held") / "out", split="validation")


@pytest.fixture(scope="session")
def held_out_latents(chain, held_out, tmp_path_factory):
    """The same as latents of the chain's autoencoder."""
    return chain.make("labelled-latents", tmp_path_factory.mktemp("held") / "latents", images=[str(held_out)])
