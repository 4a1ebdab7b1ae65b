"""Config of `paint`: one large image from a grid of embeddings."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from hdtrain.config.base import AutoencoderParent, Config, DenoiserParent, Incidental, InputFile, PublishedOrRaw
from hdtrain.config.prior import PriorConditions, PriorParent
from hdtrain.config.ranges import parse_ranges

GridPlace = Annotated[
    Path,
    PublishedOrRaw(("embeddings", "grids"), (".npz", ".npy", ".h5", ".hdf5", ".parquet"), content=True),
]
"""A run of kind `embeddings` or `grids`, or a file of embeddings, whose content counts."""


def one_range(text: str) -> range:
    """The rows or columns that a key names, as `0-7` or `3`.

    Raises:
        ValueError: not of that form, or several.
    """
    found = parse_ranges(text)
    if len(found) > 1:
        raise ValueError(f"expected one range as in 0-7, got '{text}'")
    return found[0]


def _range_text(value: Any) -> Any:
    """`rows: 3` is a number in YAML."""
    text = str(value) if type(value) is int else value
    if isinstance(text, str):
        one_range(text)
    return text


Range = Annotated[str, BeforeValidator(_range_text)]


def _rule_or_eta(value: Any) -> Any:
    """Told in one line; pydantic tells one for each form that a value may have."""
    try:
        fits = value == "released_code" or 0 <= float(value) <= 1
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"expected released_code, or η of DDIM from 0 to 1, got {value!r}")
    return value


class GridBlock(Config):
    """Part of a grid: where it lies, and which of its cells."""

    source: GridPlace
    name: str | None = None
    """The slide, where the source holds several."""
    rows: Range | None = None
    """Of the source, as `0-7`; None: all."""
    columns: Range | None = None


class PasteEdit(GridBlock):
    """Put a block of another grid, or of the same, in the place of what is there."""

    kind: Literal["paste"] = "paste"
    row: int = Field(ge=0)
    """Of the grid that is painted, where the block's first cell comes."""
    column: int = Field(ge=0)


class BlendEdit(GridBlock):
    """Go from what is there towards a block of another grid, by slerp in every cell that both have."""

    kind: Literal["blend"] = "blend"
    row: int = Field(ge=0)
    column: int = Field(ge=0)
    weight: float = Field(0.5, ge=0, le=1)
    """0: what is there; 1: the block."""


class FillEdit(Config):
    """Forget cells, and fill them from those around them."""

    kind: Literal["fill"] = "fill"
    rows: Range
    """Of the grid that is painted."""
    columns: Range


Edit = Annotated[PasteEdit | BlendEdit | FillEdit, Field(discriminator="kind")]


class PaintConfig(PriorConditions):
    """One large image from a grid of embeddings: `hdtrain paint`. The same image from any number of ranks."""

    denoiser: DenoiserParent
    """Conditioned on embeddings, one an image or several."""
    decoder: AutoencoderParent | None = None
    """The autoencoder, or D′; None for a denoiser of pixels."""
    grid: GridBlock | None = None
    prior: PriorParent | None = None
    """In place of `grid`: a prior that is told `label`, `text`, `text_vectors` or `numeric`."""
    prior_guidance: float = Field(2.0, ge=0)
    """As `guidance` of `sample-grids`."""
    prior_steps: int = Field(200, ge=1)
    """As `steps` of `sample-grids`."""
    edits: list[Edit] = Field([])
    """In their order."""
    holes: Literal["stop", "fill"] = "stop"
    """Cells that the grid lacks: `stop`, or `fill` them from those around them."""
    steps: int = Field(50, ge=1)
    """Of DDIM: must divide the denoiser's training timesteps."""
    guidance: float = Field(4.0, ge=0)
    """w of ε_u + w·(ε_c − ε_u); 1 is the condition alone."""
    stride: int | None = Field(None, ge=1)
    """Places on the latent canvas from one window to the next; None: a quarter of the window."""
    weights: Literal["uniform", "gaussian", "cosine"] = "cosine"
    """Of a window's places in the average of ẑ_0. Published: `uniform`, whose borders show (docs/benchmarks)."""
    blend: Literal["uniform", "gaussian", "cosine"] = "cosine"
    """Of a window's pixels in the average of what was decoded. Published: `gaussian`."""
    noise: Annotated[Literal["released_code"] | float, BeforeValidator(_rule_or_eta)] = "released_code"
    """σ of a step: as in the released notebook, or η of DDIM."""
    clip_latents: float | None = Field(None, gt=0)
    """Clamp the averaged scaled ẑ_0 to ± this; None: no clamp."""
    seed: int = Field(0, ge=0)
    batch_size: int = Field(16, ge=1)
    """Windows that the networks see at once."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """Of the networks. `bf16`: the canvas and the decoder stay fp32. `fp64`: everything."""
    output: Literal["auto", "png", "tiff"] = "auto"
    """`auto`: PNG up to 4096² pixels, a tiled pyramidal TIFF above."""
    compression: Literal["deflate", "jpeg"] = "deflate"
    """Of a TIFF; deflate loses nothing."""
    jpeg_quality: int = Field(90, ge=1, le=100)
    tile_px: Literal[256, 512] = 256
    """Of a TIFF."""
    compare_with: Annotated[Path | None, InputFile()] = None
    """A real image or slide: its seams are measured at the same lines, for comparison."""
    preview_every: Annotated[int, Field(ge=1), Incidental()] = 5
    """Steps between two pictures of `RUN/preview.png`."""
    save_every: Annotated[int, Field(ge=1), Incidental()] = 10
    """Steps between two saves of the canvas."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.grid is None) == (self.prior is None):
            raise ValueError("give grid.source, or prior and what it is told; one of them")
        told = [name for name in PriorConditions.model_fields if getattr(self, name) is not None]
        if self.prior is None and told:
            raise ValueError(f"{', '.join(told)} is for a prior; give prior=RUN in place of grid")
        return self
