"""How many more a short class gets: an estimate from counts, never beyond the limit, and it comes to an end."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hdtrain.selection.top_up import how_many_more, most_candidates


def test_a_class_with_enough_gets_none_and_a_short_one_what_its_share_says():
    assert how_many_more([100, 100, 100], [50, 20, 0], [50, 50, 50], [400, 400, 400], 8) == [0, 150, 100]


def test_a_round_fills_a_batch_and_stops_at_the_limit():
    assert how_many_more([100, 100, 100], [49, 10, 49], [50, 50, 50], [400, 180, 100], 8) == [8, 80, 0]


def test_the_limit_is_a_multiple_of_what_was_sampled_rounded_down():
    assert [most_candidates(1.15, 100), most_candidates(1.5, 7), most_candidates(2.2, 5)] == [115, 10, 11]


@given(st.integers(1, 50), st.integers(0, 60), st.floats(1.01, 5), st.integers(0, 2**16))
@settings(max_examples=50, deadline=None)
def test_rounds_end_with_enough_or_at_the_limit(original, wanted, factor, luck):
    limit, have, rounds = most_candidates(factor, original), original, 0
    passes = lambda n: sum((i * 2654435761 + luck) % 97 < 30 for i in range(n))  # noqa: E731
    while more := how_many_more([have], [passes(have)], [wanted], [limit], 4)[0]:
        have, rounds = have + more, rounds + 1
        assert have <= limit
        assert rounds < 60
    assert passes(have) >= wanted or have == max(limit, original)
