"""Whether tenants got their fair share of the seats, as one number (Jain's index).

Every running request gets one token a step, so a seat for a second is service. At each moment the running requests are
seats that the tenants share, and the fair share is max-min: no tenant is due more seats than it has requests, and what
one does not ask for goes to the others in equal parts. A tenant's ratio is the seat time that it held / the seat time
that it was due; who has nobody waiting is due exactly what it holds. The index over the ratios x of n tenants is
(sum x)^2 / (n sum x^2): 1 when all have the same, 1/n when one has everything
(R. Jain, D. Chiu, W. Hawe, A quantitative measure of fairness and discrimination, DEC-TR-301, 1984).

Finished requests alone would say nothing: whoever finishes has got all that it asked for, sooner or later.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.engine.record import FINISHED, RunRecord
from simbatch.sim.results.columns import let_in
from simbatch.sim.results.groups import Tenants, normalised_latencies_ms, number

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
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
    rates = 1 / normalised_latencies_ms(record, record.requests.status == FINISHED)
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
