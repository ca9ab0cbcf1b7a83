"""Which settings a search tries when nobody says which, and how a person says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.plugins.policy import POLICIES
from simbatch.sim.scenario import Resolved
from simbatch.sim.scenario.sweep import Range
from simbatch.sim.search.tune_goal import Limit
from simbatch.sim.search.tune_space import POLICY, SEQS, TOKENS, Axis

SECTIONS = ("engine", "policy", "cluster", "profile")
MIN_TOKENS, MORE_TOKENS = 256, 4  # times the default of the GPU
TARGET_SHARES = (0.5, 0.75, 1.0)  # of the latency that is asked for
DEFAULT_TPOT_MS = 50.0
AGEING_S = (5.0, 30.0, 120.0)


def seat_counts(limit: int) -> Iterator[int]:
    """Powers of two and what lies halfway between them: 1, 2, 3, 4, 6, 8, 12, ... up to `limit`."""
    power = 1
    while power <= limit:
        yield power
        if power >= 2 and power * 3 // 2 <= limit:
            yield power * 3 // 2
        power *= 2


def seats_axis(resolved: Resolved) -> Axis:
    """`max_num_seqs` from 1 to vLLM's default on this GPU, or to the scenario's own when that is more."""
    own = resolved.engine.max_num_seqs
    return Axis(SEQS, _ascending([*seat_counts(max(resolved.profile.default_max_num_seqs, own)), own]))


def default_axes(resolved: Resolved, limits: Sequence[Limit] = ()) -> list[Axis]:
    """Seats, token budget and the policies that go with the scenario's kind of batching, with their parameters."""
    own = resolved.engine.max_num_batched_tokens
    most = MORE_TOKENS * resolved.profile.default_max_num_batched_tokens
    tokens = [MIN_TOKENS * 2**i for i in range((most // MIN_TOKENS).bit_length())]
    axes = [seats_axis(resolved), Axis(TOKENS, _ascending([*tokens, own]))]
    policies = _policies(resolved)
    axes.append(Axis(POLICY, tuple(policies)))
    params = resolved.policy.parameters()
    if "adaptive" in policies:
        wanted = _wanted_tpot_ms(resolved, limits)
        targets = [float(f"{share * wanted:.3g}") for share in TARGET_SHARES]
        targets += [float(params["target_tpot_ms"])] if params.get("target_tpot_ms") else []
        axes.append(Axis("policy.target_tpot_ms", _ascending(targets)))
    if "priority" in policies:
        ages = [*AGEING_S, *([params["ageing_s"]] if "ageing_s" in params else [])]
        axes.append(Axis("policy.ageing_s", _ascending(ages)))
    return [axis for axis in axes if len(axis.values) > 1]


def _policies(resolved: Resolved) -> list[str]:
    """The scenario's own first, then those that ship and go with it."""
    scenario = resolved.scenario
    others = ["vllm", "adaptive"] if scenario.engine.batching == "continuous" else ["fixed", "adaptive"]
    if scenario.workload.priorities:
        others.append("priority")
    if scenario.engine.scheduling_policy == "priority":  # the order is vLLM's own
        others = ["vllm"]
    for name in others:
        POLICIES.find(name, folder=scenario.folder)
    return list(dict.fromkeys([scenario.policy.name, *others]))


def _wanted_tpot_ms(resolved: Resolved, limits: Sequence[Limit]) -> float:
    """What a limit says, else the SLO, else the policy's default."""
    asked = [limit.bound for limit in limits if limit.metric.key.endswith("_tpot_ms") and limit.bound > 0]
    return min(asked, default=resolved.scenario.slo.tpot_ms or DEFAULT_TPOT_MS)


def axes_of(block: Mapping[str, Any], origin: str) -> list[Axis]:
    """Axes from keys and their values, as a `tune:` block or --over says them; UserError at a key."""
    problems = []
    axes = []
    for key, given in block.items():
        place = f"{origin} {key}"
        values = _values(given, place)
        if str(key).partition(".")[0] not in SECTIONS or key in ("engine", "policy", "cluster"):
            mend = f"for example {SEQS}, {TOKENS}, {POLICY} or policy.target_tpot_ms"
            problems.append(Problem(place, "tune searches keys of engine, policy and cluster, and profile", mend=mend))
        elif not values or any(value is None or isinstance(value, (list, dict)) for value in values):
            mend = f"write {key}: [8, 16, 32], or {{from: 8, to: 64, steps: 8}}"
            problems.append(Problem(place, "must be a list of values", given, mend))
        else:
            axes.append(Axis(str(key), _ascending(values)))
    if problems:
        raise UserError(*problems)
    return axes


def _values(given: Any, place: str) -> list[Any]:
    """A list as it is, a range as its numbers: whole ones when it goes from one whole number to another."""
    if not isinstance(given, dict):
        return given if isinstance(given, list) else [given]
    try:
        numbers = Range.model_validate(given).numbers()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        rule = f"is no range: {'.'.join(map(str, first['loc']))} {first['msg']}".replace("  ", " ")
        raise UserError(Problem(place, rule, given, "write {from: 8, to: 64, steps: 8}")) from None
    is_whole = isinstance(given["from"], int) and isinstance(given["to"], int)
    return [round(number) for number in numbers] if is_whole else numbers


def _ascending(values: Sequence[Any]) -> tuple[Any, ...]:
    """Each once; numbers in order, names as they were given."""
    once = tuple(dict.fromkeys(values))
    return tuple(sorted(once)) if Axis("", once).is_ordered else once
