"""Output lengths foretold by a trace or a function: who is believed; and step times by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simbatch import Policy, Scenario, UserError, simulate
from simbatch.policies.srpt import ShortestRemainingFirst
from simbatch.sim.cost.model import (
    LinearCost,
    PiecewiseLinear,
)
from simbatch.sim.scenario import resolve
from simbatch.sim.scenario.policy import asks
from simbatch.sim.search import explain_request
from simbatch.sim.search.sweep import sweep
from simbatch.sim.workload.chunk import Predictable
from tests import run_command

LENGTHS = (50, 40, 30, 20, 10)  # all at once on one seat: the order of service is the order of prediction
PREDICTED = (5, 30, 20, 40, 10)  # so request 0 first, then 4, 2, 1, 3
COLUMN = "predicted_output_tokens"
SERVED = ["0", "4", "2", "1", "3"]
SERVED_BY_TRUTH = ["4", "3", "2", "1", "0"]


class Shorter(Policy):
    """Reads predictions, and states no error."""

    def order(self, request: Any) -> Any:
        """By a helper inside."""
        return (lambda view: view.predicted_output_tokens)(request)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str = "t.jsonl", predicted: Any = PREDICTED) -> None:
    rows = []
    for length, guess in zip(LENGTHS, predicted, strict=True):
        row = {"arrival_s": 0, "num_prompt_tokens": 16, "num_output_tokens": length, COLUMN: guess}
        rows.append({key: value for key, value in row.items() if value is not None})
    if name.endswith(".jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(rows[0])] + [",".join(str(row.get(key, "")) for key in rows[0]) for row in rows]
        Path(name).write_text("\n".join(lines) + "\n")


def scenario(name: str = "t.jsonl", policy: Any = None, **trace: Any) -> Scenario:
    return Scenario.from_dict(
        {
            "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}},
            "engine": {"max_num_seqs": 1},
            "policy": policy or {"name": "sjf"},
            "workload": {"trace": {"path": name, **trace}},
        }
    )


def served(result: Any) -> list[str]:
    begun = dict(zip(result.requests["request_id"], result.requests["scheduled_s"], strict=True))
    return sorted(begun, key=begun.__getitem__)


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv"])
def test_a_column_takes_the_place_of_the_default_error(name: str) -> None:
    write(name)
    result = simulate(scenario(name))
    assert served(result) == SERVED
    ours = result.summary["simbatch"]
    assert ours["predicted_by"] == "trace"
    assert "predictor_error" not in ours["policy"]  # it would state an error that nobody made
    assert "Output lengths are predicted by the trace" in result.text()
    assert served(simulate(scenario(name), Shorter())) == SERVED


def test_without_one_the_error_is_stated_as_before() -> None:
    write(predicted=[None] * 5)
    result = simulate(scenario(policy={"name": "sjf", "predictor_error": 0}))
    assert served(result) == SERVED_BY_TRUTH
    ours = result.summary["simbatch"]
    assert (ours["predicted_by"], ours["policy"]["predictor_error"]) == ("stated_error", 0)
    assert simulate(scenario(policy={"name": "vllm"})).summary["simbatch"]["predicted_by"] is None
    with pytest.raises(UserError, match="nothing was predicted: give the policy a parameter predictor_error"):
        simulate(scenario(), Shorter())


def test_the_stored_scenario_and_the_cells_of_a_sweep_believe_the_trace_too() -> None:
    write()
    result = simulate(scenario())
    assert served(simulate(Scenario.from_dict(dict(result.facts.scenario)))) == SERVED
    rows = sweep(scenario(), {"policy.name": ["sjf", "vllm"]}, jobs=1).rows
    assert rows[0]["mean_ttft_ms"] == result.summary["mean_ttft_ms"]
    assert rows[1]["mean_ttft_ms"] != rows[0]["mean_ttft_ms"]  # vllm does not ask, and runs


def test_columns_name_one_of_another_format() -> None:
    head = "TIMESTAMP,ContextTokens,GeneratedTokens,guess\n"
    rows = [f"2024-05-10 00:00:00.0,16,{a},{b}\n" for a, b in zip(LENGTHS, PREDICTED, strict=True)]
    Path("azure.csv").write_text(head + "".join(rows))
    assert served(simulate(scenario("azure.csv", columns={"predicted_output": "guess"}))) == SERVED
    with pytest.raises(
        UserError, match=r"columns.predicted_output: the file has no such column .*other columns in it: guess"
    ):
        simulate(scenario("azure.csv", columns={"predicted_output": "gess"}))


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        ((5, 30, 0, 40, 10), f"t.jsonl:3 {COLUMN}: a prediction must be above 0"),
        ((5, 30, "x", 40, 10), f"t.jsonl:3 {COLUMN}: must be a predicted number of tokens"),
        ((5, 30, None, 40, 10), f"t.jsonl:3 {COLUMN}: must be a predicted number of tokens, and is empty"),
        ((None, 30, 20, 40, 10), f"t.jsonl:1 {COLUMN}"),
    ],
)
def test_every_row_has_one_or_none(predicted: Any, message: str) -> None:
    write(predicted=predicted)
    with pytest.raises(UserError) as raised:
        simulate(scenario())
    assert message in str(raised.value)


def test_a_function_is_asked_once_a_request() -> None:
    write(predicted=[None] * 5)
    asked: list[Predictable] = []

    def guess(request: Predictable) -> float:
        asked.append(request)
        return PREDICTED[int(request.request_id)]

    result = simulate(scenario(), predictor=guess)
    assert served(result) == SERVED
    assert [each.num_output_tokens for each in asked] == list(LENGTHS)
    assert asked[1] == Predictable("1", 0.0, 16, 40, 0, None)
    assert result.summary["simbatch"]["predicted_by"].endswith("test_a_function_is_asked_once_a_request.<locals>.guess")
    assert served(simulate(scenario(), Shorter(), predictor=guess)) == SERVED
    events = explain_request(resolve(scenario(), None, guess), "4")
    assert any("1" in event.what for event in events)


@pytest.mark.parametrize(
    ("policy", "is_foretold", "has_function", "message"),
    [
        ({"name": "vllm"}, False, True, "predictor: policy vllm never asks for predictions, so the predictor would be"),
        ({"name": "sjf"}, True, True, f"predictor: the trace has a column {COLUMN} of its own"),
        (
            {"name": "sjf", "predictor_error": 0.5},
            True,
            False,
            f"policy.predictor_error: the trace's column {COLUMN} says",
        ),
        ({"name": "sjf", "predictor_error": 0.5}, False, True, "policy.predictor_error: the predictor "),
        ({"name": "vllm", "predictor_error": 0.5}, False, False, "policy.predictor_error: unknown key"),
    ],
)
def test_one_that_would_be_ignored_is_an_error(
    policy: dict[str, Any], is_foretold: bool, has_function: bool, message: str
) -> None:
    write(predicted=PREDICTED if is_foretold else [None] * 5)
    with pytest.raises(UserError) as raised:
        simulate(scenario(policy=policy), predictor=(lambda request: 1) if has_function else None)
    assert message in str(raised.value)


def test_a_policy_made_in_python_has_written_what_is_not_the_default() -> None:
    write()
    simulate(scenario(), ShortestRemainingFirst())
    with pytest.raises(UserError, match=r"policy\.predictor_error: the trace's column"):
        simulate(scenario(), ShortestRemainingFirst(predictor_error=0.1))


def test_who_asks() -> None:
    assert [asks(policy) for policy in (ShortestRemainingFirst(), Shorter(), Policy())] == [True, True, False]


def test_a_function_that_fails_is_named_by_its_line() -> None:
    write(predicted=[None] * 5)
    with pytest.raises(UserError) as raised:
        simulate(scenario(), predictor=lambda request: 1 / (request.num_output_tokens - 40))
    problem = raised.value.problems[0]
    file, _, line = problem.place.rpartition(":")
    assert Path(__file__).name == Path(file).name
    assert "1 / (request.num_output_tokens - 40)" in Path(__file__).read_text().splitlines()[int(line) - 1]
    assert "failed for request 1: ZeroDivisionError: division by zero" in problem.rule
    with pytest.raises(UserError, match=r"must return a number of tokens above 0 \(for request 0\) \(got -1\)"):
        simulate(scenario(), predictor=lambda _: -1)


def test_conversion_keeps_them_or_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    write()
    for target in ("t.csv", "t.parquet", "azure.csv"):
        given = ("--to", "azure") if target == "azure.csv" else ()
        done = run_command(capsys, "trace", "convert", "t.jsonl", target, *given)
    assert "warning: azure has no predicted_output_tokens: left out (5 requests)" in done.err
    assert pq.read_table("t.parquet")[COLUMN].to_pylist() == list(PREDICTED)
    for name in ("t.csv", "t.parquet"):
        assert served(simulate(scenario(name))) == SERVED


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
