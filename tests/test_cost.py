"""Cost models, the profiles that they are made from, and the measured range."""

import copy
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simbatch.sim.cost import InlineProfile, MeasuredProfile, MeasuredRange, load_profile
from simbatch.sim.cost.by_name import shipped_names, shipped_text
from simbatch.sim.cost.host import ATTENTION_SHIFT, WindowCost
from simbatch.sim.cost.model import (
    Features,
    PiecewiseLinear,
    TwoRegimeCost,
    step_ps,
    step_ps_alike,
    step_ps_beside,
    sums_of,
)
from simbatch.sim.cost.sections import Settled
from simbatch.sim.cost.step_time import LinearStepTime
from simbatch.sim.engine.record import SEGMENT_DTYPE
from simbatch.sim.errors import UserError

NS = 1000  # ps
counts = st.integers(0, 3000)
whole_ns = st.integers(0, 10**9)


def two_regime(attention_s: float = 1.5e-9, windows: WindowCost | None = None) -> TwoRegimeCost:
    return TwoRegimeCost(
        decode=PiecewiseLinear([1, 64, 128], [16_000, 19_000, 22_000]),
        decode_context_ps=3,
        tokens=PiecewiseLinear([1, 256, 512], [17_000, 26_000, 46_000]),
        seq_ps=29,
        seq_token_ps=2,
        context_ps=7,
        prefill_context_ps=5,
        attention_s=attention_s,
        windows=windows,
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


SHIPPED = "rtx4090-llama-3.1-8b-bf16"
GIB = 2**30
INLINE = {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}}


@pytest.fixture
def content():
    return json.loads(shipped_text(SHIPPED))


@pytest.fixture
def rtx4090():
    return load_profile(SHIPPED, folder=Path())


def with_memory(content: dict, gpu: str, total_gib: float) -> MeasuredProfile:
    """The shipped profile on a larger GPU: what is left over goes to the reserve."""
    changed = copy.deepcopy(content)
    memory = changed["memory"]
    kv_bytes = memory["num_gpu_blocks"] * memory["block_size"] * memory["kv_bytes_per_token"]
    memory["total_bytes"] = int(total_gib * GIB)
    memory["reserve_bytes"] = int(memory["total_bytes"] * 0.9) - memory["weights_bytes"] - kv_bytes
    return MeasuredProfile.model_validate(changed | {"gpu": gpu})


def test_inline_has_vllms_defaults():
    profile = load_profile(INLINE, folder=Path())
    assert isinstance(profile, InlineProfile)
    assert (profile.name, profile.is_gpu, profile.measured, profile.fit_error) == ("inline", False, None, None)
    assert (profile.max_model_len, profile.default_block_size) == (8192, 16)
    assert (profile.default_max_num_seqs, profile.default_max_num_batched_tokens) == (256, 2048)
    assert profile.num_gpu_blocks_for(0.92, "auto", 16) == 1000


def test_every_shipped_profile_loads_under_its_own_name():
    assert SHIPPED in shipped_names()
    for name in shipped_names():
        profile = load_profile(name, folder=Path())
        assert profile.name == name
        assert profile.cost_model().decode_ps(1) > 0


def test_the_shipped_profile_says_where_it_comes_from(rtx4090):
    assert (rtx4090.gpu, rtx4090.licence, rtx4090.vllm_version) == ("rtx4090", "MIT", "0.19.0")
    assert "LLMServingSim" in rtx4090.source
    assert rtx4090.command.startswith("simbatch profiles import --from llmservingsim")
    assert rtx4090.is_gpu
    assert not rtx4090.is_estimate
    assert rtx4090.max_model_len == 32768
    assert any("32768" in note for note in rtx4090.notes)
    assert rtx4090.fit_error.decode.mape <= 0.03
    assert max(rtx4090.fit_error.prefill.mape, rtx4090.fit_error.mixed.mape) <= 0.06
    assert rtx4090.fit_error.summary().endswith("(fit to composed tables)")


def test_shipped_coefficients_have_physical_signs_and_never_fall(rtx4090):
    cost = rtx4090.cost_model()
    decodes = [cost.decode_ps(n) for n in range(1, 1025)]
    assert decodes == sorted(decodes)
    mixed = [cost.mixed_ps(4, 4000, tokens, tokens, tokens * tokens) for tokens in range(1, 4097)]
    assert mixed == sorted(mixed)
    assert cost.decode_context_ps > 0


