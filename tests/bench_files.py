"""Benchmarks' results for tests: a simulation as each client would write it down; and traces, written and read back.

The forms are those of the clients' sources: vllm/benchmarks/serve.py 0.32; sgl-project/sglang
python/sglang/benchmark/serving.py @ 00f9ec47; vllm-project/guidellm v0.3.1 and v0.5.4; ai-dynamo/aiperf @ db4f6397 and
its examples/artifacts/run1 @ 7c31f579; kubernetes-sigs/inference-perf v0.2.0 and @ 7de5ef2e.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simbatch import Scenario, simulate
from simbatch.sim.engine.record import StepRow
from simbatch.sim.report.result import Result
from simbatch.sim.streams import Streams
from simbatch.sim.workload.trace_model import Trace
from simbatch.sim.workload.traces import TraceSource, open_trace
from tests import Done, lengths, run_command, traffic

SHARED = Path(__file__).parents[1].parent / "shared"
STEP_TIME = {"base_s": 0.01, "per_prefill_token_s": 2e-5, "per_decode_seq_s": 1e-4, "per_context_token_s": 1e-8}
OPEN = traffic(3, 9, 9, request_rate=1.0)
START = 1_759_522_419.0  # s, of a wall's clock


COLUMNS = ("request_id", "arrival_ps", "num_prompt_tokens", "num_output_tokens", "priority", "tenant", "hash_ids")


def shared(name: str) -> Path:
    """A file or folder of the shared data; skips the test where it is not there."""
    found = sorted(SHARED.glob(name))
    if not found:
        pytest.skip(f"needs ../shared/{name}, which is not part of the project")
    return found[0]


def scenario(workload: dict[str, Any], **engine: Any) -> dict[str, Any]:
    """On step times that are written here."""
    return {
        "profile": {"num_gpu_blocks": 20_000, "step_time": STEP_TIME},
        "engine": {"max_num_batched_tokens": 2048, "max_num_seqs": 64, "enable_prefix_caching": False} | engine,
        "workload": workload,
    }


def ran(workload: dict[str, Any], **engine: Any) -> Result:
    """Its simulation, with its steps."""
    return simulate(Scenario.from_dict(scenario(workload, **engine)), steps=True)


def closed_loop(
    users: int, num_prompts: int = 60, prompt: int = 300, output: int = 40, cv: float = 0.5
) -> dict[str, Any]:
    """Users with one request at a time."""
    return {
        "num_prompts": num_prompts,
        "arrival": {"process": "closed_loop", "max_concurrency": users},
        "prompt_len": lengths(prompt, cv),
        "output_len": lengths(output, cv),
    }


def token_times(result: Result) -> list[list[float]]:
    """When each request's tokens came, s."""
    prompts = result.requests["num_prompt_tokens"]
    times: list[list[float]] = [[] for _ in range(len(prompts))]
    steps: list[StepRow] = result.record.steps or []
    for step in steps:
        for index, tokens, before in step.scheduled:
            if before + tokens >= prompts[index]:
                times[index].append(step.end_ps / 1e12)
    return times


def requests_of(result: Result) -> list[tuple[float, list[float], int, int]]:
    """When each was sent, when its tokens came, and how many it had, of its prompt and of its output."""
    requests = result.requests
    tokens = (map(int, requests[f"num_{part}_tokens"]) for part in ("prompt", "output"))
    return list(zip(map(float, requests["arrival_s"]), token_times(result), *tokens, strict=True))


def vllm(result: Result, **changes: Any) -> dict[str, Any]:
    """As `vllm bench serve --save-result --save-detailed` writes it; a change of None leaves the key out."""
    requests, times = result.requests, token_times(result)
    sent = requests["arrival_s"]
    bench = {
        "date": "20261128-080000",
        "backend": "openai",
        "model_id": "m",
        "num_prompts": len(requests),
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": None,
        **{key: value for key, value in result.summary.items() if key != "simbatch"},
        "input_lens": requests["num_prompt_tokens"].tolist(),
        "output_lens": requests["num_output_tokens"].tolist(),
        "ttfts": [t[0] - s for t, s in zip(times, sent, strict=True)],
        "itls": [np.diff(t).tolist() for t in times],
        "start_times": (sent + 17).tolist(),
        "errors": [""] * len(requests),
    }
    return {key: value for key, value in (bench | changes).items() if value is not None or key not in changes}


