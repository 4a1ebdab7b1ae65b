"""CompVis's U-Net, KL autoencoder and VQ model, written again from the paper and the published parameter names.

Their parameters have the names of github.com/CompVis/latent-diffusion; nothing here knows diffusers.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=eps)


def sinusoids(t: Tensor, width: int) -> Tensor:
    """cos | sin of t · 10000^(−i/half)."""
    half = width // 2
    angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half).float() / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResBlock(nn.Module):
    def __init__(self, channels: int, time_width: int, out: int, scale_shift: bool):
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_width, out * (2 if scale_shift else 1)))
        self.out_layers = nn.Sequential(group_norm(out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h, emb = self.in_layers(x), self.emb_layers(emb)[..., None, None]
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + emb)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """QKVAttentionLegacy: the 3c channels are cut into heads first, and each head's into q, k, v."""

    def __init__(self, channels: int, head_channels: int):
        super().__init__()
        self.heads = channels // head_channels
        self.norm, self.qkv = group_norm(channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        n, c, *space = x.shape
        flat = x.reshape(n, c, -1)
        qkv = self.qkv(self.norm(flat))
        q, k, v = qkv.reshape(n * self.heads, 3 * c // self.heads, -1).split(c // self.heads, dim=1)
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(c // self.heads), dim=-1)
        h = torch.einsum("bts,bcs->bct", weight, v).reshape(n, c, -1)
        return (flat + self.proj_out(h)).reshape(n, c, *space)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Block(nn.Sequential):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, emb)
        return x


class CompVisUNet(nn.Module):
    """`UNetModel` of openaimodel.py, unconditional."""

    def __init__(
        self,
        channels: int,
        multipliers: tuple[int, ...],
        attends: tuple[bool, ...],
        blocks: int,
        head_channels: int,
        latent_channels: int = 3,
        scale_shift: bool = False,
    ):
        super().__init__()
        self.channels, time_width, width = channels, 4 * channels, channels
        self.time_embed = nn.Sequential(nn.Linear(channels, time_width), nn.SiLU(), nn.Linear(time_width, time_width))

        def residual(before: int, after: int, attention: bool) -> list[nn.Module]:
            block: list[nn.Module] = [ResBlock(before, time_width, after, scale_shift)]
            return [*block, AttentionBlock(after, head_channels)] if attention else block

        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(latent_channels, channels, 3, padding=1))])
        skips = [channels]
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.input_blocks.append(Block(*residual(width, multiplier * channels, attends[level])))
                width = multiplier * channels
                skips.append(width)
            if level < len(multipliers) - 1:
                self.input_blocks.append(Block(Downsample(width)))
                skips.append(width)
        self.middle_block = Block(*residual(width, width, True), ResBlock(width, time_width, width, scale_shift))
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for i in range(blocks + 1):
                layers = residual(width + skips.pop(), multiplier * channels, attends[level])
                width = multiplier * channels
                if level and i == blocks:
                    layers.append(Upsample(width))
                self.output_blocks.append(Block(*layers))
        self.out = nn.Sequential(group_norm(width), nn.SiLU(), nn.Conv2d(width, latent_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb, skips = self.time_embed(sinusoids(t, self.channels)), []
        for block in self.input_blocks:
            x = block(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb)
        return self.out(x)


class KlResBlock(nn.Module):
    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = group_norm(channels, 1e-6), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = group_norm(out, 1e-6), nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class KlAttention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = self.norm(x)
        q, k, v = (layer(y).reshape(n, c, h * w) for layer in (self.q, self.k, self.v))
        weight = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(c), dim=2)
        return x + self.proj_out((v @ weight.transpose(1, 2)).reshape(n, c, h, w))


class KlLevel(nn.Module):
    """One of `down` or `up`: blocks, perhaps attention after each, perhaps a change of size."""

    def __init__(self, widths: list[tuple[int, int]], attends: bool, resize: str | None):
        super().__init__()
        self.block = nn.ModuleList(KlResBlock(before, after) for before, after in widths)
        self.attn = nn.ModuleList(KlAttention(after) for _, after in widths) if attends else nn.ModuleList()
        channels = widths[-1][1]
        if resize == "downsample":
            self.downsample = nn.ModuleDict({"conv": nn.Conv2d(channels, channels, 3, stride=2)})
        elif resize == "upsample":
            self.upsample = Upsample(channels)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if len(self.attn) else x
        if hasattr(self, "downsample"):
            return self.downsample["conv"](F.pad(x, (0, 1, 0, 1)))
        return self.upsample(x) if hasattr(self, "upsample") else x


class KlMiddle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            KlResBlock(channels, channels),
            KlAttention(channels),
            KlResBlock(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class KlEncoder(nn.Module):
    def __init__(self, channels: tuple[int, ...], blocks: int, attends: tuple[bool, ...], out_channels: int):
        super().__init__()
        self.conv_in, self.down, before = nn.Conv2d(3, channels[0], 3, padding=1), nn.ModuleList(), channels[0]
        for level, width in enumerate(channels):
            widths = [(before if i == 0 else width, width) for i in range(blocks)]
            last = level == len(channels) - 1
            self.down.append(KlLevel(widths, attends[level], None if last else "downsample"))
            before = width
        self.mid, self.norm_out = KlMiddle(before), group_norm(before, 1e-6)
        self.conv_out = nn.Conv2d(before, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class KlDecoder(nn.Module):
    """`up` is counted from the finest level, and gone through from its end."""

    def __init__(self, channels: tuple[int, ...], blocks: int, attends: tuple[bool, ...], latent_channels: int):
        super().__init__()
        before = channels[-1]
        self.conv_in, self.mid = nn.Conv2d(latent_channels, before, 3, padding=1), KlMiddle(before)
        levels = []
        for level, width in reversed(list(enumerate(channels))):
            widths = [(before if i == 0 else width, width) for i in range(blocks + 1)]
            levels.insert(0, KlLevel(widths, attends[level], "upsample" if level else None))
            before = width
        self.up, self.norm_out = nn.ModuleList(levels), group_norm(before, 1e-6)
        self.conv_out = nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class CompVisAutoencoder(nn.Module):
    """`AutoencoderKL` of autoencoder.py."""

    def __init__(
        self,
        channels: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        attends: tuple[bool, ...] = (False, False),
        latent_channels: int = 3,
    ):
        super().__init__()
        self.encoder = KlEncoder(channels, blocks, attends, 2 * latent_channels)
        self.decoder = KlDecoder(channels, blocks, attends, latent_channels)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Mean and logvar."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


class CompVisVqModel(nn.Module):
    """`VQModelInterface` of autoencoder.py: the latent is what comes before quantisation; the decoder quantises."""

    def __init__(
        self, channels: tuple[int, ...] = (32, 64), blocks: int = 1, z_channels: int = 3, dim: int = 3, codes: int = 50
    ):
        super().__init__()
        attends = (False,) * len(channels)
        self.encoder = KlEncoder(channels, blocks, attends, z_channels)
        self.decoder = KlDecoder(channels, blocks, attends, z_channels)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(codes, dim)})
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z_channels, dim, 1), nn.Conv2d(dim, z_channels, 1)

    def encode(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))

    def nearest(self, z: Tensor) -> Tensor:
        codes = self.quantize["embedding"].weight
        distances = (z[:, :, None] - codes.T[None, :, :, None, None]).square().sum(dim=1)
        return codes[distances.argmin(dim=1)].permute(0, 3, 1, 2)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(self.nearest(z)))


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Weights of some spread everywhere, biases and norms too, so that no mix-up goes unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            spread = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.2
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_norm else spread * noise)
    return module.eval()


def checkpoint(
    unet: CompVisUNet,
    autoencoder: CompVisAutoencoder | CompVisVqModel,
    scale: float | None,
    ema: CompVisUNet | None = None,
) -> dict[str, Tensor]:
    """The `state_dict` that LDM's training writes: U-Net, its moving average, first stage, schedule, scale."""
    state = {f"model.diffusion_model.{name}": value for name, value in unet.state_dict().items()}
    state |= {f"first_stage_model.{name}": value for name, value in autoencoder.state_dict().items()}
    state["betas"] = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64).square().float()
    state["alphas_cumprod"] = torch.cumprod(1 - state["betas"], 0)
    state["first_stage_model.loss.logvar"] = torch.zeros(())
    if scale is not None:
        state["scale_factor"] = torch.tensor(scale)
    if ema is not None:
        state |= {
            "model_ema." + f"diffusion_model.{name}".replace(".", ""): value for name, value in ema.state_dict().items()
        }
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    return state
