"""The load of a scenario, that a search raises and a comparison varies: its rate, or how many users there are at once.

Users are a number where requests or sessions are sent because others have ended: sessions in a closed loop, a trace of
sessions with `max_concurrency`, a process `closed_loop` or `all_at_once` with it, and a trace without times of its own.
Where requests come at a rate and are held back by `max_concurrency` besides, the rate is the load, and the number of
users is what `users_of` varies for who asks. All rates of a scenario are changed alike.

How near they are to what the engines can do at all is a mean-field estimate from the means of the requests. In the
steady state of a full batch of B requests with O output tokens each, B / O of them end in a step and as many come in,
so the step holds B decodes and the prompts of B / O requests. The capacity is B / O over how long that step lasts. Long
outputs are in the batch for longer: a decode has E[O^2] / 2 E[O] tokens of output behind it on average. With fewer than
one prompt a step, that share of the steps has one, and the others decode alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.model import step_ps_alike
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.workload import open_workload
from simbatch.sim.workload.arrivals import ClosedLoop
from simbatch.sim.workload.model import TrafficShape
from simbatch.sim.workload.sessions import Sessions
from simbatch.sim.workload.turns import rate_of, turns_in

if TYPE_CHECKING:
    from simbatch.sim.scenario import Resolved, Scenario
    from simbatch.sim.workload.chunk import RequestSource

RATE_FLAG, USERS_FLAG, MIN_RATES = "--rate", "--users", 2
RATES = ("request_rate", "off_request_rate", "ramp_up_start_rps", "ramp_up_end_rps")
OF_SESSIONS, OF_REQUESTS = "workload.sessions.concurrency", "workload.max_concurrency"
WHICH = {"on_off": " in bursts", "daily": " on average", "ramp": " at the start"}  # what a process's first rate is
CLOSED = ("closed_loop", "all_at_once")  # whose requests come when others have ended


def parse_rates(texts: Sequence[str], place: str = RATE_FLAG, *, whole: bool = False) -> list[float]:
    """`("2,4", "6")` as 2, 4, 6, in ascending order; UserError at `place` at what is no rate, or not `whole`."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    rates = []
    for part in parts:
        try:
            rate = float(part)
        except ValueError:
            rate = math.nan
        if not (rate > 0 and math.isfinite(rate)) or (whole and not rate.is_integer()):
            rule = f"must be {'whole ' if whole else ''}numbers above 0"
            raise UserError(Problem(place, rule, part, f"for example {place} 1,2,3"))
        rates.append(rate)
    twice = next((rate for rate in rates if rates.count(rate) > 1), None)
    if twice is not None:
        raise UserError(Problem(place, "is named twice", f"{twice:g}", "name each once"))
    if len(rates) < MIN_RATES:
        mend = f"for example {place} {rates[0]:g},{2 * rates[0]:g}"
        raise UserError(Problem(place, f"needs at least two {'numbers' if whole else 'rates'}", f"{rates[0]:g}", mend))
    return sorted(rates)


def axis_of(scenario: Scenario) -> str:
    """What the rates are, for a reader of the figure."""
    workload = scenario.workload
    if workload.trace is not None:
        return "arrival rate (req/s)"
    if workload.sessions is not None:
        return "new sessions (1/s)"
    if workload.mix is not None:
        others = ", others in step" if len(workload.mix) > 1 else ""
        return f"request rate of {workload.mix[0].tenant} (req/s{others})"
    process = getattr(workload.arrival, "process", "gamma")
    what = {"on_off": "request rate in bursts", "daily": "mean request rate", "ramp": "request rate at the start"}
    return f"{what.get(process, 'request rate')} (req/s)"


def rates_of(scenario: Scenario) -> dict[str, float]:
    """Every rate of the scenario by its dotted key; they are multiplied together. UserError when it has none."""
    workload = scenario.workload
    if workload.trace is not None:
        return {"workload.trace.rate_scale": workload.trace.rate_scale}
    if workload.sessions is not None:
        return _session_rates(workload.sessions)
    parts: dict[str, TrafficShape] = {f"workload.mix.{i}": part for i, part in enumerate(workload.mix or ())}
    found = {
        key: rate for place, part in (parts or {"workload": workload}).items() for key, rate in _own_rates(place, part)
    }
    if not found:
        rule = "has no request rate that could be raised"
        process = getattr(workload.arrival, "process", None)
        raise UserError(Problem("workload.arrival", rule, process, "take a process with one: gamma, poisson, on_off"))
    return found


