"""The tissue kinds: functions that draw one patch in stain space on a `Canvas`.

Six of them are the classes of the labelled set. They differ in structure; their colours are made equal afterwards
(`stain.repaint`), so each is drawn with void, cytoplasm or fibres, and nuclei in similar shares.
"""

from collections.abc import Callable

import numpy as np

from toy_corpus.drawing import Array, Canvas, soft_mask

VOID = 0.06
"""Eosin left on empty glass."""
INVADED = 0.7
"""Share of labelled patches in which another kind takes a part: without it the classes are too easy."""
ZOOM = (0.75, 1.35)
"""Range of magnifications."""


def gland(canvas: Canvas) -> None:
    """Rings of nuclei round a lumen, in stroma."""
    rng = canvas.rng
    direction = _fibrous(canvas, rng.uniform(0, np.pi), cleft=0.25)
    points = canvas.scatter(14, 8.0)
    canvas.nuclei(points, radius=(1.2, 1.7), elongation=(1.6, 2.6), angle=canvas.at(direction, points), darkness=0.9)
    one = rng.random() < 0.65
    centres = canvas.field / 2 + rng.uniform(-9, 9, (1, 2)) if one else canvas.scatter(4, 29)
    low, high = (18.0, 26.0) if one else (11.5, 14.5)
    sizes = rng.uniform(low, high, len(centres))
    for centre, size in zip(centres, sizes.tolist(), strict=True):
        _one_gland(canvas, centre, size)


def _one_gland(canvas: Canvas, centre: Array, size: float) -> None:
    """Wall, lumen and a ring of nuclei, over whatever is there."""
    rng = canvas.rng
    squeeze, tilt, lobes, phase = rng.uniform(0.75, 1), rng.uniform(0, np.pi), rng.integers(2, 5), rng.uniform(0, 6)
    wall = rng.uniform(6.5, 8.5) if size > 16 else rng.uniform(5.5, 6.5)

    def outline(theta: Array) -> Array:
        oval = squeeze / np.sqrt((squeeze * np.cos(theta - tilt)) ** 2 + np.sin(theta - tilt) ** 2)
        return size * oval * (1 + 0.05 * np.cos(int(lobes) * theta + phase))

    dy, dx = canvas.y - float(centre[0]), canvas.x - float(centre[1])
    depth = np.sqrt(dy**2 + dx**2) - outline(np.arctan2(dy, dx)) + 0.4 * canvas.noise(5.0)
    inside, lumen = soft_mask(depth), soft_mask(depth + wall)
    cytoplasm = 0.5 + 0.05 * canvas.noise(3.0) - 0.02 * np.clip(-depth, 0, 10)
    eosin = canvas.eosin * (1 - inside) + cytoplasm * inside
    canvas.eosin = eosin * (1 - lumen) + VOID * lumen
    canvas.haematoxylin = canvas.haematoxylin * (1 - inside) + 0.12 * inside * (1 - lumen)
    angle = _even_angles(outline, rng.uniform(4.3, 5.2), rng)
    radius = outline(angle) - rng.uniform(2.4, 3.6, len(angle))
    points = centre + np.stack([np.sin(angle), np.cos(angle)], axis=1) * radius[:, None]
    visible = ((points > -4) & (points < canvas.field + 4)).all(axis=1)
    canvas.nuclei(points[visible], radius=(1.5, 1.9), elongation=(1.35, 1.7), angle=angle[visible])


def _even_angles(outline: Callable[[Array], Array], spacing: float, rng: np.random.Generator) -> Array:
    """Angles of points about `spacing` units apart along a closed outline given as radius of angle."""
    theta = np.linspace(0, 2 * np.pi, 720)
    length = np.cumsum(outline(theta)) * (theta[1] - theta[0])
    count = int(length[-1] / spacing)
    return np.interp((np.arange(count) + rng.uniform(-0.15, 0.15, count)) * length[-1] / count, length, theta)


def lymphocytes(canvas: Canvas) -> None:
    """A field of small, round, dark nuclei with hardly any cytoplasm."""
    rng = canvas.rng
    density = np.clip(0.75 + 0.35 * canvas.noise(18.0), 0.08, 1)
    canvas.eosin = np.clip(0.28 + 0.14 * canvas.noise(6.0) + 0.06 * canvas.noise(2.5), VOID, None)
    canvas.haematoxylin = 0.06 + 0.02 * canvas.noise(7.0)
    count = int(rng.integers(85, 125))
    canvas.nuclei(canvas.scatter(count, rng.uniform(4.4, 5.0), density), radius=(1.9, 2.4), elongation=(1.0, 1.15))


