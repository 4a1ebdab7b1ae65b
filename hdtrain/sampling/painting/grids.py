"""The grid that is to be painted: read, cut, edited, its holes filled. No torch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import factorized

from hdtrain.config.painting import BlendEdit, Edit, FillEdit, GridBlock, PaintConfig, PasteEdit, one_range
from hdtrain.errors import ConfigError, DataError, ManifestError
from hdtrain.formats.embedding_grid import UNKNOWN_PX, EmbeddingGrid, named_cells, over_cells, read_grid
from hdtrain.formats.tokens import Tokens

_NEARLY_PARALLEL = 0.9995


def open_grid(config: PaintConfig, wanted: Tokens, sampled: EmbeddingGrid | None = None) -> EmbeddingGrid:
    """The grid as it will be painted: every cell is present, with the tokens that the denoiser looks at.

    Args:
        config: of `paint`.
        wanted: what the denoiser looks at.
        sampled: what a prior gave, where the config names one.

    Raises:
        ConfigError: rows or columns that it does not have, an edit that lies outside.
        DataError: unreadable, or it has holes and `holes` is `stop`.
        ManifestError: the source is not published, of another kind, has other tokens, or an edit's source has other
            embeddings.
    """
    if config.grid is not None:
        sampled = read_block(config.grid, "grid", wanted)
    assert sampled is not None, "the config has a grid or a prior"
    grid = edited(sampled, config.edits, wanted)
    return _without_holes(grid, config.holes)


def read_block(block: GridBlock, key: str, wanted: Tokens) -> EmbeddingGrid:
    """Those cells of a source that a block names.

    Raises:
        ConfigError: it does not have such rows or columns.
        DataError: unreadable, or none of the cells is present.
        ManifestError: not published, of another kind, no such slide, other tokens.
    """
    grid = with_tokens(read_grid(block.source, block.name, token=None), wanted, block.source)
    sizes = {"rows": grid.rows, "columns": grid.columns}
    slices, problems = [], []
    for name, size in sizes.items():
        text = getattr(block, name)
        found = one_range(text) if text is not None else range(size)
        if found.stop > size:
            problems.append(f"{key}.{name}: grid '{grid.name}' has {size} {name}, 0-{size - 1}; got {text}")
        slices.append(slice(found.start, found.stop))
    if problems:
        raise ConfigError("paint", problems)
    return grid.crop(*slices)


def with_tokens(grid: EmbeddingGrid, wanted: Tokens, source: Path) -> EmbeddingGrid:
    """The grid as a denoiser can look at it: of several tokens a cell the one, if it looks at one.

    That is the token that it was trained on, by its name; the first one where nobody knows the names.

    Args:
        grid: all of its tokens.
        wanted: what the denoiser looks at.
        source: of the grid, for the message.

    Raises:
        ManifestError: the tokens are others, or lie in another order.
    """
    found = grid.tokens
    if wanted.count == 1 < found.count:
        if found.order is None or wanted.order is None:
            return grid.only(0)
        if wanted.order[0] in found.order:
            return grid.only(found.order.index(wanted.order[0]))
    if not found.fit(wanted):
        raise ManifestError(
            f"{source}: grid '{grid.name}' has {found} a cell, and the denoiser was trained on {wanted}; embed the "
            "slide with the views that the denoiser was trained with, in the same order (files of other programs, and "
            "grids of a prior, hold one token a cell)"
        )
    return grid


def edited(grid: EmbeddingGrid, edits: Sequence[Edit], wanted: Tokens | None = None) -> EmbeddingGrid:
    """The grid after these edits, in their order.

    Args:
        grid: that is painted.
        edits: of the config.
        wanted: what the denoiser looks at; None: the grid's own tokens.

    Raises:
        ConfigError: an edit lies outside the grid.
        ManifestError: its source has embeddings of another dimension or encoder, or other tokens.
        DataError: its source is unreadable, or nothing is left that holes could be filled from.
    """
    for number, edit in enumerate(edits):
        if isinstance(edit, FillEdit):
            grid = _fill(grid, edit, f"edits.{number}")
        else:
            grid = _put(grid, edit, f"edits.{number}", wanted or grid.tokens)
    return grid


def _fill(grid: EmbeddingGrid, edit: FillEdit, key: str) -> EmbeddingGrid:
    rows, columns = one_range(edit.rows), one_range(edit.columns)
    _check_inside(grid, rows.stop, columns.stop, key)
    present, holes = grid.present.copy(), np.zeros_like(grid.present)
    holes[rows.start : rows.stop, columns.start : columns.stop] = True
    present[holes] = False
    if not present.any():
        raise DataError(f"{key}: no cell of grid '{grid.name}' is left to fill the others from; name fewer cells")
    filled = fill_holes(grid.embeddings, present)
    embeddings = np.where(over_cells(holes, filled), filled, grid.embeddings)
    return _changed(grid, embeddings, grid.present | holes, holes)


def _put(grid: EmbeddingGrid, edit: PasteEdit | BlendEdit, key: str, wanted: Tokens) -> EmbeddingGrid:
    block = read_block(edit, key, wanted)
    _check_inside(grid, edit.row + block.rows, edit.column + block.columns, key)
    block.check_encoder(grid.dim, grid.encoder_hash, f"grid '{grid.name}'")
    at = (slice(edit.row, edit.row + block.rows), slice(edit.column, edit.column + block.columns))
    embeddings, present = grid.embeddings.copy(), grid.present.copy()
    changed = np.zeros_like(present)
    changed[at] = block.present
    if isinstance(edit, PasteEdit):
        embeddings[at] = np.where(over_cells(block.present, embeddings), block.embeddings, embeddings[at])
        present[at] |= block.present
    else:
        changed[at] &= present[at]
        mixed = _slerp(embeddings[at], block.embeddings, edit.weight)
        embeddings[at] = np.where(over_cells(changed[at], mixed), mixed, embeddings[at])
    return _changed(grid, embeddings, present, changed)


def _changed(
    grid: EmbeddingGrid,
    embeddings: Float[np.ndarray, "r c *k d"],
    present: Bool[np.ndarray, "r c"],
    changed: Bool[np.ndarray, "r c"],
) -> EmbeddingGrid:
    """With other embeddings; a cell that was changed comes from no place of the slide."""
    return replace(
        grid,
        embeddings=embeddings.astype(np.float32),
        present=present,
        x=np.where(changed, UNKNOWN_PX, grid.x),
        y=np.where(changed, UNKNOWN_PX, grid.y),
    )


def _check_inside(grid: EmbeddingGrid, rows: int, columns: int, key: str) -> None:
    if rows > grid.rows or columns > grid.columns:
        problem = (
            f"{key}: ends at row {rows - 1}, column {columns - 1}, and the grid that is painted ends at row "
            f"{grid.rows - 1}, column {grid.columns - 1}; move it, or name fewer cells"
        )
        raise ConfigError("paint", [problem])


def _without_holes(grid: EmbeddingGrid, holes: str) -> EmbeddingGrid:
    if grid.present.all():
        return grid
    missing = np.argwhere(~grid.present)
    if holes == "stop":
        raise DataError(
            f"grid '{grid.name}' lacks {len(missing)} of its {grid.present.size} cells: {named_cells(missing)}; "
            "holes=fill fills them from those around them, and grid.rows and grid.columns cut a part without holes"
        )
    return _changed(grid, fill_holes(grid.embeddings, grid.present), np.ones_like(grid.present), ~grid.present)


def fill_holes(
    embeddings: Float32[np.ndarray, "r c *k d"], present: Bool[np.ndarray, "r c"]
) -> Float32[np.ndarray, "r c *k d"]:
    """Every absent cell by the harmonic extension of those that are present.

    The direction of a hole is the mean of its four neighbours' directions (fewer at the edge), and so is its length of
    their lengths: the discrete Laplace equation, with unit vectors for values. The length is kept apart, because a mean
    of vectors is shorter than they are.

    Args:
        embeddings: raw; of several tokens a cell each is extended by itself.
        present: which of them count; at least one.
    """
    holes = ~present
    if not holes.any():
        return embeddings
    lengths = np.linalg.norm(embeddings, axis=-1, keepdims=True).astype(np.float64)
    known = np.concatenate([embeddings / np.maximum(lengths, 1e-12), lengths], axis=-1)
    extended = _harmonic(known, present)
    directions, sizes = extended[..., :-1], extended[..., -1:]
    norms = np.linalg.norm(directions, axis=-1, keepdims=True)
    filled = directions / np.maximum(norms, 1e-12) * sizes
    return np.where(over_cells(holes, filled), filled, embeddings).astype(np.float32)


def _harmonic(values: Float[np.ndarray, "r c *k"], present: Bool[np.ndarray, "r c"]) -> Float[np.ndarray, "r c *k"]:
    rows, columns = present.shape
    number = np.arange(rows * columns).reshape(rows, columns)
    pairs = [(number[:-1].ravel(), number[1:].ravel()), (number[:, :-1].ravel(), number[:, 1:].ravel())]
    one, other = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
    ends = (np.concatenate([one, other]), np.concatenate([other, one]))
    adjacent = csr_array((np.ones(len(ends[0])), ends), shape=(number.size,) * 2)
    known, flat = present.ravel(), values.reshape(number.size, -1)
    laplacian = (diags_array(adjacent.sum(axis=1)) - adjacent).tocsr()
    solve = factorized(laplacian[~known][:, ~known].tocsc())
    given = adjacent[~known][:, known] @ np.where(known[:, None], flat, 0)[known]
    found = flat.astype(np.float64).copy()
    found[~known] = np.stack([solve(column) for column in np.ascontiguousarray(given.T)], axis=1)
    return found.reshape(values.shape)


def _slerp(a: Float[np.ndarray, "*n d"], b: Float[np.ndarray, "*n d"], weight: float) -> Float[np.ndarray, "*n d"]:
    """`hdtrain.diffusion.slerp`, without torch."""
    lengths = np.linalg.norm(a, axis=-1, keepdims=True) * np.linalg.norm(b, axis=-1, keepdims=True)
    cosine = (a * b).sum(axis=-1, keepdims=True) / np.maximum(lengths, 1e-30)
    straight = np.abs(cosine) > _NEARLY_PARALLEL
    angle = np.arccos(np.where(straight, 0.0, np.clip(cosine, -1, 1)))
    curved = (np.sin((1 - weight) * angle) * a + np.sin(weight * angle) * b) / np.sin(angle)
    return np.where(straight, (1 - weight) * a + weight * b, curved)
