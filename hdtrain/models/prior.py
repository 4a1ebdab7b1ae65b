"""The prior's network: a transformer over the cells of a grid of embeddings (method, section 9).

Blocks of DiT (Peebles & Xie 2023) with adaLN-Zero by timestep and conditions, and a cross-attention to the conditions'
tokens in each. Cells have 2-D sin-cos positions, so that grids of other sizes go through the same weights.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from hdtrain.config.presets import PRIORS

MODALITIES = ("class", "text", "numeric")
"""The columns of `given`."""
_TIME_CHANNELS, _MLP_RATIO, _POSITION_BASE = 256, 4, 10_000.0


def grid_positions(rows: int, columns: int, width: int, device: torch.device | None = None) -> Float[Tensor, "n w"]:
    """Sin-cos positions of the cells, row by row, as of MAE and DiT (He et al. 2022).

    The first half is of the column, the second of the row: sin(p·ω_k), then cos(p·ω_k), ω_k = 10000^(−4k/width).

    Args:
        rows: of the grid.
        columns: of the grid.
        width: a multiple of 4.
        device: of the result.
    """
    omega = _POSITION_BASE ** -(torch.arange(width // 4, dtype=torch.float64, device=device) / (width // 4))

    def along(count: int) -> Tensor:
        angles = torch.arange(count, dtype=torch.float64, device=device)[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    of_column = along(columns)[None, :].expand(rows, -1, -1)
    of_row = along(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([of_column, of_row], dim=2).reshape(rows * columns, width).float()


class Attention(nn.Module):
    """Multi-head attention of queries to keys, some of which may be hidden."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "n l w"], context: Float[Tensor, "n k w"], seen: Bool[Tensor, "n k"] | None = None
    ) -> Float[Tensor, "n l w"]:
        """What each query takes from the keys that are `seen`."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), *self.key_value(context).chunk(2, dim=2))
        )
        mask = None if seen is None else seen[:, None, None, :]
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention among the cells, attention to the conditions, and two layers; each begins as nothing (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, conditional: bool):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.among_cells = Attention(width, heads)
        self.norm_of_conditions = nn.LayerNorm(width, eps=1e-6) if conditional else None
        self.to_conditions = Attention(width, heads) if conditional else None
        self.layers = nn.Sequential(
            nn.Linear(width, _MLP_RATIO * width), nn.GELU("tanh"), nn.Linear(_MLP_RATIO * width, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x: Float[Tensor, "n l w"], how: Float[Tensor, "n w"], tokens: Float[Tensor, "n k w"], present: Tensor
    ) -> Float[Tensor, "n l w"]:
        """One block.

        Args:
            x: features of the cells.
            how: timestep and conditions in one vector.
            tokens: of the conditions; k may be 0.
            present: cells that are there.
        """
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(how)[:, None].chunk(6, dim=2)
        h = self.norms[0](x) * (1 + scale) + shift
        x = x + gate * self.among_cells(h, h, present)
        if self.norm_of_conditions is not None and self.to_conditions is not None:
            x = x + self.to_conditions(self.norm_of_conditions(x), tokens)
        h = self.norms[1](x) * (1 + scale_2) + shift_2
        out: Tensor = x + gate_2 * self.layers(h)
        return out


class GridPrior(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """ẑ_0 of a standardised grid from z_t, with or without class, text and numbers.

    Args:
        dim: features of an embedding.
        width: of the transformer.
        layers: blocks.
        heads: of attention.
        num_classes: 0: without classes.
        text_dim: features of a text's vector; 0: without texts.
        numeric_dim: numbers; 0: without.
    """

    @register_to_config
    def __init__(
        self,
        dim: int,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        num_classes: int = 0,
        text_dim: int = 0,
        numeric_dim: int = 0,
    ):
        super().__init__()
        self.sizes = (num_classes, text_dim, numeric_dim)
        self.enter = nn.Linear(dim, width)
        self.time = Timesteps(_TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(_TIME_CHANNELS, width)
        makers: tuple[Callable[[int], nn.Module], ...] = (
            lambda count: nn.Embedding(count, width),
            lambda features: _projection(features, width),
            lambda features: _projection(features, width),
        )
        used = [index for index, size in enumerate(self.sizes) if size]
        self.modalities = nn.ModuleDict({MODALITIES[i]: makers[i](self.sizes[i]) for i in used})
        self.hidden = nn.ParameterDict({MODALITIES[i]: nn.Parameter(torch.zeros(width)) for i in used})
        self.blocks = nn.ModuleList(Block(width, heads, bool(used)) for _ in range(layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.leave = nn.Linear(width, dim)
        self._checkpointing = False
        self._start()

    def _start(self) -> None:
        """As DiT begins: Xavier, and nothing for what a block adds and for the output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.3)
        blocks: list[Any] = list(self.blocks)
        silent = [self.modulation[1], self.leave, *(block.modulation[1] for block in blocks)]
        silent += [block.to_conditions.out for block in blocks if block.to_conditions is not None]
        for module in silent:
            nn.init.zeros_(module.weight)

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Compute a block's activations again in the backward pass, instead of keeping them."""
        self._checkpointing = enable

    def forward(
        self,
        z: Float[Tensor, "n r c d"],
        t: Int[Tensor, " n"],
        present: Bool[Tensor, "n r c"],
        given: Bool[Tensor, "n 3"],
        labels: Int[Tensor, " n"],
        text: Float[Tensor, "n k"],
        numeric: Float[Tensor, "n m"],
    ) -> Float[Tensor, "n r c d"]:
        """ẑ_0 at (z_t, t). What cells that are absent hold has no influence on the others.

        Args:
            z: z_t.
            t: timesteps.
            present: cells that are there.
            given: which of class, text and numbers are told; the others are hidden.
            labels: classes; any valid one where hidden.
            text: vectors as `UnitVectors` gives them; of width 0 without texts.
            numeric: standardised; of width 0 without numbers.
        """
        count, rows, columns, _ = z.shape
        seen = present.flatten(1)
        x = self.enter(torch.where(present[..., None], z, 0).flatten(1, 2))
        x = x + grid_positions(rows, columns, x.shape[2], z.device).to(x.dtype)
        how = self.time_embedding(self.time(t).to(x.dtype))
        tokens = self._tokens(given, (labels, text, numeric), x)
        how = how + tokens.sum(1)
        for block in self.blocks:
            if self._checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, how, tokens, seen, use_reentrant=False)
            else:
                x = block(x, how, tokens, seen)
        shift, scale = self.modulation(how)[:, None].chunk(2, dim=2)
        out: Tensor = self.leave(self.norm(x) * (1 + scale) + shift)
        return out.view(count, rows, columns, -1)

    def _tokens(self, given: Tensor, values: tuple[Tensor, ...], like: Tensor) -> Float[Tensor, "n k w"]:
        """One token a modality, a learned one where it is hidden."""
        found = [like.new_zeros(len(like), 0, like.shape[2])]
        for index, (name, value) in enumerate(zip(MODALITIES, values, strict=True)):
            if name in self.modalities:
                token = self.modalities[name](value if index == 0 else value.to(like.dtype))
                found.append(torch.where(given[:, index, None], token, self.hidden[name].to(like.dtype))[:, None])
        return torch.cat(found, dim=1)


def _projection(features: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))


def build_prior(preset: str, dim: int, num_classes: int = 0, text_dim: int = 0, numeric_dim: int = 0) -> GridPrior:
    """A fresh one of `PRIORS`."""
    sizes = PRIORS[preset]
    return GridPrior(dim, sizes.width, sizes.layers, sizes.heads, num_classes, text_dim, numeric_dim)
