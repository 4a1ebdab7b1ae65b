"""What a batch of images takes is counted in the networks themselves."""

import numpy as np
import pytest
import torch

from hdtrain.config.synthesis import SampleConfig
from hdtrain.config.training import NoiseScheduleConfig
from hdtrain.diffusion.schedule import NoiseSchedule
from hdtrain.models.autoencoder import PixelCodec
from hdtrain.models.denoiser import build_denoiser
from hdtrain.sampling.generate import ImageGenerator
from hdtrain.sampling.meter import evaluations_an_image, images_per_sec, metered
from hdtrain.sampling.plan import SamplePlan


@pytest.mark.parametrize(("weight", "evaluations"), [(None, 3), (2.0, 6)])
def test_classifier_free_guidance_takes_two_evaluations_a_step_and_a_batch_that_is_filled_up_counts_whole(
    weight, evaluations
):
    config = SampleConfig.model_validate(
        {
            "denoiser": "d",
            "per_class": 2,
            "classifier_free": weight,
            "solver": {"kind": "unipc", "steps": 3},
            "batch_size": 3,
        }
    )
    source = ImageGenerator(
        config=config,
        plan=SamplePlan([2, 2], 4),
        denoiser=build_denoiser("tiny", 3, 8, num_classes=2).eval(),
        decoder=PixelCodec(8),
        classifier=None,
        schedule=NoiseSchedule(NoiseScheduleConfig()),
        prediction="epsilon",
        device=torch.device("cpu"),
    )
    with metered(source) as meter:
        for _ in source.batches(source.plan.units()[0]):
            meter.batch_done()
    measured = meter.arrays()
    assert measured["images"].tolist() == [3, 3]
    assert evaluations_an_image(measured) == {"denoiser": evaluations, "classifier": 0}
    assert 0 < images_per_sec(measured) < np.inf
