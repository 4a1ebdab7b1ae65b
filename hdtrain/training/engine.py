"""The one place that imports DeepSpeed: a module with its optimizer, ZeRO stage, clipping, averages, portable state."""

import copy
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from hdtrain.config.batch import BatchPlan
from hdtrain.config.engine import EmaConfig, EngineConfig, OptimConfig
from hdtrain.distributed.collectives import all_reduce_sum, device
from hdtrain.distributed.world import World
from hdtrain.errors import CheckpointError, ConfigError
from hdtrain.models.checkpointing import checkpoint_activations
from hdtrain.models.ema import profiles
from hdtrain.training.memory import BUCKET_ELEMENTS, zero_settings
from hdtrain.training.optimizer import AveragingAdamW

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

import deepspeed  # noqa: E402
import deepspeed.ops  # noqa: E402

# DeepSpeed imports this at a process's first engine, and with it torch.compile's backend: 3 s of CPU that a warm
# worker would pay for every stage.
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402
from deepspeed.utils import (  # noqa: E402
    logger as deepspeed_logger,
)
from deepspeed.utils import (  # noqa: E402
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

deepspeed_logger.setLevel(logging.WARNING)
# On the CPU, DeepSpeed compiles a shared-memory all-reduce at its first start: 40 s and a C++ compiler, for nothing
# that gloo does not do.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

State = dict[str, dict[str, Tensor]]
"""Tensors by file stem and name."""


class Engine:
    """One module under DeepSpeed. Gradients are averaged over accumulation steps and ranks by DeepSpeed.

    The state that it gives and takes is in full fp32 tensors by parameter name: independent of world size and stage.

    Args:
        name: of the files and metrics.
        module: what is trained; every parameter of it.
        optim: optimizer.
        plan: batch.
        config: stage, precision, how a step is computed.
        ema: moving averages to keep; None: none.

    Raises:
        ConfigError: bf16 for a module with batch normalisation, whose running statistics must stay in fp32.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optim: OptimConfig,
        plan: BatchPlan,
        config: EngineConfig,
        ema: EmaConfig | None = None,
    ):
        self.name, self.config, self.optim, self.ema, self.steps = name, config, optim, ema, 0
        if config.precision == "bf16" and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
            problem = f"bf16 does not go with the batch normalisation of '{name}'; set engine.precision=fp32"
            raise ConfigError("engine.precision", [problem])
        self.skeleton = copy.deepcopy(module).to("meta")
        """The module's form without its weights."""
        self.module = module.to(device())
        self._shapes = {name: p.shape for name, p in module.named_parameters()}
        if config.activation_checkpointing:
            checkpoint_activations(self.module)
        if config.compile:
            self.module.compile()
        parameters = list(self.module.parameters())
        averages = profiles(ema.decay, ema.post_hoc) if ema else {}
        self._inner = AveragingAdamW(parameters, optim, averages, self._permits)
        deepspeed_logger.setLevel(logging.ERROR)  # it warns of every optimizer that is not torch's or its own
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self.module,
            model_parameters=parameters,
            optimizer=self._inner,
            config=_deepspeed_config(optim, plan, config, sum(p.numel() for p in parameters)),
            dist_init_required=False,
        )
        deepspeed_logger.setLevel(logging.WARNING)
        self._limit, self._taken, self._pending = math.inf, False, False
        self._norm_of_stage_0: float | None = None
        self._make_optimizer_state()

    def __call__(self, *inputs: Tensor) -> Any:
        """Forward; floating-point inputs are cast to the engine's dtype."""
        return self._engine(*(self.cast(x) for x in inputs))

    def cast(self, x: Tensor) -> Tensor:
        """A floating-point tensor in the engine's dtype and memory format, for calls of the bare module."""
        if self.config.precision == "bf16" and torch.is_floating_point(x):
            x = x.bfloat16()
        return x.contiguous(memory_format=torch.channels_last) if self.config.channels_last and x.ndim == 4 else x

    def backward(self, loss: Tensor) -> None:
        """Backward of one pass; after the last pass of an accumulation the gradients wait for `step`."""
        self._engine.backward(loss)
        self._pending = self._engine.is_gradient_accumulation_boundary()
        if not self._pending:
            self._engine.step()  # counts the pass

    def step(self, lr: float, max_grad_norm: float = math.inf) -> bool | None:
        """Update the weights, unless the gradient's norm is not finite or above `max_grad_norm`.

        Returns:
            Whether the update was taken; None where there were no gradients. The same on every rank.
        """
        if not self._pending:
            return None
        for group in self._inner.param_groups:
            group["lr"] = lr
        self._limit, self._taken, self._pending = max_grad_norm, False, False
        self._engine.step()
        if self._taken:
            self.steps += 1
            self._inner.updates = self.steps
        return self._taken

    def _permits(self) -> bool:
        """Asked by the optimizer when DeepSpeed has reduced and measured the gradients."""
        if not self._partitioned:  # stage 0 clips without telling the norm, so it is clipped here
            clip = self.optim.clip_grad_norm or math.inf
            self._norm_of_stage_0 = float(nn.utils.clip_grad_norm_(self.module.parameters(), clip))
        norm = self.grad_norm
        self._taken = norm is not None and math.isfinite(norm) and 0 <= norm <= self._limit
        return self._taken

    @property
    def grad_norm(self) -> float | None:
        """Global gradient norm of the last step, before clipping; None before the first."""
        norm = getattr(self._optimizer, "_global_grad_norm", None) if self._partitioned else self._norm_of_stage_0
        return None if norm is None else float(norm)

    @property
    def _partitioned(self) -> bool:
        return self.config.zero_stage > 0

    def _masters(self) -> list[Tensor]:
        """The fp32 weights that this rank's optimizer updates."""
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
            if hasattr(self._optimizer, name):
                return list(getattr(self._optimizer, name))
        return [p for group in self._inner.param_groups for p in group["params"]]

    def _make_optimizer_state(self) -> None:
        """DeepSpeed would make it at its first step only."""
        self._inner.make_state(self._masters(), self.steps)
        if self.config.zero_stage in (1, 2):
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def gathered(self, what: str = "weights") -> Iterator[tuple[str, Tensor]]:
        """Name and full fp32 tensor of every weight: `weights`, a moment or an average. A collective."""
        stage, parameters = self.config.zero_stage, list(self.module.named_parameters())
        if what == "weights" and self.config.precision == "fp32" and stage < 3:
            yield from ((name, p.detach()) for name, p in parameters)
        elif stage == 0:
            yield from ((name, self._inner.state[p][what]) for name, p in parameters)
        elif stage == 3:
            for name, p in parameters:
                full = safe_get_full_fp32_param(p) if what == "weights" else safe_get_full_optimizer_state(p, what)
                yield name, full.reshape(self._shapes[name])
        else:
            yield from self._gathered_in_buckets(parameters, None if what == "weights" else what)

    def _gathered_in_buckets(self, parameters: list[tuple[str, Any]], what: str | None) -> Iterator[tuple[str, Tensor]]:
        """At stages 1 and 2: one all-reduce for many weights, of which each rank knows some fragments.

        DeepSpeed's own function makes one for each weight, some thousand for a checkpoint.
        """
        while parameters:
            bucket = [parameters.pop(0)]
            size = bucket[0][1].numel()
            while parameters and size + parameters[0][1].numel() <= BUCKET_ELEMENTS:
                size += parameters[0][1].numel()
                bucket.append(parameters.pop(0))
            flat, start = torch.zeros(size, device=device()), 0
            for _, p in bucket:
                if p._hp_mapping is not None:
                    place = p._hp_mapping.lp_fragment_address
                    flat.narrow(0, start + place.start, place.numel).copy_(p._hp_mapping.get_hp_fragment(what))
                start += p.numel()
            all_reduce_sum(flat)
            parts = flat.split([p.numel() for _, p in bucket])
            yield from ((name, part.view(self._shapes[name])) for (name, _), part in zip(bucket, parts, strict=True))

    @torch.no_grad()
    def replica(self, which: str = "weights") -> nn.Module:
        """A plain fp32 copy of the module with full weights, or an average of them, on every rank. A collective.

        Args:
            which: `weights`, or an average's name.

        Returns:
            The module in eval mode, without gradients and without DeepSpeed.
        """
        module = copy.deepcopy(self.skeleton).to_empty(device=device()).requires_grad_(False).eval()
        parameters = dict(module.named_parameters())
        for name, value in self.gathered(which):
            parameters[name].copy_(value)
        buffers = dict(self.module.named_buffers())
        for name, value in module.named_buffers():
            value.copy_(buffers[name])
        return module

    def _buffers(self) -> dict[str, Tensor]:
        """What the module keeps besides parameters: running statistics."""
        return {name: value for name, value in self.module.state_dict().items() if name not in self._shapes}

    def state(self, is_main: bool) -> State:
        """Everything that `load` needs, copied to the CPU of the main rank; elsewhere nothing. A collective."""
        found: State = {}
        for what in ["weights", *self._inner.state_names]:
            for name, value in self.gathered(what):
                if is_main:
                    found.setdefault(f"{self.name}.{what}", {})[name] = _copied_to_cpu(value)
        if is_main and (buffers := self._buffers()):
            found[f"{self.name}.buffers"] = {name: _copied_to_cpu(value) for name, value in buffers.items()}
        return found

    def averages(self, names: list[str], is_main: bool) -> dict[str, Tensor]:
        """Full averages as `AVERAGE/PARAMETER`, on the CPU of the main rank. A collective."""
        gathered = ((f"{what}/{name}", value) for what in names for name, value in self.gathered(what))
        return {name: _copied_to_cpu(value) for name, value in gathered if is_main}

    @torch.no_grad()
    def load(self, folder: Path, steps: int) -> None:
        """Restore the `state` that was written to `folder` after `steps` updates.

        Raises:
            CheckpointError: names or shapes differ from this module's.
        """
        weights = self._read(folder, "weights")
        for name, p in self.module.named_parameters():
            self._set_weight(p, weights[name])
        if buffers := self._buffers():
            kept = load_file(folder / f"{self.name}.buffers.safetensors", str(device()))
            for name, value in buffers.items():
                value.copy_(kept[name])
        self.steps = steps
        self._make_optimizer_state()
        for what in self._inner.state_names:
            values = self._read(folder, what)
            for name, p in self.module.named_parameters():
                self._set_state(p, values[name], what)

    def _read(self, folder: Path, what: str) -> dict[str, Tensor]:
        path = folder / f"{self.name}.{what}.safetensors"
        if not path.exists():
            raise CheckpointError(f"{folder}: holds no {path.name}: it was written with other settings of `ema`")
        with safe_open(path, "pt", str(device())) as file:
            found = {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if found != self._shapes:
                wrong = sorted(set(self._shapes.items()) ^ set(found.items()))[:3]
                raise CheckpointError(f"{folder}: {what} of '{self.name}' do not fit the model, first: {wrong}")
            return {name: file.get_tensor(name) for name in found}

    def _set_weight(self, p: nn.Parameter, value: Tensor) -> None:
        if self.config.zero_stage == 3:
            with deepspeed.zero.GatheredParameters([p], modifier_rank=0):
                p.copy_(value)
            safe_set_local_fp32_param(p, _part_of_this_rank(p, value))
            return
        p.copy_(value)
        if self._partitioned:
            safe_set_full_fp32_param(p, value)

    def _set_state(self, p: nn.Parameter, value: Tensor, what: str) -> None:
        if self.config.zero_stage == 3:
            safe_set_local_optimizer_state(p, _part_of_this_rank(p, value), what)
        elif self._partitioned:
            safe_set_full_optimizer_state(p, value, what)
        else:
            self._inner.state[p][what].copy_(value)


def _part_of_this_rank(p: Any, value: Tensor) -> Tensor:
    """What stage 3 keeps of `value` here. DeepSpeed's own cut forgets that the last part is padded."""
    world, size = World.from_environment(), p.ds_tensor.numel()
    padded = nn.functional.pad(value.flatten(), (0, size * world.size - value.numel()))
    return padded.narrow(0, size * world.rank, size)


def _copied_to_cpu(value: Tensor) -> Tensor:
    """A copy that later steps do not change."""
    return value.detach().to("cpu", copy=True).contiguous()


def _deepspeed_config(optim: OptimConfig, plan: BatchPlan, config: EngineConfig, num_parameters: int) -> dict[str, Any]:
    """A fresh dict an engine: DeepSpeed writes into what it is given."""
    precision: dict[str, Any] = {}
    if config.precision == "bf16":
        precision = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "train_batch_size": plan.micro_batch_size * plan.accumulation_steps * World.from_environment().size,
        "zero_optimization": zero_settings(config.zero_stage, num_parameters),
        # Stated always: left out, DeepSpeed 0.19 clips at 1.0. At stage 0 the engine clips.
        "gradient_clipping": optim.clip_grad_norm if config.zero_stage else 0.0,
        "zero_allow_untested_optimizer": True,
        **precision,
    }
