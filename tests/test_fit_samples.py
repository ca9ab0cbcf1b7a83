"""`simbatch fit` of a samples file: what it reads, what was planted in it is given back, and its errors."""

import numpy as np
import pytest

from simbatch.profiler.fit import fit_samples, held_out, request_overhead_s
from simbatch.profiler.fit.choose import NUM_FOLDS, choose, folds
from simbatch.profiler.fit.forms import forms_for
from simbatch.profiler.fit.two_regime import solve_robust
from simbatch.profiler.records import MeasuredSteps, predict_s
from simbatch.profiler.records.samples import Admission, Samples, steps_of
from simbatch.sim.cost.by_name import load_profile, write_profile
from simbatch.sim.cost.step_time import TwoRegimeStepTime
from simbatch.sim.errors import UserError
from tests.made_samples import ENGINE, TRUTH, made_samples

REGIMES = ("decode", "prefill", "mixed")
MEAN_ABSOLUTE = (2 / np.pi) ** 0.5  # of a standard normal


def measured(samples):
    return MeasuredSteps(*steps_of(samples.fitted()))


def deviation(fitted, samples):
    """Predictions of a fit over the truth, for the steps that are no canaries."""
    steps = measured(samples).steps
    return predict_s(fitted.profile.cost_model(), steps) / predict_s(TRUTH.cost_model(), steps)


@pytest.mark.parametrize("seed", range(3))
def test_the_truth_is_found_under_noise(seed):
    fitted = fit_samples(made_samples(seed, noise=0.03))
    found = fitted.profile.step_time
    assert found.decode.per_context_token_s == pytest.approx(2e-7, rel=0.1)
    assert found.mixed.per_attention_unit_s == pytest.approx(2e-8, rel=0.1)
    error = np.abs(deviation(fitted, made_samples(seed + 100)) - 1)
    assert error.mean() < 0.01
    assert np.quantile(error, 0.95) < 0.03


@pytest.mark.parametrize("noise", [0.02, 0.08])
def test_held_out_error_and_noise_floor_are_those_of_the_noise(noise):
    error = fit_samples(made_samples(noise=noise, episodes=120)).profile.error
    for regime in ("decode", "mixed"):
        assert getattr(error, regime).mape == pytest.approx(MEAN_ABSOLUTE * noise, rel=0.15)
    for regime in ("decode", "prefill"):
        assert error.noise_floor[regime] == pytest.approx(MEAN_ABSOLUTE * noise, rel=0.15)
    num_steps = error.decode.num_steps + error.prefill.num_steps + error.mixed.num_steps
    assert num_steps == len(made_samples(episodes=120).fitted())


def test_a_fit_that_cannot_be_right_says_so():
    """The error is of steps that were not fitted: noise of a whole episode shows, though its steps agree."""
    samples = made_samples(noise=0.0)
    factors = np.exp(0.1 * np.random.default_rng(3).standard_normal(1000))
    samples.steps = [
        step if step.is_canary else step._replace(duration_s=step.duration_s * factors[step.episode])
        for step in samples.steps
    ]
    error = fit_samples(samples).profile.error
    assert error.decode.mape == pytest.approx(MEAN_ABSOLUTE * 0.1, rel=0.35)
    assert error.noise_floor["decode"] < 0.005


def test_an_episode_is_never_torn_apart():
    data = measured(made_samples())
    fold = folds(data)
    assert set(fold) == set(range(NUM_FOLDS))
    assert all(len(set(fold[data.episodes == episode])) == 1 for episode in set(data.episodes))
    for regime in REGIMES:
        assert set(fold[data.regime(regime)]) >= {0, 1}


@pytest.mark.parametrize("spikes", [0.0, 0.01, 0.03])
def test_sums_are_right_and_spikes_do_not_move_the_shape(spikes):
    samples = made_samples(spikes=spikes, noise=0.02)
    fitted = fit_samples(samples)
    data = measured(samples)
    predicted_s = predict_s(fitted.profile.cost_model(), data.steps)
    for rows in (data.regime("decode"), ~data.regime("decode")):
        assert predicted_s[rows].sum() == pytest.approx(data.time_s[rows].sum(), rel=1e-3)
        shape = deviation(fitted, samples)[rows]
        assert np.abs(shape / shape.mean() - 1).mean() < 0.01


def test_a_suspended_machine_is_left_out_and_said():
    samples = made_samples()
    place = next(i for i, step in enumerate(samples.steps) if not step.is_canary)
    samples.steps[place] = samples.steps[place]._replace(duration_s=7200.0)
    fitted = fit_samples(samples)
    said = f"1 of {len(samples.fitted())} steps took more than 50"
    assert any(note.startswith(said) for note in fitted.profile.notes)
    whole = fit_samples(made_samples()).profile.error
    assert fitted.profile.error.decode.mape == pytest.approx(whole.decode.mape, rel=0.02)
    assert len(fitted.data) == len(made_samples().fitted()) - 1
    assert held_out(samples).errors["decode"] < 0.05


