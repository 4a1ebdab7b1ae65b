"""What goes to the device is what was stored: uint8 images and fp16 latents, converted there."""

import numpy as np
import pytest
import torch

from hdtrain.config.training import ReaderConfig
from hdtrain.data.images import TrainingImages
from hdtrain.data.latents import TrainingLatents
from hdtrain.distributed.collectives import device
from hdtrain.distributed.transfer import to_device


def test_images_arrive_as_uint8_and_latents_as_fp16(write, write_latents):
    images = TrainingImages([write("a", [4])], ReaderConfig(resolution=32), seed=0).batch(range(4)).images
    (latents, _) = write_latents("l", [4])
    moments = TrainingLatents([latents], seed=0).batch(range(4)).moments
    for array, dtype in ((images, torch.uint8), (moments, torch.float16)):
        arrived = to_device(array)
        assert (arrived.dtype, arrived.device.type) == (dtype, device().type)
        np.testing.assert_array_equal(arrived.cpu().numpy(), array)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it is a copy by nature")
def test_on_a_cpu_nothing_is_copied():
    array = np.zeros(4, np.uint8)
    to_device(array)[0] = 7
    assert array[0] == 7
