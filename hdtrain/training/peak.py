"""How fast a device can multiply at best: what MFU is a share of."""

import re
import time
from collections.abc import Callable
from functools import cache

import torch

from hdtrain.training.costs import Precision

DATASHEET: dict[str, tuple[float, float, float]] = {
    "B200": (2250, 1125, 75),
    "GH200": (989, 494.5, 67),
    "H200 NVL": (835.5, 417.5, 60),
    "H200": (989, 494.5, 67),
    "H100 NVL": (835.5, 417.5, 60),
    "H100 PCIe": (756, 378, 51.2),
    "H100": (989, 494.5, 67),
    "H20": (148, 74, 44),
    "A100": (312, 156, 19.5),
    "A800": (312, 156, 19.5),
    "A40": (149.7, 74.8, 37.4),
    "A30": (165, 82, 10.3),
    "A10": (125, 62.5, 31.2),
    "L40S": (362, 183, 91.6),
    "L40": (181, 90.5, 90.5),
    "L4": (121, 60, 30.3),
    "RTX 6000 Ada": (364.2, 182.1, 91.1),
    "RTX A6000": (154.8, 77.4, 38.7),
    "RTX 5090": (209.5, 104.8, 104.8),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71, 35.6, 35.6),
    "V100-PCIE": (112, 14, 14),
    "V100": (125, 15.7, 15.7),
    "Quadro RTX 6000": (130.5, 16.3, 16.3),
    "T4": (65, 8.1, 8.1),
}
"""Dense peaks in TFLOP/s of the 16-bit tensor cores (fp32 accumulation), of fp32 as TF32, and of plain fp32, from
NVIDIA's data sheets. V100, Quadro RTX 6000 and T4 have fp16 only and no TF32."""
ANCHOR = ("H200", 310e12, "MLPerf 4.0's Stable Diffusion 2 on 8 H200")
"""A device, the FLOP/s that the best published training of a latent diffusion model makes of it, and which that is."""
_MEASURED_SEC, _LEAST_SIDE = 0.2, 256


def device_peak_flops(device: torch.device, precision: Precision) -> float:
    """FLOP/s: from the data sheet of a known GPU, else measured by a matrix product of a fifth of a second.

    fp32 on a GPU means TF32 where torch is allowed to use it, as it is by default in convolutions.
    """
    if device.type == "cuda":
        found = datasheet(torch.cuda.get_device_name(device))
        if found:
            half, tf32, fp32 = found
            return 1e12 * (half if precision == "bf16" else tf32 if _tf32_allowed() else fp32)
    return _measured(device, precision)


def datasheet(name: str) -> tuple[float, float, float] | None:
    """The row of `DATASHEET` for a device's name as CUDA tells it; None for an unknown one or a part (MIG) of one."""
    if "MIG" in name:
        return None
    rows = (row for model, row in DATASHEET.items() if re.search(rf"\b{re.escape(model)}\b", name, re.IGNORECASE))
    return next(rows, None)


def _tf32_allowed() -> bool:
    return bool(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)


def emulates_bf16(device: torch.device) -> bool:
    """Whether bf16 is slower than fp32 there, for want of units for it: no training in bf16 is meant for such a CPU."""
    return device.type == "cpu" and _products(device, torch.bfloat16) < _products(device, torch.float32)


@cache
def _measured(device: torch.device, precision: Precision) -> float:
    """The best of several products. A CPU without bf16 units is slower in bf16 than in fp32, which is its peak then."""
    plain = _products(device, torch.float32)
    return max(plain, _products(device, torch.bfloat16)) if precision == "bf16" else plain


@cache
def _products(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate among products of rising size. On a CPU of one thread, in that thread's time, times the threads.

    Others at work on the same cores make the thread wait, which its own time doesn't count.
    """
    if device.type == "cuda":
        return _best_product(device, dtype, time.perf_counter)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return threads * _best_product(device, dtype, time.thread_time)
    finally:
        torch.set_num_threads(threads)


def _best_product(device: torch.device, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    side, best, until = _LEAST_SIDE, 0.0, clock() + _MEASURED_SEC
    while best == 0 or clock() < until:
        a = torch.ones(side, side, device=device, dtype=dtype)
        started = clock()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = clock() - started
        best = max(best, 2 * side**3 / seconds)
        if 2 * 8 * seconds < until - clock():  # time for two of twice the side
            side *= 2
    return best
