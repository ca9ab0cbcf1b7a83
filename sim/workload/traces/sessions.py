"""Sessions of a file: which rows wait for which, by its columns, and what its settings leave of them.

1. A row with a `parent` waits for the requests of these ids; one without waits for the row before it of its session;
   `parent: -1`, and a row of no session, wait for nobody.
2. The first row of a session needs a time of its own, unless no row has one: then all begin at once.
3. `between` takes whole sessions, by when they begin: one that is cut would begin with a conversation that nobody has
   computed. `limit` takes the first rows. A row that `on_empty: skip` leaves out hands on whom it waits for.
4. `rate_scale` moves the beginnings of sessions alone. Who comes in greater numbers neither thinks nor types faster:
   with 2, sessions that begin at 10 s and 30 s begin at 5 s and 15 s, and a turn 4 s after the first stays there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.text import MAX_NAMES
from simbatch.sim.workload.formats import Columns, Trace
from simbatch.sim.workload.traces.rows import RowBatch
from simbatch.sim.workload.traces.times import MAX_PS, too_late
from simbatch.sim.workload.turns import CycleError, Turns, short_prompts, turns_of, whole_prompts, with_systems

Place = Callable[[int, str], str]  # of a line and a column
Awaited = list[tuple[int, ...]]


class TurnRows(NamedTuple):
    """All rows of a file in their order, when each may be sent at the earliest (ps), and who waits for whom."""

    rows: RowBatch
    times_ps: list[int]
    turns: Turns | None  # None: nobody waits
    notes: tuple[str, ...] = ()
    num_skipped: int = 0
    num_read: int = 0  # rows of the file


def conversations_of(
    rows: RowBatch,
    columns: Columns,
    place: Place,
    settings: Trace,
    bounds: tuple[int, int] | None,
    *,
    are_sent: bool = False,
) -> TurnRows:
    """What the settings leave of a file's rows; UserError at a row that breaks a rule of this module or its columns.

    `are_sent`: the times are when a run sent its turns, and none that waits has one of its own.
    """
    reader = _SessionRows(rows, columns, place)
    reader.check_whole("request_id", "predicted_output")
    if settings.sort:
        reader.sort()
    reader.link()
    told: tuple[str, ...] = ()
    if are_sent:
        reader.drop_times()
        told = ("its times are when a run sent its requests: turns that wait go by their delay alone",)
    if bounds is not None:
        reader.keep_begun(*bounds)
    num_skipped = reader.drop_empty(skip=settings.on_empty == "skip")
    if settings.limit is not None:
        reader.keep_first(settings.limit)
    found = reader.finished(settings)
    return found._replace(notes=(*told, *found.notes), num_skipped=num_skipped, num_read=len(rows))


class _SessionRows:
    """Rows on their way to turns; `awaited[i]` are the rows that row i waits for."""

    def __init__(self, rows: RowBatch, columns: Columns, place: Place) -> None:
        self._rows, self._columns, self._place = rows, columns, place
        self._awaited: Awaited = []

    def _problem(self, i: int, kind: str, rule: str, value: object, mend: str) -> UserError:
        column = getattr(self._columns, kind) or ""
        return UserError(Problem(self._place(int(self._rows.lines[i]), column), rule, value, mend))

    def _where(self, i: int) -> str:
        return self._place(int(self._rows.lines[i]), "")

    def _has_time(self) -> list[bool]:
        there = self._rows.has_time
        return [True] * len(self._rows) if there is None else there.tolist()

    def _names(self) -> list[str | None]:
        return self._rows.session or [None] * len(self._rows)

    def check_whole(self, *kinds: str) -> None:
        """UserError for a column that stands in some rows only."""
        for kind in kinds:
            found = getattr(self._rows, "predicted_output_tokens" if kind == "predicted_output" else kind)
            if found is not None and None in found:
                raise self._problem(found.index(None), kind, "stands in some rows only", NOTHING, "give every row one")

    def sort(self) -> None:
        """In order of their times; a row without one stays behind the row before it of its session or file."""
        times, last, before = [], dict[str, int](), 0
        for own, has_time, name in zip(self._rows.arrival.tolist(), self._has_time(), self._names(), strict=True):
            before = own if has_time else last.get(name, before) if name is not None else before
            if name is not None:
                last[name] = before
            times.append(before)
        self._rows = self._rows.keep(np.array(sorted(range(len(times)), key=times.__getitem__), dtype=np.int64))

    def link(self) -> None:
        """Find out who waits for whom."""
        numbers = self._numbers() if self._rows.parent else {}
        parents = self._rows.parent or [None] * len(self._rows)
        has_time = self._has_time()
        last, timed = dict[str, int](), dict[str, int]()
        for i, (name, ids) in enumerate(zip(self._names(), parents, strict=True)):
            if ids is not None:
                self._awaited.append(tuple(self._parent(i, each, numbers) for each in ids))
            elif name in last:
                self._awaited.append((last[name],))
                if has_time[i] and name in timed:
                    self._check_order(i, timed[name])
            else:
                self._awaited.append(())
            if name is not None:
                last[name] = i
                if has_time[i]:
                    timed[name] = i

    def drop_times(self) -> None:
        """Leave rows that wait without a time of their own."""
        self._rows.has_time = np.array([not others for others in self._awaited])

    def _numbers(self) -> dict[str, int]:
        """Rows by their ids, which parents name."""
        ids = self._rows.request_id
        if ids is None:
            rule = "names requests by their ids, and rows have none"
            mend = "name the column: --columns request_id=NAME (columns: in a scenario)"
            first = next(i for i, parent in enumerate(self._rows.parent or ()) if parent is not None)
            raise self._problem(first, "parent", rule, NOTHING, mend)
        numbers: dict[str, int] = {}
        for i, name in enumerate(ids):
            other = numbers.setdefault(name, i)
            if other != i:
                rule = f"stands twice: first in {self._where(other)}"
                raise self._problem(i, "request_id", rule, name, "give every row its own, parents name them")
        return numbers

    def _parent(self, i: int, name: str, numbers: dict[str, int]) -> int:
        row = numbers.get(name)
        if row is None:
            mend = "add its row, or write -1 where the conversation began before the file"
            raise self._problem(i, "parent", "there is no request of this id in the file", name, mend)
        return row

    def _check_order(self, i: int, before: int) -> None:
        earlier = int(self._rows.arrival[before]) - int(self._rows.arrival[i])
        if earlier > 0:
            rule = f"is {earlier / PS_PER_S:g} s earlier than a row before it of its session"
            mend = "sort the rows, or let them be sorted: --sort (sort: true in a scenario)"
            raise self._problem(i, "arrival", rule, NOTHING, mend)

    def _turns(self) -> Turns:
        """As the rows are linked now; UserError for those that wait for themselves."""
        ids = self._rows.request_id or [str(i) for i in range(len(self._rows))]
        names = [ids[i] if name is None else name for i, name in enumerate(self._names())]
        try:
            return turns_of(self._awaited, self._rows.delay_ps or [0] * len(self._rows), names=names)
        except CycleError as error:
            circle = error.circle
            rule = f"waits for itself: {' waits for '.join(ids[i] for i in circle[:MAX_NAMES])}"
            raise self._problem(circle[0], "parent", rule, NOTHING, "take one of them out of the circle") from None

    def _keep(self, keep: Sequence[bool]) -> None:
        """These rows, none of which waits for another one."""
        kept = [i for i, stays in enumerate(keep) if stays]
        number = {i: new for new, i in enumerate(kept)}
        self._rows = self._rows.keep(np.array(kept, dtype=np.int64))
        self._awaited = [tuple(number[other] for other in self._awaited[i]) for i in kept]

    def keep_begun(self, start: int, end: int) -> None:
        """Sessions whose first time is from `start` on and before `end`, ps on the file's clock since its first."""
        sessions = self._turns().session
        begun = self._begun(sessions)
        self._keep([session in begun and start <= begun[session] < end for session in sessions])

    def _begun(self, sessions: Sequence[int]) -> dict[int, int]:
        """The first time of each session, ps, of those that have one; `sessions`: which one each row is of."""
        begun: dict[int, int] = {}
        for own, has_time, session in zip(self._rows.arrival.tolist(), self._has_time(), sessions, strict=True):
            if has_time:
                begun[session] = min(own, begun.get(session, own))
        return begun

    def drop_empty(self, *, skip: bool) -> int:
        """Leave out rows without output tokens; returns how many, UserError for them unless they are to be skipped."""
        empty = np.flatnonzero(self._rows.num_output_tokens == 0).tolist()
        if empty and not skip:
            mend = "remove the row, or set on_empty: skip, which counts it"
            rule = "a request needs output tokens, and here are none"
            raise self._problem(empty[0], "output", rule, NOTHING, mend)
        if empty:
            self._turns()  # no circles
            gone = set(empty)
            for i in range(len(self._awaited)):
                if i not in gone:
                    self._take_over(i, gone)
            self._keep([i not in gone for i in range(len(self._awaited))])
        return len(empty)

    def _take_over(self, i: int, gone: set[int]) -> None:
        """Row i waits for those that rows which are gone waited for, with their delays before its own."""
        rows, has_time = self._rows, self._rows.has_time
        while left_out := [other for other in self._awaited[i] if other in gone]:
            other = left_out[0]
            found = dict.fromkeys([*self._awaited[i], *self._awaited[other]])
            self._awaited[i] = tuple(each for each in found if each != other)
            if rows.delay_ps is not None:
                rows.delay_ps[i] += rows.delay_ps[other]
            if has_time is not None and has_time[other] and not has_time[i] and not self._awaited[other]:
                has_time[i], rows.arrival[i] = True, rows.arrival[other]

    def keep_first(self, limit: int) -> None:
        """The first rows, without those that wait for later ones."""
        keep = [i < limit for i in range(len(self._awaited))]
        while lost := [i for i, stays in enumerate(keep) if stays and not all(keep[o] for o in self._awaited[i])]:
            for i in lost:
                keep[i] = False
        self._keep(keep)

    def finished(self, settings: Trace) -> TurnRows:
        """The rows with their times and turns, prompts as long as they are sent."""
        rows = self._rows
        if not len(rows):
            return TurnRows(rows, [], None)
        turns, notes = self._with_systems(self._turns()), []
        self._share_tenants(turns.session)
        if not any(self._has_time()):
            notes.append("no row has a time: all sessions begin at once, or one a user with max_concurrency: USERS")
        else:
            self._check_times(turns)
        is_new = settings.prompt_is == "new"
        notes += self._lengthen(turns) if is_new else short_prompts(turns, rows.num_prompt_tokens)
        times, waits = self._times(turns, settings.rate_scale), any(turns.num_awaited)
        return TurnRows(rows, times, turns if waits else None, tuple(notes))

    def _with_systems(self, turns: Turns) -> Turns:
        """With the system prompts that the file names; UserError for two lengths of them."""
        counts = self._rows.num_system_tokens or []
        size = next((num for num in counts if num), 0)
        if (other := next((i for i, num in enumerate(counts) if num not in (0, size)), None)) is not None:
            rule = f"all system prompts have one length, and others here have {size}"
            mend = "give prompts hash_ids instead, which say what is common"
            raise self._problem(other, "num_system_tokens", rule, counts[other], mend)
        return with_systems(turns, self._rows.system_prompt, counts, size) if size else turns

    def _share_tenants(self, session: Sequence[int]) -> None:
        """A row without a tenant has its session's; UserError for a session of two."""
        tenants, first = self._rows.tenant or [], dict[int, int]()
        for i, tenant in enumerate(tenants):
            before = i if tenant is None else first.setdefault(session[i], i)
            if tenants[before] != tenant:
                rule = f"a session is one tenant's, and this one is {tenants[before]}'s in {self._where(before)}"
                raise self._problem(i, "tenant", rule, tenant, "give sessions of two tenants names of their own")
        if tenants:
            self._rows.tenant = [tenants[first[number]] if number in first else None for number in session]

    def _check_times(self, turns: Turns) -> None:
        for i, (has_time, num) in enumerate(zip(self._has_time(), turns.num_awaited, strict=True)):
            if not has_time and not num:
                rule = "is missing, and the row waits for no other: nothing says when it is sent"
                mend = "give a session's first row its time, or name the row's session or parent"
                raise self._problem(i, "arrival", rule, NOTHING, mend)

    def _lengthen(self, turns: Turns) -> list[str]:
        """Prompts with the conversation before what is new in them; what hashes say of a part is not used."""
        rows = self._rows
        new, outputs = rows.num_prompt_tokens.tolist(), rows.num_output_tokens.tolist()
        rows.num_prompt_tokens = np.array(whole_prompts(turns, new, outputs), dtype=np.int64)
        if rows.hash_ids is None:
            return []
        rows.hash_ids = None
        return ["hash_ids are not used: they name blocks of what is new, and prompts go on their conversation"]

    def _times(self, turns: Turns, scale: float) -> list[int]:
        """Since the first session's beginning, ps; 0 for a row without a time, which others decide."""
        begun = self._begun(turns.session)
        origin = min(begun.values(), default=0)
        since = ((session, time - origin) for session, time in begun.items())
        later = {session: (ps if scale == 1 else round(ps / scale)) - begun[session] for session, ps in since}
        rows = zip(self._rows.arrival.tolist(), self._has_time(), turns.session, strict=True)
        times = [time + later[session] if has_time else 0 for time, has_time, session in rows]
        if max(times) > MAX_PS:
            i = times.index(max(times))
            raise self._problem(i, "arrival", *too_late(times[i]))
        return times
