"""What host and front end take, from the log of a server's steps and from what its clients saw: least squares.

The engine's thread: a launch is S to L; an update goes from when it could begin (the step has ended, the next launch
has returned) to the next schedule(), so that it has the loop's own time too; the device begins `lag` after S where it
was idle. The front end: what requests that are sent at once wait for each other is its work; what a request that is
alone takes beyond that, in and out, is delay that holds up nobody (`network_s`). Medians, and values
that are far off are left out: a shared machine stalls.

`python -m benchmarks.serve_constants`: what recording a step costs the engine's thread, beside a thread that writes.
Without vLLM and without a device. The two events of a step on a CUDA device come on top, some us more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.serving.processes import RotatingFile
from simbatch.serving.recording import IN_FLIGHT, StepRecorder

Step = dict[str, Any]
Floats = NDArray[np.float64]
ROUNDS, FAR = 5, 4.0  # of leaving out, and how many times the median error is far off
AT_ONCE_S = 0.05  # requests that are sent within it are a burst
LONGEST_S = 0.02  # a gap between two events that is longer is idleness, or a stall of the machine


def constants(alone: dict[str, Any], bursts: dict[str, Any]) -> dict[str, Any]:
    """The sections `host` and `front_end`, from a run of one request at a time and one of bursts."""
    steps = [_steps(run) for run in (alone, bursts)]
    both = [step for part in steps for step in part]
    host = {
        "launch": _launches(both),
        "update": dict(zip(("base_s", "per_seq_s"), _updates(steps), strict=True)),
        "admit": {
            "base_s": _median(
                line["t1"] - line["t"] for run in (alone, bursts) for line in requests_taken_in(run).values()
            )
        },
        "lag_s": _median(after["d0"] - after["s0"] for part in steps for _, after in _idle(part)),
    }
    per_token_s, once_s = _line([row["num_prompt_tokens"] for row in alone["rows"]], _ways_in(alone))
    work_s = _work_s(bursts, once_s, per_token_s)
    per_chunk_s, out_s = _line(*_ways_out(alone, bursts))
    front_end = {
        "per_request_s": work_s,
        "per_prompt_token_s": per_token_s,
        "per_chunk_s": per_chunk_s,
        "network_s": once_s - work_s + out_s,
    }
    return {"host": host, "front_end": {key: max(0.0, value) for key, value in front_end.items()}}


def _steps(run: dict[str, Any]) -> list[Step]:
    return [line for line in run["steps"] if "s0" in line]


def requests_taken_in(run: dict[str, Any]) -> dict[str, Step]:
    """The lines of requests taken in, by the client's name of them."""
    adds = [line for line in run["steps"] if "add" in line]
    return {own_name(line["add"]): line for line in adds}


def own_name(name: str) -> str:
    """A request's name as its client gave it."""
    return name.removeprefix("cmpl-").rsplit("-", 2)[0]


def _launches(steps: Sequence[Step]) -> dict[str, dict[str, float]]:
    """By kind; there are no graphs here, so two kinds are one."""
    decodes = [step for step in steps if not step["pre"]]
    prefills = [step for step in steps if step["pre"]]
    slope, base = _line([step["nd"] for step in decodes], [step["m1"] - step["s0"] for step in decodes])
    terms = np.array([[1.0, len(step["batch"]), sum(n for _, n in step["pre"])] for step in prefills])
    found = _least(terms, np.array([step["m1"] - step["s0"] for step in prefills]))
    other = dict(zip(("base_s", "per_seq_s", "per_token_s"), found, strict=True))
    return {"graph": {"base_s": base, "per_seq_s": slope}, "piecewise": other, "none": other}


def _updates(parts: Sequence[Sequence[Step]]) -> tuple[float, float]:
    """Base and per request: from when an update could begin to the next schedule()."""
    sizes, took = list[float](), list[float]()
    for steps in parts:
        for k in range(len(steps) - 2):
            step, newer, next_s = steps[k], steps[k + 1], steps[k + 2]["s0"]
            if newer["m1"] <= step["u0"] and next_s >= step["u1"]:  # as usual: two in flight, then an update
                began_s = max(step["d1"], newer["m1"])
                if next_s - began_s < LONGEST_S:
                    sizes.append(len(step["batch"]))
                    took.append(next_s - began_s)
    slope, base = _line(sizes, took)
    return base, slope


def _idle(steps: Sequence[Step]) -> Iterator[tuple[Step, Step]]:
    """Pairs of neighbours between which the device had nothing to do."""
    return ((before, after) for before, after in pairwise(steps) if after["d0"] > before["d1"] + 1e-5)


def _ways_in(run: dict[str, Any]) -> list[float]:
    """From being sent to the engine's queue, s."""
    adds = requests_taken_in(run)
    return [adds[row["name"]]["q"] - row["sent_s"] for row in run["rows"]]


