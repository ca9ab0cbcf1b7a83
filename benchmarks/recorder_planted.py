"""Profiles that are known, given back by a recorder's files: `python -m benchmarks.recorder_planted [--number N]`.

Random profiles (`stream_planted`, and updates and admissions) serve in the engine; its steps are written as a recorder
in a real server would write them, with the device's times and without, and fitted.

`... cost`: what recording a step costs the engine's thread, beside a thread that writes. Without vLLM and without a
device. The two events of a step on a CUDA device come on top, some us more.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import run_one_of
from benchmarks.stream_planted import Planted, planted, served
from simbatch.profiler.fit.recorder import RecorderProfile, fit_recorder
from simbatch.serving.processes import RotatingFile
from simbatch.serving.recording import IN_FLIGHT, StepRecorder
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.engine.record import RunRecord

HOST = {
    "update": {"base_s": 2e-4, "per_seq_s": 1e-5},
    "admit": {"base_s": 3e-4, "per_prompt_token_s": 1e-7},
    "lag_s": 1e-3,
}


def server(seed: int, *, is_async: bool = True) -> Planted:
    """A random one."""
    given = planted(seed)
    profile = {**given.profile, "host": {**given.profile["host"], **HOST}}
    return Planted(profile, {**given.settings, "async_scheduling": is_async}, given.loads)


def recorded_lines(record: RunRecord, given: Planted, *, has_device: bool) -> Iterator[dict[str, Any]]:
    """What a recorder would have written of it."""
    settings = given.settings
    facts = {"max_num_batched_tokens": settings["max_num_batched_tokens"], "max_num_seqs": settings["max_num_seqs"]}
    yield {"recorder": 1, **facts, "async_scheduling": settings["async_scheduling"], "num_gpu_blocks": 2**20}
    requests = record.requests
    prompts = requests.num_prompt_tokens
    admit = HOST["admit"]
    for i, prompt in enumerate(prompts.tolist()):
        end_s = requests.queued_ps[i] / PS_PER_S
        begin_s = end_s - admit["base_s"] - admit["per_prompt_token_s"] * prompt
        yield {
            **{"add": str(i), "n": prompt, "t": begin_s, "t1": end_s},
            **{"arrival": requests.arrival_ps[i] / PS_PER_S, "wall": end_s},
        }
    steps = record.steps or []
    for k, step in enumerate(steps):
        times = {key: getattr(step, f"{name}_ps") / PS_PER_S for key, name in NAMES.items()}
        ready = steps[k + 1].launched_ps / PS_PER_S if k + 1 < len(steps) else 0.0
        update_s = HOST["update"]["base_s"] + HOST["update"]["per_seq_s"] * len(step.scheduled)
        begin_s = max(times["d1"], ready if ready < times["u1"] else 0.0, times["u1"] - update_s)
        entries = [(n, done, n == 1 and done >= prompts[i]) for i, n, done in step.scheduled]
        decodes = [done for _, done, is_decode in entries if is_decode]
        launched_s = times["m1"]
        if not settings["async_scheduling"]:  # sampling waits for the tokens
            times["m1"] = times["d1"]
        if not has_device:
            del times["d0"], times["d1"]
        yield {
            **{key: round(value, 6) for key, value in times.items()},
            **{"s1": round(times["s0"], 6), "x0": round(times["s0"], 6), "x1": round(launched_s, 6)},
            **{"m0": round(launched_s, 6), "u0": round(min(begin_s, times["u1"]), 6)},
            **{"nd": len(decodes), "ctx": int(sum(decodes)), "run": len(entries), "wait": 0, "pree": 0},
            "pre": [[int(done), int(n)] for n, done, is_decode in entries if not is_decode],
        }


NAMES = {"s0": "schedule", "m1": "launched", "d0": "start", "d1": "end", "u1": "updated"}


def write_recorded(path: Path, record: RunRecord, given: Planted, *, has_device: bool) -> Path:
    """The file."""
    lines = recorded_lines(record, given, has_device=has_device)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def given_back(
    seed: int, *, has_device: bool, is_async: bool = True, number: int = 200
) -> tuple[Planted, RecorderProfile]:
    """A planted server, and what is fitted to its recorder's files."""
    given = server(seed, is_async=is_async)
    with TemporaryDirectory() as folder:
        paths = [
            write_recorded(
                Path(folder) / f"load{load}.jsonl", served(given, load, seed, number), given, has_device=has_device
            )
            for load in given.loads
        ]
        return given, fit_recorder(paths)


def differences(given: Planted, found: RecorderProfile) -> Iterator[tuple[str, float]]:
    """What was given back over what was planted, less 1, where it shows."""
    real, ours = (profile.cost_model() for profile in (load_profile(given.profile, folder=Path()), found.profile))
    fit, budget = found.sections.fit, given.settings["max_num_batched_tokens"]
    for n in given.loads:
        planted_ps, found_ps = (cost.decode_ps(n) + cost.decode_context_ps * 900 * n for cost in (real, ours))
        yield f"decode of {n}", found_ps / planted_ps - 1
    if "prefills on the device" not in fit.taken:
        for tokens in (budget // 4, budget // 2):
            step = (given.loads[0], 900 * given.loads[0], tokens, tokens, tokens * min(tokens, 600))
            yield f"prefill of {tokens}", ours.mixed_ps(*step) / real.mixed_ps(*step) - 1
    n = float(np.mean(given.loads))
    for kind, launch in found.sections.host["launch"].items():
        if fit.launches[kind] >= 30:
            mean = launch["base_s"] + launch.get("per_seq_s", 0) * n + launch.get("per_prefill_s", 0) * 1.1
            mean += launch.get("per_token_s", 0) * {"graph": n, "piecewise": 300, "none": budget / 4}[kind]
            yield f"launch of {kind}", mean / given.profile["host"]["launch"][kind]["base_s"] - 1


def planted_back() -> None:
    """Print a line a profile, and the quantiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=10, help="random profiles")
    parser.add_argument("--reports", action="store_true", help="what each fit says")
    options = parser.parse_args()
    for has_device in (True, False):
        table: dict[str, list[float]] = {}
        for seed in range(options.number):
            given, found = given_back(seed, has_device=has_device)
            shares = dict(differences(given, found))
            gaps = found.sections.fit.gaps
            told = (
                "" if gaps is None else f"gaps {gaps.error_ms:.2f} of {gaps.mean_ms:.2f} ms, total {gaps.total:+.1%}; "
            )
            print(f"{seed:3d} {told}" + ", ".join(f"{name} {share:+.1%}" for name, share in shares.items()), flush=True)
            if options.reports:
                print(found.text())
            for name, share in shares.items():
                table.setdefault(name.split(" of ")[0] + name.partition("launch of")[2], []).append(abs(share))
        print(f"\n| part ({'' if has_device else 'no '}device times) | number | median | largest |\n|---|---|---|---|")
        for name, values in table.items():
            print(f"| {name} | {len(values)} | {np.median(values):.1%} | {max(values):.1%} |")


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
    for batch in BATCHES:
        with tempfile.TemporaryDirectory() as folder:
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
    run_one_of(planted_back, cost=thread_cost)