def vllm_of_streams(streams: Streams, model: str = "org/planted-8B") -> dict[str, Any]:
    """As `vllm bench serve --save-detailed` writes requests down whose streams are known."""
    parts = [streams.time_s[a:b] for a, b in zip(streams.first[:-1], streams.first[1:], strict=True)]
    return {
        "model_id": model,
        "max_concurrency": streams.max_concurrency,
        "start_times": streams.sent_s.tolist(),
        "ttfts": [float(part[0] - sent) for part, sent in zip(parts, streams.sent_s, strict=True)],
        "itls": [np.diff(part).tolist() for part in parts],
        "input_lens": streams.num_prompt_tokens.tolist(),
        "output_lens": streams.num_output_tokens.tolist(),
    }


def sglang(result: Result, **changes: Any) -> dict[str, Any]:
    """As SGLang's bench_serving --output-details appends it: no times of sending, an infinite rate as Infinity."""
    left_out = {"model_id": None, "start_times": None, "burstiness": None, "date": None}
    bench = vllm(result, **left_out, request_rate=float("inf"))
    return {"tag": None, "dataset_name": "random", "total_output_tokens_retokenized": 1, **bench, **changes}


def guidellm(result: Result, strategy: dict[str, Any], *, is_old: bool = False) -> dict[str, Any]:
    """One run of a benchmarks.json, as v0.3.1 or v0.5.4 writes it."""
    rows = []
    for sent, times, prompt, output in requests_of(result):
        row = {
            "type_": "generative_text_response",
            "prompt_tokens": prompt,
            "output_tokens": output,
            "request_latency": times[-1] - sent + 0.004,  # the response ends after its last token
            "time_to_first_token_ms": 1000 * (times[0] - sent),
        }
        if is_old:
            row |= {
                "start_time": START + sent,
                "first_token_time": START + times[0],
                "last_token_time": START + times[-1],
            }
        else:
            timings = {"request_start": START + sent, "last_token_iteration": START + times[-1]}
            row |= {"request_start_time": START + sent, "info": {"status": "completed", "timings": timings}}
        rows.append(row)
    totals = {"successful": len(rows), "errored": 0, "incomplete": 1, "total": len(rows) + 1}
    run: dict[str, Any] = {"requests": {"successful": rows, "errored": [], "incomplete": [{"output_tokens": 1}]}}
    if is_old:
        return run | {"args": {"strategy": strategy}, "request_totals": totals}
    return run | {"config": {"strategy": strategy, "run_index": 0}, "metrics": {"request_totals": totals}}


def aiperf(result: Result, *, is_old: bool = False) -> list[dict[str, Any]]:
    """The lines of profile_export.jsonl, with one of the warm-up and one that was cancelled."""
    names = (
        ("timestamp_ns", "credit_phase", "ttft")
        if is_old
        else ("request_start_ns", "benchmark_phase", "time_to_first_token")
    )
    start_ns, phase, ttft = names

    def line(sent: float, metrics: dict[str, Any], error: Any = None, in_phase: str = "profiling") -> dict[str, Any]:
        metadata = {"x_request_id": "a", start_ns: round(1e9 * (START + sent)), phase: in_phase, "turn_index": 0}
        return {"metadata": metadata, "metrics": metrics, "error": error}

    def metrics(sent: float, times: list[float], prompt: int, output: int) -> dict[str, Any]:
        ms = {ttft: 1000 * (times[0] - sent), "request_latency": 1000 * (times[-1] - sent)}
        ms |= {"inter_chunk_latency": (1000 * np.diff(times)).tolist()} if len(times) > 1 else {}
        tokens = {"input_sequence_length": prompt, "output_sequence_length": output}
        found = {name: {"value": value, "unit": "ms"} for name, value in ms.items()}
        return found | {name: {"value": value, "unit": "tokens"} for name, value in tokens.items()}

    rows = requests_of(result)
    cancelled = {"code": 499, "type": "RequestCancellationError", "message": "cancelled"}
    lines = [line(-5.0, metrics(*rows[0]), in_phase="warmup"), line(0.0, {"error_isl": {"value": 5}}, cancelled)]
    return lines + [line(row[0], metrics(*row)) for row in rows]


