"""From a format's raw columns to a batch of checked ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from simbatch.sim.workload.traces.columns import values
from simbatch.sim.workload.traces.columns.kinds import Kind
from simbatch.sim.workload.traces.rows import Batch, Columns

T = TypeVar("T")
Find = Callable[[str], Sequence[object] | None]


def assemble(
    columns: Columns,
    place: Callable[[int, str], str],
    times: Kind[int],
    lines: Sequence[int],
    find: Find,
    *,
    typed: bool = False,
) -> Batch:
    """Parse what `find` gives for each column's name (None: not there); UserError at `place(line, column)`.

    `typed`: the values come with their types, so that text is never a number.
    """

    def optional(name: str | None, kind: Kind[T]) -> list[T] | None:
        found = find(name) if name is not None else None
        return None if name is None or found is None else kind.parse(found, lambda i: place(lines[i], name))

    def required(name: str, kind: Kind[T]) -> list[T]:
        found = optional(name, kind.typed() if typed else kind)
        assert found is not None, "check_header sees to it"
        return found

    return Batch(
        lines,
        arrival_ps=required(columns.arrival, times),
        num_prompt_tokens=required(columns.num_prompt_tokens, values.TOKENS),
        num_output_tokens=required(columns.num_output_tokens, values.TOKENS),
        request_id=optional(columns.request_id, values.REQUEST_IDS),
        priority=optional(columns.priority, values.PRIORITIES),
        tenant=optional(columns.tenant, values.TEXTS),
        hash_ids=optional(columns.hash_ids, values.HASH_IDS),
        predicted_output_tokens=optional(columns.predicted_output_tokens, values.PREDICTIONS),
    )
