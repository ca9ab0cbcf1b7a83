"""Classes of priority and tenants: what each felt, and whether tenants got their fair share of the running requests.

Every running request gets one token a step, so one of the `max_num_seqs` places for a second is service. At each moment
the running requests are places that the tenants share, and the fair share is max-min: no tenant is due more places than
it has requests, and what one does not ask for goes to the others in equal parts. A tenant's ratio is the time in places
that it had / the time that it was due; who has nobody waiting is due exactly what it has. Jain's index over the ratios
x of n tenants is (sum x)^2 / (n sum x^2): 1 when all have the same, 1/n when one has everything
(R. Jain, D. Chiu, W. Hawe, A quantitative measure of fairness and discrimination, DEC-TR-301, 1984).

Finished requests alone would say nothing: whoever finishes has got all that it asked for, sooner or later.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_MS, PS_PER_S
from simbatch.sim.engine.record import FINISHED, STATUS_NAMES, RunRecord
from simbatch.sim.metrics.columns import RunFacts, e2el_ps, kept, let_in, request_ids
from simbatch.sim.metrics.latencies import Bools, describe, duration_ps, latencies_ms, ratio, within_slo

MAX_TENANTS = 20
NOBODY = "(none)"  # whose a request without a tenant is, where others have one
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tenants:
    """Who there is, and whose each request is; nobody when no request has a tenant."""

    names: list[str]
    of_request: Ints  # index into `names`

    @classmethod
    def of(cls, record: RunRecord) -> Tenants:
        """The tenants of a run, the largest first (prompt and output tokens, as produced), equals by name."""
        requests = record.requests
        given = requests.tenant or []
        if not any(name is not None for name in given):
            return cls([], np.zeros(0, dtype=np.int64))
        texts = [NOBODY if name is None else name for name in given]
        numbers = {name: i for i, name in enumerate(sorted(set(texts)))}
        index = np.array([numbers[name] for name in texts], dtype=np.int64)
        tokens = np.bincount(index, weights=requests.num_prompt_tokens + requests.num_output_tokens)
        order = np.argsort(-tokens, kind="stable")
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        names = list(numbers)
        return cls([names[i] for i in order.tolist()], rank[index])

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Groups:
    """Blocks of summary.json, one per group of requests."""

    record: RunRecord
    facts: RunFacts

    @cached_property
    def _duration_s(self) -> float:
        return duration_ps(self.record) / PS_PER_S

    @cached_property
    def waits_ps(self) -> Ints:
        """How long each request waited for its first step; to the run's end when it never came, -1 when turned away."""
        requests = self.record.requests
        begun = np.where(requests.scheduled_ps < 0, self.record.end_ps, requests.scheduled_ps)
        return np.where(let_in(requests), np.maximum(begun - requests.arrival_ps, 0), -1)

    @cached_property
    def _within(self) -> dict[str, Bools]:
        """Who is within all limits, and within each of them; empty without an SLO."""
        slo = self.facts.slo
        names = {"all": None, **{name: name for name in slo.limits()}} if slo.limits() else {}
        return {key: within_slo(self.record, slo, only) for key, only in names.items()}

    def classes(self) -> dict[str, Any]:
        """One block per priority, the most urgent first; empty when no request has a priority of its own."""
        priority = self.record.requests.priority
        levels = np.unique(priority)
        if len(levels) == 0 or (len(levels) == 1 and levels[0] == 0):
            return {}
        return {
            self.facts.class_name(level): {"priority": level, **self.block(priority == level)}
            for level in levels.tolist()
        }

    def tenants(self, tenants: Tenants, ratios: Floats) -> tuple[dict[str, Any], dict[str, Any]]:
        """A block per tenant, with its `fair_share_ratio`, and one of all that are too many for that."""
        shown = len(tenants) if len(tenants) <= MAX_TENANTS else MAX_TENANTS
        blocks = {
            name: {"fair_share_ratio": number(ratios[i]), **self.block(tenants.of_request == i)}
            for i, name in enumerate(tenants.names[:shown])
        }
        if shown == len(tenants):
            return blocks, {}
        others = {"num_tenants": len(tenants) - shown, **self.block(tenants.of_request >= shown)}
        return blocks, others

    def block(self, chosen: Bools) -> dict[str, Any]:
        """What the chosen requests felt."""
        record, good = self.record, self._within.get("all")
        finished = record.requests.status == FINISHED
        done = chosen & finished
        longest_ps = int(self.waits_ps[chosen].max(initial=-1))
        block: dict[str, Any] = {
            "requests": counts(record, chosen),
            "request_goodput": None if good is None else ratio(int(good[chosen].sum()), self._duration_s),
            "slo_share": self.slo_share(chosen),
            "longest_wait_ms": None if longest_ps < 0 else longest_ps / PS_PER_MS,
            "mean_normalised_latency_ms": mean_or_none(normalised_latencies_ms(record)[chosen[finished]]),
        }
        for name, values in latencies_ms(record, done).items():
            block |= {f"{statistic}_{name}_ms": value for statistic, value in describe(values).items()}
        return block

    def slo_share(self, chosen: Bools) -> dict[str, float | None]:
        """Shares of the chosen requests, all that were sent: who was turned away or never finished got no service."""
        total = int(chosen.sum())
        return {key: ratio(int(good[chosen].sum()), total) for key, good in self._within.items()}

    def longest_wait(self) -> dict[str, Any]:
        """Who waited longest for its first step; of equals the first in the input. Nothing when nobody was let in."""
        record = self.record
        nobody = dict.fromkeys(("wait_ms", "request_id", "class", "tenant"))
        if not (self.waits_ps >= 0).any():
            return nobody
        i = int(self.waits_ps.argmax())
        has_classes = bool((record.requests.priority != 0).any())
        return {
            "wait_ms": int(self.waits_ps[i]) / PS_PER_MS,
            "request_id": request_ids(record)[i] if record.requests.request_id else str(i),
            "class": self.facts.class_name(int(record.requests.priority[i])) if has_classes else None,
            "tenant": record.requests.tenant[i] if record.requests.tenant else None,
        }


