"""The canvas of one patch: haematoxylin and eosin concentration maps, smooth noise, scattered points and nuclei.

Lengths are in units of which about 64 make the patch's side, so the same picture is drawn at any size in pixels.
The canvas has twice the patch's resolution; `Canvas.reduced` averages it down, which is the anti-aliasing.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
OVERSAMPLING = 2
EDGE = 0.9
"""Width of a nucleus' soft border."""


class Canvas:
    """Two concentration maps of `size_px * 2` pixels a side, both zero at first, and the generator that draws on them.

    The field of view is `64 / zoom` units wide.
    """

    def __init__(self, size_px: int, rng: np.random.Generator, zoom: float = 1.0):
        self.rng = rng
        self.field = 64 / zoom
        self.side_px = size_px * OVERSAMPLING
        self.pitch = self.field / self.side_px
        axis = (np.arange(self.side_px, dtype=np.float32) + np.float32(0.5)) * self.pitch
        self.y, self.x = axis[:, None], axis[None, :]
        self.haematoxylin: Array = np.zeros((self.side_px, self.side_px), np.float32)
        self.eosin: Array = np.zeros_like(self.haematoxylin)

    def noise(self, scale: float) -> Array:
        """Smooth noise of about unit variance whose features are `scale` units wide."""
        basis = _spline_basis(self.side_px, self.field / scale)
        knots = self.rng.standard_normal((basis.shape[1], basis.shape[1]), np.float32)
        # einsum and not `@`: BLAS may sum in another order with another number of threads.
        rows = np.einsum("ik,kl->il", basis, knots)
        return np.einsum("il,jl->ij", rows, basis) / 0.48

    def at(self, field: Array, points: Array) -> Array:
        """Values of a map at points (n, 2) given as (y, x); points outside take the nearest border value."""
        pixels = np.clip((points / self.pitch).astype(int), 0, self.side_px - 1)
        return field[pixels[:, 0], pixels[:, 1]]

    def scatter(self, count: int, spacing: float, weight: Array | None = None) -> Array:
        """At most `count` points (n, 2) at least `spacing` apart; `weight` is their chance (0..1) of being kept.

        Points may lie a little outside the field, so that nuclei are cut by the border.
        """
        candidates = self.rng.uniform(-4, self.field + 4, (8 * count, 2)).astype(np.float32)
        if weight is not None:
            candidates = candidates[self.rng.random(len(candidates)) < self.at(weight, candidates)]
        chosen: list[Array] = []
        while len(candidates) and len(chosen) < count:
            chosen.append(candidates[0])
            candidates = candidates[((candidates - candidates[0]) ** 2).sum(axis=1) > spacing**2]
        return np.array(chosen, np.float32).reshape(-1, 2)

    def nuclei(
        self,
        points: Array,
        *,
        radius: tuple[float, float],
        elongation: tuple[float, float] = (1.0, 1.25),
        angle: Array | None = None,
        irregularity: float = 0.0,
        vesicular: float = 0.0,
        darkness: float = 1.0,
    ) -> None:
        """Stamp nuclei at `points`.

        `radius` is the range of the short half axis and `elongation` that of long over short; `angle` (n) points
        the long axis, at random when None; `irregularity` dents the outline; `vesicular` (0..1) pales the inside
        and leaves a dark rim and a nucleolus.
        """
        if not len(points):
            return
        column = (len(points), 1, 1)
        minor = self._uniform(*radius, column)
        major = minor * self._uniform(*elongation, column)
        turn = (self._uniform(0, np.pi, column) if angle is None else angle.astype(np.float32)).reshape(column)
        half_px = int(np.ceil((float(major.max()) * (1 + irregularity) + EDGE) / self.pitch))
        corner = np.floor(points / self.pitch).astype(int) - half_px
        offsets = np.arange(2 * half_px + 1) + 0.5
        dy, dx = np.moveaxis(
            ((corner[:, :, None] + offsets) * self.pitch - points[:, :, None]).astype(np.float32), 1, 0
        )
        dy, dx = dy[:, :, None], dx[:, None, :]
        along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        distance = np.sqrt((along / major) ** 2 + (across / minor) ** 2)
        if irregularity:
            theta = np.arctan2(across, along)
            for waves in (2, 3, 5):
                distance *= 1 + irregularity / waves * np.cos(waves * theta + self._uniform(0, 2 * np.pi, column))
        cover = _smoothstep((1 - distance) * minor / EDGE + 0.5)
        dark = darkness * self._uniform(0.85, 1.1, column) * cover
        if vesicular:
            nucleolus = np.exp(((along - 0.25 * minor) ** 2 + across**2) / -1.6)
            dark *= 1 - vesicular * _smoothstep((0.95 - distance) / 0.45) * (1 - nucleolus)
        self._stamp(corner, np.stack([cover, dark], axis=1))

    def _stamp(self, corner: NDArray[np.int_], windows: Array) -> None:
        """Lay windows (n, [cover, darkness], w, w) over the maps: the darker nucleus wins; eosin is thinned below."""
        width = windows.shape[-1]
        margin = width + int(np.ceil(4 / self.pitch))
        layers = np.zeros((2, self.side_px + 2 * margin, self.side_px + 2 * margin), np.float32)
        for (top, left), window in zip((corner + margin).tolist(), windows, strict=True):
            below = layers[:, top : top + width, left : left + width]
            np.maximum(below, window, out=below)
        cover, dark = layers[:, margin : margin + self.side_px, margin : margin + self.side_px]
        self.haematoxylin = self.haematoxylin * (1 - cover) + dark * (1 + 0.1 * self.noise(1.8))
        self.eosin = self.eosin * (1 - 0.55 * cover)

    def _uniform(self, low: float, high: float, shape: tuple[int, ...]) -> Array:
        return self.rng.uniform(low, high, shape).astype(np.float32)

    def reduced(self) -> tuple[Array, Array]:
        """Haematoxylin and eosin at the patch's own size, never negative."""
        half = self.side_px // OVERSAMPLING
        shape = (half, OVERSAMPLING, half, OVERSAMPLING)
        haematoxylin, eosin = (m.reshape(shape).mean(axis=(1, 3)) for m in (self.haematoxylin, self.eosin))
        return np.maximum(haematoxylin, 0), np.maximum(eosin, 0)


def soft_mask(signed_distance: Array, edge: float = EDGE) -> Array:
    """1 where the distance is negative, 0 where it is positive, smooth over `edge` units between."""
    return _smoothstep(0.5 - signed_distance / edge)


def _smoothstep(value: Array) -> Array:
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def _spline_basis(side_px: int, spans: float) -> Array:
    """Cubic B-spline weights (side_px, knots) of knots that divide the side into `spans` spans."""
    position = (np.arange(side_px, dtype=np.float32) + np.float32(0.5)) * (spans / side_px)
    distance = np.abs(position[:, None] - np.arange(-1, int(np.ceil(spans)) + 2, dtype=np.float32))
    near, far = 2 / 3 + distance * distance * (distance / 2 - 1), np.maximum(2 - distance, 0)
    return np.where(distance < 1, near, far * far * far / 6)
