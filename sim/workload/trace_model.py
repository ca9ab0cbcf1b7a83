"""The `trace` section of a workload, and the names of the formats."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from simbatch.sim.strict import Mistake, Strict, refuse
from simbatch.sim.workload.section import Count

TraceFormat = Literal[
    "azure",
    "burstgpt",
    "mooncake",
    "timed_trace",
    "vllm_bench",
    "guidellm",
    "aiperf",
    "inference_perf",
    "jsonl",
    "csv",
    "parquet",
]
TimeUnit = Literal["s", "ms", "us", "ns"]
OnEmpty = Literal["error", "skip"]

TRACE_FORMATS: tuple[TraceFormat, ...] = get_args(TraceFormat)
# Time unit of plain numbers; the others' times say their unit themselves (timestamps, arrival_s).
TIME_UNITS: dict[TraceFormat, TimeUnit] = {"burstgpt": "s", "mooncake": "ms", "timed_trace": "s", "vllm_bench": "s"}
BENCH_FORMATS: tuple[TraceFormat, ...] = ("vllm_bench", "guidellm", "aiperf", "inference_perf")  # loaded whole
# Tokens that one entry of hash_ids stands for; the others have no hashes.
HASH_BLOCK_TOKENS: dict[TraceFormat, int] = {
    "mooncake": 512,
    "timed_trace": 16,
    "jsonl": 16,
    "csv": 16,
    "parquet": 16,
}


class TraceColumns(Strict):
    """What a file calls its columns, where the format has no name for them."""

    predicted_output: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="predicted output tokens of each request, for policies that ask"
    )


class Trace(Strict):
    """Requests from a file, one row each."""

    path: Annotated[str, Field(min_length=1)] = Field(
        description="the trace file; a relative path starts at the scenario's folder"
    )
    format: TraceFormat | None = Field(
        default=None, description=f"{', '.join(TRACE_FORMATS)} (default: detected from name and header)"
    )
    limit: Count | None = Field(default=None, description="take the first so many requests only")
    rate_scale: Annotated[float, Field(ge=1e-6, le=1e6)] = Field(
        default=1.0, description="multiplies the arrival rate: 2 halves all times"
    )
    time_unit: TimeUnit | None = Field(
        default=None, description="unit of the file's plain times (mooncake: ms; burstgpt, timed_trace, vllm_bench: s)"
    )
    hash_block_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = Field(
        default=None, description="tokens that one entry of hash_ids stands for (mooncake: 512; others: 16)"
    )
    columns: TraceColumns | None = Field(default=None, description="names of columns in this file")
    on_empty: OnEmpty = Field(
        default="error", description="a row without output tokens: error, or skip (skipped rows are counted)"
    )
    resample_blocks: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None,
        description="draw the trace anew, in so many circular blocks of equal time that the seed draws (searches: 20)",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format is not None:
            refuse(self, settings_mistakes(self, self.format))
        return self


def settings_mistakes(trace: Trace, trace_format: TraceFormat) -> list[Mistake]:
    """Settings that `trace_format`, given or detected, has no use for."""
    mistakes = []
    if trace.time_unit is not None and trace_format not in TIME_UNITS:
        what = "timestamps" if trace_format == "azure" else "arrival_s, in seconds,"
        what = "times in a unit of its own" if trace_format in BENCH_FORMATS else what
        mistakes.append(Mistake("time_unit", f"format {trace_format} has {what} and no other unit", "leave it out"))
    if trace.hash_block_tokens is not None and trace_format not in HASH_BLOCK_TOKENS:
        mistakes.append(Mistake("hash_block_tokens", f"format {trace_format} has no hash_ids", "leave it out"))
    if trace.columns is not None and trace_format in BENCH_FORMATS:
        mistakes.append(Mistake("columns", f"format {trace_format} has lists and no columns", "leave it out"))
    return mistakes
