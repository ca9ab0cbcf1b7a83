import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simbatch.sim.cost import MeasuredRange
from simbatch.sim.engine.record import SEGMENT_DTYPE

RANGE = MeasuredRange.model_validate(
    {
        "decode": {"num_decodes": [1, 64], "mean_context": [16, 1000], "decode_context": [16, 20_000]},
        "mixed": {
            "num_tokens": [16, 2048],
            "prefill_tokens": [16, 2048],
            "mean_history": [0, 4096],
            "num_decodes": [0, 32],
            "mean_context": [16, 1000],
            "decode_context": [16, 20_000],
        },
    }
)


def segments(*rows: dict) -> np.ndarray:
    found = np.zeros(len(rows), dtype=SEGMENT_DTYPE)
    found["num_steps"] = 1
    for i, row in enumerate(rows):
        for key, value in row.items():
            found[i][key] = value
    return found


def prefill(q: int, h: int) -> dict:
    return {"prefill_tokens": q, "num_prefills": 1, "prefill_attention": q * (2 * h + q)}


def test_no_step_is_outside_of_no_steps():
    assert RANGE.share_inside(segments()) == 1.0
    assert RANGE.share_inside(segments({"num_decodes": 0})) == 1.0


@given(n=st.integers(1, 80), context=st.integers(0, 25_000), steps=st.integers(1, 1500), other=st.integers(1, 100))
def test_a_span_counts_as_its_steps_one_by_one(n, context, steps, other):
    span = {"num_decodes": n, "decode_context": context, "num_steps": steps}
    inside = 0
    for i in range(steps):
        total = context + i * n
        inside += n <= 64 and 16 * n <= total <= 1000 * n and 16 <= total <= 20_000
    outside = {"num_decodes": 65, "decode_context": 6500, "num_steps": other}
    assert RANGE.share_inside(segments(span, outside)) == pytest.approx(inside / (steps + other), abs=1e-12)


@pytest.mark.parametrize(
    ("row", "inside"),
    [
        (prefill(512, 0), True),
        (prefill(512, 4096), True),
        (prefill(512, 4097), False),
        (prefill(15, 0), False),
        (prefill(2049, 0), False),
        (prefill(2040, 0) | {"num_decodes": 8, "decode_context": 800}, True),
        (prefill(2040, 0) | {"num_decodes": 9, "decode_context": 900}, False),
        (prefill(512, 0) | {"num_decodes": 33, "decode_context": 3300}, False),
        (prefill(512, 0) | {"num_decodes": 2, "decode_context": 2001}, False),
        (prefill(512, 0) | {"num_decodes": 2, "decode_context": 31}, False),
    ],
)
def test_steps_with_a_prefill(row, inside):
    assert RANGE.share_inside(segments(row)) == float(inside)


def test_several_prefills_of_one_size_count_as_their_mean_history():
    two = {
        "prefill_tokens": 200,
        "num_prefills": 2,
        "prefill_attention": 100 * (2 * 4000 + 100) + 100 * (2 * 4192 + 100),
    }
    assert RANGE.share_inside(segments(two)) == 1.0
    two["prefill_attention"] += 2 * 200
    assert RANGE.share_inside(segments(two)) == 0.0
