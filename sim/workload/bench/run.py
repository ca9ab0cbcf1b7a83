"""A benchmark's run in plain columns, to which all clients' results come down; `vllm bench serve`'s are read here.

Its keys are those of the totals. SGLang's bench_serving grew from it (benchmark_serving.py, as it was called).

Read: vllm/benchmarks/serve.py of 0.32 and 0.33, and sgl-project/sglang python/sglang/benchmark/serving.py @ 00f9ec47
(python/sglang/bench_serving.py @ 0033168f before it). Both write one entry a request with --save-detailed and
--output-details; SGLang's client, and vLLM's before it had start_times, do not say when a request was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import MAX_TOKENS, JsonValue, Lenient, checked, count_of, is_number, number_at
from simbatch.sim.text import cut_short
from simbatch.sim.workload.arrivals import MAX_TIME_S
from simbatch.sim.workload.files import open_text, text_errors

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
VLLM, SGLANG = "vllm bench serve", "SGLang's bench_serving"
RECOGNISED = ("input_lens", "start_times", "request_throughput")
DETAILS = ("input_lens", "output_lens", "ttfts", "itls", "start_times")
THROUGHPUTS = ("request_throughput", "output_throughput", "total_token_throughput")
STATISTICS = ("mean", "median", "std", "p90", "p95", "p99")
LATENCIES = ("ttft", "tpot", "itl", "e2el")
_SGLANG_KEYS = ("total_output_tokens_retokenized", "sharegpt_output_len", "random_range_ratio", "tag")


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


def rate_of(value: Any) -> float | None:
    """A request rate as clients write it, "inf" and Infinity included; None where it is no rate."""
    try:
        rate = float(value)
    except (TypeError, ValueError):
        return None
    return rate if rate > 0 else None


def untold_of(no_itl: str, no_first: str = "") -> dict[str, str]:
    """Why a file does not tell the gaps between tokens, nor when the first one came; empty where it does."""
    return ({"itl": no_itl} if no_itl else {}) | (dict.fromkeys(("ttft", "tpot"), no_first) if no_first else {})


def keys_of(value: object) -> str:
    """What an unknown value has, cut short."""
    if not isinstance(value, dict):
        return f"a {'list' if isinstance(value, list) else 'single value'}"
    return f"the keys {cut_short(value)}"


class _Details(Lenient):
    input_lens: list[Tokens]
    output_lens: list[Tokens]
    ttfts: list[Lasted]
    itls: list[list[Lasted]]
    start_times: list[Time] | None = None
    latencies: list[Lasted] | None = None  # some versions write them
    errors: list[str | None] | None = None


def is_vllm(value: Any) -> bool:
    """Whether it is a result of `vllm bench serve` or SGLang's client, in detail or with its totals alone."""
    return isinstance(value, dict) and any(key in value for key in RECOGNISED)


def read_vllm(document: JsonValue) -> BenchRun | BenchTotals:
    """One result of these; UserError for what is malformed in it."""
    value, place = document.value, document.place
    is_sglang = "model_id" not in value and any(key in value for key in _SGLANG_KEYS)
    tool = SGLANG if is_sglang else VLLM
    load = _load(value, place, is_sglang)
    model = value.get("model_id")
    model = model if isinstance(model, str) else None
    totals = _totals(value)
    if not any(key in value for key in DETAILS):
        return _totals_alone(tool, place, value, load, totals, model)
    details: _Details = checked(_Details, value, place)
    lists = {name: column for name, column in details if isinstance(column, list)}
    lengths = {name: len(column) for name, column in lists.items()}
    if len(set(lengths.values())) != 1 or not details.input_lens:
        raise UserError(Problem(place, "its lists must be of one length, and not empty", lengths))
    errors = details.errors or [""] * len(details.input_lens)
    outputs = np.array(details.output_lens, dtype=np.int64)
    gaps = objects([np.array(itl, dtype=np.float64) for itl in details.itls])
    ttft = np.array(details.ttfts)
    e2el = ttft + [float(gap.sum()) for gap in gaps] if details.latencies is None else np.array(details.latencies)
    why = gaps_told(gaps, outputs)
    return BenchRun(
        tool=tool,
        place=place,
        load=load,
        num_prompt_tokens=np.array(details.input_lens, dtype=np.int64),
        num_output_tokens=outputs,
        error=objects([text or ("no tokens" if not n else "") for text, n in zip(errors, outputs, strict=True)]),
        e2el_s=e2el,
        ttft_s=ttft,
        sent_s=None if details.start_times is None else np.array(details.start_times),
        gaps_s=gaps,
        model=model,
        untold=untold_of(why),
        totals=totals,
    )


def _load(value: dict[str, Any], place: str, is_sglang: bool) -> Load:
    limit, burstiness = value.get("max_concurrency"), value.get("burstiness") or 1.0
    if limit is not None and count_of(limit) is None:
        raise UserError(Problem(f"{place} max_concurrency", "must be a whole number above 0", limit))
    if not isinstance(burstiness, int | float) or not burstiness > 0:
        raise UserError(Problem(f"{place} burstiness", "must be a number above 0", burstiness))
    rate = rate_of(value.get("request_rate"))
    if value.get("ramp_up_strategy") is not None:
        rate = None
    return Load(rate, float(burstiness), limit, None if is_sglang else "vllm")


def _totals(value: dict[str, Any]) -> dict[str, float]:
    """By vLLM's keys; a 0 of a latency is how clients write that nothing was measured."""
    names = {f"{s}_{name}_ms": f"{s}_{name}_ms" for s in STATISTICS for name in LATENCIES}
    names |= {f"{s}_e2el_ms": f"{s}_e2e_latency_ms" for s in STATISTICS if f"{s}_e2e_latency_ms" in value}
    names |= {name: name for name in ("duration", *THROUGHPUTS)}
    found = {key: value[name] for key, name in names.items() if name in value}
    return {key: float(number) for key, number in found.items() if is_number(number) and number > 0}


def _totals_alone(
    tool: str, place: str, value: dict[str, Any], load: Load, totals: dict[str, float], model: str | None
) -> BenchTotals:
    if not any(key.endswith("_ms") for key in totals):
        rule = "has a run's totals only, not its requests, and no latency among them"
        raise UserError(Problem(place, rule, mend="run vllm bench serve with --save-result --save-detailed"))
    completed, failed = count_of(value.get("completed")), value.get("failed")
    counted = (number_at(value, key) for key in ("total_input_tokens", "total_output_tokens"))
    prompt, output = (number / completed if completed and number is not None else None for number in counted)
    notes = (f"{failed:,} requests failed in it",) if type(failed) is int and failed else ()
    return BenchTotals(tool, place, load, totals, completed, prompt, output, model=model, notes=notes)
