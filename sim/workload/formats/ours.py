"""Our own columns, in three kinds of files; a file of another's usual names is read as one of these."""

from simbatch.sim.workload.formats import Columns, Format

_COLUMNS = Columns(
    "arrival_s",
    "num_prompt_tokens",
    "num_output_tokens",
    request_id="request_id",
    priority="priority",
    tenant="tenant",
    hash_ids="hash_ids",
    predicted_output="predicted_output_tokens",
    session="session_id",
    parent="parent",
    delay="delay",
    system_prompt="system_prompt",
    num_system_tokens="num_system_tokens",
)
FORMATS = [Format(kind, _COLUMNS, "s", 16, kind) for kind in ("jsonl", "csv", "parquet")]
