"""The scenario's policy and router as objects, with mistakes in their parameters at their lines."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from simbatch.policies.base import Policy
from simbatch.routers.base import Router
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.plugins.named import POLICIES, ROUTERS, Plugins
from simbatch.sim.scenario.hints import Hints
from simbatch.sim.scenario.problems import problems_of
from simbatch.sim.scenario.reading.source import Source
from simbatch.sim.users_code import place_of

T = TypeVar("T")


def build_policy(name: str, params: dict[str, Any], source: Source) -> Policy:
    """Make the policy `name` with `params`; UserError at the parameters that it does not take."""
    return _build(POLICIES, name, params, source)


def build_router(name: str, params: dict[str, Any], source: Source) -> Router:
    """The same for a router."""
    return _build(ROUTERS, name, params, source)


def _build(plugins: Plugins[T], name: str, params: dict[str, Any], source: Source) -> T:
    try:
        return plugins.load(name, params, folder=source.folder)
    except ValidationError as error:
        kind: Any = plugins.find(name, folder=source.folder)
        path = tuple(plugins.key.split("."))
        known: dict[str, Any] = {"properties": {field.name: {} for field in fields(kind)}}
        for part in reversed(path):
            known = {"properties": {part: known}}
        raise UserError(*problems_of(error, source, Hints(known), prefix=path)) from None
    except UserError as error:
        raise UserError(*(_at_parameter(plugins.key, problem, params) for problem in error.problems)) from None
    except Exception as error:  # whatever a user's own class does when it is made
        place, mend = place_of(error, plugins.find(name, folder=source.folder))
        rule = f"the {plugins.word} cannot be made: {type(error).__name__}: {error}"
        raise UserError(Problem(place, rule, name, mend)) from error


def _at_parameter(place: str, problem: Problem, params: dict[str, Any]) -> Problem:
    """What parameters do wrong together: at the one that the rule begins with, if any, with what the user wrote."""
    key = problem.rule.partition(" ")[0]
    if problem.place != place:
        return problem
    if key not in params:
        return replace(problem, value=params)
    return replace(problem, place=f"{place}.{key}", rule=problem.rule.removeprefix(key).strip(), value=params[key])
