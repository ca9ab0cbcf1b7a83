"""What sessions felt: conversations and agents, whose turns wait for each other.

A session lasts from the sending of its first turn to the last token of its last one, at the client. Without thinking it
is the time in which it had a request in flight: what delays between turns (think time, tools) leave of it. It is
completed when each of its turns has finished, and has ended early when one of them was turned away; the others had not
ended with the run.

A turn's prompt goes on with a conversation that earlier turns have computed. What of that it does not find in the
prefix cache (it was evicted, or is on another replica) is computed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_MS, PS_PER_S
from simbatch.sim.engine.record import FINISHED, NEVER_PS, RunRecord
from simbatch.sim.metrics.columns import let_in, ttft_ps
from simbatch.sim.metrics.latencies import MAX_INT64, Bools, Number, describe, duration_ps, ratio
from simbatch.sim.metrics.step_function import Curve
from simbatch.sim.workload.turns import Turns

MAX_TURNS = 20  # that have a row of their own
Ints = NDArray[np.int64]


class SessionFigures:
    """The figures of a run whose requests are turns of sessions; shares are of 1, None where nothing was measured."""

    def __init__(self, record: RunRecord, turns: Turns) -> None:
        self.record, self._turns = record, turns
        row = record.requests.row
        assert row is not None
        self._turn: Ints = np.asarray(turns.turn, dtype=np.int64)[row]
        self._session: Ints = np.asarray(turns.session, dtype=np.int64)[row]
        self._done: Bools = record.requests.status == FINISHED

    @classmethod
    def of(cls, record: RunRecord) -> SessionFigures | None:
        """None where requests are not turns of sessions."""
        return None if record.turns is None or record.requests.row is None else cls(record, record.turns)

    def num_sessions(self) -> int:
        """Sessions of the source, begun or not."""
        return self._turns.num_sessions

    def num_completed(self) -> int:
        """Sessions of which each turn has finished."""
        return int(self._is_completed.sum())

    def num_ended_early(self) -> int:
        """Sessions of which a turn was turned away."""
        return len(np.unique(self._session[~let_in(self.record.requests)]))

    def num_not_sent(self) -> int:
        """Turns that were never sent, since their session had ended early."""
        return self.record.num_not_sent

    def throughput(self) -> float | None:
        """Completed sessions per second."""
        return ratio(self.num_completed(), duration_ps(self.record) / PS_PER_S)

    def num_within(self, limits: Mapping[str, float]) -> int:
        """Completed sessions within all of these limits (ms by `duration`, `without_thinking`); in whole ps."""
        good = self._is_completed.copy()
        for name, limit_ms in limits.items():
            good &= self._times_ps[name] <= min(round(limit_ms * PS_PER_MS), MAX_INT64)
        return int(good.sum())

    def max_concurrent(self) -> int:
        """The most sessions at once, from the first sending to the last token."""
        begun, ended = self._bounds_ps
        return Curve.counting(begun[ended >= 0], ended[ended >= 0]).max

    @cached_property
    def latencies(self) -> dict[str, dict[str, Number]]:
        """Mean, median, deviation and percentiles (ms).

        Of the completed sessions' `duration` and `without_thinking`, and of TTFT of `first` turns and all `later` ones.
        """
        whole = {name: describe(ps[self._is_completed] / PS_PER_MS) for name, ps in self._times_ps.items()}
        ttft_ms, is_first = ttft_ps(self.record)[self._done] / PS_PER_MS, self._turn[self._done] == 0
        return whole | {"first": describe(ttft_ms[is_first]), "later": describe(ttft_ms[~is_first])}

    def later_cached_tokens_share(self) -> float | None:
        """Prompt tokens of all turns but the first that were found in the prefix cache."""
        return self._cached_share(self._started & (self._turn > 0))

    def num_recomputed_tokens(self) -> int | None:
        """Prompt tokens that an earlier turn had computed and that were computed again; None where nobody knows."""
        known = self.record.requests.num_known_tokens
        if known is None:
            return None
        cached = self.record.requests.num_cached_tokens
        return int(np.maximum(known - cached, 0)[self._started].sum())

    def recomputed_tokens_share(self) -> float | None:
        """Their share of all prompt tokens."""
        again = self.num_recomputed_tokens()
        return None if again is None else ratio(again, int(self._prompt[self._started].sum()))

    def by_turn(self) -> list[dict[str, Any]]:
        """A row a turn, 0 for the first of a session; those from `MAX_TURNS` on together, `last_turn` says how far."""
        last = self.num_turns - 1
        rows = [self.row(turn, turn) for turn in range(min(last + 1, MAX_TURNS))]
        return [*rows, self.row(MAX_TURNS, last)] if last >= MAX_TURNS else rows

    @property
    def num_turns(self) -> int:
        """Of the longest session, as far as it was sent."""
        return len(self._first_of_turn) - 1

    def row(self, first: int, last: int) -> dict[str, Any]:
        """What the requests of these turns felt."""
        chosen = self._order[self._first_of_turn[first] : self._first_of_turn[last + 1]]
        done, started = chosen[self._done[chosen]], chosen[self._started[chosen]]
        figures = describe(ttft_ps(self.record)[done] / PS_PER_MS)
        return {
            "turn": first,
            "last_turn": last,
            "num_requests": len(chosen),
            "completed": len(done),
            **{f"{statistic}_ttft_ms": figures[statistic] for statistic in ("mean", "median", "p99")},
            "mean_prompt_tokens": ratio(int(self._prompt[started].sum()), len(started)),
            "cached_tokens_share": self._cached_share(started),
        }

    def _cached_share(self, chosen: Bools | Ints) -> float | None:
        cached = int(self.record.requests.num_cached_tokens[chosen].sum())
        return ratio(cached, int(self._prompt[chosen].sum()))

    @property
    def _prompt(self) -> Ints:
        return self.record.requests.num_prompt_tokens

    @cached_property
    def _started(self) -> Bools:
        requests = self.record.requests
        # a client knows of a first token alone
        started: Bools = (requests.scheduled_ps >= 0) | (requests.first_token_ps >= 0)
        return started

    @cached_property
    def _order(self) -> Ints:
        """The requests, those of each turn together."""
        order: Ints = np.argsort(self._turn, kind="stable")
        return order

    @cached_property
    def _first_of_turn(self) -> Ints:
        """Where in that order each turn begins; one more than there are turns."""
        num_turns = int(self._turn.max(initial=-1)) + 1
        first: Ints = np.searchsorted(self._turn[self._order], np.arange(num_turns + 1))
        return first

    @cached_property
    def _is_completed(self) -> Bools:
        """By session."""
        num_rows = np.bincount(np.asarray(self._turns.session), minlength=self.num_sessions())
        done: Bools = np.bincount(self._session[self._done], minlength=self.num_sessions()) == num_rows
        return done

    @cached_property
    def _times_ps(self) -> dict[str, Ints]:
        """By session."""
        begun, ended = self._bounds_ps
        return {"duration": ended - begun, "without_thinking": self._in_flight_ps()}

    @cached_property
    def _bounds_ps(self) -> tuple[Ints, Ints]:
        """By session, when it began and when its last turn had ended, or the run had; -1 for one that never began."""
        requests = self.record.requests
        begun = np.full(self.num_sessions(), np.iinfo(np.int64).max)
        ended = np.full(self.num_sessions(), NEVER_PS)
        np.minimum.at(begun, self._session, requests.arrival_ps)
        end_ps = np.where(self._done, self.record.client_finish_ps, self.record.end_ps)
        np.maximum.at(ended, self._session, np.where(let_in(requests), end_ps, requests.arrival_ps))
        return np.where(ended < 0, NEVER_PS, begun), ended

    def _in_flight_ps(self) -> Ints:
        """By session, how long it had a finished turn in flight; turns in parallel count once.

        Of turns from 0 to 5, 2 to 4 and 4 to 9 the second adds nothing and the third 4: what is behind the latest end
        before it. That maximum, session by session, is one over ranks of ends, those of each session above the others.
        """
        begins, ends = self.record.requests.arrival_ps[self._done], self.record.client_finish_ps[self._done]
        order = np.lexsort((begins, self._session[self._done]))
        owner, begins, ends = self._session[self._done][order], begins[order], ends[order]
        total = np.zeros(self.num_sessions(), dtype=np.int64)
        if len(owner):
            by_end = np.argsort(ends, kind="stable")
            rank = np.empty_like(by_end)
            rank[by_end] = np.arange(len(ends))
            above = owner * len(ends)
            latest = ends[by_end[np.maximum.accumulate(rank + above) - above]]
            is_later = owner[1:] == owner[:-1]
            covered = np.append(begins[0], np.where(is_later, np.maximum(begins[1:], latest[:-1]), begins[1:]))
            np.add.at(total, owner, np.maximum(ends - covered, 0))
        return total