def inference_perf(result: Result, *, is_old: bool = False) -> list[dict[str, Any]]:
    """A per_request_lifecycle_metrics.json; v0.2 has the tokens in `info` itself."""
    rows = []
    for sent, times, prompt, output in requests_of(result):
        response: dict[str, Any] = {"output_tokens": output, "output_token_times": [100 + t for t in times]}
        info = {"input_tokens": prompt} | (response if is_old else {"response_metrics": response})
        rows.append(
            {"start_time": 100 + sent, "end_time": 100.004 + times[-1], "request": "{}", "info": info, "error": None}
        )
    return rows


def stage(result: Result, **load: Any) -> dict[str, Any]:
    """A stage_0_lifecycle_metrics.json, in s."""
    summary, requests = result.summary, result.requests

    def latency(name: str) -> dict[str, float]:
        return {word: summary[f"{word}_{name}_ms"] / 1000 for word in ("mean", "median", "p90", "p95", "p99")}

    names = {"request_latency": "e2el", "time_per_output_token": "tpot", "time_to_first_token": "ttft"}
    return {
        "load_summary": {"count": len(requests), "schedule_delay": None, **load},
        "successes": {
            "count": len(requests),
            "latency": {theirs: latency(ours) for theirs, ours in names.items()}
            | {"inter_token_latency": {"mean": 0.0}},
            "throughput": {
                "requests_per_sec": summary["request_throughput"],
                "output_tokens_per_sec": summary["output_throughput"],
            },
            "prompt_len": {"mean": float(requests["num_prompt_tokens"].mean())},
            "output_len": {"mean": float(requests["num_output_tokens"].mean())},
        },
        "failures": {"count": 0, "request_latency": None, "prompt_len": None},
    }


def save(path: Path, content: Any, *, lines: bool = False) -> Path:
    """As JSON, or a list as a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, content)) if lines else json.dumps(content)
    path.write_text(text)
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON lines."""
    return save(path, rows, lines=True)


def source_of(path: Path, **settings: Any) -> TraceSource:
    """The trace in `path`."""
    return open_trace(Trace(path=str(path), **settings))


def read(path: Path, **settings: Any) -> dict[str, Any]:
    """All requests of a trace, as columns; None where the file has no such column."""
    columns: dict[str, Any] = {}
    for chunk in source_of(path, **settings).chunks():
        for name in COLUMNS:
            values = getattr(chunk, name)
            columns[name] = None if values is None else (columns.get(name) or []) + values
    return columns


def write_inline(folder: Path, workload: dict[str, Any] | None = None) -> Path:
    """A scenario on these step times."""
    return save(folder / "inline.yaml", scenario(workload or OPEN))


def arguments(folder: Path, file: Path, *flags: str, scenario: Path | None = None) -> list[object]:
    """Of the command that puts a recorded file beside the simulation of a scenario, x.yaml in the folder."""
    return ["validate", scenario or folder / "x.yaml", "--recorded", file, "-o", folder / "out", *flags]


def validated(folder: Path, capsys: Any, file: Path, *flags: str, scenario: Path | None = None) -> tuple[Any, Done]:
    """What it answers as JSON, None where it refuses, and the command as it ended."""
    done = run_command(capsys, *arguments(folder, file, *flags, "--json", scenario=scenario))
    return json.loads(done.out) if done.out else None, done


def by_key(content: dict[str, Any], clock: str = "client") -> dict[str, Any]:
    """The figures of that answer."""
    return {figure["key"]: figure for figure in content["figures"] if figure["clock"] == clock}
