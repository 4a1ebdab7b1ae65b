"""The rate that MFU is a share of."""

import pytest
import torch

from hdtrain.training.peak import DATASHEET, datasheet, device_peak_flops

NAMES = {
    "NVIDIA H200": 989,
    "NVIDIA H200 NVL": 835.5,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA GH200 480GB": 989,
    "NVIDIA A100-SXM4-80GB": 312,
    "Tesla V100-SXM2-32GB": 125,
    "Tesla V100-PCIE-16GB": 112,
    "NVIDIA L40S": 362,
    "NVIDIA L4": 121,
    "NVIDIA RTX 6000 Ada Generation": 364.2,
    "Quadro RTX 6000": 130.5,
    "NVIDIA RTX A6000": 154.8,
}


@pytest.mark.parametrize(("name", "half"), NAMES.items())
def test_a_gpu_is_found_by_the_name_that_cuda_gives_it(name, half):
    found = datasheet(name)
    assert found is not None
    assert found[0] == half


@pytest.mark.parametrize(
    "name", ["NVIDIA A10G", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "AMD Instinct MI300X", "Tesla P100"]
)
def test_an_unknown_gpu_and_a_part_of_one_have_no_row(name):
    assert datasheet(name) is None


def test_every_row_falls_from_16_bit_to_plain_fp32():
    assert all(half > tf32 >= fp32 > 0 for half, tf32, fp32 in DATASHEET.values())


def test_a_cpu_is_measured_within_what_a_cpu_can_be():
    """From half a product and sum a cycle at 1 GHz to AVX-512's 64 operations at 6 GHz, times two, a thread."""
    cpu = torch.device("cpu")
    peak = device_peak_flops(cpu, "fp32")
    assert 1e9 < peak / torch.get_num_threads() < 800e9
    assert device_peak_flops(cpu, "bf16") >= peak