def counts(record: RunRecord, chosen: Bools) -> dict[str, int]:
    """How many there are, by what became of them."""
    status = record.requests.status[chosen]
    by_status = {name: int((status == code).sum()) for code, name in enumerate(STATUS_NAMES)}
    return {"total": len(status), **by_status}


@kept
def normalised_latencies_ms(record: RunRecord) -> Floats:
    """E2EL per output token (ms) of the finished requests, as in the papers of Orca and vLLM."""
    finished = record.requests.status == FINISHED
    values: Floats = e2el_ps(record)[finished] / np.maximum(record.requests.num_output_tokens[finished], 1)
    values /= PS_PER_MS
    return values


def mean_or_none(values: Floats) -> float | None:
    """The mean, None without any."""
    return float(values.mean()) if len(values) else None


def number(value: float) -> float | None:
    """NaN is nothing."""
    return None if np.isnan(value) else float(value)


MAX_MOMENTS = 50_000  # at which the seats are looked at; a run with fewer changes is exact
MAX_CELLS = 1 << 24  # moments x tenants
ROWS = 1 << 18  # cells at a time


def jain_index(values: Floats) -> float | None:
    """(sum x)^2 / (n sum x^2); None without values, or when all are 0."""
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / (len(values) * squares) if squares else None


def fairness(record: RunRecord, tenants: Tenants, ratios: Floats) -> dict[str, Any]:
    """The block `fairness` of summary.json: over tenants by their shares, over requests by the rate that they felt."""
    known = ratios[~np.isnan(ratios)]
    worst = int(np.nanargmin(ratios)) if len(known) else None
    rates = 1 / normalised_latencies_ms(record)
    return {
        "tenants": jain_index(known) if len(known) > 1 else None,
        "least_served_tenant": None if worst is None else tenants.names[worst],
        "least_fair_share_ratio": None if worst is None else number(ratios[worst]),
        "requests": jain_index(rates[np.isfinite(rates)]),
    }


def fair_share_ratios(record: RunRecord, tenants: Tenants) -> Floats:
    """Seat time held / seat time due, of each tenant.

    0 for one that was never let in; NaN where all ran at once and ended in no time. A preempted request counts as one
    that holds its seat: nothing says when it lost it.
    """
    n = len(tenants)
    if n == 0:
        return np.zeros(0)
    accepted = let_in(record.requests)
    held, due = _seat_time(record, tenants.of_request, accepted, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = held / due
    had_any = np.bincount(tenants.of_request[accepted], minlength=n) > 0
    return np.where(had_any, ratios, 0.0)


def _seat_time(record: RunRecord, of_request: Ints, accepted: NDArray[np.bool_], n: int) -> tuple[Floats, Floats]:
    """What each tenant held and was due, in ps of one seat; the totals of both are the same."""
    requests = record.requests
    never = max(record.end_ps, int(requests.arrival_ps.max(initial=0)))
    arrived, owner = requests.arrival_ps[accepted], of_request[accepted]
    begun, ended = (np.where(t < 0, never, t)[accepted] for t in (requests.scheduled_ps, requests.finish_ps))
    times = np.concatenate([arrived, begun, ended])
    moments = np.unique(times)
    most = max(2, min(MAX_MOMENTS, MAX_CELLS // n))
    if len(moments) > most:
        moments = moments[np.unique(np.linspace(0, len(moments) - 1, most).astype(np.int64))]
    at = np.searchsorted(moments, times)  # the first moment that sees it
    lasting = np.diff(moments).astype(np.float64)
    # what each event changes: requests in the system, and those of them that hold a seat
    owners = np.concatenate([owner] * 3)
    present = np.repeat([1, 0, -1], len(owner))
    seated = np.repeat([0, 1, -1], len(owner))
    order = np.argsort(at, kind="stable")
    at, owners, present, seated = at[order], owners[order], present[order], seated[order]
    held, due = np.zeros(n), np.zeros(n)
    demand, seats = np.zeros(n), np.zeros(n)
    step = max(1, ROWS // n)
    for begin in range(0, len(lasting), step):
        end = min(begin + step, len(lasting))
        part = slice(*np.searchsorted(at, [begin, end]))
        cell = (at[part] - begin) * n + owners[part]
        demands, seat_counts = (
            np.bincount(cell, weights=changes[part], minlength=(end - begin) * n).reshape(-1, n).cumsum(axis=0) + before
            for changes, before in ((present, demand), (seated, seats))
        )
        demand, seats = demands[-1], seat_counts[-1]
        held += lasting[begin:end] @ seat_counts
        due += lasting[begin:end] @ max_min_shares(demands, seat_counts.sum(axis=1))
    return held, due


def max_min_shares(demands: Floats, seats: Floats) -> Floats:
    """Who is due how many of the `seats` of each row: nobody more than it demands, all others alike.

    `demands` has a row per moment and a column per tenant; no row has more seats than demands.
    """
    n = demands.shape[1]
    ordered = np.sort(demands, axis=1)
    before = np.cumsum(ordered, axis=1) - ordered
    levels = (seats[:, None] - before) / (n - np.arange(n))  # equal parts, if all smaller demands are met
    first = (ordered >= levels).argmax(axis=1)
    level = np.take_along_axis(levels, first[:, None], axis=1)
    shares: Floats = np.minimum(demands, level)
    return shares