def test_weights_by_the_measured_time_would_bend_the_totals():
    """Why the prediction weighs: every second step is half as slow again, and the sums must be those of the mean."""
    rng = np.random.default_rng(0)
    columns = np.column_stack([np.ones(2000), rng.uniform(0, 5, 2000)])
    truth = columns @ [1.0, 2.0]
    noisy = truth * rng.uniform(0.6, 1.4, 2000)
    found = solve_robust(columns, noisy)
    assert found == pytest.approx([1.0, 2.0], rel=0.05)
    assert (columns @ found).sum() == pytest.approx(noisy.sum(), rel=1e-12)


def test_drift_is_measured_and_taken_out_when_it_is_large():
    still, slowing = (fit_samples(made_samples(drift=drift)).profile for drift in (0.0, 0.3))
    assert any("took 1.3" in note and "divided" in note for note in slowing.notes)
    assert any("left as they are" in note for note in still.notes)
    assert slowing.error.decode.mape == pytest.approx(still.error.decode.mape, abs=0.004)
    for regime in ("decode", "mixed"):
        assert abs(getattr(slowing.error, regime).bias) < 0.01
    totals = [sum(step.duration_s for step in made_samples(drift=drift).fitted()) for drift in (0.0, 0.3)]
    data = measured(made_samples())
    ratio = predict_s(slowing.cost_model(), data.steps).sum() / predict_s(still.cost_model(), data.steps).sum()
    assert ratio == pytest.approx(totals[1] / totals[0], rel=0.01)  # the mean speed stays


def test_each_start_of_the_engine_has_canaries_of_its_own():
    """A measurement that goes on leaves two visits in a row: the second start's speed must not blur the first's."""
    first, second = made_samples(episodes=40, noise=0.01), made_samples(seed=1, episodes=40, noise=0.01)
    second.steps = [step._replace(episode=step.episode + 40, duration_s=1.3 * step.duration_s) for step in second.steps]
    fitted = fit_samples(Samples(ENGINE, first.steps + second.steps, first.admissions))
    assert fitted.drift.slowness == pytest.approx([1, 1, 1, 1.3, 1.3, 1.3], rel=0.02)
    assert fitted.is_rescaled
    assert fitted.profile.error.decode.mape < 0.02
    assert fitted.profile.error.noise_floor["decode"] < 0.012


def test_the_form_follows_the_data():
    stairs = TRUTH.model_dump()
    counts = [1, 60, 61, 130, 131, 260, 261, 400, 401, 512]
    stairs["mixed"]["tokens"] = {"count": counts, "time_s": [0.01 * 1.6 ** (i // 2) for i in range(10)]}
    stairs = TwoRegimeStepTime.model_validate(stairs)
    jumpy = fit_samples(made_samples(truth=stairs, episodes=150, noise=0.01)).choice
    smooth = fit_samples(made_samples(noise=0.01, episodes=150)).choice
    assert jumpy.chosen["mixed"].startswith("table")
    assert smooth.chosen["mixed"] in ("hinges", "roofline")
    assert jumpy.errors["hinges"]["mixed"].mape > 1.5 * jumpy.errors[jumpy.chosen["mixed"]]["mixed"].mape


def test_the_roofline_form_finds_the_ridge():
    """A step reads the weights (5 ms) or multiplies them (0.1 ms a token), whichever is longer: the ridge is at 50."""
    bent = {"count": [1, 50, 1000], "time_s": [0.006, 0.006, 0.101]}
    parts = TRUTH.model_dump()
    parts["decode"]["seqs"], parts["mixed"]["tokens"] = bent, bent
    samples = made_samples(truth=TwoRegimeStepTime.model_validate(parts), noise=0.0)
    found = forms_for(ENGINE)["roofline"](measured(samples))
    ridge = found["mixed"]["tokens"]["count"][1]
    assert ridge == pytest.approx(50, rel=0.15)
    times = found["mixed"]["tokens"]["time_s"]
    assert times[1] == pytest.approx(0.006, rel=0.1)


def test_no_gpu_reads_faster_than_its_datasheet_says():
    """Times that would mean so (a GPU that measures too fast) are fitted at the datasheet's bandwidth instead."""
    weights, token = 2 * 10**9, 10**5
    gpu = ENGINE.model_copy(update={"gpu": "h100", "weights_bytes": weights, "kv_bytes_per_token": token})
    impossible = TRUTH.model_dump()
    impossible["decode"]["per_context_token_s"] = 0.1 * token / 3350e9
    samples = made_samples(truth=TwoRegimeStepTime.model_validate(impossible), noise=0.0)
    parts = forms_for(gpu)["roofline"](measured(samples))
    assert parts["decode"]["per_context_token_s"] > 0.8 * token / 3350e9
    assert parts["decode"]["seqs"]["time_s"][0] > 0.8 * weights / 3350e9
    assert forms_for(ENGINE)["roofline"](measured(samples))["decode"]["per_context_token_s"] < 0.5 * token / 3350e9


@pytest.mark.parametrize("regime", ["decode", "mixed"])
def test_too_few_steps_of_a_regime_are_named(regime):
    samples = made_samples()
    data = measured(samples)
    has_it = dict(zip(map(id, samples.fitted()), data.regime(regime), strict=True))
    samples.steps = [step for step in samples.steps if step.is_canary or not has_it[id(step)]]
    word = {"decode": "steps of decodes alone", "mixed": "steps of both (mixed)"}[regime]
    with pytest.raises(UserError, match="too few samples to fit") as caught:
        fit_samples(samples)
    assert word in str(caught.value)
    assert "0 in 0 episodes" in str(caught.value)
    assert held_out(samples) is None
    assert held_out(Samples(ENGINE)) is None


def test_a_quick_look_agrees_with_the_fit():
    samples = made_samples()
    quick, whole = held_out(samples).errors, fit_samples(samples).profile.error
    for regime in REGIMES:
        assert quick[regime] == pytest.approx(getattr(whole, regime).mape, rel=0.3)


def test_totals_are_as_sure_as_the_episodes_agree():
    even, uneven = made_samples(noise=0.01), made_samples(noise=0.01)
    speeds = np.random.default_rng(3).normal(1, 0.1, 1 + max(step.episode for step in uneven.steps))
    uneven.steps = [step._replace(duration_s=step.duration_s * speeds[step.episode]) for step in uneven.steps]
    num_episodes = len({step.episode for step in uneven.fitted()})
    assert max(held_out(even).total_errors.values()) < 0.004
    for part in ("decode", "mixed"):
        assert 0.5 < held_out(uneven).total_errors[part] / (0.1 / num_episodes**0.5) < 2.5


def test_the_profile_says_what_was_measured_and_survives_its_file(tmp_path):
    samples = made_samples()
    profile = fit_samples(samples, name="mine").profile
    write_profile(profile, tmp_path / "mine.json")
    assert load_profile("mine.json", folder=tmp_path) == profile
    memory, bounds, data = profile.memory, profile.range, measured(samples)
    assert memory.num_gpu_blocks == profile.num_gpu_blocks_for() == 100
    assert memory.num_gpu_blocks_from == "vllm"
    assert bounds.mixed.num_tokens == (
        data.steps.num_tokens[~data.regime("decode")].min(),
        data.steps.num_tokens[~data.regime("decode")].max(),
    )
    assert bounds.decode.num_decodes[1] <= 32
    assert profile.request_overhead_s == pytest.approx(0.00037)
    assert profile.command == "simbatch profile maker/tiny"
    assert fit_samples(samples).profile.name == "cpu-tiny-bf16"


def test_what_a_profile_cannot_hold_is_an_error_without_a_traceback():
    samples = made_samples()
    samples.engine = ENGINE.model_copy(update={"kv_cache_dtype": "turbo3"})
    with pytest.raises(UserError, match="kv_cache_dtype"):
        fit_samples(samples)
    samples.engine = ENGINE.model_copy(update={"kv_cache_dtype": "float32"})  # what a CPU takes for a float32 model
    assert fit_samples(samples).profile.num_gpu_blocks_for(kv_cache_dtype="fp8") == 400


def test_an_admission_that_hiccups_is_left_out():
    times = [0.0004] * 95 + [0.5] * 4
    assert request_overhead_s([Admission(time_s, 1) for time_s in times]) == pytest.approx(0.0004)
    assert request_overhead_s([]) == 0.0


def test_the_noise_of_the_profile_is_the_spread_that_was_measured():
    noise = fit_samples(made_samples(noise=0.05, spikes=0.01, episodes=150)).profile.noise
    table = np.array(noise.decode.table()) / 2**24
    assert table.mean() == pytest.approx(1, abs=1e-9)
    assert np.quantile(table, 0.9) / np.quantile(table, 0.5) == pytest.approx(np.exp(0.05 * 1.2816), rel=0.02)
    assert table.max() > 3  # spikes are kept


def test_steps_of_which_no_form_makes_a_step_time_are_refused_in_one_sentence():
    def nothing(_):
        zero = {"count": [1, 2], "time_s": [0.0, 0.0]}
        return {
            "decode": {"seqs": zero, "per_context_token_s": 0.0},
            "mixed": {"tokens": zero, "per_decode_seq_s": 0.0, "per_context_token_s": 0.0, "per_attention_unit_s": 0.0},
        }

    samples = made_samples()
    data, forms = measured(samples), forms_for(samples.engine)
    assert choose(data, {"none": nothing, "table": forms["table"]}).chosen == {"decode": "table", "mixed": "table"}
    with pytest.raises(UserError, match="gives a step that takes no time"):
        choose(data, {"none": nothing})
