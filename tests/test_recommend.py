"""`simbatch recommend`: the table as prior, the search that checks it, and what is written for vLLM."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from simbatch import Scenario, UserError, simulate
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.scenario.presets import preset_of
from simbatch.sim.tuning import recommend_cases
from simbatch.sim.tuning.recommend import CLOSE, BatchChoice, recommend
from simbatch.sim.tuning.recommend_cases import GB, USE_CASES, case_of, scenario_of
from simbatch.sim.tuning.recommend_report import report, verdict
from simbatch.sim.tuning.vllm_flags import arguments, command
from tests import run_command

PROFILE = "rtx4090-llama-3.1-8b-bf16"


@pytest.mark.parametrize(
    ("name", "by_memory"),
    [("interactive", (1, 2, 4)), ("mixed", (8, 16, 32)), ("batch", (32, 64, 128)), ("longform", (4, 8, 16))],
)
def test_the_table_by_memory(name, by_memory):
    assert tuple(USE_CASES[name].prior(size * GB) for size in (16, 24, 80)) == by_memory


def test_cards_count_by_the_size_on_their_box():
    sizes = {name: load_profile(name, folder=Path()).memory.total_bytes for name in (PROFILE, "h100-llama-3.1-8b-bf16")}
    assert USE_CASES["mixed"].prior(sizes[PROFILE]) == 16
    assert USE_CASES["mixed"].prior(sizes["h100-llama-3.1-8b-bf16"]) == 32


def test_the_table_is_clipped_to_its_range():
    assert replace(USE_CASES["batch"], usual=200).prior(80 * GB) == 256
    assert replace(USE_CASES["interactive"], usual=1).prior(16 * GB) == 1


class Engine:
    """In place of simulations: what `good` says of a batch, a token budget and a rate (None: all at once)."""

    def __init__(self, good, share=1.0):
        self.good, self.share, self.asked = good, share, []

    def __call__(self, asked):
        self.asked += asked
        return [self.summary(settings) for settings, _ in asked]

    def summary(self, settings):
        seqs, tokens = settings["engine.max_num_seqs"], settings["engine.max_num_batched_tokens"]
        figure = self.good(seqs, tokens, settings.get("workload.request_rate"))
        latencies = {f"{s}_{n}_ms": 1.0 for s in ("mean", "p99") for n in ("ttft", "tpot")}
        ours = {
            "slo_share": {"all": self.share, "ttft": 0.9 * self.share, "tpot": self.share},
            "num_preemptions": 0,
            "steady_state": {"refused": None},
            "profile": {"share_of_steps_in_range": 1.0},
        }
        throughputs = {"request_throughput": 10.0, "output_throughput": figure, "request_goodput": figure}
        return throughputs | latencies | {"simbatch": ours}


def found(name, engine, profile=PROFILE, **slo):
    case, loaded = USE_CASES[name], load_profile(profile, folder=Path())
    scenario = scenario_of(case, loaded, profile, slo or case.slo, 0)
    return recommend(case, scenario, loaded, engine)


def test_a_table_that_is_not_wrong_stands():
    kept = found("batch", Engine(lambda seqs, tokens, rate: 100.0))
    assert kept.chosen == kept.prior == (64, 2048)
    assert "the table's 64 stands" in verdict(kept)[0]


def test_of_batches_as_good_the_smallest_is_taken_unless_vllms_default_is_one_of_them():
    changed = found("batch", Engine(lambda seqs, tokens, rate: min(seqs, 180) - seqs / 1e4))
    # 128, 192 and 256 were tried at first or between; 192 is the smallest within 1 % of 180, and better than 256
    assert changed.chosen == (192, 2048)
    assert not changed.is_prior_kept
    assert changed.trials[changed.chosen].score >= (1 - CLOSE) * changed.best.score
    equal = found("batch", Engine(lambda seqs, tokens, rate: min(seqs, 180) + 0.0))
    assert equal.chosen == (256, 2048)
    assert "It is vLLM's default; 192 in its place changes output tokens/s by +0.0 to +0.0 %" in report(equal)


def test_no_default_is_left_for_a_gain_that_one_draw_of_the_profile_does_not_show():
    def doubtful(gain, doubt):
        """A batch of 8 and 512 tokens are better by `gain` each; in draws with a slow device times `doubt` each."""
        as_it_is = load_profile(PROFILE, folder=Path()).model_dump()
        least_s = as_it_is["step_time"]["decode"]["seqs"]["time_s"][0]
        engine = Engine(lambda seqs, tokens, rate: 100.0)
        plain = engine.summary

        def summary(settings):
            profile = settings.get("profile", as_it_is)
            is_slow = profile["step_time"]["decode"]["seqs"]["time_s"][0] > 1.03 * least_s
            changes = (settings["engine.max_num_seqs"] == 8) + (settings["engine.max_num_batched_tokens"] == 512)
            figure = 100.0 * (gain * (doubt if is_slow else 1.0)) ** changes
            return plain(settings) | {"output_throughput": figure}

        engine.summary = summary
        return found("batch", engine)

    kept, left = doubtful(1.04, 0.95), doubtful(1.10, 0.95)
    assert kept.chosen == (64, 2048) == kept.prior
    assert [stand.is_kept for stand in kept.stands] == [True, True]
    assert "inside the band" in report(kept)
    assert left.chosen == (8, 512)
    assert [stand.default for stand in left.stands] == [(8, 2048), (64, 512), (256, 512)]
    draws = "over 19 draws of what the profile is in doubt about"
    assert f"Against the table's batch of 64, {draws}: score +4.5 to +10.0 %." in report(left)


def test_the_token_budget_leaves_vllms_default_for_two_percent_only():
    small = found("batch", Engine(lambda seqs, tokens, rate: 101.0 if tokens == 512 else 100.0))
    large = found("batch", Engine(lambda seqs, tokens, rate: 103.0 if tokens in (512, 1024) else 100.0))
    hardly = found("batch", Engine(lambda seqs, tokens, rate: {512: 102.2, 1024: 100.3}.get(tokens, 100.0)))
    assert small.chosen.max_num_batched_tokens == 2048
    assert hardly.chosen.max_num_batched_tokens == 512  # not 1,024: near the best, and no better than the default
    assert large.chosen.max_num_batched_tokens == 1024
    assert "100.00 output tokens/s become 103.00 (+3.0%)" in verdict(large)[1]


def test_common_random_numbers_and_a_busier_hour():
    engine = Engine(lambda seqs, tokens, rate: 1.0)
    result = found("mixed", engine)
    assert (result.load.share, result.load.rate, result.load.peak) == (0.7, 7.0, 8.75)
    seeds = {}
    for settings, seed in engine.asked:
        seeds.setdefault(BatchChoice(*list(settings.values())[:2]), set()).add(
            (settings.get("workload.request_rate"), seed)
        )
    compared = [
        seeds[choice] for choice in result.trials if choice not in (result.prior, result.default, result.chosen)
    ]
    assert compared
    assert all({(rate, seed) for rate in (7.0, 8.75) for seed in range(5)} <= asked for asked in compared)
    assert result.fresh_seeds == [5, 6, 7, 8, 9]


def test_an_slo_that_nothing_keeps_is_said_with_what_binds():
    result = found("interactive", Engine(lambda seqs, tokens, rate: 1.0, share=0.5))
    assert (result.load.share, result.load.is_enough) == (0.25, False)
    assert "What binds is the time to first token (45.00 % of the requests keep it)" in verdict(result)[-1]


def test_no_default_of_vllms_that_would_be_refused_is_asked():
    engine = Engine(lambda seqs, tokens, rate: 1.0 + seqs)
    found("batch", engine, "h200-llama-3.1-8b-fp8")
    choices = [(s["engine.max_num_seqs"], s["engine.max_num_batched_tokens"]) for s, _ in engine.asked]
    assert all(seqs <= tokens for seqs, tokens in choices)
    assert max(seqs for seqs, _ in choices) == 1024


@pytest.mark.parametrize("profile", ["h100-llama-2-70b-bf16-tp4", PROFILE, "l40s-llama-3.1-70b-bf16-tp4"])
@pytest.mark.parametrize("name", USE_CASES)
def test_requests_fit_the_model(name, profile):
    loaded = load_profile(profile, folder=Path())
    scenario = scenario_of(USE_CASES[name], loaded, profile, {}, 0)
    longest = scenario.workload.prompt_len.max + scenario.workload.output_len.max
    assert longest == scenario.engine.max_model_len <= loaded.max_model_len


def test_flags_by_quantisation():
    def given(profile):
        return arguments(found("batch", Engine(lambda seqs, tokens, rate: 1.0), profile))

    assert given(PROFILE)["dtype"] == "bfloat16"
    assert "quantization" not in given(PROFILE)
    assert not {"quantization", "dtype"} & given("rtx4090-llama-3.1-8b-awq").keys()  # the checkpoint says it
    fp8 = given("h100-llama-3.1-70b-fp8-kvfp8-tp2")
    assert [fp8[key] for key in ("quantization", "kv-cache-dtype", "tensor-parallel-size")] == ["fp8", "fp8", 2]
    assert command(fp8).startswith("vllm serve meta-llama/Llama-3.1-70B --quantization fp8 --kv-cache-dtype fp8")
    text = report(found("batch", Engine(lambda seqs, tokens, rate: 1.0), "rtx4090-llama-3.1-8b-awq"))
    assert "need a checkpoint in awq" in text
    assert "is an estimate" in text


@pytest.fixture
def fewer(monkeypatch):
    """The use cases with fewer requests."""
    short = {name: replace(case, num_prompts=60) for name, case in USE_CASES.items()}
    monkeypatch.setattr(recommend_cases, "USE_CASES", short)


@pytest.mark.usefixtures("fewer")
def test_from_the_command_line_to_files_that_give_the_same_again(tmp_path, capsys):
    given = ("--use-case", "interactive", "--profile", PROFILE, "-o", tmp_path, "--jobs", 1)
    code, out, err = run_command(capsys, "recommend", *given)
    assert code == 0, err
    content = json.loads((tmp_path / "recommend.json").read_text())
    assert content["table"] == {"max_num_seqs": 2, "min": 1, "max": 4}
    chosen = content["recommended"]
    assert chosen["max_num_seqs"] > 8
    assert f"2 in the table, {chosen['max_num_seqs']} here: " in out
    assert content["vllm_serve"] in " ".join(out.replace("\\\n", "").split())  # as a shell joins its lines
    assert "outside the table's range of 1 to 4" in out
    written = yaml.safe_load((tmp_path / "vllm.yaml").read_text())
    assert written == content["vllm"]
    assert written["max-num-seqs"] == chosen["max_num_seqs"]
    summary = simulate(Scenario.load(tmp_path / "scenario.yaml").override({"seed": 0})).summary
    assert summary["simbatch"]["engine"]["max_num_seqs"] == chosen["max_num_seqs"]
    assert summary["simbatch"]["slo_share"]["all"] > 0.9


@pytest.mark.usefixtures("fewer")
def test_the_same_on_one_process_and_on_two(tmp_path, capsys):
    given = ("recommend", "--use-case", "batch", "--json", "--profile", PROFILE, "-o", tmp_path, "--jobs")
    contents = [run_command(capsys, *given, jobs).out for jobs in (1, 2)]
    assert contents[0] == contents[1]
    assert json.loads(contents[0])["goal"] == "output_throughput"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--profile", "rtx4090-llama"], "did you mean rtx4090-llama-3.1-8b-"),
        (["--profile", PROFILE, "--slo", "tpot=3"], "--slo ttft_ms=500"),
        (["--profile", PROFILE, "--slo", "tpot_ms=nan"], "--slo ttft_ms=500"),
        (["--profile", PROFILE, "--jobs", "0"], "--jobs"),
        ([], "--profile: is needed without --scenario"),
        (["--scenario", "steady", "--preset", "chat"], "FILE has its traffic"),
        (["--gpu", "h100"], "A GPU comes with its profile: --profile NAME (`simbatch profiles list --gpu G` has"),
    ],
)
def test_mistakes_are_said_at_once(flags, message, tmp_path, capsys):
    done = run_command(capsys, "recommend", "--use-case", "mixed", *flags, "-o", tmp_path)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_published_traffic_takes_the_place_of_a_use_cases():
    """The preset's lengths and prefixes, the use case's number of requests; a request fits the model."""
    profile = "h100-llama-3.1-8b-bf16"
    loaded = load_profile(profile, folder=Path())
    rag, case = preset_of("rag"), USE_CASES["interactive"]
    scenario = scenario_of(case, loaded, profile, rag.slo, 0, rag)
    workload = scenario.workload
    assert workload.num_prompts == case.num_prompts
    assert workload.prefix.prefix_len == 2560
    assert scenario.slo.ttft_ms == rag.slo["ttft_ms"]
    assert scenario.engine.max_model_len == 2560 + 2048 + 1000


@pytest.mark.parametrize("burstiness", [1.0, None])
def test_a_scenario_is_tried_at_its_own_rate_and_a_quarter_more(burstiness):
    scenario = Scenario.load("steady").override({"workload.burstiness": burstiness})
    loaded = load_profile(PROFILE, folder=Path())
    case = case_of(USE_CASES["mixed"], scenario)
    engine = Engine(lambda seqs, tokens, rate: 5.0)
    kept = recommend(case, scenario, loaded, engine, scenario.workload.request_rate)
    assert {"workload.request_rate", "workload.burstiness"} <= {*engine.asked[0][0]}, "else at once is refused"
    rates = {asked.get("workload.request_rate", 0) for asked, _ in engine.asked}
    assert rates == {None, 1.5, 1.875}
    assert kept.slo == {"ttft_ms": 500, "tpot_ms": 40}
    lines = report(kept).splitlines()
    assert "traffic: that of steady, 1.5 req/s" in lines
    at = next(i for i, line in enumerate(lines) if line.startswith("evidence"))
    evidence = lines[at : lines.index("", at)]
    assert lines.index("recommended:") < at, "the answer stands first"
    first, second = evidence[1:3]  # a heading of two words stands on two lines
    assert second[first.index("within") :].split()[0] == "SLO"
    assert max(map(len, evidence)) <= 100
    with pytest.raises(UserError, match="takes a scenario of one engine"):
        case_of(USE_CASES["mixed"], Scenario.load("bursty"))
