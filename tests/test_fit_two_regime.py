import numpy as np
import pytest

from simbatch.profiler.fit.design import REGIMES, StepLimits, sample_steps
from simbatch.profiler.fit.two_regime import figures, fit_two_regime, judge, judge_bands, solve
from simbatch.profiler.records.steps import concatenate, predict_s
from simbatch.sim.cost.step_time import TwoRegimeStepTime

LIMITS = StepLimits(
    decode_only_seqs=(1, 256),
    mixed_seqs=(1, 128),
    context=(16, 16384),
    chunk=(16, 2048),
    history=(0, 8192),
    max_num_batched_tokens=2048,
    kv_tokens=40_000,
)
TRUTH = TwoRegimeStepTime.model_validate(
    {
        "form": "two_regime",
        "decode": {"seqs": {"count": [1, 64, 256], "time_s": [0.016, 0.019, 0.027]}, "per_context_token_s": 1.5e-7},
        "mixed": {
            "tokens": {"count": [16, 256, 272, 2048], "time_s": [0.017, 0.026, 0.036, 0.18]},
            "per_decode_seq_s": 3e-5,
            "per_seq_token_s": 4e-8,
            "per_context_token_s": 3.6e-7,
            "per_prefill_context_token_s": 7e-7,
            "per_attention_unit_s": 1.5e-9,
        },
    }
)


def samples(seed, count=600):
    drawn = {regime: sample_steps(regime, count, LIMITS, seed) for regime in REGIMES}
    return drawn["decode"], concatenate([drawn["prefill"], drawn["mixed"]])


def fit(decode, mixed, noise=0.0):
    rng = np.random.default_rng(0)
    cost = TRUTH.cost_model()
    measured = [
        (steps, predict_s(cost, steps) * (1 + noise * rng.standard_normal(len(steps)))) for steps in (decode, mixed)
    ]
    return fit_two_regime(*measured, seq_knots=[1, 64, 128, 256], token_knots=[16, 256, 272, 1024, 2048])


@pytest.mark.parametrize("regime", REGIMES)
def test_a_design_stays_inside_its_limits_and_repeats(regime):
    steps = sample_steps(regime, 500, LIMITS, seed=3)
    again = sample_steps(regime, 500, LIMITS, seed=3)
    assert (steps.decode_context == again.decode_context).all()
    assert (steps.prefill_tokens == again.prefill_tokens).all()
    assert not (steps.num_tokens == sample_steps(regime, 500, LIMITS, seed=4).num_tokens).all()
    assert (steps.prefill_context + steps.decode_context + steps.num_decodes <= LIMITS.kv_tokens).all()
    assert steps.num_tokens.max() <= LIMITS.max_num_batched_tokens
    assert (steps.prefill_tokens > 0).all() == (regime != "decode")
    assert (steps.num_decodes > 0).all() == (regime != "prefill")
    assert (steps.min_context <= steps.mean_context).all()
    assert (steps.mean_context <= steps.max_context).all()
    if regime != "decode":
        assert steps.prefill_tokens.min() >= 16
        history = steps.prefill_context - steps.prefill_tokens
        assert (steps.prefill_attention == steps.prefill_tokens * (2 * history + steps.prefill_tokens)).all()


def test_the_fit_finds_the_truth_that_made_the_steps():
    found = fit(*samples(seed=1))
    assert found.decode.per_context_token_s == pytest.approx(1.5e-7, rel=1e-3)
    assert found.mixed.per_attention_unit_s == pytest.approx(1.5e-9, rel=1e-3)
    assert found.mixed.per_prefill_context_token_s == pytest.approx(7e-7, rel=1e-3)
    assert found.mixed.per_seq_token_s == pytest.approx(4e-8, rel=1e-2)
    decode, mixed = samples(seed=2, count=200)
    for steps in (decode, mixed):
        assert judge(found.cost_model(), steps, predict_s(TRUTH.cost_model(), steps)).mape < 1e-4


def test_noise_leaves_the_totals_and_shows_as_error():
    found = fit(*samples(seed=1), noise=0.03)
    decode, mixed = samples(seed=2)
    for steps in (decode, mixed):
        error = judge(found.cost_model(), steps, predict_s(TRUTH.cost_model(), steps))
        assert error.mape < 0.01
        assert abs(error.bias) < 0.005


def test_above_its_knots_a_function_goes_on_with_the_slope_of_its_upper_half():
    cost = fit(*samples(seed=1)).cost_model()
    highest = 256
    slope = (cost.decode_ps(highest) - cost.decode_ps(highest // 2)) / (highest // 2)
    assert (cost.decode_ps(1024) - cost.decode_ps(highest)) / (1024 - highest) == pytest.approx(slope, rel=1e-3)


def test_no_term_is_ever_negative():
    rng = np.random.default_rng(5)
    columns = np.column_stack([np.ones(200), rng.random(200), rng.random(200)])
    measured_s = 1 + 2 * columns[:, 1] - 0.5 * columns[:, 2]
    found = solve(columns, measured_s)
    assert (found >= 0).all()
    assert found[2] == 0


def test_figures_by_hand():
    error = figures(np.array([1.1, 0.9, 2.0, 4.0]), np.array([1.0, 1.0, 2.0, 4.0]))
    assert (error.num_steps, error.mape, error.bias) == (4, 0.05, 0.0)
    assert error.p95 == pytest.approx(0.1, abs=1e-5)
    assert figures(np.array([]), np.array([])).num_steps == 0


def test_bands_hold_every_decode_step_once():
    decode, _ = samples(seed=2)
    bands = judge_bands(TRUTH.cost_model(), decode, predict_s(TRUTH.cost_model(), decode))
    assert sum(band.num_steps for band in bands.values()) == len(decode)
    assert all(band.mape == 0 for band in bands.values())
