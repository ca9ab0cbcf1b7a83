"""The tables of `benchmarks.serve_truth compare`: constants, figures of both sides, and decisions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.serve_constants import constants, first_updates, requests_taken_in
from benchmarks.serve_decisions import differences
from benchmarks.serve_truth import FITTED, PROFILE, RUNS, Run, engine_of, read
from simbatch import Scenario, simulate
from simbatch.sim.clock import PS_PER_MS
from simbatch.sim.cost.load import parse_json, shipped_text
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.metrics.columns import queued_ps
from simbatch.sim.metrics.latencies import latencies_ms

FIGURES = [(statistic, name) for name in ("ttft", "tpot", "e2el") for statistic in ("mean", "p99")]
OLDER = ("request_overhead_s", "client_overhead_s")


def compare(runs: Sequence[Run], folder: Path) -> None:
    """Print all tables."""
    alone, bursts = (read(next(run for run in RUNS if run.name == name), folder) for name in FITTED)
    sections = constants(alone, bursts)
    print(json.dumps(sections, indent=1))
    parts = ["| run | way in: real, simulated | in the engine | way out |\n|---|---|---|---|"]
    queued = ["| run | mean, queue to first token | p99 | mean TPOT |\n|---|---|---|---|"]
    columns = ["run", "fitted", "cores busy", *(f"{statistic} {name.upper()}" for statistic, name in FIGURES), "steps"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for run in runs:
        kept = read(run, folder)
        record = simulated_run(run, kept["rows"], sections)
        real, simulated = real_ms(kept["rows"]), latencies_ms(record, np.full(len(kept["rows"]), True))
        cells = [run.name, "yes" if run.name in FITTED else "", f"{kept['load']:.1f} of {kept['cores']}"]
        for statistic, name in FIGURES:
            one, other = (_statistic(side[name], statistic) for side in (real, simulated))
            cells.append(f"{one:.1f}, {100 * (other / one - 1):+.1f} %")
        found = differences(kept["steps"], engine_of(run))
        cells.append(f"{found.num_equal} of {found.num_steps}")
        print(f"| {' | '.join(cells)} |", flush=True)
        if found.first:
            print(f"  {found.first}")
        pairs = zip(real_parts_ms(kept), simulated_parts_ms(record), strict=True)
        parts.append(f"| {run.name} | {' | '.join(f'{one:.1f}, {other:.1f}' for one, other in pairs)} |")
        queued.append(f"| {run.name} | {' | '.join(from_queue(run, kept, sections))} |")
    print("\nWhere the time to the first token goes, means in ms:\n\n" + "\n".join(parts))
    print("\nGiven when each request reached the engine's queue:\n\n" + "\n".join(queued))


def real_ms(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """What clients saw, as `vllm bench serve` counts it."""
    first = np.array([1e3 * (row["chunk_s"][0] - row["sent_s"]) for row in rows])
    last = np.array([1e3 * (row["chunk_s"][-1] - row["sent_s"]) for row in rows])
    outputs = np.array([row["num_output_tokens"] for row in rows])
    return {"ttft": first, "tpot": (last - first) / (outputs - 1), "e2el": last}


def simulated_run(run: Run, rows: Sequence[dict[str, Any]], sections: dict[str, Any]) -> RunRecord:
    """The same requests, simulated: sent when they really were, or in a closed loop."""
    begin_s = min(row["sent_s"] for row in rows)
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / f"{run.name}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for row in sorted(rows, key=lambda row: row["sent_s"]):
                sent_s = 0.0 if run.concurrency else row["sent_s"] - begin_s
                keys = ("num_prompt_tokens", "num_output_tokens")
                file.write(json.dumps({"arrival_s": sent_s, **{key: row[key] for key in keys}}) + "\n")
        workload: dict[str, Any] = {"trace": {"path": str(path), "format": "jsonl"}}
        if run.concurrency:
            workload["max_concurrency"] = run.concurrency
        content = {"profile": profile_with(sections), "engine": {**engine_of(run), "async_scheduling": True}}
        record: RunRecord = simulate(Scenario.from_dict({**content, "workload": workload})).record
    return record


def from_queue(run: Run, kept: dict[str, Any], sections: dict[str, Any]) -> list[str]:
    """Errors of the engine alone: requests come to the simulation when they came to the real engine's queue."""
    adds, firsts = requests_taken_in(kept), first_updates(kept)
    rows = sorted(({**row, "sent_s": adds[row["name"]]["q"]} for row in kept["rows"]), key=lambda row: row["sent_s"])
    out_alone = {"front_end": {"per_chunk_s": sections["front_end"]["per_chunk_s"]}}
    record = simulated_run(replace(run, concurrency=None), rows, sections | out_alone)
    real = np.array([1e3 * (firsts[row["name"]]["u1"] - row["sent_s"]) for row in rows])
    simulated = (record.requests.first_token_ps - record.requests.arrival_ps) / PS_PER_MS
    found = [_statistic(simulated, name) / _statistic(real, name) - 1 for name in ("mean", "p99")]
    tpot_ms = latencies_ms(record, np.full(len(rows), True))["tpot"].mean()
    return [f"{100 * error:+.1f} %" for error in (*found, tpot_ms / real_ms(rows)["tpot"].mean() - 1)]


def real_parts_ms(kept: dict[str, Any]) -> list[float]:
    """Means: from being sent to being taken in by the engine, from there to the update, from there to the client."""
    adds, firsts = requests_taken_in(kept), first_updates(kept)
    found = [
        (row["sent_s"], adds[row["name"]]["t"], firsts[row["name"]]["u1"], row["chunk_s"][0]) for row in kept["rows"]
    ]
    return [float(value) for value in 1e3 * np.diff(np.array(found)).mean(axis=0)]


def simulated_parts_ms(record: RunRecord) -> list[float]:
    """The same of a simulation; a delay that holds up nobody is all on the way out there."""
    requests = record.requests
    moments = [requests.arrival_ps, queued_ps(requests), requests.first_token_ps, record.client_first_token_ps]
    return [float((after - before).mean() / PS_PER_MS) for before, after in pairwise(moments)]


def profile_with(sections: dict[str, Any]) -> dict[str, Any]:
    """The profile that was served, with host and front end."""
    content = parse_json(shipped_text(PROFILE), PROFILE)
    return {key: value for key, value in content.items() if key not in OLDER} | sections


def _statistic(values: np.ndarray[Any, Any], name: str) -> float:
    return float(values.mean() if name == "mean" else np.percentile(values, 99))