def stroma(canvas: Canvas) -> None:
    """Parallel, wavy fibres with clefts between them and long thin nuclei along them."""
    rng = canvas.rng
    direction = _fibrous(canvas, rng.uniform(0, np.pi), cleft=1.0)
    points = canvas.scatter(int(rng.integers(16, 26)), rng.uniform(7, 8.5), np.clip(canvas.eosin * 2 - 0.2, 0.02, 1))
    canvas.nuclei(points, radius=(1.1, 1.6), elongation=(3.2, 4.6), angle=canvas.at(direction, points))


def _fibrous(canvas: Canvas, angle: float, cleft: float) -> Array:
    """Fill the canvas with fibres running along `angle`; returns the map of their local direction."""
    rng = canvas.rng
    along = canvas.x * np.cos(angle) + canvas.y * np.sin(angle)
    across = canvas.y * np.cos(angle) - canvas.x * np.sin(angle)
    swing, period, phase = rng.uniform(0.8, 2.6), rng.uniform(30, 60), rng.uniform(0, 2 * np.pi)
    wave = 2 * np.pi * along / period + phase
    position = across - swing * np.sin(wave) + 1.6 * canvas.noise(20.0)
    ridge = np.sin(2 * np.pi * position / rng.uniform(6.0, 9.0) + 1.1 * canvas.noise(11.0))
    fine = np.sin(2 * np.pi * position / rng.uniform(2.8, 3.8) + 1.5 * canvas.noise(9.0))
    ridge = ridge * np.clip(0.7 + 0.5 * canvas.noise(13.0), 0, 1.3)
    eosin = 0.55 + 0.07 * ridge + 0.05 * fine + 0.09 * canvas.noise(12.0)
    if cleft:
        gap = soft_mask(0.5 + ridge + 0.3 * fine + 0.5 * canvas.noise(14.0), 1.0) * cleft
        eosin = eosin * (1 - gap) + VOID * gap
    canvas.eosin = eosin
    canvas.haematoxylin = 0.08 + 0.03 * ridge
    return angle + np.arctan(swing * 2 * np.pi / period * np.cos(wave))


def fat(canvas: Canvas) -> None:
    """Big and small round vacuoles, pink septa between them, flat nuclei along their walls."""
    rng = canvas.rng
    centres = rng.uniform(-8, canvas.field + 8, (260, 2))
    radii = np.sort(rng.uniform(3.2, 12.5, 260) * rng.uniform(0.8, 1.15))[::-1]
    kept = []
    left = np.arange(260)
    while len(left):
        kept.append(left[0])
        gaps = np.hypot(*(centres[left] - centres[left[0]]).T) - radii[left] - radii[left[0]]
        left = left[gaps > 1.3]
    wall = _distance(canvas, centres[kept], radii[kept])
    vacuole = soft_mask(wall)
    septum = 0.55 + 0.08 * canvas.noise(5.0) - 0.02 * np.clip(wall, 0, 4)
    canvas.eosin = septum * (1 - vacuole) + (VOID + 0.008 * np.clip(4 + wall, 0, 4)) * vacuole
    canvas.haematoxylin = 0.1 * (1 - vacuole)
    points = canvas.scatter(int(rng.integers(26, 38)), 5.0, ((wall > 0.2) & (wall < 4)).astype(np.float32))
    slope_y, slope_x = (canvas.at(np.asarray(np.gradient(wall, axis=axis)), points) for axis in (0, 1))
    tangent = np.arctan2(slope_y, slope_x) + np.pi / 2
    canvas.nuclei(points, radius=(1.2, 1.8), elongation=(1.6, 2.4), angle=tangent)


def _distance(canvas: Canvas, centres: Array, radii: Array) -> Array:
    """Map of the distance to the nearest of some discs, negative inside."""
    nearest = np.full_like(canvas.eosin, np.inf)
    for (cy, cx), radius in zip(centres.tolist(), radii.tolist(), strict=True):
        np.minimum(nearest, np.sqrt((canvas.y - cy) ** 2 + (canvas.x - cx) ** 2) - radius, out=nearest)
    return nearest