def _session_rates(sessions: Sessions) -> dict[str, float]:
    """Of sessions that begin at a rate; UserError for users, who are a number."""
    if sessions.concurrency is not None:
        rule, mend = "users have no rate", "vary their number: --users 50,100,200; or give sessions an arrival"
        raise UserError(Problem("workload.sessions.concurrency", rule, sessions.concurrency, mend))
    found = {name: getattr(sessions.arrival, name, None) for name in RATES}
    rates = {f"workload.sessions.arrival.{name}": rate for name, rate in found.items() if rate}
    if not rates:
        rule, mend = "has no rate that could be raised", "take a process with one: gamma, poisson, on_off"
        raise UserError(Problem("workload.sessions.arrival", rule, mend=mend))
    return rates


def at_rate(scenario: Scenario, rate: float) -> dict[str, Any]:
    """The changes that make the first of the scenario's rates `rate`, and the others as many times as high."""
    rates = rates_of(scenario)
    first, *others = rates
    factor = rate / rates[first]
    return {first: rate, **{key: rounded(rates[key] * factor) for key in others}}


def rounded(rate: float) -> float:
    """To six digits, as a person could write it."""
    return float(f"{rate:.6g}")


def _own_rates(place: str, traffic: TrafficShape) -> Iterator[tuple[str, float]]:
    if traffic.request_rate is not None:
        yield f"{place}.request_rate", traffic.request_rate
    for name in RATES:
        if rate := getattr(traffic.arrival, name, None):
            yield f"{place}.arrival.{name}", rate


HIGH = 0.8


SENTENCE = (
    "The load is about {share:.0%} of what the engines can do: steps a few per cent slower than the profile's are then "
    "tens of per cent of a latency. --bands says how many."
)


def load_lines(resolved: Resolved, record: RunRecord) -> Iterator[str]:
    """What to know where the load is high."""
    share = load_share(resolved, record)
    if share is not None and share > HIGH:
        yield SENTENCE.format(share=share)


def load_share(resolved: Resolved, record: RunRecord) -> float | None:
    """Requests that were sent over those that can be served, per second; None where nothing says how fast they come."""
    requests = record.requests
    served = requests.num_output_tokens > 0
    span_s = float(requests.arrival_ps.max() - requests.arrival_ps.min()) / PS_PER_S if len(requests) > 1 else 0.0
    workload = resolved.scenario.workload
    users = workload.sessions.concurrency if workload.sessions else workload.max_concurrency
    if span_s == 0 or not served.any() or users is not None:
        return None
    prompt, outputs = float(requests.num_prompt_tokens[served].mean()), requests.num_output_tokens[served].astype(float)
    output = float(outputs.mean())
    context = prompt + float((outputs**2).mean()) / output / 2
    computed = prompt - float(requests.num_cached_tokens[served].mean())
    groups = [(resolved, 1)] if resolved.fleet is None else [(g.resolved, g.replicas) for g in resolved.fleet.groups]
    capacity = sum(count * capacity_of(one, context, max(computed, 1.0), output) for one, count in groups)
    return (len(requests) - 1) / span_s / capacity


def capacity_of(resolved: Resolved, context: float, computed: float, output: float) -> float:
    """Requests per second of one engine whose batch is full: a decode's mean context, a prompt's tokens not cached."""
    engine, cost = resolved.engine, resolved.cost_model()
    batch = max(1, min(engine.max_num_seqs, int((engine.num_gpu_blocks - 1) * engine.block_size / context)))
    contexts, prompts = round(batch * context), batch / output
    decode_ps = step_ps_alike(cost, batch, contexts)
    room = max(1, min(round(max(1.0, prompts) * computed), engine.max_num_batched_tokens - batch))
    mixed_ps = step_ps_alike(cost, batch, contexts, room, room, room * room)
    mixed = prompts * computed / room  # steps with prompts for each step of decodes; above 1 prompts hold decodes up
    step_ps = mixed * mixed_ps + max(0.0, 1 - mixed) * decode_ps
    return prompts / (step_ps / PS_PER_S)


@dataclass(frozen=True)
class OfferedLoad:
    """What a load's values mean: `times` one is requests per second; of users, how many, and `most` all there are.

    `key` is the first setting that it changes, and `own` its value in the scenario as it stands.
    """

    key: str
    words: str
    own: float
    times: float = 1.0
    what: str = "rate"
    of_them: str = "requests"
    is_users: bool = False
    most: int | None = None

    @property
    def axis(self) -> str:
        """What an axis of it is called."""
        return self.what if self.is_users else f"{self.what} ({self.words})"

    def at(self, scenario: Scenario, value: float) -> dict[str, Any]:
        """The changes of the scenario that make it so many users, or this first rate."""
        return {self.key: round(value)} if self.is_users else at_rate(scenario, value)


