"""What training on one image costs: parameters, floating-point operations, activations. Counted, not timed.

Nothing is computed for it: networks are built on the meta device, and activations are measured on fake tensors, which
have shapes and no content. `hdtrain.training.workload` says which networks a stage's config needs.
"""

import copy
import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hdtrain.models.checkpointing import checkpoint_activations

Make = Callable[[Sequence[int], torch.dtype], Tensor]
Precision = Literal["fp32", "bf16"]
Role = Literal["trained", "guides", "compares", "frozen"]

TRAINING_FACTOR: dict[Role, float] = {"trained": 3.0, "guides": 2.0, "compares": 1.5, "frozen": 1.0}
"""Training FLOPs in forward FLOPs: one for the forward pass, one for the gradient of the inputs, one for that of the
weights. A network that compares two images has a gradient for one of them."""


@dataclass(frozen=True)
class Network:
    """One network's part in training on one image."""

    name: str
    module: nn.Module
    """On the meta device."""
    inputs: tuple[Tensor, ...]
    """Of one image, on the meta device, with a batch dimension of 1. Of `guides` and `compares` the last one has a
    gradient."""
    role: Role = "trained"
    engine: str | None = None
    """Name of the engine that trains the module; None for a frozen network, which stays in fp32."""
    images: int = 1
    """How many images it sees for one training image."""
    from_images: int = 0
    """It takes part once so many images were seen."""

    @cached_property
    def forward_flops(self) -> int:
        """For one training image."""
        return forward_flops(self.module, *self.inputs) * self.images

    @property
    def training_flops(self) -> float:
        """For one training image, by `TRAINING_FACTOR`; activations that are computed again do not count."""
        return self.forward_flops * TRAINING_FACTOR[self.role]

    @property
    def num_parameters(self) -> int:
        """All of the module's."""
        return sum(p.numel() for p in self.module.parameters())


@dataclass(frozen=True)
class Costs:
    """What one training image costs in all its networks."""

    networks: tuple[Network, ...]
    num_averages: int = 0
    """Moving averages that are kept of the first engine's weights."""
    held: tuple[nn.Module, ...] = ()
    """Frozen modules that lie on the device and take no part in a step."""
    _activations: dict[tuple[Precision, bool], tuple[int, int]] = field(default_factory=dict, compare=False)

    @property
    def trained(self) -> dict[str, int]:
        """Parameters by engine."""
        return {str(n.engine): n.num_parameters for n in self.networks if n.role == "trained"}

    @property
    def state_elements(self) -> int:
        """Elements of a checkpoint: weights, two moments and the averages."""
        first = next(iter(self.trained.values()))
        return 3 * sum(self.trained.values()) + self.num_averages * first

    @property
    def normalises_batches(self) -> bool:
        """Whether something that is trained has batch normalisation, which does not go with bf16."""
        trained = (n.module for n in self.networks if n.role == "trained")
        return any(isinstance(child, _BatchNorm) for module in trained for child in module.modules())

    @property
    def frozen_bytes(self) -> int:
        """Of weights that are not trained, all in fp32."""
        modules = [*self.held, *(n.module for n in self.networks if n.engine is None)]
        return 4 * sum(p.numel() for module in modules for p in module.parameters())

    def training_flops(self, images_seen: float = math.inf) -> float:
        """Of training on one image, once `images_seen` were seen; 2 for a multiply-add."""
        return sum(n.training_flops for n in self.networks if n.from_images <= images_seen)

    def mean_training_flops(self, images: int) -> float:
        """Of training on one image in the mean of a run of `images`."""
        shares = ((n.training_flops, max(0, images - n.from_images) / images) for n in self.networks)
        return sum(flops * share for flops, share in shares)

    def activation_bytes(self, precision: Precision, checkpointing: bool, num_images: int) -> int:
        """The most that a pass over `num_images` images holds besides weights, gradients and optimizer state."""
        key = (precision, checkpointing)
        if key not in self._activations:
            two, four = (_measure_activations(self.networks, precision, checkpointing, n) for n in (2, 4))
            an_image = (four - two) // 2
            self._activations[key] = (max(0, two - 2 * an_image), an_image)
        fixed, an_image = self._activations[key]
        return fixed + an_image * num_images


