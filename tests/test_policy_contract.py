"""What no policy may break: every policy that ships keeps to it, and one that does not is caught, rule by rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simbatch.policies import EngineView, Plan, Policy, RequestView
from simbatch.policies.testing import RULES, PolicyError, check_policy
from simbatch.sim.plugins.policy import POLICIES
from tests.test_cli import run
from tests.test_policies import HERE


@pytest.mark.parametrize("name", POLICIES.shipped)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_every_policy_that_ships_keeps_to_the_rules(name: str, seed: int) -> None:
    checked = check_policy(name, num_cases=1, seed=seed)
    assert checked.num_requests >= 5
    kind = POLICIES.find(name, folder=HERE)
    assert set(RULES) - set(checked.rules) == {
        rule
        for rule, free in {
            "work conservation": kind.overrides("hold"),
            "starvation": kind().starvation_bound_s() is None,
            "spans": kind.overrides("plan"),
        }.items()
        if free
    }


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
    assert run("policies", "check", "static", "--cases", "5", "--set", "max_batch_size=4") == 0
    out = capsys.readouterr().out
    assert out.startswith("static keeps to the rules in 5 random cases (")
    assert "not checked: work conservation, since it holds requests for a fuller batch" in out


def test_the_command_ends_with_2_at_a_broken_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("policies", "check", f"{__file__}:Promising") == 2
    err = capsys.readouterr().err
    assert "breaks the rule 'starvation'" in err
    assert "--cases 1 runs it alone" in err
    assert run("policies", "check", "sjf", "--set", "predictor_eror=1") == 2
    assert "did you mean predictor_error" in capsys.readouterr().err


def test_who_comes_when_somebody_is_preempted_stands_in_line_first() -> None:
    """Leaping once preempted before it took in who had come, which lanes can tell."""
    check_policy("fair", num_cases=1, seed=1806)
