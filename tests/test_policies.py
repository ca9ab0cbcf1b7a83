"""Policies by name, and what none may break: every one that ships keeps to it, one that does not is caught."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from simbatch.policies import EngineView, Plan, Policy, RequestView
from simbatch.policies.testing import RULES, PolicyError, check_policy
from simbatch.sim.errors import UserError
from simbatch.sim.plugins.policy import POLICIES
from tests.engine_cases import Row
from tests.made_scenarios import all_at_once, in_order, serve
from tests.test_cli import run as simbatch

HERE = Path(__file__).parent


class TestOwnPolicies:
    def test_a_file_beside_the_scenario(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(
            "from simbatch.policies import Policy\n\n\n"
            "class Shortest(Policy):\n    '''Shortest prompt first.'''\n    limit: int = 3\n\n"
            "    def order(self, request):\n        return request.num_prompt_tokens\n"
        )
        policy = POLICIES.load("mine.py:Shortest", {"limit": 5}, folder=tmp_path)
        assert policy.parameters() == {"limit": 5}
        rows: list[Row] = [(0, n, 2, 0, ()) for n in (9, 3, 6)]
        assert in_order(serve(policy, rows, max_num_seqs=1)) == [1, 2, 0]

    @pytest.mark.parametrize(
        ("method", "answer", "message"),
        [
            ("order", "1 / 0", r"mine.py:4 policy Mine at .*order\(\) failed: ZeroDivisionError"),
            ("seats", "0", r"seats\(\) must be .* \(got 0\)"),
            ("seats", "17", r"policy Mine at 0\.0.* s: seats\(\) .* \(16\) \(got 17\)"),
            ("seats", "2.5", r"seats\(\) must be a whole number"),
            ("token_budget", "10**6", r"token_budget\(\) must be .* max_num_batched_tokens"),
            ("reject", "True", r"reject\(\) must return why, in words"),
            ("order", "None", r"order\(\) must return values that can be compared"),
            ("order", "float('nan')", r"order\(\) must return values that can be"),
            ("order", "{}", r"order\(\) must return values that can be compared"),
            ("order", "1 if request.request_id == '0' else 'b'", r"be compared with each other \(got 'b'\)"),
            ("victim", "None", r"victim\(\) must return one of the running requests"),
        ],
    )
    def test_a_broken_one_is_named_with_its_rule(self, tmp_path: Path, method: str, answer: str, message: str) -> None:
        of = {"reject": "request, engine", "order": "request", "victim": "running"}.get(method, "engine")
        source = f"def {method}(self, {of}):\n        return {answer}"
        (tmp_path / "mine.py").write_text(f"from simbatch.policies import Policy\nclass Mine(Policy):\n    {source}\n")
        policy = POLICIES.load("mine.py:Mine", {}, folder=tmp_path)
        with pytest.raises(UserError, match=message):
            serve(policy, [(0, 60, 40, 0, ())] * 2, num_gpu_blocks=10, max_model_len=128)

    def test_rejecting_on_arrival(self) -> None:
        class Picky(Policy):
            def reject(self, request: RequestView, engine: EngineView) -> str | None:
                return "queue is full" if engine.num_waiting >= 2 else None

        record = serve(Picky(), all_at_once(5), max_num_seqs=1)
        assert record.requests.status.tolist() == [0, 0, 1, 1, 1]
        assert record.requests.reason == dict.fromkeys((2, 3, 4), "queue is full")

    def test_a_smaller_budget_makes_smaller_steps(self) -> None:
        class SmallSteps(Policy):
            tokens: int = 8

            def token_budget(self, engine: EngineView) -> int:
                return self.tokens

        record = serve(SmallSteps(tokens=6), [(0, 20, 3, 0, ())] * 2)
        assert all(sum(n for _, n, _ in row.scheduled) <= 6 for row in record.steps or [])
        assert (record.requests.status == 0).all()

    def test_the_view_hides_the_output_length(self) -> None:
        seen: list[RequestView] = []

        class Spy(Policy):
            def order(self, request: RequestView) -> int:
                seen.append(request)
                return 0

        serve(Spy(), all_at_once(1))
        assert "max_tokens" not in dir(seen[0])
        assert (seen[0].request_id, seen[0].num_prompt_tokens, seen[0].arrival_s) == ("0", 4, 0.0)
        with pytest.raises(AttributeError):
            seen[0].arrival_s = 3.0  # type: ignore[misc]


class TestRegistry:
    def test_all_that_ship_can_be_made_without_parameters(self) -> None:
        for name in POLICIES.names():
            assert bool(POLICIES.load(name, {}, folder=HERE).decisions()) == (name != "vllm"), name

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("fixd", r"policy.name: no such policy \(got 'fixd'\); did you mean fixed\?"),
            ("no.such.package:Mine", "cannot import no.such.package"),
            ("nofile.py:Mine", "no file nofile.py"),
            ("test_policies.py", r"a file, but which class in it\? .* write test_policies.py:Class"),
            ("test_policies.py:Nobody", "has no subclass of simbatch.policies.Policy called Nobody"),
            ("test_policies.py:serve", "has no subclass"),
        ],
    )
    def test_a_name_that_leads_nowhere(self, name: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            POLICIES.load(name, {}, folder=HERE)

    @pytest.mark.parametrize("params", [{"batch_size": 0}, {"batch_size": "8"}, {"batch_size": True}, {"size": 3}])
    def test_parameters_are_checked(self, params: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            POLICIES.load("fixed", params, folder=HERE)


@pytest.mark.parametrize("name", POLICIES.shipped)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_every_policy_that_ships_keeps_to_the_rules(name: str, seed: int) -> None:
    checked = check_policy(name, num_cases=1, seed=seed)
    assert checked.num_requests > 0
    kind = POLICIES.find(name, folder=HERE)
    free = {"work conservation": kind.overrides("hold"), "spans": kind.overrides("plan")}
    free["starvation"] = kind().starvation_bound_s() is None
    assert set(RULES) - set(checked.rules) == {rule for rule, is_free in free.items() if is_free}


@pytest.mark.parametrize("parameters", [{"max_overtaking_s": 0.5}, {"predictor_error": 0.0}])
def test_parameters_are_handed_on(parameters: dict[str, float]) -> None:
    """With a bound the rule is checked, without one it is not."""
    checked = check_policy("sjf", num_cases=15, **parameters)
    assert ("starvation" in checked.rules) == ("max_overtaking_s" in parameters)


class Forgetful(Policy):
    """Its state is made once, not in `start`."""

    served: ClassVar[list[str]] = []

    def order(self, request: RequestView) -> int:
        self.served.append(request.request_id)
        return len(self.served) % 7

    def starvation_bound_s(self) -> float | None:
        return None


class Clockwatcher(Policy):
    """Answers by the clock, which nobody asks for while nothing changes."""

    def seats(self, engine: EngineView) -> int:
        return 1 + int(engine.now_s * 1000) % 2 * (engine.max_num_seqs - 1)


class Promising(Policy):
    """Says that nobody is overtaken for long."""

    def order(self, request: RequestView) -> int:
        return request.num_prompt_tokens

    def starvation_bound_s(self) -> float:
        return 0.05


class Sleepy(Policy):
    """Does nothing until three requests are there."""

    def plan(self, running: Sequence[RequestView], waiting: Sequence[RequestView], engine: EngineView) -> Plan:
        tokens = {request: 1 for request in running if request.num_wanted_tokens}
        if not running and len(waiting) >= 3:
            tokens[waiting[0]] = 1
        return Plan(tokens)


class Generous(Policy):
    """Offers more seats than there are."""

    def seats(self, engine: EngineView) -> int:
        return engine.max_num_seqs + 1


class Speechless(Policy):
    """A parameter that no file can hold."""

    key: object = len


class Forgiving(Policy):
    """Puts its parameter right, so that what was written down is another policy."""

    size: int = 0

    def __post_init__(self) -> None:
        self.size += 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Forgetful, "rule 'determinism' in case .*: run again, the same object does otherwise"),
        (Promising, r"rule 'starvation' in case .* is overtaken by one that came .* s later; the bound is 0.05 s"),
        (Sleepy, "rule '(conservation|work conservation)' in case .*(never ends|while somebody waits)"),
        (Generous, r"rule 'answers' in case .*seats\(\) must be a whole number from 1 to max_num_seqs"),
        (Speechless, "rule 'parameters': Object of type .* is not JSON serializable"),
        (Forgiving, r"rule 'parameters': .*2.* of .*1"),
    ],
)
def test_a_policy_that_breaks_a_rule_is_caught(kind: type[Policy], message: str) -> None:
    with pytest.raises(PolicyError, match=rf"^{kind.__name__} breaks the {message}"):
        check_policy(kind, num_cases=60)


def test_even_answers_by_the_clock_are_the_same_whether_steps_are_leapt_over() -> None:
    """Both ways the policy is asked at the same moments."""
    assert "spans" in check_policy(Clockwatcher, num_cases=30).rules


def test_a_fault_is_found_again_by_its_case() -> None:
    with pytest.raises(PolicyError) as first:
        check_policy(Promising, num_cases=60)
    case = int(str(first.value).split(" in case ")[1].split(":")[0])
    with pytest.raises(PolicyError) as again:
        check_policy(Promising, num_cases=1, seed=case)
    assert str(again.value) == str(first.value)


def test_the_command_says_what_was_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert simbatch("policies", "check", "static", "--cases", "5", "--set", "max_batch_size=4") == 0
    out = capsys.readouterr().out
    assert out.startswith("static keeps to the rules in 5 random cases (")
    assert "not checked: work conservation, since it holds requests for a fuller batch" in out


def test_the_command_ends_with_2_at_a_broken_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert simbatch("policies", "check", f"{__file__}:Promising") == 2
    err = capsys.readouterr().err
    assert "breaks the rule 'starvation'" in err
    assert "--cases 1 runs it alone" in err
    assert simbatch("policies", "check", "sjf", "--set", "predictor_eror=1") == 2
    assert "did you mean predictor_error" in capsys.readouterr().err


def test_who_comes_when_somebody_is_preempted_stands_in_line_first() -> None:
    """Leaping once preempted before it took in who had come, which lanes can tell."""
    check_policy("fair", num_cases=1, seed=1806)
