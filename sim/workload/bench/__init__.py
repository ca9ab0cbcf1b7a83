"""What the clients of benchmarks write down of their runs: which client wrote a file, and the runs in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import JsonValue, json_values
from simbatch.sim.workload.bench import aiperf, guidellm, inference_perf, vllm
from simbatch.sim.workload.bench.run import BenchRun, BenchTotals, Load, keys_of, read_text

RESULT_TOOLS = (
    "vllm bench serve",
    "SGLang's bench_serving",
    "GuideLLM's benchmarks.json",
    "aiperf's profile_export.jsonl",
    "inference-perf's lifecycle metrics",
)
Results = list[BenchRun | BenchTotals]

_READERS: tuple[tuple[Callable[[Any], bool], Callable[[JsonValue], Any]], ...] = (
    (guidellm.is_report, guidellm.read),
    (inference_perf.is_stage, inference_perf.read_stage),
    (inference_perf.are_requests, inference_perf.read_requests),
    (aiperf.is_summary, aiperf.read_summary),
    (vllm.is_result, vllm.read),  # last: others have keys of its names
)


def read_results(path: Path) -> Results:
    """The runs of a benchmark's result, in the file's order; UserError that says what is wrong with it."""
    return results_of(path, list(json_values(path, read_text(path))))


def results_of(path: Path, read: Sequence[JsonValue]) -> Results:
    """The runs in values that were read already, in their order."""
    if not read:
        raise UserError(Problem(str(path), "is empty", mend="name a benchmark's result"))
    if all(aiperf.is_record(document.value) for document in read):
        return [aiperf.read(path, read)]
    found: Results = []
    for document in read:
        for part in _parts(document):
            reader = next((reader for fits, reader in _READERS if fits(part.value)), None)
            if reader is None:
                raise UserError(unknown(part))
            runs = reader(part)
            found += runs if isinstance(runs, list) else [runs]
    return found


def is_result(read: Sequence[JsonValue]) -> bool:
    """Whether a known client wrote the first of these values."""
    first = read[0]
    return aiperf.is_record(first.value) or any(fits(part.value) for part in _parts(first) for fits, _ in _READERS)


def unknown(document: JsonValue) -> Problem:
    """What to say of a value that no known client wrote."""
    rule = f"is no benchmark's result that is known: it has {keys_of(document.value)}"
    return Problem(document.place, rule, mend=f"known are {', '.join(RESULT_TOOLS)}")


def _parts(document: JsonValue) -> list[JsonValue]:
    """A list of results is as good as a line each."""
    value = document.value
    if isinstance(value, list) and value and not inference_perf.are_requests(value):
        return [JsonValue(f"{document.place} [{i}]", part) for i, part in enumerate(value)]
    return [document]


def is_detailed(document: JsonValue) -> bool:
    """Whether a known client wrote it, with the requests and their latencies."""
    first = _parts(document)[0].value
    if isinstance(first, dict) and {"input_lens", "ttfts"} <= first.keys():
        return True
    return any(fits(first) for fits in (guidellm.is_report, aiperf.is_record, inference_perf.are_requests))


__all__ = ["RESULT_TOOLS", "BenchRun", "BenchTotals", "Load", "read_results"]