def test_blocks_are_the_ones_that_vllm_resolved_and_follow_the_settings(rtx4090):
    assert rtx4090.num_gpu_blocks_for() == 2588
    assert rtx4090.num_gpu_blocks_for(0.9, "auto", 16) == 2588
    assert rtx4090.num_gpu_blocks_for(kv_cache_dtype="bfloat16") == 2588
    assert rtx4090.num_gpu_blocks_for(kv_cache_dtype="fp8") == 2 * 2588
    assert rtx4090.num_gpu_blocks_for(block_size=32) == 2588 // 2
    more_bytes = int(0.95 * 25250627584) - int(0.9 * 25250627584)
    assert rtx4090.num_gpu_blocks_for(0.95) - 2588 == more_bytes // (16 * 131072)
    of_run = Settled(256, 2048, 51)
    assert rtx4090.num_gpu_blocks_for(0.9, "auto", 16, of_run) == 2588
    # twice the tokens: the forward pass's peak of 2,048 more, 3 hidden states and 3 of the inner width in 16 bits
    before = max(2048 * 110592, 256 * 769536 + 2048 * 8192)
    less_bytes = 4096 * 110592 - before
    blocks = rtx4090.num_gpu_blocks_for(0.9, "auto", 16, of_run._replace(max_num_batched_tokens=4096))
    assert 2588 - blocks == -(-less_bytes // (16 * 131072)) or 2588 - blocks == less_bytes // (16 * 131072)
    assert rtx4090.num_gpu_blocks_for(0.9, "auto", 16, of_run._replace(max_num_seqs=1024)) < 2588
    assert rtx4090.memory.weights_bytes == 2 * 8_030_261_248
    # keys and values, layers, KV heads, head dim, bf16
    assert rtx4090.memory.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2


@pytest.mark.parametrize(
    ("gpu", "total_gib", "seqs", "tokens", "largest_graph"),
    [
        ("rtx4090", 23.5, 256, 2048, 512),
        ("l40s", 44.5, 256, 2048, 512),
        ("a100", 79.2, 256, 2048, 512),
        ("h100", 79.1, 1024, 8192, 512),
        ("h200", 139.8, 1024, 8192, 512),
        ("b200", 178.0, 1024, 16384, 1024),  # a data center's Blackwell
    ],
)
def test_default_limits_follow_the_gpu_and_its_memory(content, gpu, total_gib, seqs, tokens, largest_graph):
    profile = with_memory(content, gpu, total_gib)
    assert (profile.default_max_num_seqs, profile.default_max_num_batched_tokens) == (seqs, tokens)
    assert profile.default_max_capture_size == largest_graph
    assert with_memory(content, "cpu", 64).default_max_capture_size == 0


def test_a_file_is_taken_from_the_scenarios_folder(tmp_path, content):
    (tmp_path / "mine.json").write_text(json.dumps({**content, "name": "mine"}))
    (tmp_path / "short.json").write_text(json.dumps(INLINE))
    assert load_profile("mine.json", folder=tmp_path).name == "mine"
    assert load_profile("short.json", folder=tmp_path).name == "short"
    assert load_profile(str(tmp_path / "mine.json"), folder=Path("elsewhere")).num_gpu_blocks_for() == 2588


def test_settings_that_leave_nothing_are_named(rtx4090):
    with pytest.raises(UserError, match=r"engine.gpu_memory_utilization: .* \(got 0.5\); raise it"):
        rtx4090.num_gpu_blocks_for(0.5)
    with pytest.raises(UserError, match=r"engine.kv_cache_dtype: unknown type \(got 'int3'\); known: auto, float16"):
        rtx4090.num_gpu_blocks_for(kv_cache_dtype="int3")
    with pytest.raises(UserError, match=r"engine.kv_cache_dtype: an inline profile has no memory figures"):
        load_profile(INLINE, folder=Path()).num_gpu_blocks_for(kv_cache_dtype="fp8")
    with pytest.raises(UserError, match=r"engine.gpu_memory_utilization: an inline profile has no memory figures"):
        load_profile(INLINE, folder=Path()).num_gpu_blocks_for(0.8)


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


def test_windows_add_what_is_inside_them():
    windows = WindowCost(4, decode_ps=10, mixed_ps=25, attention=3 << ATTENTION_SHIFT)
    cost = two_regime(windows=windows)
    plain = two_regime()
    entries = [(1, k, True) for k in (2, 3, 9)]
    features = Features(*sums_of(entries, windows=windows))
    assert features.decode_window == 2 + 3 + 4
    assert step_ps(cost, features) - step_ps(plain, features) == 90
    # the tokens of a prompt of 6 count 1 + 3 + 5 + 7 + 8 + 8, in one chunk or in two
    assert windows.units(6, 0) == 32 == windows.units(3, 0) + windows.units(3, 3)
    assert windows.units(3, 0) == 3 * 3
    mixed = Features(*sums_of([*entries, (6, 0, False)], windows=windows))
    assert step_ps(cost, mixed) - step_ps(plain, mixed) == 25 * 9 + 3 * 32
    assert step_ps_beside(cost, (3, 14), 6, 0) - step_ps_beside(plain, (3, 14), 6, 0) == 25 * 12 + 3 * 32
    assert step_ps_alike(cost, 3, 9, 6, 6, 36) == step_ps(cost, mixed._replace(decode_context=9))
