"""The one place that imports DeepSpeed: a module with its optimizer, ZeRO stage, clipping and portable state."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hdtrain.config.batch import BatchPlan
from hdtrain.config.training import EngineConfig, OptimConfig
from hdtrain.distributed.collectives import device
from hdtrain.distributed.world import World
from hdtrain.errors import CheckpointError, ConfigError

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
)

deepspeed_logger.setLevel(logging.WARNING)
# On the CPU, DeepSpeed compiles a shared-memory all-reduce at its first start: 40 s and a C++ compiler, for nothing
# that gloo does not do.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine:
    """One module under DeepSpeed. Gradients are averaged over accumulation steps and ranks by DeepSpeed.

    The state that it saves and loads is in full fp32 tensors by parameter name: independent of world size and stage.

    Raises:
        ConfigError: bf16 for a module with batch normalisation, whose running statistics must stay in fp32.
    """

    def __init__(self, name: str, module: nn.Module, optim: OptimConfig, plan: BatchPlan, config: EngineConfig):
        self.name, self.config = name, config
        if config.precision == "bf16" and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
            problem = f"bf16 does not go with the batch normalisation of '{name}'; set engine.precision=fp32"
            raise ConfigError("engine.precision", [problem])
        self.module = module.to(device())
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=torch.compile(self.module) if config.compile else self.module,
            model_parameters=parameters,
            optimizer=optimizer,
            config=_deepspeed_config(optim, plan, config),
            dist_init_required=False,
        )
        self._inner = getattr(self._optimizer, "optimizer", self._optimizer)
        self.steps = 0

    def __call__(self, *inputs: Tensor) -> Any:
        """Forward; floating-point inputs are cast to the engine's dtype."""
        return self._engine(*(self.cast(x) for x in inputs))

    def cast(self, x: Tensor) -> Tensor:
        """A floating-point tensor in the engine's dtype, for calls of the bare module."""
        return x.bfloat16() if self.config.precision == "bf16" and torch.is_floating_point(x) else x

    @torch.no_grad()
    def finish(self) -> None:
        """End of training: the module in fp32 with the master weights. A collective where they are partitioned."""
        masters = {name: value.clone() for name, value in self.master_weights().items()}
        self.module.float()
        for name, p in self._named_parameters():
            p.copy_(masters[name])
        self.config = self.config.model_copy(update={"precision": "fp32"})

    def backward_and_step(self, loss: Tensor, lr: float) -> None:
        """Backward; at the end of an accumulation an optimizer step with `lr`."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._engine.backward(loss)
        self.steps += int(self._engine.is_gradient_accumulation_boundary())
        self._engine.step()

    @property
    def grad_norm(self) -> float | None:
        """Global gradient norm of the last step, before clipping; None where it was not computed."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]

    def master_weights(self) -> dict[str, Tensor]:
        """Trained weights in fp32, by name. A collective where the masters are partitioned (bf16)."""
        if self.config.precision == "fp32":
            return {name: p.detach() for name, p in self._named_parameters()}
        return {name: safe_get_full_fp32_param(p) for name, p in self._named_parameters()}

    def _buffers(self) -> dict[str, Tensor]:
        """What the module keeps besides parameters: running statistics."""
        parameters = dict(self.module.named_parameters())
        return {name: value for name, value in self.module.state_dict().items() if name not in parameters}

    def save(self, folder: Path, is_main: bool) -> None:
        """Write `NAME.weights`, `NAME.moments` and, if there are any, `NAME.buffers` safetensors into `folder`.

        All ranks call it, the main one writes.
        """
        weights, moments = self.master_weights(), {}
        if self.steps > 0:  # before its first step an optimizer has no moments
            moments = {f"{n}.{m}": self._moment(p, m) for n, p in self._named_parameters() for m in MOMENTS}
        if is_main:
            save_file(_on_cpu(weights), folder / f"{self.name}.weights.safetensors")
            save_file(_on_cpu(moments), folder / f"{self.name}.moments.safetensors", {"steps": str(self.steps)})
            if buffers := self._buffers():
                kept = {name: value.detach().cpu().contiguous() for name, value in buffers.items()}
                save_file(kept, folder / f"{self.name}.buffers.safetensors")

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote.

        Raises:
            CheckpointError: names or shapes differ from this module's.
        """
        weights = load_file(folder / f"{self.name}.weights.safetensors", str(device()))
        expected = {name: p.shape for name, p in self._named_parameters()}
        found = {name: value.shape for name, value in weights.items()}
        if expected != found:
            wrong = sorted(set(expected.items()) ^ set(found.items()))[:3]
            raise CheckpointError(f"{folder}: weights of '{self.name}' do not fit the model, first: {wrong}")
        for name, p in self._named_parameters():
            with torch.no_grad():
                p.copy_(weights[name])
            if self._partitioned:
                safe_set_full_fp32_param(p, weights[name])
        if buffers := self._buffers():
            kept = load_file(folder / f"{self.name}.buffers.safetensors", str(device()))
            for name, value in buffers.items():
                value.copy_(kept[name])
        with safe_open(folder / f"{self.name}.moments.safetensors", "pt", str(device())) as moments:
            self.steps = int(moments.metadata()["steps"])
            if self.steps > 0:
                self._make_optimizer_state()
                for name, p in self._named_parameters():
                    for moment in MOMENTS:
                        self._set_moment(p, moment, moments.get_tensor(f"{name}.{moment}"))

    def _make_optimizer_state(self) -> None:
        """AdamW's state as after `steps` steps, moments still zero; DeepSpeed would make it at its first step only."""
        for group in self._inner.param_groups:
            for p in group["params"]:
                self._inner.state[p] = {
                    "step": torch.tensor(float(self.steps), device=p.device),
                    "exp_avg": torch.zeros_like(p, dtype=torch.float32),
                    "exp_avg_sq": torch.zeros_like(p, dtype=torch.float32),
                }
        if self._partitioned:
            self._optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def _partitioned(self) -> bool:
        return self.config.zero_stage > 0

    def _moment(self, p: nn.Parameter, moment: str) -> Tensor:
        value: Tensor = safe_get_full_optimizer_state(p, moment) if self._partitioned else self._inner.state[p][moment]
        return value

    def _set_moment(self, p: nn.Parameter, moment: str, value: Tensor) -> None:
        if self._partitioned:
            safe_set_full_optimizer_state(p, value, moment)
        else:
            self._inner.state[p][moment].copy_(value)


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in tensors.items()}


def _deepspeed_config(optim: OptimConfig, plan: BatchPlan, config: EngineConfig) -> dict[str, Any]:
    """A fresh dict an engine: DeepSpeed writes into what it is given."""
    precision: dict[str, Any] = {}
    if config.precision == "bf16":
        precision = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "train_batch_size": plan.micro_batch_size * plan.accumulation_steps * World.from_environment().size,
        "zero_optimization": {"stage": config.zero_stage},
        # Stated always: left out, DeepSpeed 0.19 clips at 1.0.
        "gradient_clipping": optim.clip_grad_norm,
        "zero_allow_untested_optimizer": True,
        **precision,
    }
