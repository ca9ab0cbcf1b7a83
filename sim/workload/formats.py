"""The formats of traces: what a kind of file calls its columns, its times' unit, what a hash stands for, who writes it.

A new one is an entry of `FORMATS`. How CSV, JSON, parquet and benchmarks' results are read is `traces`' affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Unit = Literal["s", "ms", "us", "ns", "iso"]
FileKind = Literal["csv", "jsonl", "parquet", ""]  # "": none is written
REQUIRED = ("arrival", "prompt", "output")
Row = Mapping[str, object]
Said = Mapping[str, tuple[str, Unit | None]]  # by what it means: a column's name and its unit


class Columns(NamedTuple):
    """What a file calls its columns, by what they mean; None: it has none of that kind."""

    arrival: str | None = None
    prompt: str | None = None
    output: str | None = None
    request_id: str | None = None
    priority: str | None = None
    tenant: str | None = None
    hash_ids: str | None = None
    predicted_output: str | None = None
    session: str | None = None
    parent: str | None = None
    delay: str | None = None
    system_prompt: str | None = None
    num_system_tokens: str | None = None


@dataclass(frozen=True)
class Format:
    """A kind of trace.

    `unit` is that of plain times (None: by the column's name and its values), `hash_block_tokens` what one entry of
    hash_ids stands for, `written_as` the kind of file that `simbatch trace convert` makes (any kind is read), `fits`
    what a first row must have beside the columns.
    """

    name: str
    columns: Columns
    unit: Unit | None = None
    hash_block_tokens: int = 0
    written_as: FileKind = "csv"
    fits: Callable[[Row], bool] = lambda _: True


def _covered_by(tokens: int, *others: str) -> Callable[[Row], bool]:
    """Rows with so many tokens a hash, and with no column of another format's."""

    def fits(row: Row) -> bool:
        if any(name in row for name in others):
            return False
        hashes, prompt = row.get("hash_ids"), row.get("input_length")
        if isinstance(hashes, str) and isinstance(prompt, str) and prompt.isdigit():
            hashes, prompt = hashes.strip("[] ").replace(",", " ").split(), int(prompt)
        if not (hashes and isinstance(hashes, list) and type(prompt) is int):
            return True
        return prompt // tokens <= len(hashes) <= -(-prompt // tokens)

    return fits


AZURE = Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT = Columns("Timestamp", "Request tokens", "Response tokens")
# Mooncake's (ms, 512 tokens a hash), vLLM's timed_trace and Bailian's (s, 16) have the same keys. The number of hashes
# in the first row tells the first two apart; session_id and delay are Mooncake's as aiperf and Dynamo write
# conversations, chat_id and parent_chat_id are Bailian's.
TIMED = Columns("timestamp", "input_length", "output_length", hash_ids="hash_ids")
MOONCAKE = TIMED._replace(session="session_id", delay="delay")
BAILIAN = TIMED._replace(request_id="chat_id", parent="parent_chat_id")
OWN = Columns(
    "arrival_s",
    "num_prompt_tokens",
    "num_output_tokens",
    predicted_output="predicted_output_tokens",
    session="session_id",
    **{name: name for name in ("request_id", "priority", "tenant", "hash_ids", "parent", "delay")},
    **{name: name for name in ("system_prompt", "num_system_tokens")},
)
RESULT = Columns("start_times", "input_lens", "output_lens")  # of benchmarks' clients (bench), which are read whole
OURS: tuple[FileKind, ...] = ("jsonl", "csv", "parquet")  # a file of another's usual names is read as one of these

FORMATS = {
    form.name: form
    for form in (
        Format("azure", AZURE, "iso"),  # github.com/Azure/AzurePublicDataset, 2023 and 2024: with or without a zone
        Format("burstgpt", BURSTGPT, "s"),  # github.com/HPMLL/BurstGPT, releases 1 to 3
        Format("mooncake", MOONCAKE, "ms", 512, "jsonl", _covered_by(512, "chat_id")),  # github.com/kvcache-ai/Mooncake
        # vllm bench serve --dataset-name timed_trace
        Format("timed_trace", TIMED, "s", 16, "jsonl", _covered_by(16, "chat_id", "session_id", "delay")),
        # github.com/alibaba-edu/qwen-bailian-usagetraces-anon
        Format("bailian", BAILIAN, "s", 16, "jsonl", lambda row: "chat_id" in row),
        *(Format(kind, OWN, "s", 16, kind) for kind in OURS),
        Format("vllm_bench", RESULT, "s", written_as=""),
        *(Format(tool, RESULT, written_as="") for tool in ("guidellm", "aiperf", "inference_perf")),
    )
}
TABLES = {name: form for name, form in FORMATS.items() if form.written_as}
RESULTS = tuple(name for name, form in FORMATS.items() if not form.written_as)
