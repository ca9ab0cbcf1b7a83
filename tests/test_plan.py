"""Plans of fleets: against brute force, against theory, and what the command answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from simbatch import simulate
from simbatch.cli import cli
from simbatch.sim.cost.sections import GpuPower, kwh_per_million
from simbatch.sim.errors import UserError
from simbatch.sim.plan import make_plan
from simbatch.sim.plan.content import content, serve_lines
from simbatch.sim.plan.demand import Demand, demand_of, traffic_of_lengths, traffic_of_trace
from simbatch.sim.plan.fleet import FleetPlan, Rules
from simbatch.sim.plan.kinds import ReplicaKind, Wanted, kinds_like, kinds_of, left_out, parse_prices, per_million
from simbatch.sim.plan.report import report, save
from simbatch.sim.plan.search import SEQS, TOKENS, KindSearch, Option, together
from simbatch.sim.results.runs import Summary
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.search import run as search_run
from simbatch.sim.search.cells import Cell
from simbatch.sim.search.run import Runner, run_cells
from simbatch.sim.tuning.goal import Limit

SECONDS = 20.0
LIMITS = (Limit.parse("p99_ttft_ms=900"), Limit.parse("p99_tpot_ms=45"))
FIXED = {"max_num_seqs": 128, "max_num_batched_tokens": 2048}


def demand(rate: float, engine: Mapping[str, Any] = FIXED, profile: str = "h100-llama-3.1-8b-bf16") -> Demand:
    workload = traffic_of_lengths(rate, 600, 60, None)
    scenario = Scenario.from_dict({"profile": profile, "engine": dict(engine), "workload": workload})
    return demand_of(scenario, rate, seconds=SECONDS)


def planned(
    asked: Demand, kinds: Sequence[ReplicaKind], routers: Sequence[str] = ("least_requests",), **rules: Any
) -> FleetPlan:
    runner = Runner(asked.scenario, jobs=1)
    return make_plan(asked, kinds, LIMITS, runner, routers=routers, seeds=[0], rules=Rules(**rules), num_draws=0)


def brute_force(
    asked: Demand, kinds: Sequence[ReplicaKind], options: Sequence[Option], most: int, spare: int = 0
) -> float | None:
    """The least cost an hour of every number of replicas under every option."""
    runner, costs = Runner(asked.scenario, jobs=1), []
    for kind in kinds:
        search = KindSearch(kind, asked, LIMITS, [0], ["least_requests"], most)
        fleets = [
            (n, option) for n in range(1, most + 1) for option in options if search.refusal(option.engine) is None
        ]
        settings = [search.fleet(asked.rate, n, option) for n, option in fleets]
        verdicts = together({0: search.judge(settings)}, runner)[0]
        gpus = [
            (n + spare) * kind.tensor_parallel_size for (n, _), v in zip(fleets, verdicts, strict=True) if v.is_kept
        ]
        costs += [min(gpus) * kind.price.per_hour] if gpus else []
    return min(costs, default=None)


@pytest.mark.parametrize(
    ("rate", "profile", "wanted", "most", "spare"),
    [
        (24.0, "h100-llama-3.1-8b-bf16", Wanted(gpus=["h100", "l40s"]), 8, 0),
        (20.0, "rtxpro6000-llama-3.1-8b-bf16", Wanted(gpus=["rtxpro6000"], sizes=[1, 2]), 4, 1),
    ],
    ids=["two GPUs", "tensor parallelism and a spare"],
)
def test_as_by_brute_force(rate: float, profile: str, wanted: Wanted, most: int, spare: int) -> None:
    asked, kinds = demand(rate, profile=profile), kinds_of("Llama-3.1-8B", wanted)
    assert [kind.tensor_parallel_size for kind in kinds] == [*(wanted.sizes or (1, 1))]
    found = planned(asked, kinds, spare=spare)
    options = [Option({}, "least_requests")]
    assert found.cost_per_hour(found.chosen) == brute_force(asked, kinds, options, most, spare)


def test_settings_and_routers_as_by_brute_force() -> None:
    asked = demand(9.0, {}, "l40s-llama-3.1-8b-bf16")
    kinds = kinds_of("Llama-3.1-8B", Wanted(gpus=["l40s"]))
    routers = ("round_robin", "least_requests")
    found = planned(asked, kinds, routers)
    engines = [{}, *({TOKENS: n} for n in (1024, 4096)), {SEQS: 64}, {TOKENS: 1024, SEQS: 64}]
    options = [Option(engine, router) for engine in engines for router in routers]
    assert found.cost_per_hour(found.chosen) == brute_force(asked, kinds, options, 3)


def test_replicas_at_random_have_the_capacity_of_one_each() -> None:
    asked = demand(200.0, profile="l40s-llama-3.1-8b-bf16")
    kind = kinds_of("Llama-3.1-8B", Wanted(gpus=["l40s"]))[0]
    search, runner = KindSearch(kind, asked, LIMITS, [0, 1], ["random"], 64), Runner(asked.scenario, jobs=1)
    capacity, _ = together({0: search.capacity({})}, runner)[0]
    fleets = [search.fleet(4 * capacity * share, 4, Option({}, "random")) for share in (0.85, 1.25)]
    below, above = together({0: search.judge(fleets)}, runner)[0]
    assert below.is_kept
    assert not above.is_kept


def test_costs_are_exact() -> None:
    prices = parse_prices(["h100=2.5/h", "L40S=$0.8"])
    assert {gpu: price.per_hour for gpu, price in prices.items()} == {"h100": 2.5, "l40s": 0.8}
    assert per_million(9.0, 2500.0) == 1.0  # 9 $ for 9 million tokens
    assert per_million(None, 2500.0) is None
    found = planned(demand(24.0), kinds_of("Llama-3.1-8B", Wanted(gpus=["h100"], prices=prices)), gpus_per_node=8)
    assert found.rules.paid_gpus(found.chosen) == 8
    assert found.cost_per_hour(found.chosen) == 20.0
    million = found.cost_per_million(found.chosen)
    assert million == pytest.approx(20.0 / (found.chosen.verdict.output_throughput * 3600) * 1e6)


def test_kinds_are_those_of_the_scenarios_model_weights_and_cache() -> None:
    own = resolve(demand(1.0, profile="h100-llama-3.1-8b-fp8").scenario).profile
    assert {kind.weights for kind in kinds_like("h100-llama-3.1-8b-fp8", own, Wanted())} == {"fp8"}
    weights = {kind.weights for kind in kinds_like("h100-llama-3.1-8b-fp8", own, Wanted(weights="any"))}
    assert {"bf16", "fp8", "fp8, fp8 KV", "awq"} <= weights
    names = [kind.profile.name for kind in kinds_of("meta-llama/Llama-3.1-8B", Wanted(gpus=["h100"]))]
    assert names == ["h100-llama-3.1-8b-bf16-measured"]  # of two alike the one that was measured in a server


def test_a_model_is_one_under_its_checkpoints_names() -> None:
    kinds = kinds_of("Qwen3-32B", Wanted(gpus=["h100", "h200", "l40s", "t4"]))
    assert {kind.profile.name for kind in kinds} == {
        *("h100-qwen3-32b-bf16", "h200-qwen3-32b-bf16"),
        "l40s-qwen3-32b-fp8_block",  # too small for 16 bits
    }
    (said,) = left_out(["h100", "t4"], kinds)
    assert "no such profile ships: t4" in said


COMMAND = "plan --model Llama-3.1-8B --prompt-len 300 --output-len 30 --rate 12 --seconds 10 --gpus h100,l40s --jobs 1"


def run(folder: Path, command: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, [*command.split(), "-o", str(folder)], catch_exceptions=True)
    if code:
        assert isinstance(result.exception, UserError)
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_writes_a_fleet_that_runs_as_it_says(tmp_path: Path) -> None:
    output = run(tmp_path / "plan", f"{COMMAND} --limit p99_ttft_ms=400 --limit p99_tpot_ms=40 --price h100=9")
    content = json.loads((tmp_path / "plan" / "plan.json").read_text())
    (group,) = content["groups"]
    assert content["feasible"]
    assert " ".join(output.split()).startswith(" ".join(content["answer"].split()))
    said = [line for line in output.splitlines() if not line.startswith("  vllm serve")]
    assert max(map(len, said)) <= 100
    assert (group["gpu"], group["replicas"]) == ("l40s", content["num_gpus"])
    assert content["cost_per_hour"] == content["num_gpus"] * 1.09
    assert [shape["gpu"] for shape in content["shapes"]] == ["l40s", "h100"]
    run(tmp_path / "run", f"run {tmp_path / 'plan' / 'scenario.yaml'} --quiet")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {key: summary[key] for key in content["metrics"]} == {k: v["value"] for k, v in content["metrics"].items()}
    assert "vllm serve meta-llama/Llama-3.1-8B" in (tmp_path / "plan" / "serve.sh").read_text()


def test_what_cannot_be_kept_is_answered_with_the_limit_and_by_how_much(tmp_path: Path) -> None:
    output = run(tmp_path, f"{COMMAND} --limit p99_tpot_ms=3")
    content = json.loads((tmp_path / "plan.json").read_text())
    assert (content["feasible"], content["num_gpus"], content["groups"]) == (False, None, [])
    assert " ".join(output.split()).startswith("No fleet keeps the limits. Nearest comes H100 TP1: P99 TPOT")
    assert "limit 3.0" in output


def test_without_a_price_the_number_of_gpus_decides(tmp_path: Path) -> None:
    text = f"{COMMAND} --limit p99_ttft_ms=400 --no-bands --json".replace("h100,l40s", "rtx4090").replace(
        "Llama", "LLAMA"
    )
    content = json.loads(run(tmp_path, text))
    assert content["cost_per_hour"] == content["num_gpus"] * 0.74
    scenario = tmp_path / "inline.yaml"
    scenario.write_text(
        "profile: {num_gpu_blocks: 900, step_time: {base_s: 0.01, per_decode_seq_s: 0.002}}\n"
        "workload: {num_prompts: 500, request_rate: 30, prompt_len: {distribution: fixed, mean: 30},\n"
        "  output_len: {distribution: fixed, mean: 20}}\nslo: {tpot_ms: 40}\n"
    )
    content = json.loads(run(tmp_path / "plan", f"plan {scenario} --seconds 10 --no-bands --jobs 1 --json"))
    assert content["feasible"]
    assert content["cost_per_hour"] is None
    assert content["num_gpus"] == content["groups"][0]["replicas"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("plan", "needs a FILE or a --model"),
        ("plan --model Llama-3.1-9B", "did you mean meta-llama/Llama-3.1-8B"),
        ("plan --model Llama-3.1-8B", "needs --rate, --prompt-len and --output-len"),
        ("plan --model Llama-3.1-8B --preset chat", "--preset: needs a rate"),
        (f"{COMMAND} --limit p99_ttft_ms=9 --rate 0", "--rate: must be a number above 0"),
        (f"{COMMAND} --limit p99_ttft_ms=9 --gpus h101", "--gpus: is not known"),
        (f"{COMMAND} --limit p99_ttft_ms=9 --tp 4", "with these weights there are a100 TP1"),
        (f"{COMMAND} --limit p99_ttft_ms=9 --tp 0", "--tp: must be numbers of GPUs"),
        (f"{COMMAND} --limit p99_ttft_ms=9 --price h100", "--price: must be a GPU"),
        (f"{COMMAND} --limit p99_ttft_ms=9 --router nosuch", "no such router"),
        (COMMAND, "a fleet is planned for limits, and there are none"),
        ("plan steady --model x", "FILE says it already"),
        ("plan steady --set profile=nosuch", "neither a shipped profile nor a file"),
        ("plan steady --set cluster.replicas=0", "must be at least 1"),
    ],
)
def test_mistakes_name_the_flag_and_the_mend(tmp_path: Path, changed: str, words: str) -> None:
    assert words in run(tmp_path, changed, code=2)


def test_too_few_gpus_are_an_answer(tmp_path: Path) -> None:
    assert "more GPUs than --max-gpus" in run(tmp_path, f"{COMMAND} --limit p99_ttft_ms=400 --max-gpus 1 --spare 1")


def test_a_mixed_group_is_taken_where_it_is_cheaper_and_keeps_the_limits(tmp_path: Path) -> None:
    """What is over for a second H100 goes to an L40S."""
    prices = parse_prices(["h100=3.5", "l40s=2"])
    kinds = kinds_of("Llama-3.1-8B", Wanted(gpus=["h100", "l40s"], prices=prices))
    asked, limits = demand(42.0), (Limit.parse("p99_ttft_ms=900"), Limit.parse("p99_tpot_ms=70"))
    runner = Runner(asked.scenario, jobs=1)
    ways: dict[str, Any] = {"routers": ["least_requests"], "seeds": [0], "rules": Rules(), "num_draws": 1}
    found = make_plan(asked, kinds, limits, runner, **ways)
    assert found.chosen.beside is not None
    assert found.cost_per_hour(found.chosen) == 5.5
    assert [group["gpu"] for group in content(found)["groups"]] == ["h100", "l40s"]
    assert "1 x H100 TP1 + 1 x L40S TP1" in report(found)
    assert found.banded is not None  # both kinds are drawn, and both stand in the command lines
    assert [line.split()[0] for line in serve_lines(found)][:4] == ["#", "vllm", "#", "vllm"]
    save(found, tmp_path, 1)
    run(tmp_path / "run", f"run {tmp_path / 'scenario.yaml'} --quiet")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {key: summary[key] for key in found.chosen.verdict.values} == found.chosen.verdict.values


def test_a_day_is_planned_for_its_peak(tmp_path: Path) -> None:
    """An hour at 0.2 req/s, in it 100 s at 5 req/s with timestamps: the busiest 100 s are found and named."""
    seconds = [5.0 * i for i in range(720)] + [1800 + 0.2 * i for i in range(500)]
    day = datetime(2026, 3, 1, tzinfo=UTC)
    stamps = [(day + timedelta(seconds=second)).strftime("%Y-%m-%d %H:%M:%S.%f0") for second in sorted(seconds)]
    stamped, plain = tmp_path / "day.csv", tmp_path / "day.jsonl"
    stamped.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *(f"{at},200,20" for at in stamps), ""]))
    rows = [{"arrival_s": second, "num_prompt_tokens": 200, "num_output_tokens": 20} for second in sorted(seconds)]
    plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file, start in ((stamped, "2026-03-01T00:30:00.000000Z"), (plain, 1800)):
        content = {"profile": "l40s-llama-3.1-8b-bf16", "workload": traffic_of_trace(file)}
        asked = demand_of(Scenario.from_dict(content), None, growth=2.0, seconds=100.0)
        assert asked.peak.between[0] == start
        assert asked.rate == pytest.approx(2 * 5.2, rel=0.01)
        summary = simulate(asked.scenario.override(asked.settings(asked.rate))).summary
        assert summary["completed"] == asked.peak.requests == 520
        assert asked.settings(asked.own / 4)["workload.trace.limit"] == 500  # 500 at least
    assert demand_of(Scenario.from_dict(content), None).peak is not None
    assert demand_of(Scenario.from_dict(content), None, seconds=2000.0).peak is None
    text = f"plan --model Llama-3.1-8B --trace {plain} --seconds 100 --gpus l40s --limit p99_ttft_ms=900 --no-bands"
    assert "busiest 100 s, 1800 to 1900 by its own clock: 5.2 req/s" in run(tmp_path / "plan", f"{text} --jobs 1")


def test_an_interrupted_plan_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = f"{COMMAND} --limit p99_ttft_ms=400 --no-bands -o {tmp_path}"
    calls: list[int] = []

    def interrupted(cells: Sequence[Cell], *rest: Any, **ways: Any) -> dict[str, Summary]:
        calls.append(len(cells))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run_cells(cells, *rest, **ways)

    monkeypatch.setattr(search_run, "run_cells", interrupted)
    result = CliRunner().invoke(cli, command.split())
    assert result.exit_code != 0
    assert "go on with --resume" in result.output
    done, calls[:] = sum(calls[:3]), [0] * 5  # the second time nothing is interrupted
    assert CliRunner().invoke(cli, [*command.split(), "--resume", "--quiet"]).exit_code == 0
    simulations = json.loads((tmp_path / "run.json").read_text())["simulations"]
    assert sum(calls) == simulations - done


def test_energy_is_told_where_a_profile_knows_its_power() -> None:
    power = GpuPower(idle_w=100, busy_w=300, per_token_j=0.01, error=0.05, source="a test")
    assert power.watts(0.9, 15_000) == 520
    assert kwh_per_million(720, 1000) == pytest.approx(0.2)
    found = planned(demand(20.0), kinds_of("Llama-3.1-8B", Wanted(gpus=["h100", "l40s"])))
    told = {sizing.kind.gpu: found.kwh_per_million(sizing) for sizing in found.sizings}
    assert told["l40s"] is None
    assert 0.05 < told["h100"] < 0.3  # 400 to 700 W at 1,200 output tokens a second
    assert "kWh/M out" in report(found)
    assert "is an estimate, within 5% on runs that it had not seen" in report(found)