def _work_s(run: dict[str, Any], once_s: float, per_token_s: float) -> float:
    """Work per request: n that are sent at once wait for each other, in two turns 3/4 (n - 1) times it on average."""
    ways, rows = _ways_in(run), run["rows"]
    bursts = list[list[int]]()
    for i in sorted(range(len(rows)), key=lambda i: rows[i]["sent_s"]):
        if not bursts or rows[i]["sent_s"] - rows[bursts[-1][0]]["sent_s"] > AT_ONCE_S:
            bursts.append([])
        bursts[-1].append(i)
    found = list[float]()
    for burst in bursts:
        num_others = (len(burst) - 1) * 3 / 4
        waited_s = np.mean([ways[i] - once_s for i in burst])
        tokens_s = per_token_s * np.mean([rows[i]["num_prompt_tokens"] for i in burst])
        if num_others:
            found.append(float(waited_s / num_others - tokens_s * (1 + 1 / num_others)))
    return max(0.0, _median(found))


def _ways_out(*runs: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Requests of a step, and from the end of its update to a client's having its token of it, s; of all tokens."""
    sizes, took = list[float](), list[float]()
    for run in runs:
        giving = _giving(run)
        for row in run["rows"]:
            if len(row["chunk_s"]) == len(giving[row["name"]]):  # else some chunks have several tokens
                sizes += [float(len(step["batch"])) for step in giving[row["name"]]]
                took += [at - step["u1"] for at, step in zip(row["chunk_s"], giving[row["name"]], strict=True)]
    return sizes, took


def first_updates(run: dict[str, Any]) -> dict[str, Step]:
    """The step that gave each request its first token."""
    return {name: steps[0] for name, steps in _giving(run).items()}


def _giving(run: dict[str, Any]) -> dict[str, list[Step]]:
    """The steps that gave each request a token."""
    prompts, giving = {line["add"]: line["n"] for line in requests_taken_in(run).values()}, dict[str, list[Step]]()
    for step in _steps(run):
        for name, n, done in step["batch"]:
            if done + n >= prompts.get(name, done + n + 1):
                giving.setdefault(own_name(name), []).append(step)
    return giving


def _median(values: Any) -> float:
    return float(np.median(list(values)))


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and height at 0, neither below 0."""
    height, slope = _least(np.array([[1.0, value] for value in x]), np.array(y))
    return slope, height


def _least(terms: Floats, values: Floats) -> list[float]:
    """Coefficients from 0 on, by least squares; values that are far off are left out."""
    from scipy.optimize import nnls

    kept = np.full(len(values), True)
    for _ in range(ROUNDS):
        found, _ = nnls(terms[kept], values[kept])
        off = np.abs(values - terms @ found)
        kept = off <= FAR * np.median(off) + 1e-6
    return [float(value) for value in found]


BATCHES = (1, 64, 256, 1024)
STEPS, STEP_S = 400, 0.005


def output(names, before):
    cached = SimpleNamespace(req_ids=names, num_computed_tokens=[before] * len(names))
    tokens = dict.fromkeys(names, 1)
    return SimpleNamespace(
        scheduled_new_reqs=[], scheduled_cached_reqs=cached, num_scheduled_tokens=tokens, finished_req_ids=set(),
        total_num_scheduled_tokens=len(names), preempted_req_ids=set(),
    )  # fmt: skip


def cost(recorder, batch):
    """Seconds that each step's calls took; the rest of a step is slept, as an engine waits for its device."""
    names, took_s = [f"cmpl-{i:016x}-0" for i in range(batch)], []
    for name in names:
        recorder.added(SimpleNamespace(request_id=name, num_prompt_tokens=100, arrival_time=0.0), 0.0, 0.0)
    for i in range(STEPS):
        planned = output(names, 100 + i)
        begin_s = time.perf_counter()
        recorder.planned(planned, time.monotonic(), time.monotonic(), (batch, 0, 0))
        step = IN_FLIGHT[id(planned)]
        step.begins(), step.launched(), step.samples(), step.sampled()
        recorder.updated(planned, time.monotonic(), time.monotonic())
        took_s.append(time.perf_counter() - begin_s)
        time.sleep(STEP_S)
    return np.array(took_s)


def thread_cost():
    """Print it by the size of the batch."""
    for batch in BATCHES:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "steps.jsonl"
            recorder = StepRecorder(RotatingFile(path, {}), None, print)
            cpu_s = time.process_time()
            took_s = cost(recorder, batch)
            cpu_us = 1e6 * (time.process_time() - cpu_s) / STEPS
            recorder.close()
            lines = path.read_text().splitlines()
            size = sum(map(len, lines[-STEPS:])) / STEPS
            assert json.loads(lines[-1])["nd"] == batch
        median, high = 1e6 * np.percentile(took_s, (50, 99))
        print(
            f"{batch:5} decodes: {median:5.1f} us a step on the engine's thread (p99 {high:.1f}), "
            f"{cpu_us:.0f} us of CPU in all, {size:.0f} bytes"
        )


if __name__ == "__main__":
    thread_cost()
