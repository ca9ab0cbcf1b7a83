"""The `trace` section of a workload: which file, in which format, and how it is read.

A format is what a kind of file calls its columns, its times' unit, what a hash stands for, and who writes it; a new one
is an entry of `FORMATS`. How CSV, JSON, parquet and benchmarks' results are read is `traces`' affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from simbatch.sim.json_values import Count, Mistake, Strict, refuse

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
if TYPE_CHECKING:
    TraceFormat = str
else:
    TraceFormat = Literal[tuple(FORMATS)]
TimeUnit = Literal["s", "ms", "us", "ns"]
OnEmpty = Literal["error", "skip"]
PromptIs = Literal["whole", "new"]
Bound = float | int | str | date
Between = Annotated[list[Bound], Field(min_length=2, max_length=2)] | None
CharsPerToken = Annotated[float, Field(ge=0.1, le=100)] | None
CHARS_PER_TOKEN = "a file of texts: so many characters are taken for a token (English: about 4)"
TokenizerFile = Annotated[str, Field(min_length=1)] | None
TOKENIZER = "a file of texts: the model's tokenizer.json, which counts them (pip install tokenizers)"

TRACE_FORMATS: tuple[str, ...] = tuple(FORMATS)
_LISTED = ", ".join(f"{name}: {form.unit}" for name, form in FORMATS.items() if form.unit not in (None, "iso"))


class NamedColumn(Strict):
    """A column's name, and the unit of the times in it."""

    name: Annotated[str, Field(min_length=1)] = Field(description="what the file calls it")
    unit: Unit | None = Field(default=None, description="s, ms, us, ns, or iso for timestamps (default: told)")


Column = Annotated[str, Field(min_length=1)] | NamedColumn


def _column(what: str) -> Column | None:
    found: Column | None = Field(default=None, description=what)
    return found


class TraceColumns(Strict):
    """What a file calls its columns: a name, or {name, unit}; a point leads into objects (usage.prompt_tokens)."""

    arrival: Column | None = _column("when each request arrives")
    prompt: Column | None = _column("prompt tokens")
    output: Column | None = _column("output tokens")
    priority: Column | None = _column("priority, lower first")
    tenant: Column | None = _column("whose request it is")
    request_id: Column | None = _column("what each request is called, which `parent` names")
    session: Column | None = _column("session of a row: it waits for the row before it of the same")
    parent: Column | None = _column("request_id of the turn that a row waits for, or a list of them; -1: of none")
    delay: Column | None = _column("time from the end of what a row waits for to its sending")
    hash_ids: Column | None = _column("prefix hashes")
    system_prompt: Column | None = _column("which system prompt the first prompt of a session begins with")
    num_system_tokens: Column | None = _column("how many tokens a system prompt has, the same in all rows")
    predicted_output: Column | None = _column("predicted output tokens of each request, for policies that ask")

    @model_validator(mode="after")
    def _check(self) -> Self:
        units = {kind: column.unit for kind, column in self if isinstance(column, NamedColumn) and column.unit}
        rule, mend = "only arrival and delay are times and have a unit", "write the name alone"
        mistakes = [Mistake(kind, rule, mend) for kind in units if kind not in ("arrival", "delay")]
        if units.get("delay") == "iso":
            mistakes.append(Mistake("delay", "is a time that passes, and no timestamp", "take s, ms, us or ns"))
        refuse(self, mistakes)
        return self

    def said(self) -> Said:
        """Names and units by what they mean, of those that are given."""
        pairs = ((kind, (c, None) if isinstance(c, str) else (c.name, c.unit)) for kind, c in self if c is not None)
        return dict(pairs)


class Trace(Strict):
    """Requests from a file, one row each."""

    path: Annotated[str, Field(min_length=1)] = Field(
        description="the trace file; a relative path starts at the scenario's folder"
    )
    format: TraceFormat | None = Field(
        default=None, description=f"{', '.join(TRACE_FORMATS)} (default: detected from name and header)"
    )
    limit: Count | None = Field(default=None, description="take the first so many requests only")
    between: Between = Field(
        default=None, description="[START, END]: requests from START up to END, without it, by the file's own clock"
    )
    sort: bool = Field(default=False, description="put the rows in order of arrival first; all are held in memory")
    rate_scale: Annotated[float, Field(ge=1e-6, le=1e6)] = Field(
        default=1.0, description="multiplies the arrival rate: 2 halves all times"
    )
    time_unit: TimeUnit | None = Field(
        default=None, description=f"unit of the file's plain times ({_LISTED}; others: Unix time is told by its size)"
    )
    prompt_is: PromptIs = Field(
        default="whole",
        description="turns of sessions: a row's prompt is the whole of it, or what is new behind the conversation",
    )
    hash_block_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = Field(
        default=None, description="tokens that one entry of hash_ids stands for (mooncake: 512; others: 16)"
    )
    columns: TraceColumns | None = Field(default=None, description="names of columns in this file")
    chars_per_token: CharsPerToken = Field(default=None, description=CHARS_PER_TOKEN)
    tokenizer: TokenizerFile = Field(default=None, description=TOKENIZER)
    on_empty: OnEmpty = Field(
        default="error", description="a row without output tokens: error, or skip (skipped rows are counted)"
    )
    resample_blocks: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None,
        description="draw the trace anew, in so many circular blocks of equal time that the seed draws (searches: 20)",
    )

    @property
    def said(self) -> Said:
        """Names and units of the columns that are given, by what they mean."""
        return self.columns.said() if self.columns else {}

    @property
    def counts_texts(self) -> bool:
        """Whether the file has texts, whose tokens are to be counted."""
        return self.chars_per_token is not None or self.tokenizer is not None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.chars_per_token is not None and self.tokenizer is not None:
            refuse(self, [Mistake("chars_per_token", "the tokenizer counts, and nothing is assumed", "leave it out")])
        if self.format is not None:
            refuse(self, settings_mistakes(self, self.format))
        return self


def settings_mistakes(trace: Trace, name: str) -> list[Mistake]:
    """Settings that the format of this name, given or detected, has no use for."""
    mistakes, form = [], FORMATS[name]
    is_result = name in RESULTS
    if trace.time_unit is not None and (form.unit == "iso" or (is_result and form.unit is None)):
        what = "times in a unit of its own" if is_result else "timestamps"
        mistakes.append(Mistake("time_unit", f"format {name} has {what} and no other unit", "leave it out"))
    if trace.hash_block_tokens is not None and not form.hash_block_tokens:
        mistakes.append(Mistake("hash_block_tokens", f"format {name} has no hash_ids", "leave it out"))
    if is_result:
        keys = ("columns", "between", "sort", "chars_per_token", "tokenizer")
        named = [key for key in keys if getattr(trace, key)]
        mistakes += [Mistake(key, f"format {name} has lists and no rows", "leave it out") for key in named]
    return mistakes
