from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simbatch.sim.cost.model import LinearCost, PiecewiseLinear, TwoRegimeCost
from simbatch.sim.cost.step_time import LinearStepTime

NS = 1000  # ps
counts = st.integers(0, 3000)
whole_ns = st.integers(0, 10**9)


def two_regime(attention_s: float = 1.5e-9) -> TwoRegimeCost:
    return TwoRegimeCost(
        decode=PiecewiseLinear([1, 64, 128], [16_000, 19_000, 22_000]),
        decode_context_ps=3,
        tokens=PiecewiseLinear([1, 256, 512], [17_000, 26_000, 46_000]),
        seq_ps=29,
        seq_token_ps=2,
        context_ps=7,
        prefill_context_ps=5,
        attention_s=attention_s,
    )


@given(
    base=st.integers(1, 10**9), per_prefill=whole_ns, per_seq=whole_ns, per_context=whole_ns, n=counts, context=counts
)
def test_linear_is_exact_in_whole_nanoseconds(base, per_prefill, per_seq, per_context, n, context):
    terms = [value / 10**9 for value in (base, per_prefill, per_seq, per_context)]
    keys = ["base_s", "per_prefill_token_s", "per_decode_seq_s", "per_context_token_s"]
    cost = LinearStepTime(**dict(zip(keys, terms, strict=True))).cost_model()
    decode_ns = base + per_seq * n + per_context * (context + n)
    assert cost.decode_ps(n) + cost.decode_context_ps * context == decode_ns * NS
    assert cost.mixed_ps(n, context, 300, 700, 1) == (decode_ns + per_prefill * 300 + per_context * 700) * NS


def test_linear_by_hand():
    cost = LinearCost(base_ps=100, per_prefill_token_ps=10, per_decode_seq_ps=5, per_context_token_ps=1)
    # two decodes after 7 and 9 tokens: contexts 8 and 10
    assert cost.decode_ps(2) + cost.decode_context_ps * 16 == 100 + 2 * 5 + 18
    # and a chunk of 4 after 3
    assert cost.mixed_ps(2, 16, 4, 7, 4 * (2 * 3 + 4)) == 100 + 2 * 5 + 18 + 4 * 10 + 7


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, 16), (1, 16), (32, 17), (64, 19), (96, 21), (128, 22), (192, 25), (1280, 76)],
)
def test_piecewise_linear_is_constant_below_and_goes_on_above_its_knots(count, expected):
    curve = PiecewiseLinear([1, 64, 128], [16, 19, 22])
    assert curve(count) == expected
    assert curve(count) == expected  # from the table the second time


def test_one_knot_is_a_constant():
    assert [PiecewiseLinear([5], [42])(count) for count in (0, 5, 9)] == [42, 42, 42]


@given(count=st.integers(0, 5000), later=st.integers(0, 5000))
def test_piecewise_linear_gives_the_same_in_any_order_of_asking(count, later):
    knots, values = [1, 16, 256, 272], [10**10, 10**10 + 7, 2 * 10**10, 3 * 10**10]
    both = PiecewiseLinear(knots, values)
    asked = both(count), both(later)
    assert asked == (PiecewiseLinear(knots, values)(count), PiecewiseLinear(knots, values)(later))
    assert (asked[0] <= asked[1]) == (count <= later) or asked[0] == asked[1]


def test_two_regime_by_hand():
    cost = two_regime(attention_s=0.0)
    assert cost.decode_ps(64) + cost.decode_context_ps * 1000 == 19_000 + 3000
    # T = 256: 6 decodes and a chunk of 250 after 50
    assert cost.mixed_ps(6, 1000, 250, 300, 250 * 350) == 26_000 + 6 * 29 + 6 * 250 * 2 + 7 * 1000 + 5 * 300


@given(attention=st.integers(0, 10**9))
def test_attention_keeps_fractions_of_a_picosecond(attention):
    coefficient_ps = Fraction(14814, 10)
    cost = two_regime(attention_s=float(coefficient_ps) / 10**12)
    measured = cost.mixed_ps(0, 0, 1, 1, attention) - cost.mixed_ps(0, 0, 1, 1, 0)
    assert abs(measured - coefficient_ps * attention) <= 1 + Fraction(attention, 2**20)


@given(n=st.integers(1, 500), context=st.integers(0, 10**6), steps=st.integers(1, 200))
def test_a_span_in_closed_form_is_the_sum_of_its_steps(n, context, steps):
    cost = two_regime()
    one_by_one = sum(cost.decode_ps(n) + cost.decode_context_ps * (context + i * n) for i in range(steps))
    first = cost.decode_ps(n) + cost.decode_context_ps * context
    assert one_by_one == steps * first + cost.decode_context_ps * n * steps * (steps - 1) // 2
