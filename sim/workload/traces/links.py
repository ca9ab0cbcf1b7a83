"""What a written trace says of who waits for whom: session, delay, and parents that are not the row before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.workload.chunk import RequestSource
from simbatch.sim.workload.columns import Format
from simbatch.sim.workload.turns import Turns, awaited_of, turns_in

NOBODY = -1  # the parent of a row that waits for nobody, where a format has no sessions


class Links(NamedTuple):
    """Columns over all rows of a source with turns."""

    session: list[str]
    parent: Sequence[
        str | int | list[str] | None
    ]  # None: it waits for the row before it of its session, if there is one
    delay_ps: Sequence[int]
    waits: list[bool]
    num_lost: int  # rows whose parents the format cannot say
    system: list[str] | None  # which system prompt a row's session begins with
    num_system_tokens: int


def links_of(source: RequestSource, form: Format) -> Links | None:
    """What to write of the source's turns, None where nobody waits; UserError for a format without sessions."""
    turns = turns_in(source)
    if turns is None:
        return None
    if not (form.columns.session or form.columns.parent):
        rule = f"has no sessions, and {sum(num > 0 for num in turns.num_awaited):,} turns wait for the ones before them"
        mend = "write jsonl, csv, parquet or mooncake, or simulate it and convert the result's requests.parquet"
        raise UserError(Problem(f"--to {form.name}", rule, mend=mend))
    names = [name for chunk in source.chunks() for name in chunk.request_id or ()]
    waits = [num > 0 for num in turns.num_awaited]
    system = None if turns.system is None else [str(turns.system[number]) for number in turns.session]
    if form.columns.session is None:
        chats = [_named(awaited, names) if awaited else NOBODY for awaited in awaited_of(turns)]
        return Links([], chats, turns.delay_ps, waits, 0, system, turns.num_system_tokens)
    parents = _beside_order(turns, names)
    num_lost = 0 if form.columns.parent else sum(parent is not None for parent in parents)
    names = [turns.name(row) for row in range(len(turns))]
    return Links(names, parents, turns.delay_ps, waits, num_lost, system, turns.num_system_tokens)


def _beside_order(turns: Turns, names: Sequence[str]) -> list[str | int | list[str] | None]:
    """Parents of the rows that do not wait for the row before them of their session alone."""
    last: dict[int, int] = {}
    parents: list[str | int | list[str] | None] = []
    for row, awaited in enumerate(awaited_of(turns)):
        before, goes_on = last.get(turns.session[row]), turns.parent[row]
        if goes_on >= 0 and goes_on not in awaited:  # it has ended, and a file's prompt goes on the first that is named
            awaited = [goes_on, *awaited]
        is_plain = awaited == ([] if before is None else [before])
        parents.append(None if is_plain else _named(awaited, names))
        last[turns.session[row]] = row
    return parents


def _named(awaited: Sequence[int], names: Sequence[str]) -> str | list[str]:
    """Ids of requests: one, or a list of none or several."""
    ids = [names[row] if names else str(row) for row in awaited]
    return ids[0] if len(ids) == 1 else ids
