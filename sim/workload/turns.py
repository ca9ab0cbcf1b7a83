"""Sessions: which requests of a source wait for others, and whose conversation their prompts go on.

A row is a turn. It is sent at its own time, or a delay after the last of those that it waits for has ended, whichever
is later. Its prompt begins with the whole conversation of its parent, prompt and answer, as far as it is long enough:
a prompt that is shorter than both has left the answer out (a thought that is not sent again), one that is shorter than
the parent's prompt alone has nothing of it (the conversation was summed up).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError as Circle
from graphlib import TopologicalSorter

import numpy as np
import numpy.typing as npt

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.workload.chunk import RequestSource

NO_ROW = -1
FAR = 1 << 63


@dataclass(frozen=True, slots=True)
class Turns:
    """What makes turns of a source's rows: columns over all of them, in the order of the source.

    The first row of a session waits for nobody. `first` and `waiting` say who waits for row i:
    `waiting[first[i]:first[i + 1]]`, each in the order of the rows.
    """

    session: array[int]  # number of the session, from 0, in the order of their first rows
    turn: array[int]  # how many turns before it were awaited one after the other: 0 for the first
    parent: array[int]  # whose conversation its prompt goes on; NO_ROW: it begins one
    delay_ps: array[int]  # between the end of the last that it waits for, as its client sees it, and its sending
    num_awaited: array[int]  # how many rows must have ended before it is sent
    first: array[int]  # one more than there are rows
    waiting: array[int]
    names: Sequence[str] | None = None  # of the sessions; None: their numbers as text
    system: array[int] | None = None  # by session: number of the system prompt that its first prompt begins with
    num_system_tokens: int = 0  # of each system prompt; 0: none is known
    max_sessions: int | None = None  # users: a session begins when another one has ended; None: at its own time

    def __len__(self) -> int:
        return len(self.session)

    @property
    def num_sessions(self) -> int:
        """How many conversations there are."""
        return int(np.asarray(self.session).max(initial=-1)) + 1

    def name(self, row: int) -> str:
        """What the row's session is called."""
        number = self.session[row]
        return str(number) if self.names is None else self.names[number]


