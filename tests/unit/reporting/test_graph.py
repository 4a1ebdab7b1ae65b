"""The drawing of the graph: nothing overlaps, every edge goes right, no edge runs through a box."""

import itertools
import random

import pytest

from hdtrain.reporting.graph import NODE_HEIGHT, NODE_WIDTH, Box, draw, lay_out, reduce_edges, separate


def random_graph(seed: int, num_nodes: int = 25) -> dict[str, list[str]]:
    rng = random.Random(seed)
    return {f"n{i}": [f"n{j}" for j in rng.sample(range(i), min(i, rng.randint(0, 3)))] for i in range(num_nodes)}


@pytest.mark.parametrize("seed", range(12))
def test_boxes_do_not_overlap_and_lanes_pass_them_by(seed: int) -> None:
    layout = lay_out(random_graph(seed))
    for (a, (xa, ya)), (b, (xb, yb)) in itertools.combinations(layout.centre.items(), 2):
        boxes = [layout.layer[name] == layer for name, layer in (a, b)]
        room = NODE_HEIGHT * sum(boxes) / 2
        assert abs(xa - xb) > NODE_WIDTH or abs(ya - yb) > room, (a, b)
    for x, y in layout.centre.values():
        assert NODE_WIDTH / 2 <= x <= layout.width - NODE_WIDTH / 2
        assert 0 <= y <= layout.height


@pytest.mark.parametrize("seed", range(12))
def test_every_remaining_edge_is_drawn_from_left_to_right(seed: int) -> None:
    parents = random_graph(seed)
    layout = lay_out(parents)
    following = {start: [end for begin, end in layout.segments if begin == start] for start, _ in layout.segments}
    assert all(end[1] == start[1] + 1 for start, end in layout.segments)
    for child, direct in reduce_edges(parents).items():
        for parent in direct:
            lane = (parent, layout.layer[child] - 1)
            assert (child, layout.layer[child]) in following[lane]
            assert layout.layer[parent] < layout.layer[child]


def test_edges_implied_by_a_longer_way_are_left_out() -> None:
    assert reduce_edges({"a": [], "b": ["a"], "c": ["a", "b"], "d": ["c", "a"]}) == {
        "a": [], "b": ["a"], "c": ["b"], "d": ["c"],
    }  # fmt: skip


def test_separate_keeps_order_and_gaps_and_moves_no_more_than_needed() -> None:
    assert separate([0, 100, 200], [50, 50]) == [0, 100, 200]
    assert separate([10, 10], [50]) == [-15, 35]
    placed = separate([5, 0, 90, 3], [10, 10, 10])
    assert all(b - a >= 10 - 1e-9 for a, b in itertools.pairwise(placed))


def test_names_are_escaped_and_long_ones_cut_with_the_whole_in_the_title() -> None:
    name = "arms/<selective>-with-a-very-long-name"
    svg = str(draw({name: Box(name, "train-vae", "3 s", "g")}, {name: []}))
    assert "<selective>" not in svg
    assert "<title>arms/&lt;selective&gt;-with-a-very-long-name (train-vae, 3 s)</title>" in svg
    assert "…" in svg
