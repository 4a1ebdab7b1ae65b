"""The resize must be PIL's own float bicubic, since a differing resize moves a Fréchet distance by tens."""

import numpy as np
import pytest
import torch
from PIL import Image

from hdtrain.features.resize import resize_float


@pytest.mark.parametrize(("height", "width", "resolution"), [(150, 150, 224), (64, 96, 40), (33, 20, 33), (7, 5, 3)])
def test_agrees_with_pil_in_float_mode(height, width, resolution):
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    ours = resize_float(torch.from_numpy(images), resolution).numpy()
    for image, resized in zip(images, ours, strict=True):
        for channel in range(3):
            plane = Image.fromarray(image[..., channel].astype(np.float32), mode=None)
            theirs = np.asarray(plane.resize((resolution, resolution), Image.Resampling.BICUBIC)).clip(0, 255)
            np.testing.assert_allclose(resized[channel], theirs, atol=1e-4)


def test_an_image_of_the_right_size_is_left_alone():
    images = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 4, 3)
    assert torch.equal(resize_float(images, 4), images.permute(0, 3, 1, 2).float())