def turns_of(
    awaited: Sequence[Sequence[int]],
    delay_ps: Sequence[int],
    parents: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Turns:
    """Turns from the rows that each row waits for; the first of them is its parent unless `parents` says otherwise.

    `names` are the rows' sessions; rows that wait for each other, through however many others, have one in any case,
    and the first row's name. Raises `CycleError` for rows that wait for themselves.
    """
    n = len(awaited)
    followers: list[list[int]] = [[] for _ in range(n)]
    for row, others in enumerate(awaited):
        for other in others:
            followers[other].append(row)
    first, waiting = array("q", [0]), array("q")
    for rows in followers:
        waiting.extend(rows)
        first.append(len(waiting))
    session, turn = array("q", [NO_ROW]) * n, array("q", [0]) * n
    found: list[object] = []
    roots = _roots(awaited)
    for row in range(n):
        root = roots[row]
        if session[root] < 0:
            session[root] = len(found)
            found.append(root if names is None else names[root])
        session[row] = session[root]
    for row in _in_order(awaited, first, waiting):
        turn[row] = max((turn[other] + 1 for other in awaited[row]), default=0)
    own = array("q", [others[0] if others else NO_ROW for others in awaited])
    return Turns(
        session,
        turn,
        own if parents is None else array("q", parents),
        array("q", delay_ps),
        array("q", [len(others) for others in awaited]),
        first,
        waiting,
        names=None if names is None else [str(name) for name in found],
    )


def awaited_of(turns: Turns) -> list[list[int]]:
    """The rows that each row waits for, its parent first."""
    awaited: list[list[int]] = [[] for _ in range(len(turns))]
    for row in range(len(turns)):
        for follower in turns.waiting[turns.first[row] : turns.first[row + 1]]:
            awaited[follower].insert(0 if turns.parent[follower] == row else len(awaited[follower]), row)
    return awaited


def named_of(turns: Turns) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pairs of a row and one that it names in a file, by rows: whose conversation it goes on, then whom it waits for.

    A turn that goes on behind sub-requests names the turn before them too, which has ended when they have.
    """
    n, parents, waiting = len(turns), np.asarray(turns.parent), np.asarray(turns.waiting)
    children = np.flatnonzero(parents != NO_ROW)
    awaited = np.repeat(np.arange(n), np.diff(np.asarray(turns.first)))
    found = np.unique(np.concatenate([waiting * n + awaited, children * n + parents[children]]))
    row, named = np.divmod(found, max(n, 1))
    order = np.lexsort((named, parents[row] != named, row))
    return row[order], named[order]


def with_systems(turns: Turns, names: Sequence[str | None] | None, counts: Sequence[int], num_tokens: int) -> Turns:
    """The turns, sessions beginning with the system prompt that their first row names; without names with the same.

    One whose row has no name, or a count of 0, shares its own with nobody.
    """
    of: dict[int, str | int] = {}
    for row, session in enumerate(turns.session):
        name = "" if names is None else names[row]
        of.setdefault(session, session if name is None or not counts[row] else name)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(of.values()))}
    return replace(turns, system=array("q", [numbers[name] for name in of.values()]), num_system_tokens=num_tokens)


def _circle_of(awaited: Sequence[Sequence[int]]) -> list[int]:
    """Rows each of which waits for the next, the first one at the end again; ValueError where there are none."""
    try:
        TopologicalSorter(dict(enumerate(awaited))).prepare()
    except Circle as error:
        found: list[int] = error.args[1]
        return found[::-1]
    raise ValueError("no row waits for itself")


class CycleError(ValueError):
    """Rows wait for each other: in `circle` each waits for the next, and the last one is the first again."""

    def __init__(self, circle: list[int]) -> None:
        super().__init__(f"row {circle[0]} waits for itself")
        self.circle = circle


def _roots(awaited: Sequence[Sequence[int]]) -> list[int]:
    """Of each row the first one that hangs together with it."""
    roots = list(range(len(awaited)))

    def find(row: int) -> int:
        while roots[row] != row:
            roots[row] = row = roots[roots[row]]
        return row

    for row, others in enumerate(awaited):
        for other in others:
            one, two = sorted((find(row), find(other)))
            roots[two] = one
    return [find(row) for row in range(len(awaited))]


def _in_order(awaited: Sequence[Sequence[int]], first: array[int], waiting: array[int]) -> Iterator[int]:
    """The rows, each behind those that it waits for."""
    left = [len(others) for others in awaited]
    ready = [row for row, count in enumerate(left) if not count]
    num = 0
    while ready:
        row = ready.pop()
        num += 1
        yield row
        for follower in waiting[first[row] : first[row + 1]]:
            left[follower] -= 1
            if not left[follower]:
                ready.append(follower)
    if num < len(left):
        raise CycleError(_circle_of(awaited))


def whole_prompts(turns: Turns, num_new_tokens: Sequence[int], num_output_tokens: Sequence[int]) -> list[int]:
    """Lengths of the prompts when rows say what is new in them: the parent's prompt and answer stand before it.

    Of 100 new tokens and 20 of answer, then 50 and 20: prompts of 100 and 170.
    """
    lengths = [0] * len(turns)
    for row in np.argsort(np.asarray(turns.turn), kind="stable").tolist():  # a parent is a turn before
        parent = turns.parent[row]
        before = 0 if parent < 0 else lengths[parent] + num_output_tokens[parent]
        lengths[row] = before + num_new_tokens[row]
    return lengths


def short_prompts(turns: Turns, num_prompt_tokens: npt.NDArray[np.int64]) -> list[str]:
    """What to say where prompts look as if they were the new part alone."""
    parents = np.array(turns.parent)
    later = np.flatnonzero(parents != NO_ROW)
    num_short = int((num_prompt_tokens[later] < num_prompt_tokens[parents[later]]).sum())
    if not num_short:
        return []
    return [
        f"{num_short:,} of {len(later):,} later turns have a shorter prompt than the turn before, and share "
        "nothing with it; are prompts the new part alone? prompt_is: new"
    ]


def rate_of(source: RequestSource) -> float | None:
    """Requests per second by when they arrive, and turns of sessions by when these begin; None where no time passes."""
    turns, first, last = turns_in(source), FAR, 0
    num_arrivals = num_requests = 0
    for chunk in source.chunks():
        rows = enumerate(chunk.arrival_ps, num_requests)
        times = chunk.arrival_ps if turns is None else [ps for row, ps in rows if not turns.num_awaited[row]]
        first, last = min([first, *times]), max([last, *times])
        num_arrivals += len(times)
        num_requests += len(chunk)
    if first >= last:
        return None
    return (num_arrivals - 1) * PS_PER_S / (last - first) * (num_requests / num_arrivals)


def turns_in(source: RequestSource) -> Turns | None:
    """Which rows of the source wait for which, where they are turns of sessions; None where nobody waits."""
    found: Turns | None = getattr(source, "turns", None)
    return found
