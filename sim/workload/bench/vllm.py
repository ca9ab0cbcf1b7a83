"""Results of `vllm bench serve` (benchmark_serving.py before it), and of SGLang's bench_serving, which grew from it.

Read: vllm/benchmarks/serve.py of 0.32 and 0.33, and sgl-project/sglang python/sglang/benchmark/serving.py @ 00f9ec47
(python/sglang/bench_serving.py @ 0033168f before it). Both write one entry a request with --save-detailed and
--output-details; SGLang's client, and vLLM's before it had start_times, do not say when a request was sent.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import JsonValue, Lenient, checked
from simbatch.sim.workload.bench.run import BenchRun, BenchTotals, Lasted, Load, Time, Tokens, gaps_told, objects

VLLM, SGLANG = "vllm bench serve", "SGLang's bench_serving"
RECOGNISED = ("input_lens", "start_times", "request_throughput")
DETAILS = ("input_lens", "output_lens", "ttfts", "itls", "start_times")
THROUGHPUTS = ("request_throughput", "output_throughput", "total_token_throughput")
STATISTICS = ("mean", "median", "std", "p90", "p95", "p99")
LATENCIES = ("ttft", "tpot", "itl", "e2el")
_SGLANG_KEYS = ("total_output_tokens_retokenized", "sharegpt_output_len", "random_range_ratio", "tag")


class _Details(Lenient):
    input_lens: list[Tokens]
    output_lens: list[Tokens]
    ttfts: list[Lasted]
    itls: list[list[Lasted]]
    start_times: list[Time] | None = None
    latencies: list[Lasted] | None = None  # some versions write them
    errors: list[str | None] | None = None


def is_result(value: Any) -> bool:
    """Whether it is such a result, in detail or with its totals alone."""
    return isinstance(value, dict) and any(key in value for key in RECOGNISED)


def read(document: JsonValue) -> BenchRun | BenchTotals:
    """One result; UserError for what is malformed in it."""
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
        untold={"itl": why} if why else {},
        totals=totals,
    )


def _load(value: dict[str, Any], place: str, is_sglang: bool) -> Load:
    limit, burstiness = value.get("max_concurrency"), value.get("burstiness") or 1.0
    if limit is not None and not (type(limit) is int and limit > 0):
        raise UserError(Problem(f"{place} max_concurrency", "must be a whole number above 0", limit))
    if not isinstance(burstiness, int | float) or not burstiness > 0:
        raise UserError(Problem(f"{place} burstiness", "must be a number above 0", burstiness))
    rate = rate_of(value.get("request_rate"))
    if value.get("ramp_up_strategy") is not None:
        rate = None
    return Load(rate, float(burstiness), limit, None if is_sglang else "vllm")


def rate_of(value: Any) -> float | None:
    """A request rate as clients write it, "inf" and Infinity included; None where it is no rate."""
    try:
        rate = float(value)
    except (TypeError, ValueError):
        return None
    return rate if rate > 0 else None


def _totals(value: dict[str, Any]) -> dict[str, float]:
    """By vLLM's keys; a 0 of a latency is how clients write that nothing was measured."""
    names = {f"{s}_{name}_ms": f"{s}_{name}_ms" for s in STATISTICS for name in LATENCIES}
    names |= {f"{s}_e2el_ms": f"{s}_e2e_latency_ms" for s in STATISTICS if f"{s}_e2e_latency_ms" in value}
    names |= {name: name for name in ("duration", *THROUGHPUTS)}
    found = {key: value[name] for key, name in names.items() if name in value}
    return {key: float(number) for key, number in found.items() if is_number(number) and number > 0}


def is_number(value: Any) -> bool:
    """A finite number of JSON's."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _totals_alone(
    tool: str, place: str, value: dict[str, Any], load: Load, totals: dict[str, float], model: str | None
) -> BenchTotals:
    if not any(key.endswith("_ms") for key in totals):
        rule = "has a run's totals only, not its requests, and no latency among them"
        raise UserError(Problem(place, rule, mend="run vllm bench serve with --save-result --save-detailed"))
    completed = value.get("completed")
    completed = completed if type(completed) is int and completed > 0 else None

    def each(key: str) -> float | None:
        return value[key] / completed if completed and is_number(value.get(key)) else None

    failed = value.get("failed")
    notes = (f"{failed:,} requests failed in it",) if type(failed) is int and failed else ()
    lengths = each("total_input_tokens"), each("total_output_tokens")
    return BenchTotals(tool, place, load, totals, completed, *lengths, model=model, notes=notes)
