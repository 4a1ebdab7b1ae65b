"""Arrays of a batch to this rank's device, in the dtype in which they are stored: uint8 and fp16 are small."""

import numpy as np
import torch
from torch import Tensor

from hdtrain.distributed.collectives import device


def to_device(array: np.ndarray) -> Tensor:
    """`array` on this rank's device. On a GPU it goes through page-locked memory, and the copy runs beside the host."""
    tensor = torch.from_numpy(array)
    target = device()
    return tensor.pin_memory().to(target, non_blocking=True) if target.type == "cuda" else tensor.to(target)