def load_of(scenario: Scenario) -> OfferedLoad:
    """What a search for the capacity raises: the users of a closed loop, else every rate. UserError without either."""
    if scenario.workload.trace is not None:
        return _of_trace(scenario)
    users = users_of(scenario)
    return users if users is not None and _is_closed(scenario) else of_rates(scenario)


def of_rates(scenario: Scenario) -> OfferedLoad:
    """Requests per second; of a trace, whose key is a factor, by what the trace has of its own (it is read)."""
    rates, workload = rates_of(scenario), scenario.workload
    key, own = next(iter(rates.items()))
    if workload.trace is not None:
        return OfferedLoad(key, "req/s", own, own_rate(scenario))
    if workload.sessions is not None:
        return OfferedLoad(key, "sessions/s", own)
    if workload.mix is not None:
        others = ", others in step" if len(workload.mix) > 1 else ""
        return OfferedLoad(key, f"req/s of {workload.mix[0].tenant}{others}", own)
    return OfferedLoad(key, f"req/s{WHICH.get(workload.resolved_arrival().process, '')}", own)


def users_of(scenario: Scenario) -> OfferedLoad | None:
    """How many sessions or requests there are at once at most; None where nothing says so. A trace is read."""
    workload = scenario.workload
    if workload.trace is not None:
        return _users_of_trace(_as_recorded(scenario))
    if workload.sessions is not None:
        users = workload.sessions.concurrency
        return None if users is None else _users(OF_SESSIONS, users, workload.sessions.num_sessions, "sessions")
    key, limit = OF_REQUESTS, workload.max_concurrency
    if isinstance(workload.arrival, ClosedLoop) and limit is None:
        key, limit = "workload.arrival.max_concurrency", workload.arrival.max_concurrency
    return None if limit is None else _users(key, limit, workload.num_prompts)


def asked_users(scenario: Scenario) -> OfferedLoad:
    """`users_of`, where a person asks for users; UserError where the scenario has none."""
    found = users_of(scenario)
    if found is None:
        rule = "needs a limit on how many there are at once, and the scenario has none"
        mend = "add workload.max_concurrency (of sessions: concurrency), or vary the rate: --rate 1,2,4"
        raise UserError(Problem(USERS_FLAG, rule, mend=mend))
    return found


def _users(key: str, own: int, most: int | None, of_them: str = "requests") -> OfferedLoad:
    return OfferedLoad(key, "users", float(own), what="number of users", of_them=of_them, is_users=True, most=most)


def _is_closed(scenario: Scenario) -> bool:
    workload = scenario.workload
    return workload.sessions is not None or (not workload.mix and workload.resolved_arrival().process in CLOSED)


def _as_recorded(scenario: Scenario) -> RequestSource:
    as_it_is = scenario.override({"workload.trace.rate_scale": 1.0, "workload.trace.resample_blocks": None})
    return open_workload(as_it_is.workload, seed=scenario.seed, folder=scenario.folder)


def _of_trace(scenario: Scenario) -> OfferedLoad:
    """Of sessions with a limit their users; of requests the rate, where time passes in the file."""
    source = _as_recorded(scenario)
    users = _users_of_trace(source)
    if users is None:
        return of_rates(scenario)
    is_closed = turns_in(source) is not None or scenario.workload.max_concurrency is None
    return users if is_closed or rate_of(source) is None else of_rates(scenario)


def _users_of_trace(source: RequestSource) -> OfferedLoad | None:
    """By the scenario's `max_concurrency`, or that of the run which the file is the result of."""
    turns = turns_in(source)
    if turns is not None:
        most = turns.num_sessions
        return None if turns.max_sessions is None else _users(OF_REQUESTS, turns.max_sessions, most, "sessions")
    if source.max_concurrency is None:
        return None
    return _users(OF_REQUESTS, source.max_concurrency, sum(map(len, source.chunks())))


def own_rate(scenario: Scenario) -> float:
    """Requests per second of a trace as it was recorded; UserError where no time passes in it."""
    rate = rate_of(_as_recorded(scenario))
    if rate is None:
        rule = "all requests of the trace arrive at one moment, so it has no rate"
        mend = "name a trace whose arrivals are apart, or add workload.max_concurrency: so many users at once"
        raise UserError(Problem("workload.trace.path", rule, mend=mend))
    return rate
