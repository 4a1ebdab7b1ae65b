"""The graph of stages as one SVG: left to right by depth, edges routed between the boxes (Sugiyama's layered drawing).

Everywhere, `parents` maps each name to its parents and lists parents before children.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Vertex = tuple[str, int]
"""(name, layer): a stage at its own layer, or at a later one the lane in which its edges pass that layer."""

NODE_WIDTH, NODE_HEIGHT, COLUMN_GAP, ROW_GAP, LANE_HEIGHT, MARGIN = 148.0, 44.0, 34.0, 16.0, 6.0, 6.0
NAME_CHARS = 18
SWEEPS = 12


@dataclass(frozen=True)
class Box:
    """What one node says."""

    name: str
    stage: str
    time: str
    group: str
    """CSS class suffix of its coloured edge."""


@dataclass(frozen=True)
class Layout:
    """Centres of all vertices by (name, layer), and the segments that join neighbouring layers."""

    centre: dict[Vertex, tuple[float, float]]
    layer: dict[str, int]
    segments: list[tuple[Vertex, Vertex]]
    width: float
    height: float


def reduce_edges(parents: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The transitive reduction: an edge that a longer way implies is left out."""
    ancestors: dict[str, set[str]] = {}
    for name, direct in parents.items():
        ancestors[name] = {ancestor for parent in direct for ancestor in {parent, *ancestors[parent]}}
    return {
        name: [parent for parent in dict.fromkeys(direct) if not any(parent in ancestors[other] for other in direct)]
        for name, direct in parents.items()
    }


def lay_out(parents: Mapping[str, Sequence[str]]) -> Layout:
    """Place the nodes of an acyclic graph."""
    edges = reduce_edges(parents)
    layer = _layers(edges)
    columns, segments = _columns(edges, layer)
    before = _neighbours(segments, 0)
    after = _neighbours(segments, 1)
    _untangle(columns, before, after)
    height = _stack(columns, before, after)
    left = MARGIN + NODE_WIDTH / 2
    centre = {
        vertex: (left + vertex[1] * (NODE_WIDTH + COLUMN_GAP), height[vertex])
        for column in columns
        for vertex in column
    }
    lowest = max(y for _, y in centre.values()) + NODE_HEIGHT / 2 + MARGIN
    return Layout(centre, layer, segments, len(columns) * (NODE_WIDTH + COLUMN_GAP) - COLUMN_GAP + 2 * MARGIN, lowest)


