"""A benchmark's run in plain columns: what all clients' results come down to, and how their files are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import MAX_TOKENS
from simbatch.sim.text import cut_short
from simbatch.sim.workload.arrivals import MAX_TIME_S
from simbatch.sim.workload.files import open_text, text_errors

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Load:
    """How the client sent: `request_rate` (1/s; inf: at once; None: not said), at most `max_concurrency` in flight.

    `gaps` says whether its random gaps can be drawn again: "vllm" for `vllm bench serve` with its default seed.
    """

    request_rate: float | None = None
    burstiness: float = 1.0
    max_concurrency: int | None = None
    gaps: str | None = None

    def __str__(self) -> str:
        rate = self.request_rate
        parts = [] if self.max_concurrency is None else [f"{self.max_concurrency:,} in flight"]
        if rate is not None and np.isfinite(rate):
            parts.insert(0, f"{rate:g} req/s")
        elif rate is not None and not parts:
            parts = ["all at once"]
        return ", at most ".join(parts) or "as recorded"


@dataclass(frozen=True)
class BenchRun:
    """A run with its requests, in the file's order; times in s, `sent_s` by any clock, None where nobody wrote them.

    `untold` has the latencies that the file does not tell, with the reason; `totals` the file's own by vLLM's keys.
    """

    tool: str
    place: str
    load: Load
    num_prompt_tokens: Ints
    num_output_tokens: Ints
    error: NDArray[np.object_]  # why a request failed, empty where it did not
    e2el_s: Floats
    ttft_s: Floats | None = None
    sent_s: Floats | None = None
    gaps_s: NDArray[np.object_] | None = None  # per request, between its chunks
    model: str | None = None
    untold: Mapping[str, str] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.num_prompt_tokens)


@dataclass(frozen=True)
class BenchTotals:
    """A run's totals alone, by the keys of `vllm bench serve`; lengths are means per request."""

    tool: str
    place: str
    load: Load
    totals: Mapping[str, float]
    num_requests: int | None = None
    num_prompt_tokens: float | None = None
    num_output_tokens: float | None = None
    model: str | None = None
    untold: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def objects(values: list[Any]) -> NDArray[np.object_]:
    """A column of anything, lists included."""
    column = np.empty(len(values), dtype=np.object_)
    column[:] = values
    return column


def gaps_told(gaps_s: NDArray[np.object_], num_output_tokens: Ints) -> str:
    """Why the gaps are not those between tokens; empty where they are."""
    chunks = sum(len(gaps) + 1 for gaps, n in zip(gaps_s, num_output_tokens, strict=True) if n)
    tokens = int(num_output_tokens.sum())
    if chunks < (1 - MAX_MISSING) * tokens:
        return f"the server sent {tokens:,} tokens in {chunks:,} chunks, so the gaps are not those between tokens"
    return ""


MAX_MISSING = 0.02  # share of tokens that came with another one


Tokens = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
Time = Annotated[float, Field(ge=-1e12, le=1e12)]
Lasted = Annotated[float, Field(ge=0, le=MAX_TIME_S)]


def read_text(path: Path) -> str:
    """The file as text; UserError when it cannot be read, is packed or is not UTF-8."""
    try:
        with text_errors(path), open_text(path) as file:
            return file.read()
    except OSError as error:
        raise UserError(Problem(str(path), f"cannot be read: {error.strerror}", mend="check the path")) from None


def keys_of(value: object) -> str:
    """What an unknown value has, cut short."""
    if not isinstance(value, dict):
        return f"a {'list' if isinstance(value, list) else 'single value'}"
    return f"the keys {cut_short(value)}"