def mucus(canvas: Canvas) -> None:
    """Pale pools, laminated round floating clumps of cells."""
    rng = canvas.rng
    centres = canvas.scatter(int(rng.integers(3, 6)), 21)
    sizes = rng.uniform(6.0, 10.0, len(centres))
    distance = _distance(canvas, centres, sizes) + 1.2 * canvas.noise(9.0)
    swirl = distance + 3.0 * canvas.noise(22.0)
    streak = np.sin(2 * np.pi * swirl / rng.uniform(4.0, 6.0) + canvas.noise(12.0))
    streak *= np.clip(0.3 + 0.6 * canvas.noise(12.0), 0, 1.2)
    clump = soft_mask(distance, 1.5)
    pool = np.clip(0.18 + 0.08 * streak + 0.11 * canvas.noise(15.0), VOID, None)
    canvas.eosin = pool * (1 - clump) + 0.5 * clump
    canvas.haematoxylin = 0.3 * clump + (0.1 + 0.05 * streak) * (1 - clump)
    canvas.nuclei(
        canvas.scatter(80, 4.2, (distance < -0.8).astype(np.float32)),
        radius=(1.8, 2.4),
        elongation=(1.0, 1.3),
        irregularity=0.08,
    )


def tumour(canvas: Canvas) -> None:
    """Crowded, large, misshapen nuclei with pale insides, and cracks between the nests."""
    rng = canvas.rng
    crack = soft_mask(np.abs(canvas.noise(22.0)) * 9 - rng.uniform(1.4, 2.6), 1.5)
    cytoplasm = 0.45 + 0.09 * canvas.noise(6.0)
    canvas.eosin = cytoplasm * (1 - crack) + VOID * crack
    canvas.haematoxylin = 0.14 * (1 - crack)
    points = canvas.scatter(int(rng.integers(24, 36)), rng.uniform(8.8, 10.5), 1 - 0.9 * crack)
    canvas.nuclei(points, radius=(3.3, 5.0), elongation=(1.0, 1.5), irregularity=0.16, vesicular=0.6, darkness=1.1)


def background(canvas: Canvas) -> None:
    """Empty glass with a breath of eosin."""
    canvas.eosin = VOID + 0.02 * canvas.noise(20.0)


CLASSES: dict[str, Callable[[Canvas], None]] = {
    "FAT": fat,
    "GLAND": gland,
    "LYM": lymphocytes,
    "MUCUS": mucus,
    "STROMA": stroma,
    "TUMOR": tumour,
}


def draw(kind: str, size_px: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """One patch of a class: haematoxylin and eosin maps (size_px, size_px). Often a neighbour takes a smaller part."""
    zoom = rng.uniform(*ZOOM)
    canvas = Canvas(size_px, rng, zoom)
    CLASSES[kind](canvas)
    if rng.random() < INVADED:
        neighbour = Canvas(size_px, rng, zoom)
        _any_class(rng)(neighbour)
        _join(canvas, neighbour, rng.uniform(0.25, 0.48))
    canvas.eosin = canvas.eosin + 0.012 * canvas.noise(14.0)  # empty areas must not be flat: `repaint` ranks pixels
    return canvas.reduced()


def draw_mixed(size_px: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """A patch as it comes off a slide: one kind, two that meet at a curved border, or tissue that ends on glass."""
    zoom = rng.uniform(*ZOOM)
    canvas = Canvas(size_px, rng, zoom)
    _any_class(rng)(canvas)
    fate = rng.random()
    if fate < 0.4:
        neighbour = Canvas(size_px, rng, zoom)
        (background if fate < 0.08 else _any_class(rng))(neighbour)
        _join(canvas, neighbour, rng.uniform(0.1, 0.9))
    return canvas.reduced()


def _any_class(rng: np.random.Generator) -> Callable[[Canvas], None]:
    return list(CLASSES.values())[rng.integers(len(CLASSES))]


def _join(canvas: Canvas, other: Canvas, share: float) -> None:
    """Let `other` take `share` of the area, beyond a wavy border."""
    angle = canvas.rng.uniform(0, 2 * np.pi)
    line = canvas.x * np.cos(angle) + canvas.y * np.sin(angle) + 4 * canvas.noise(16.0)
    kept = soft_mask(line - np.quantile(line, 1 - share), 1.5)
    canvas.haematoxylin = canvas.haematoxylin * kept + other.haematoxylin * (1 - kept)
    canvas.eosin = canvas.eosin * kept + other.eosin * (1 - kept)