def _layers(edges: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """As far right as the children allow, so that what an answer needs stands beside it and few edges are long."""
    layer: dict[str, int] = {}
    for name, direct in edges.items():
        layer[name] = max((layer[parent] + 1 for parent in direct), default=0)
    for name in reversed(list(edges)):
        children = [layer[child] for child, theirs in edges.items() if name in theirs]
        layer[name] = min(children) - 1 if children else layer[name]
    return layer


def _columns(
    edges: Mapping[str, Sequence[str]], layer: Mapping[str, int]
) -> tuple[list[list[Vertex]], list[tuple[Vertex, Vertex]]]:
    """Vertices layer by layer; all long edges of one node share one lane a layer."""
    columns: list[list[Vertex]] = [[] for _ in range(max(layer.values()) + 1)]
    segments: dict[tuple[Vertex, Vertex], None] = {}
    for name, own in layer.items():
        columns[own].append((name, own))
        last = max((layer[child] for child, theirs in edges.items() if name in theirs), default=own)
        for passed in range(own + 1, last):
            columns[passed].append((name, passed))
            segments[(name, passed - 1), (name, passed)] = None
    for child, direct in edges.items():
        for parent in direct:
            segments[(parent, layer[child] - 1), (child, layer[child])] = None
    return columns, list(segments)


def _neighbours(segments: Sequence[tuple[Vertex, Vertex]], side: int) -> dict[Vertex, list[Vertex]]:
    found: dict[Vertex, list[Vertex]] = {}
    for segment in segments:
        found.setdefault(segment[1 - side], []).append(segment[side])
    return found


def _untangle(
    columns: list[list[Vertex]], before: Mapping[Vertex, list[Vertex]], after: Mapping[Vertex, list[Vertex]]
) -> None:
    """Fewer crossings: order each layer by the mean position of its neighbours, to and fro."""
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        for column in columns if forward else reversed(columns):
            position = {vertex: i for other in columns for i, vertex in enumerate(other)}
            column.sort(key=_by_mean(before if forward else after, position))


def _by_mean(neighbours: Mapping[Vertex, list[Vertex]], position: Mapping[Vertex, float]) -> Callable[[Vertex], float]:
    def mean(vertex: Vertex) -> float:
        found = neighbours.get(vertex, [])
        return sum(position[other] for other in found) / len(found) if found else position[vertex]

    return mean


def _stack(
    columns: Sequence[Sequence[Vertex]], before: Mapping[Vertex, list[Vertex]], after: Mapping[Vertex, list[Vertex]]
) -> dict[Vertex, float]:
    """Heights: near the mean of the neighbours, in the order found, with room between."""
    owner = {vertex[0]: min(v[1] for c in columns for v in c if v[0] == vertex[0]) for c in columns for vertex in c}
    size = {v: NODE_HEIGHT if owner[v[0]] == v[1] else LANE_HEIGHT for column in columns for v in column}
    height = {vertex: float(i) for column in columns for i, vertex in enumerate(column)}
    for sweep in range(3 * SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            wanted = []
            for vertex in column:
                near = [*before.get(vertex, []), *after.get(vertex, [])]
                wanted.append(sum(height[other] for other in near) / len(near) if near else height[vertex])
            gaps = [(size[a] + size[b]) / 2 + ROW_GAP for a, b in itertools.pairwise(column)]
            height.update(zip(column, separate(wanted, gaps), strict=True))
    top = min(height[vertex] - size[vertex] / 2 for vertex in height)
    return {vertex: y - top + MARGIN for vertex, y in height.items()}


def separate(wanted: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """The positions nearest to `wanted` (least squares), at least `gaps` apart and in order: isotonic regression."""
    offsets = [0.0]
    for gap in gaps:
        offsets.append(offsets[-1] + gap)
    blocks: list[tuple[float, int]] = []
    for value, offset in zip(wanted, offsets, strict=True):
        mean, members = value - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, count = blocks.pop()
            mean, members = (mean * members + other * count) / (members + count), members + count
        blocks.append((mean, members))
    levels = [mean for mean, members in blocks for _ in range(members)]
    return [level + offset for level, offset in zip(levels, offsets, strict=True)]


def draw(boxes: Mapping[str, Box], parents: Mapping[str, Sequence[str]]) -> Markup:
    """The SVG, every text in it escaped. Colours come from the page's CSS (`.graph …`)."""
    layout = lay_out(parents)
    half = NODE_WIDTH / 2
    parts = []
    for start, end in layout.segments:
        (x0, y0), (x1, y1) = layout.centre[start], layout.centre[end]
        bend = COLUMN_GAP * 0.55
        passing = f" H{x1 + half:.1f}" if layout.layer[end[0]] != end[1] else ""
        parts.append(
            f'<path class="edge" d="M{x0 + half:.1f},{y0:.1f} C{x0 + half + bend:.1f},{y0:.1f} '
            f'{x1 - half - bend:.1f},{y1:.1f} {x1 - half:.1f},{y1:.1f}{passing}"/>'
        )
    for name, box in boxes.items():
        x, y = layout.centre[name, layout.layer[name]]
        parts.append(_node(box, x - half, y - NODE_HEIGHT / 2))
    size = f'width="{layout.width:.0f}" height="{layout.height:.0f}"'
    return Markup(
        f'<svg class="graph" {size} viewBox="0 0 {layout.width:.0f} {layout.height:.0f}" role="img" '
        f'aria-label="Graph of stages">{"".join(parts)}</svg>'
    )


def _node(box: Box, left: float, top: float) -> str:
    title, name = escape(f"{box.name} ({box.stage}, {box.time})"), _shorten(box.name)
    fit = f' textLength="{NODE_WIDTH - 20:.0f}" lengthAdjust="spacingAndGlyphs"' if len(name) > NAME_CHARS - 2 else ""
    return (
        f'<g class="node {escape(box.group)}" transform="translate({left:.1f},{top:.1f})"><title>{title}</title>'
        f'<rect class="box" width="{NODE_WIDTH:.0f}" height="{NODE_HEIGHT:.0f}" rx="4"/>'
        f'<rect class="stripe" width="4" height="{NODE_HEIGHT:.0f}" rx="2"/>'
        f'<text class="name" x="12" y="18"{fit}>{escape(name)}</text>'
        f'<text class="stage" x="12" y="34">{escape(box.stage)}</text>'
        f'<text class="time" x="{NODE_WIDTH - 8:.0f}" y="34" text-anchor="end">{escape(box.time)}</text></g>'
    )


def _shorten(name: str) -> str:
    """Cut in the middle, where names differ least."""
    if len(name) <= NAME_CHARS:
        return name
    tail = NAME_CHARS // 2
    return f"{name[: NAME_CHARS - tail - 1]}…{name[-tail:]}"
