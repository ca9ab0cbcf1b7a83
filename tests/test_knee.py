"""The Pareto set and its knee."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simbatch.profiler.profile.batches import knee as batch_knee
from simbatch.sim.statistics import find_knee, pareto_front

FEW = st.sampled_from([0.0, 1.0, 1.0 + 2**-52, 2.0, 5.0])  # so that ties and near ties are common


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[list[float]], list[bool]]:
    width = draw(st.integers(1, 3))
    rows = draw(st.lists(st.lists(FEW, min_size=width, max_size=width), max_size=12))
    return rows, draw(st.lists(st.booleans(), min_size=width, max_size=width))


@given(tables())
def test_the_front_is_what_nothing_dominates(case: tuple[list[list[float]], list[bool]]) -> None:
    rows, maximise = case

    def dominates(a: list[float], b: list[float]) -> bool:
        better = [x > y if up else x < y for x, y, up in zip(a, b, maximise, strict=True)]
        equal = [x == y for x, y in zip(a, b, strict=True)]
        return any(better) and all(one or same for one, same in zip(better, equal, strict=True))

    expected = [i for i, row in enumerate(rows) if not any(dominates(other, row) for other in rows)]
    assert pareto_front(rows, maximise) == expected


def test_equal_candidates_stay_together() -> None:
    assert pareto_front([[3, 9], [5, 9], [5, 9], [5, 7], [5, 7], [1, 7]], [True, False]) == [3, 4]


def test_a_candidate_without_a_figure_is_refused() -> None:
    with pytest.raises(ValueError, match="without a figure"):
        pareto_front([[1, math.nan]], [True, False])


def test_the_knee_is_the_corner() -> None:
    cost = [10, 11, 12, 13, 20, 40, 80]
    gain = [100, 200, 400, 800, 820, 840, 860]
    knee = find_knee(gain, cost)
    assert (gain[knee.index], knee.distance > 0.5) == (800, True)


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_units_do_not_move_the_knee(milli: float, kilo: float) -> None:
    cost = [10.0, 12.0, 15.0, 30.0, 90.0]
    gain = [1.0, 4.0, 9.0, 11.0, 12.0]
    knee, other = find_knee(gain, cost), find_knee([g * kilo for g in gain], [c * milli for c in cost])
    assert knee.index == other.index == 2


@pytest.mark.parametrize(
    ("gain", "cost"),
    [
        ([1, 2, 4, 8], [10, 20, 40, 80]),
        ([1, 2], [1, 2]),
        ([5, 5, 5], [1, 2, 3]),
        ([1, 1, 2], [1, 1, 2]),  # two points, one of them twice
        ([1, 1.1, 8], [1, 4, 8]),  # hollow: everything between the ends is a bad bargain
        ([], []),
    ],
)
def test_what_has_no_knee(gain: list[float], cost: list[float]) -> None:
    assert find_knee(gain, cost) is None


def test_axes_are_linear_for_tune_and_profile_alike() -> None:
    """Seats, tokens per second and P99 TPOT of a GPU: on logarithmic axes the knee would be 16."""
    seats = [1, 2, 4, 8, 16, 32, 64, 128]
    gain = [59.7, 114.2, 223.5, 426.2, 762.4, 1194.8, 1642.2, 1763.4]
    cost = [16.7, 17.9, 18.8, 19.7, 21.4, 27.9, 40.9, 56.0]
    knee = find_knee(gain, cost)
    assert seats[knee.index] == 32
    scaled = [
        (g - gain[0]) / (gain[-1] - gain[0]) - (c - cost[0]) / (cost[-1] - cost[0])
        for g, c in zip(gain, cost, strict=True)
    ]
    assert knee.distance == pytest.approx(max(scaled))
    rows = [
        {"batch_size": n, "output_throughput": g, "step_ms": c, "kv_full": False}
        for n, g, c in zip(seats, gain, cost, strict=True)
    ]
    assert batch_knee(rows) == 32


def test_points_that_another_beats_do_not_count() -> None:
    knee, beaten = find_knee([1, 8, 10], [1, 2, 9]), find_knee([1, 0.5, 8, 7, 10], [1, 3, 2, 9, 9])
    assert (knee.index, beaten.index, knee.distance) == (1, 2, beaten.distance)


def test_figures_of_zero_are_taken_as_any_other() -> None:
    knee = find_knee([0, 8, 10], [0, 1, 10])
    assert knee.index == 1
