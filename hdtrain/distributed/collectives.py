"""The process group and the few collectives that hdtrain uses; all of them no-ops for a single process."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hdtrain.distributed.blas import set_blas_threads
from hdtrain.distributed.world import World

T = TypeVar("T")


def device() -> torch.device:
    """This rank's device: its GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", World.from_environment().local_rank)
    return torch.device("cpu")


def init_process_group() -> None:
    """Join the group that the environment describes; a lone process makes one of its own (DeepSpeed wants one)."""
    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    timeout = datetime.timedelta(minutes=30)
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists
        dist.init_process_group(backend, timeout=timeout, rank=0, world_size=1, store=dist.HashStore())


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """`init_process_group` for the length of the outermost block: DeepSpeed cannot survive a second group."""
    if dist.is_initialized():
        yield
        return
    init_process_group()
    try:
        yield
    finally:
        dist.destroy_process_group()


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def use_reproducible_kernels() -> None:
    """For exactly-once stages: one CPU thread a process, since kernels sum in another order with another number.

    With it the result does not depend on how many processes share the cores; ranks are the way to use more cores.
    """
    torch.set_num_threads(1)
    set_blas_threads(1)


def barrier() -> None:
    """Wait for every rank."""
    if World.from_environment().size > 1:
        init_process_group()
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    if not _alone():
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Maximum over ranks, in place."""
    if not _alone():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def all_gather_objects(value: T) -> list[T]:
    """Every rank's picklable `value`, in rank order; slow, for messages."""
    if _alone():
        return [value]
    found: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Mean over ranks, in place."""
    if not _alone():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor
