"""The search for the best settings, from Python and from the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from simbatch import Scenario, UserError, simulate
from simbatch.serving.options import SCHEDULER_CLASS, PolicyOptions
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.scenario import resolve
from simbatch.sim.search.run import Runner
from simbatch.sim.tuning import Tuned, tune, tune_files
from simbatch.sim.tuning.goal import SEQS, TOKENS, Goal, Limit, metric_of
from simbatch.sim.tuning.space import Axis, Space, axes_of, default_axes, seat_counts
from simbatch.sim.tuning.tune_files import content, picture_axes
from simbatch.sim.tuning.vllm_flags import policy_refusal, set_flags, simbatch_run, vllm_serve, weight_notes
from tests.made_scenarios import fixed, uniform

AT_ONCE = {"process": "all_at_once"}
SCENARIO: dict[str, Any] = {
    # every decode costs, so that seats buy throughput with latency: 10 ms and 1 ms for each
    "profile": {"num_gpu_blocks": 2000, "step_time": {"base_s": 0.01, "per_decode_seq_s": 0.001}},
    "workload": {"num_prompts": 80, "arrival": AT_ONCE, "prompt_len": uniform(20, 60), "output_len": fixed(20)},
    "slo": {"tpot_ms": 30},
    "seed": 3,
}
frame = tune_files._frame
SEATS = [1, 2, 4, 8, 16, 32, 64]


def scenario(**sections: Any) -> Scenario:
    return Scenario.from_dict({**SCENARIO, **sections})


def search(space: Space, *limits: str, maximize: str = "throughput", jobs: int = 1, **options: Any) -> Tuned:
    goal = Goal((metric_of(maximize, "--maximize"),), tuple(map(Limit.parse, limits)))
    return tune(space, goal, Runner(space.scenario, jobs=jobs), **options)


def seats(base: Scenario | None = None) -> Space:
    return Space(base or scenario(), [Axis(SEQS, tuple(SEATS))])


def test_without_a_limit_every_seat_is_worth_it() -> None:
    tuned = search(seats())
    assert tuned.best.settings == {SEQS: 64} or tuned.best is tuned.baseline
    assert tuned.best.means["output_throughput"] == simulate(scenario()).summary["output_throughput"]


@pytest.mark.parametrize("limit_ms", [12, 15, 20, 35])
def test_the_largest_batch_under_a_latency_limit(limit_ms: float) -> None:
    tuned = search(seats(), f"p99_tpot_ms={limit_ms}")
    tpot_ms = {count: simulate(scenario().override({SEQS: count})).summary["p99_tpot_ms"] for count in SEATS}
    assert tuned.is_feasible
    assert tuned.best.settings[SEQS] == max(count for count, measured in tpot_ms.items() if measured <= limit_ms)
    assert [str(limit) for limit in tuned.binding()] == [f"p99_tpot_ms <= {limit_ms}"]


def test_no_feasible_setting_is_an_answer() -> None:
    tuned = search(seats(), "p99_tpot_ms=5", "p99_ttft_ms=1e9")
    assert not tuned.is_feasible
    assert tuned.best.settings == {SEQS: 1}  # nothing is nearer to 5 ms
    assert [limit.metric.key for limit in tuned.binding()] == ["p99_tpot_ms"]


def test_limits_that_only_together_cannot_be_kept() -> None:
    tuned = search(seats(), "p99_tpot_ms=11.5", "output_throughput=500")
    assert not tuned.is_feasible
    alone = [search(seats(), limit).is_feasible for limit in ("p99_tpot_ms=11.5", "output_throughput=500")]
    assert alone == [True, True]
    assert tuned.binding()


def test_the_pareto_set_of_a_trade_off_is_every_setting_and_has_a_knee() -> None:
    goal = Goal((metric_of("throughput", "x"), metric_of("p99_tpot_ms", "x")))
    tuned = tune(seats(), goal, Runner(scenario(), jobs=1), wants_knee=True)
    assert {trial.settings.get(SEQS, 256) for trial in tuned.front} >= set(SEATS)
    assert tuned.best is tuned.front[tuned.knee.index]
    assert tuned.best.settings[SEQS] in (4, 8, 16, 32)


def test_the_points_of_the_set_carry_their_seats_on_linear_axes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goal = Goal((metric_of("throughput", "x"), metric_of("p99_tpot_ms", "x")))
    tuned = tune(seats(), goal, Runner(scenario(), jobs=1), wants_knee=True)
    drawn: list[Any] = []
    monkeypatch.setattr(
        "simbatch.sim.tuning.tune_files._frame", lambda axes, *more: drawn.append(axes) or frame(axes, *more)
    )
    tune_files.draw(tmp_path / "tune.png", tuned, picture_axes(goal))
    [axes] = drawn
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
    texts = {(text.xy, text.get_text()) for text in axes.texts}
    keys = ("p99_tpot_ms", "output_throughput")
    for trial in tuned.front:
        place = tuple(trial.means[key] for key in keys)
        assert any(xy == place for xy, _ in texts)
        if trial.settings.get(SEQS) in SEATS[:-1]:
            assert (place, f"{trial.settings[SEQS]}") in texts


def default_space() -> Space:
    base = scenario()
    return Space(base, default_axes(resolve(base), ()))


def test_the_same_seed_gives_the_same_answer_on_one_process_and_on_four() -> None:
    found = [search(default_space(), "p99_tpot_ms=25", trials=24, confirm=2, jobs=jobs) for jobs in (1, 4)]
    assert json.dumps(content(found[0], 0)) == json.dumps(content(found[1], 0))
    assert [trial.settings for trial in found[0].trials] == [trial.settings for trial in found[1].trials]


def test_another_seed_of_the_search_tries_other_settings() -> None:
    found = [search(default_space(), trials=24, search_seed=seed) for seed in (1, 2)]
    assert [trial.settings for trial in found[0].trials] != [trial.settings for trial in found[1].trials]


def test_a_search_finds_what_the_whole_grid_has() -> None:
    space = Space(scenario(), default_axes(resolve(scenario()))[:2])
    everything = search(space, "p99_tpot_ms=25", trials=len(space.points))
    few = search(space, "p99_tpot_ms=25", trials=len(space.points) // 5)
    assert len(few.trials) <= len(space.points) // 5 < len(everything.trials)
    assert few.goal.rank(few.best.means) == everything.goal.rank(everything.best.means)


def test_of_equals_the_fewest_seats_are_recommended_and_what_is_there_before_all() -> None:
    few = scenario(workload={**SCENARIO["workload"], "num_prompts": 6})  # no more than six seats are ever taken
    assert search(seats(few)).best.settings == {}
    assert search(seats(few.override({SEQS: 2}))).best.settings == {SEQS: 8}


def test_nothing_is_simulated_twice_and_replications_share_seeds() -> None:
    space = seats()
    runner = Runner(space.scenario, jobs=1)
    goal = Goal((metric_of("throughput", "x"),))
    tuned = tune(space, goal, runner, replications=3)
    assert tuned.seeds == [3, 4, 5]
    assert runner.num_runs == 3 * len(tuned.trials) == 3 * (len(SEATS) + 1)


def test_the_winner_meets_fresh_seeds() -> None:
    tuned = search(seats(), "p99_tpot_ms=20", confirm=4)
    assert tuned.confirmation.seeds == [4, 5, 6, 7]
    assert tuned.confirmation.difference.high < 0  # the limit costs throughput, against the scenario without it


def test_vllm_s_start_rules_hold_for_every_trial() -> None:
    space = Space(scenario(), [Axis(SEQS, (64, 256)), Axis(TOKENS, (128, 512))])
    tuned = search(space)
    assert {SEQS: 256, TOKENS: 128} not in [trial.settings for trial in tuned.trials]
    assert space.num_refused == 1


def test_seats_are_powers_of_two_and_their_halves() -> None:
    assert list(seat_counts(48)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]


def test_parameters_count_only_for_policies_that_have_them() -> None:
    block = {"policy.name": ["vllm", "adaptive"], "policy.target_tpot_ms": [20, 40], SEQS: [8, 16]}
    space = Space(scenario(), axes_of(block, "tune"))
    assert len(space.points) == 2 + 4
    policies = [space.settings(point).get("policy", {"name": "vllm"}) for point in space.points]
    assert [policy for policy in policies if policy["name"] == "vllm"] == [{"name": "vllm"}] * 2
    assert {policy.get("max_batch_size") for policy in policies} == {None, 8, 16}  # it follows the seats


def test_flags_say_what_is_set() -> None:
    base = Scenario.load(Path(__file__).parents[1] / "scenarios" / "memory_pressure.yaml")
    settings = {SEQS: 48, "policy": {"name": "adaptive", "target_tpot_ms": 40.0}}
    assert set_flags(settings) == "--set engine.max_num_seqs=48 --set 'policy={name: adaptive, target_tpot_ms: 40.0}'"
    assert vllm_serve(base, settings) == (
        "vllm serve meta-llama/Llama-3.1-8B --max-model-len 8192 --max-num-seqs 48 --num-gpu-blocks-override 1000 "
        "--scheduler-cls simbatch.vllm_scheduler.PolicyScheduler "
        """--additional-config '{"simbatch": {"policy": {"name": "adaptive", "target_tpot_ms": 40.0}, """
        """"profile": "rtx4090-llama-3.1-8b-bf16"}}'"""
    )
    assert simbatch_run(scenario(), settings) == f"simbatch run FILE {set_flags(settings)}"  # of plain data
    changed = Scenario.load("bursty").with_profile("my h100.json").override({SEQS: 4, "slo": None, "seed": 7})
    assert simbatch_run(changed, {SEQS: 48}) == (
        "simbatch run bursty --set 'profile=my h100.json' --set engine.max_num_seqs=48 --set slo=null --set seed=7"
    )
    graphs = {"engine.cudagraph_capture_sizes": [1, 2, 4], "engine.api_server_count": 2, "engine.host_noise": False}
    assert vllm_serve(base, graphs).endswith(" --cudagraph-capture-sizes 1 2 4 --api-server-count 2")


def test_the_policy_flags_are_what_vllm_s_scheduler_takes() -> None:
    command = vllm_serve(scenario(profile="rtx4090-llama-3.1-8b-bf16"), {"policy": {"name": "sjf"}})
    words = shlex.split(command)
    options = PolicyOptions.of(json.loads(words[words.index("--additional-config") + 1]))
    assert (options.name, options.seed, options.build().overrides("order")) == ("sjf", 3, True)  # the seed: it predicts
    assert words[words.index("--scheduler-cls") + 1] == SCHEDULER_CLASS


def test_a_policy_that_vllm_cannot_run_is_said() -> None:
    settings = {"policy": {"name": "srpt"}}
    assert "--scheduler-cls" not in vllm_serve(scenario(), settings)
    assert "runs in simulation alone, since it plans whole steps (plan)" in (policy_refusal(scenario(), settings) or "")


@pytest.mark.parametrize(
    ("profile", "flags"),
    [
        ("rtx4090-llama-3.1-8b-bf16", "Llama-3.1-8B --max-model-len 32768"),  # the model's 131,072 do not fit
        (
            "h100-llama-3.1-70b-fp8-kvfp8-tp2",
            "Llama-3.1-70B --quantization fp8 --kv-cache-dtype fp8 --tensor-parallel-size 2 --max-model-len 131072",
        ),
        ("rtx4090-llama-3.1-8b-awq", "Llama-3.1-8B --max-model-len 120224"),
    ],
)
def test_the_command_holds_the_model_as_it_was_measured(profile: str, flags: str) -> None:
    assert vllm_serve(scenario(profile=profile), {}) == f"vllm serve meta-llama/{flags}"
    given = vllm_serve(scenario(profile=profile), {"engine.kv_cache_dtype": "auto"})  # the profile's own, as without it
    assert given == f"vllm serve meta-llama/{flags}"


FP8, BF16, AWQ = "h100-llama-3.1-8b-fp8", "h100-llama-3.1-8b-bf16", "h100-llama-3.1-8b-awq"


@pytest.mark.parametrize(
    ("own", "profile", "other", "flags", "note"),
    [
        ("me/Llama-8B-tuned", BF16, BF16, "me/Llama-8B-tuned --max-model-len 131072", ""),
        ("me/Llama-8B-AWQ", AWQ, AWQ, "me/Llama-8B-AWQ --max-model-len 131072", ""),
        ("me/Llama-8B-FP8", FP8, FP8, "me/Llama-8B-FP8 --max-model-len 131072", ""),
        ("me/Llama-8B", FP8, FP8, "me/Llama-8B --quantization fp8 --max-model-len 131072", ""),
        # other weights, or another model, than the checkpoint has
        ("me/Llama-8B", BF16, FP8, "me/Llama-8B --quantization fp8 --max-model-len 131072", "turns the 16-bit"),
        ("me/Llama-8B", BF16, AWQ, "meta-llama/Llama-3.1-8B --max-model-len 131072", "need a checkpoint in awq"),
        ("me/Llama-8B-FP8", FP8, BF16, "meta-llama/Llama-3.1-8B --max-model-len 131072", ""),
        ("me/Llama-8B", BF16, "h200-qwen3-32b-bf16", "Qwen/Qwen3-32B --max-model-len 40960", ""),
    ],
)
def test_the_command_names_the_scenarios_own_checkpoint_for_its_weights(
    own: str, profile: str, other: str, flags: str, note: str
) -> None:
    mine = scenario(profile=profile, model=own)
    assert vllm_serve(mine, {"profile": other}) == f"vllm serve {flags}"
    said = weight_notes(mine, load_profile(other, folder=Path()))
    assert [note in text for text in said] == [True] * bool(note)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"engine.max_num_seq": [8]}, "did you mean max_num_seqs"),
        ({"workload.request_rate": [8]}, "tune searches keys of engine, policy and cluster"),
        ({SEQS: []}, "must be a list of values"),
        ({SEQS: {"from": 3}}, "is no range"),
        ({"policy.ageing_s": [8]}, "has this parameter"),
        ({"policy.name": ["adaptive"], "policy.target_tpot_ms": [20, -1]}, "must be more than 0"),
        ({"policy.name": ["adaptiv"]}, "did you mean adaptive"),
        ({TOKENS: [16], SEQS: [32]}, "max-num-batched-tokens"),
        ({TOKENS: [16, 64], SEQS: [32]}, f"tune {TOKENS}: vLLM needs .* at least --max-num-seqs"),
        ({"profile": ["h100-llama-3.1-8b-bf16", "h100-llama-3.1-8b-bf1"]}, "tune profile: neither .*did you mean"),
        ({"policy.name": ["vllm", "adaptiv"]}, "tune policy.name: no such policy"),
    ],
)
def test_what_cannot_be_searched(block: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Space(scenario(), axes_of(block, "tune"), "tune")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p99_tpto_ms=50", "did you mean p99_tpot_ms"),
        ("p99_tpot_ms", "must be a metric, =, and a number"),
        ("p99_tpot_ms=fast", "must be a number"),
        ("p99_tpot_ms=nan", "must be a number"),
        ("p99_tpot_ms=-1", "must be a number"),
        ("slo_share=99", "for 99 % write 0.99"),
    ],
)
def test_a_limit_is_a_metric_and_a_number(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Limit.parse(text)


def test_a_share_is_a_lower_limit_and_a_latency_an_upper_one() -> None:
    assert str(Limit.parse("slo_share=0.9")) == "simbatch.slo_share.all >= 0.9"
    assert Limit.parse("slo_share=0.9").excess(0.8) > 0 >= Limit.parse("p99_ttft_ms=5").excess(5.0)
