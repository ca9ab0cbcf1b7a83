"""The scenario's policy as an object, with mistakes in its parameters at their lines."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from pydantic import ValidationError

from simbatch.policies.base import Policy
from simbatch.policies.registry import load_policy, policy_class
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.hints import Hints
from simbatch.sim.scenario.problems import problems_of
from simbatch.sim.scenario.reading.source import Source
from simbatch.sim.users_code import place_of


def build_policy(name: str, params: dict[str, Any], source: Source) -> Policy:
    """Make the policy `name` with `params`; UserError at the parameters that it does not take."""
    try:
        return load_policy(name, params, folder=source.folder)
    except ValidationError as error:
        kind = policy_class(name, folder=source.folder)
        known: dict[str, Any] = {"properties": {field.name: {} for field in fields(kind)}}
        hints = Hints({"properties": {"policy": known}})
        raise UserError(*problems_of(error, source, hints, prefix=("policy",))) from None
    except UserError as error:
        raise UserError(*(_at_parameter(problem, params) for problem in error.problems)) from None
    except Exception as error:  # whatever a user's own class does when it is made
        place, mend = place_of(error, policy_class(name, folder=source.folder))
        rule = f"the policy cannot be made: {type(error).__name__}: {error}"
        raise UserError(Problem(place, rule, name, mend)) from error


def _at_parameter(problem: Problem, params: dict[str, Any]) -> Problem:
    """What parameters do wrong together: at the one that the rule begins with, if any, with what the user wrote."""
    key = problem.rule.partition(" ")[0]
    if problem.place != "policy":
        return problem
    if key not in params:
        return replace(problem, value=params)
    return replace(problem, place=f"policy.{key}", rule=problem.rule.removeprefix(key).strip(), value=params[key])