def forward_flops(module: nn.Module, *inputs: Tensor) -> int:
    """Floating-point operations of a forward pass, 2 for a multiply-add; convolutions, matrix products and attention.

    Args:
        module: on any device; nothing is computed with its weights.
        inputs: on any device; their shapes count.
    """
    skeleton = instance(module, partial(_empty, "meta")).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        skeleton(*(x.to("meta") for x in inputs))
    return counter.get_total_flops()


def _empty(device: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def instance(module: nn.Module, make: Make, precision: Precision | None = None) -> nn.Module:
    """A copy of `module` whose parameters, buffers and other tensors are what `make` gives for shape and dtype.

    Args:
        module: on any device; its data are not looked at.
        make: makes a tensor.
        precision: floating-point tensors in this one instead of their own.
    """

    def twin(x: Tensor) -> Tensor:
        return make(x.shape, torch.bfloat16 if precision == "bf16" and x.is_floating_point() else x.dtype)

    memo: dict[int, Any] = {}
    for child in module.modules():
        found: Iterable[Any] = vars(child).values()
        for x in [*child.parameters(recurse=False), *child.buffers(recurse=False), *found]:
            if isinstance(x, nn.Parameter):
                memo.setdefault(id(x), nn.Parameter(twin(x), x.requires_grad))
            elif isinstance(x, Tensor):
                memo.setdefault(id(x), twin(x))
    return copy.deepcopy(module, memo)


def make_networks(
    networks: Sequence[Network], make: Make, precision: Precision, checkpointing: bool
) -> list[nn.Module]:
    """Instances of the networks as the tasks use them: engines in `precision`, all else frozen and in fp32."""
    modules = []
    for network in networks:
        module = instance(network.module, make, precision if network.engine else None)
        if network.role == "trained":
            if checkpointing:
                checkpoint_activations(module)
            modules.append(module.requires_grad_(True))
        else:
            modules.append(module.requires_grad_(False))
    return modules


def make_inputs(
    networks: Sequence[Network], make: Make, precision: Precision, num_images: int
) -> list[tuple[Tensor, ...]]:
    """Inputs of `num_images` training images for each network."""
    batches = []
    for network in networks:
        count = num_images * network.images
        batch = [make((count, *x.shape[1:]), x.dtype) for x in network.inputs]
        if network.engine and precision == "bf16":
            batch = [x.bfloat16() if x.is_floating_point() else x for x in batch]
        if network.role in ("guides", "compares"):
            batch[-1].requires_grad_(True)
        batches.append(tuple(batch))
    return batches


def training_pass(
    networks: Sequence[Network], modules: Sequence[nn.Module], inputs: Sequence[tuple[Tensor, ...]]
) -> None:
    """Forward through all networks, then backward: like a task's `micro_step`, without its losses."""
    losses = []
    for network, module, given in zip(networks, modules, inputs, strict=True):
        if network.role == "frozen":
            with torch.no_grad():
                module(*given)
        else:
            outputs = [x for x in tree_leaves(module(*given)) if isinstance(x, Tensor) and x.is_floating_point()]
            losses += [x.float().square().mean() for x in outputs if x.requires_grad]
    torch.stack(losses).sum().backward()


def _measure_activations(
    networks: Sequence[Network], precision: Precision, checkpointing: bool, num_images: int
) -> int:
    """Peak of live bytes in a pass on fake CPU tensors, whose attention keeps no matrix of scores, as on a GPU."""

    fake = partial(_empty, "cpu")
    with FakeTensorMode():
        modules = make_networks(networks, fake, precision, checkpointing)
        inputs = make_inputs(networks, fake, precision, num_images)
        live = LiveBytes(x for module in modules for x in [*module.parameters(), *module.buffers()])
        for module in modules:
            for p in filter(lambda p: p.requires_grad, module.parameters()):
                p.register_post_accumulate_grad_hook(_forget_gradient)
        with live:
            training_pass(networks, modules, inputs)
    return live.peak


def _forget_gradient(p: Tensor) -> None:
    p.grad = None


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside the block and still referred to.

    Args:
        known: tensors that do not count.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, Any] = {x.untyped_storage()._cdata: None for x in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count its outputs."""
        outputs = func(*args, **(kwargs or {}))
        for x in tree_leaves(outputs):
            if isinstance(x, Tensor) and x.device.type != "meta":
                self._count(x.untyped_storage())
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._sizes:
            return

        def gone(_: Any) -> None:
            del self._sizes[place]
            self.live -= size

        self._sizes[place] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)
