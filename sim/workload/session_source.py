"""Sessions drawn from distributions, as arrays: a million turns are some columns, and no objects.

1. Main turns first: session s has turns[s] of them, and turn k's prompt is the system prompt, what was new and answered
   in the turns before it, and what is new in it. System 100; new 10, 20; answers 5, 7: prompts of 110 and 135 tokens.
2. A session ends before a prompt and its answer pass `max_context`; its first turn always stays. Prompts only grow, so
   what is cut is the end of a session. A sub-request's prompt is cut to what fits.
3. Then the sub-requests of turns that fan out stand behind their turn: rows are main, its subs, next main, ... Each
   goes on the turn's conversation; the next main turn waits for all of them, and goes on the turn before it.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.workload.arrivals import arrival_times
from simbatch.sim.workload.chunk import CHUNK_SIZE, Purpose, RequestChunk, draw_shares, stream
from simbatch.sim.workload.model import Workload
from simbatch.sim.workload.sessions import ExponentialTime, LognormalTime, Sessions, Time, UniformTime
from simbatch.sim.workload.synthetic import length_draw
from simbatch.sim.workload.turns import NO_ROW, Turns

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Mains:
    """Main turns of all sessions, one behind the other; all arrays have a value for each."""

    session: Ints
    number: Ints  # of the turn in its session, from 0
    new: Ints
    output: Ints
    prompt: Ints

    @property
    def has_next(self) -> npt.NDArray[np.bool_]:
        """Whether the next one is of the same session."""
        return np.append(self.session[1:] == self.session[:-1], False)

    def kept(self, keep: npt.NDArray[np.bool_]) -> Mains:
        """Those alone."""
        return Mains(self.session[keep], self.number[keep], self.new[keep], self.output[keep], self.prompt[keep])


class SessionSource:
    """A `RequestSource` of drawn sessions; the same section and seed give the same ones."""

    hash_block_tokens = 0
    think_time_ps = 0
    skipped = 0

    def __init__(self, workload: Workload, *, seed: int, folder: Path) -> None:
        if workload.sessions is None:
            raise ValueError("the workload has no sessions; use open_workload")
        self._settings: Sessions = workload.sessions
        self._stream = partial(stream, seed)
        self._priorities, self._tenants = workload.priority_shares(), workload.tenant_shares()
        notes: list[str] = []
        settings = self._settings
        draw = partial(length_draw, folder=folder, of="num_output_tokens", notes=notes)
        self._turns, self._output = draw(settings.turns), draw(settings.output_len)
        self._new = draw(settings.new_tokens, of="num_prompt_tokens")
        self._width = None if settings.branch is None else draw(settings.branch.width)
        self._notes = tuple(notes)
        self.max_concurrency: int | None = None  # of requests; users are in the turns
        self._prompts, self._outputs, self._arrivals, self.turns = self._draw()
        self.num_requests: int | None = len(self._prompts)

    def unread(self) -> tuple[str, ...]:
        """How the files of empirical lengths were read."""
        return self._notes

    def chunks(self) -> Iterator[RequestChunk]:
        """The rows, always the same ones."""
        prompts, outputs, arrivals, turns = self._prompts, self._outputs, self._arrivals, self.turns
        session = np.array(turns.session)
        shares = (
            draw_shares(self._priorities, self._stream(Purpose.PRIORITIES), turns.num_sessions),
            draw_shares(self._tenants, self._stream(Purpose.TENANTS), turns.num_sessions),
        )
        for begin in range(0, len(prompts), CHUNK_SIZE):
            part = slice(begin, begin + CHUNK_SIZE)
            levels, tenants = (found and [found[number] for number in session[part].tolist()] for found in shares)
            yield RequestChunk(
                arrival_ps=arrivals[part].tolist(),
                num_prompt_tokens=prompts[part].tolist(),
                num_output_tokens=outputs[part].tolist(),
                priority=levels,  # type: ignore[arg-type]  # of the first pair
                tenant=tenants,  # type: ignore[arg-type]  # of the second
            )

    def _draw(self) -> tuple[Ints, Ints, Ints, Turns]:
        """Prompts, outputs, arrivals (ps), and who waits for whom."""
        settings = self._settings
        new_rng, output_rng = self._stream(Purpose.PROMPT_LEN), self._stream(Purpose.OUTPUT_LEN)
        mains = self._mains(new_rng, output_rng)
        widths = self._widths(mains)
        delay_ps = self._delays(mains)
        rows = Laid(mains, widths)
        subs = rows.main_of[~rows.is_main]  # the main turn of each sub-request
        prompts, outputs = mains.prompt[rows.main_of], mains.output[rows.main_of]
        prompts[~rows.is_main] = mains.prompt[subs] + mains.output[subs] + self._new(new_rng, len(subs))
        outputs[~rows.is_main] = self._output(output_rng, len(subs))
        if settings.max_context is not None:
            room = np.maximum(settings.max_context - outputs, 1)
            prompts = np.where(rows.is_main, prompts, np.minimum(prompts, room))
        new_stream = partial(self._stream, Purpose.ARRIVALS)
        begins = np.concatenate([*arrival_times(settings.begins(), settings.num_sessions, new_stream)])
        is_first = rows.is_main & (mains.number[rows.main_of] == 0)
        arrivals = np.where(is_first, begins[mains.session[rows.main_of]], 0)
        delays = np.where(rows.is_main, delay_ps[rows.main_of], 0)
        systems = self._stream(Purpose.SYSTEM_PROMPTS).integers(settings.num_system_prompts, size=settings.num_sessions)
        turns = rows.turns(delays, _column(systems), settings.system_prompt_tokens, settings.concurrency)
        return prompts, outputs, arrivals, turns

    def _mains(self, new_rng: np.random.Generator, output_rng: np.random.Generator) -> Mains:
        settings = self._settings
        counts = self._turns(self._stream(Purpose.TURNS), settings.num_sessions)
        session = np.repeat(np.arange(settings.num_sessions), counts)
        number = np.arange(len(session)) - np.repeat(np.cumsum(counts) - counts, counts)
        new, output = self._new(new_rng, len(session)), self._output(output_rng, len(session))
        grown = np.cumsum(new + output)
        before = np.repeat((grown - new - output)[number == 0], counts)  # of the sessions before
        mains = Mains(session, number, new, output, settings.system_prompt_tokens + grown - output - before)
        if settings.max_context is None:
            return mains
        return mains.kept((number == 0) | (mains.prompt + mains.output <= settings.max_context))

    def _widths(self, mains: Mains) -> Ints:
        """How many sub-requests each main turn has."""
        branch, n = self._settings.branch, len(mains.session)
        if branch is None or self._width is None:
            return np.zeros(n, dtype=np.int64)
        rng = self._stream(Purpose.BRANCHES)
        fans = rng.random(n) < branch.share
        return np.where(fans & mains.has_next, self._width(rng, n), 0)

    def _delays(self, mains: Mains) -> Ints:
        """Before each main turn, ps."""
        settings, n = self._settings, len(mains.session)
        think = _times(settings.think_time_s, self._stream(Purpose.THINK_TIMES), n)
        tools = _times(settings.tool_time_s, self._stream(Purpose.TOOL_TIMES), n)
        share = settings.tool_share if settings.tool_share is not None else float(settings.tool_time_s is not None)
        is_tool = self._stream(Purpose.TOOLS).random(n) < share
        times = np.where(mains.number > 0, np.where(is_tool, tools, think), 0)
        found: Ints = np.rint(times * PS_PER_S).astype(np.int64)
        return found


class Laid:
    """Rows of main turns with their sub-requests behind them: what they are, and who waits for whom."""

    def __init__(self, mains: Mains, widths: Ints) -> None:
        self._mains, self._widths = mains, widths
        sizes = 1 + widths
        self.main_of: Ints = np.repeat(np.arange(len(sizes)), sizes)
        self._rows = np.cumsum(sizes) - sizes  # of each main turn
        self.is_main = np.zeros(len(self.main_of), dtype=np.bool_)
        self.is_main[self._rows] = True

    def turns(self, delay_ps: Ints, system: array[int], num_system_tokens: int, max_sessions: int | None) -> Turns:
        """The columns of `Turns`."""
        mains, widths, main_of, is_main = self._mains, self._widths, self.main_of, self.is_main
        has_next, later = mains.has_next, mains.number > 0
        following = np.append(self._rows[1:], NO_ROW)  # the row of the next main turn
        first, waiting = self._waiting(has_next, following)
        levels = np.cumsum(1 + (widths > 0))
        levels = levels - 1 - (widths > 0)
        levels = levels - np.repeat(levels[~later], np.bincount(mains.session))
        before = np.append(NO_ROW, self._rows[:-1])
        after = np.append(0, np.maximum(widths[:-1], 1))  # how many rows the next main turn waits for
        return Turns(
            session=_column(mains.session[main_of]),
            turn=_column(levels[main_of] + ~is_main),
            parent=_column(np.where(is_main, np.where(later, before, NO_ROW)[main_of], self._rows[main_of])),
            delay_ps=_column(delay_ps),
            num_awaited=_column(np.where(is_main, np.where(later, after, 0)[main_of], 1)),
            first=first,
            waiting=waiting,
            system=system if num_system_tokens else None,
            num_system_tokens=num_system_tokens,
            max_sessions=max_sessions,
        )

    def _waiting(self, has_next: npt.NDArray[np.bool_], following: Ints) -> tuple[array[int], array[int]]:
        """Who waits for each row: the subs of a turn that fans out, else the next main turn."""
        widths, is_main, main_of = self._widths, self.is_main, self.main_of
        counts = np.where(is_main, np.where(widths > 0, widths, has_next)[main_of], 1)
        first = np.append(0, np.cumsum(counts))
        waiting = np.empty(first[-1], dtype=np.int64)
        plain = np.flatnonzero(has_next & (widths == 0))
        waiting[first[self._rows[plain]]] = following[plain]
        subs = np.flatnonzero(~is_main)
        waiting[first[subs]] = following[main_of[subs]]
        place = subs - self._rows[main_of[subs]] - 1  # of a sub among those of its turn
        waiting[first[self._rows[main_of[subs]]] + place] = subs
        return _column(first), _column(waiting)


def _times(time: Time | None, rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    """So many times, in s."""
    match time:
        case None:
            return np.zeros(n)
        case LognormalTime():
            # mean m and variance (cv*m)^2 of exp(N(mu, sigma^2)), solved for mu and sigma^2
            variance = math.log1p(time.cv**2)
            found = rng.lognormal(math.log(time.mean) - variance / 2, math.sqrt(variance), n)
            return np.minimum(found, time.max or math.inf)
        case ExponentialTime():
            return np.minimum(rng.exponential(time.mean, n), time.max or math.inf)
        case UniformTime():
            return rng.uniform(time.min, time.max, n)
        case float() | int():
            return np.full(n, float(time))


def _column(values: npt.NDArray[Any]) -> array[int]:
    column = array("q")
    column.frombytes(np.ascontiguousarray(values, dtype=np.int64).tobytes())
    return column
