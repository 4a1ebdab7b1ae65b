"""TorchScripts of the user's own as encoders: their size, normalisation and tokens; refused where they are none."""

import numpy as np
import pytest
import torch
from torch import nn

from hdtrain.config.training import TorchScriptEncoder
from hdtrain.errors import WeightsError
from hdtrain.features.encoders import build_encoder
from hdtrain.features.resize import resize_float
from hdtrain.features.views import View

PX, DIM = 24, 5
MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)


class Tokens(nn.Module):
    """A token for each of nine parts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, DIM, 8, stride=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(x)).flatten(2).transpose(1, 2)


class Flat(Tokens):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).flatten(1)


class Pair(Tokens):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.conv(x), x


def config(path, net, **changes) -> TorchScriptEncoder:
    torch.jit.script(net).save(str(path))
    return TorchScriptEncoder(file=path, input_px=PX, mean=MEAN, std=STD, **changes)


def images(count=4, size=40):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def by_hand(net: nn.Module) -> torch.Tensor:
    x = resize_float(torch.from_numpy(images()), PX) / 255
    with torch.no_grad():
        return net((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))


def test_a_torchscript_sees_images_of_its_size_and_normalisation(tmp_path):
    encoder = build_encoder(config(tmp_path / "own.pt", Flat()))
    torch.testing.assert_close(encoder.embed(images()), by_hand(Flat()))
    assert (encoder.dim, encoder.resolution) == (DIM * 9, PX)
    assert encoder.metric_name("FD") == f"FD-{encoder.name}"


def test_of_tokens_the_first_or_the_mean_is_taken_and_the_name_and_description_tell_which(tmp_path):
    first = build_encoder(config(tmp_path / "own.pt", Tokens()))
    mean = build_encoder(config(tmp_path / "own.pt", Tokens(), tokens="mean"))
    torch.testing.assert_close(first.embed(images()), by_hand(Tokens())[:, 0])
    torch.testing.assert_close(mean.embed(images()), by_hand(Tokens()).mean(1))
    assert first.dim == mean.dim == DIM
    assert first.name != mean.name
    assert (first.description["tokens"], mean.description["tokens"]) == ("cls", "mean")


def test_the_first_batches_are_computed_as_the_later_ones(tmp_path):
    encoder = build_encoder(config(tmp_path / "own.pt", Tokens()))
    found = [encoder.embed(images()) for _ in range(4)]
    assert all(torch.equal(found[0], other) for other in found)


def test_images_of_any_sizes_in_one_batch_are_embedded_as_alone(tmp_path):
    encoder = build_encoder(config(tmp_path / "own.pt", Flat()))
    mixed = [images(1, size)[0] for size in (20, 24, 57)]
    together = encoder.embed_each(mixed, 4)[:3]
    torch.testing.assert_close(together, torch.cat([encoder.embed(image[None]) for image in mixed]))


def test_what_is_no_torchscript_or_gives_no_features_is_one_message(tmp_path):
    (tmp_path / "text.pt").write_text("no archive")
    torch.save({"a": torch.zeros(1)}, tmp_path / "state.pt")
    expected = {
        "missing.pt": "no such TorchScript",
        "text.pt": "cannot be read as TorchScript",
        "state.pt": "cannot be read as TorchScript",
    }
    for name, message in expected.items():
        with pytest.raises(WeightsError, match=message):
            build_encoder(TorchScriptEncoder(file=tmp_path / name))
    with pytest.raises(WeightsError, match=r"gives tuple for 2 images; expected a tensor \(images, features\)"):
        build_encoder(config(tmp_path / "pair.pt", Pair()))
    small = config(tmp_path / "own.pt", Flat()).model_copy(update={"input_px": 4})
    with pytest.raises(WeightsError, match=r"fails on images \(2, 3, 4, 4\): .*check encoder.input_px"):
        build_encoder(small)


def test_views_cut_an_image_whose_side_is_no_multiple_into_parts_that_cover_it():
    image = np.arange(10 * 7 * 3, dtype=np.uint8).reshape(10, 7, 3)
    parts = View.of("grid-3").crops(image)
    assert len(parts) == 9
    rows = [np.concatenate(parts[i : i + 3], axis=1) for i in (0, 3, 6)]
    np.testing.assert_array_equal(np.concatenate(rows), image)
    assert [part.shape for part in View.of("centre-1/4").crops(image)] == [(2, 2, 3)]
    assert View.of("centre-1/40").crops(image)[0].shape == (1, 1, 3)
