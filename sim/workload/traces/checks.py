"""What holds for the columns of any trace's row, and the error of a row that does not keep to it."""

from __future__ import annotations

import numpy as np

from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.workload.traces.rows import Reader, RowBatch


def row_error(
    reader: Reader, batch: RowBatch, i: int, column: str | None, rule: str, value: object, mend: str
) -> UserError:
    """A mistake in row `i` of the batch, with its place in the file."""
    return UserError(Problem(reader.place(int(batch.lines[i]), column or ""), rule, value, mend))


def check_columns(reader: Reader, batch: RowBatch) -> None:
    """UserError for a row without prompt tokens, for predictions in some rows only, and for too many or few hashes."""
    columns = reader.columns
    if not batch.num_prompt_tokens.all():
        i = int(np.flatnonzero(batch.num_prompt_tokens == 0)[0])
        rule = "a request needs prompt tokens, and here are none"
        raise row_error(reader, batch, i, columns.prompt, rule, NOTHING, "fill it in, or remove the row")
    if (columns.predicted_output in reader.present) != (batch.predicted_output_tokens is not None):
        rule, mend = "stands in some rows only", "give every row a prediction, or none"
        raise row_error(reader, batch, 0, columns.predicted_output, rule, NOTHING, mend)
    if batch.hash_ids is not None:
        _check_hashes(reader, batch, batch.hash_ids)


def _check_hashes(reader: Reader, batch: RowBatch, rows: list[tuple[int, ...] | None]) -> None:
    h, columns = reader.hash_block_tokens, reader.columns
    for i, (hashes, prompt) in enumerate(zip(rows, batch.num_prompt_tokens.tolist(), strict=True)):
        if hashes is not None and not prompt // h <= len(hashes) <= -(-prompt // h):
            low, high = prompt // h, -(-prompt // h)
            expected = f"{low} or {high}" if low != high else f"{low}"
            rule = f"a prompt of {prompt} tokens has {expected} hashes of {h} tokens each"
            mend = "set hash_block_tokens to what one hash stands for"
            raise row_error(reader, batch, i, columns.hash_ids, rule, len(hashes), mend)
