"""The load of a scenario, that a search raises and a comparison varies: its rate, or how many users there are at once.

Users are a number where requests or sessions are sent because others have ended: sessions in a closed loop, a trace of
sessions with `max_concurrency`, a process `closed_loop` or `all_at_once` with it, and a trace without times of its own.
Where requests come at a rate and are held back by `max_concurrency` besides, the rate is the load, and the number of
users is what `users_of` varies for who asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.search.rates import at_rate, rates_of
from simbatch.sim.workload import open_workload
from simbatch.sim.workload.arrivals import ClosedLoop
from simbatch.sim.workload.turns import rate_of, turns_in

if TYPE_CHECKING:
    from simbatch.sim.scenario import Scenario
    from simbatch.sim.workload.chunk import RequestSource

USERS_FLAG = "--users"
OF_SESSIONS, OF_REQUESTS = "workload.sessions.concurrency", "workload.max_concurrency"
WHICH = {"on_off": " in bursts", "daily": " on average", "ramp": " at the start"}  # what a process's first rate is
CLOSED = ("closed_loop", "all_at_once")  # whose requests come when others have ended


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
