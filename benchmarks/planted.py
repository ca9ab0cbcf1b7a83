"""Profiles that are known, given back by what a server of theirs leaves: `python -m benchmarks.planted [--number N]`.

Random profiles (device, launches and their spread, front end) serve two workloads each in the engine; what a client
would have seen, with a lag from chunk to chunk, is fitted, and laid beside what was planted: how long decodes and steps
with prefills take on the device, and launches, where the fit says that it knows them.

`... recorder`: the same with updates and admissions; the engine's steps are written as a recorder in a real server
would write them, with the device's times and without, and fitted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import parser_of, run_one_of
from simbatch.profiler.fit.recorder import RecorderProfile, fit_recorder
from simbatch.profiler.fit.streams import StreamProfile, fit_seen
from simbatch.profiler.fit.streams import runs as engine_runs
from simbatch.profiler.fit.streams.covered import is_told
from simbatch.profiler.fit.streams.runs import Seen
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.model import CostModel
from simbatch.sim.cost.provenance import HARDLY_TOLD
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.errors import UserError
from simbatch.sim.streams import Streams, rebuild_steps
from simbatch.sim.streams.steps import judge

MEAN_CONTEXT = 900


class Planted(NamedTuple):
    """A profile, its engine, and the loads that it serves: requests at once."""

    profile: dict[str, Any]
    settings: dict[str, Any]
    loads: tuple[int, int]


def planted(seed: int) -> Planted:
    """A random server: of 5 to 30 ms a decode, launches from hidden to four decodes long."""
    rng = np.random.default_rng(seed)
    base, token = rng.uniform(0.005, 0.03), rng.uniform(5e-6, 8e-5)
    launch = base * rng.uniform(0.3, 4.0)
    context = token * 1e-3 * rng.uniform(0.5, 2.0)
    knots = [1, 256, 8192]
    step_time = {
        "form": "two_regime",
        "decode": {
            "seqs": {"count": [1, 64], "time_s": [base, base * rng.uniform(1.2, 1.8)]},
            "per_context_token_s": context,
        },
        "mixed": {
            "tokens": {"count": knots, "time_s": [base + token * knot for knot in knots]},
            "per_decode_seq_s": 0.0,
            "per_context_token_s": 1.5 * context,
            "per_attention_unit_s": 8e-6 * token,
        },
    }
    share, ratio = np.array([0, 0.1, 0.5, 0.9, 1]), np.array([0.6, 0.7, 0.95, 1.3, 2.2])
    mean = float(np.sum(np.diff(share) * (ratio[1:] + ratio[:-1]) / 2))
    spread = {"share": share.tolist(), "ratio": (ratio / mean).tolist()}
    host = {
        "launch": {
            "graph": {"base_s": 0.3 * base},
            "piecewise": {"base_s": 0.6 * launch},
            "none": {"base_s": launch},
        },
        "spread": {"piecewise": spread, "none": spread} if rng.random() < 0.5 else {},
    }
    front_end = {
        **{"per_request_s": rng.uniform(2e-4, 1e-3), "per_prompt_token_s": 1e-6},
        **{"per_chunk_s": rng.uniform(1e-5, 4e-5), "network_s": rng.uniform(2e-3, 2e-2)},
    }
    profile = {"num_gpu_blocks": 2**20, "step_time": step_time, "host": host, "front_end": front_end}
    settings = {
        **{"max_num_seqs": 256, "max_num_batched_tokens": int(rng.choice([2048, 8192]))},
        **{"async_scheduling": True, "enable_prefix_caching": False},
    }
    return Planted(profile, settings, (int(rng.integers(3, 9)), int(rng.integers(30, 60))))


def served(given: Planted, load: int, seed: int, number: int = 400) -> RunRecord:
    """`load` requests at once in the engine."""
    rng = np.random.default_rng([seed, load])
    prompts = np.minimum(rng.lognormal(6.3, 0.7, number).astype(np.int64) + 16, 6000)
    outputs = rng.integers(40, 200, number)
    asked = Streams.of(np.zeros(number), np.ones(number), [[]] * number, prompts, outputs, load)
    return engine_runs.served(given.profile, given.settings, asked, seed, steps=True)


def streams_of(given: Planted, load: int, seed: int, number: int = 400) -> Streams:
    """What a client sees of `load` requests at once."""
    record = served(given, load, seed, number)
    prompts, outputs = record.requests.num_prompt_tokens, record.requests.num_output_tokens
    times = _token_times(record.steps or [], prompts, given.profile["front_end"])
    sent = record.requests.arrival_ps / PS_PER_S
    ttft = [own[0] - begin for own, begin in zip(times, sent, strict=True)]
    return Streams.of(sent, ttft, [np.diff(own) for own in times], prompts, outputs, load)


def _token_times(steps: list[Any], prompts: NDArray[np.int64], front_end: dict[str, float]) -> list[list[float]]:
    """By request: chunk after chunk of a step, one behind the other, as the front end sends them."""
    times: list[list[float]] = [[] for _ in prompts]
    free = 0.0
    for step in steps:
        free = max(free, step.updated_ps / PS_PER_S)
        for i, n, done in step.scheduled:
            if done + n >= prompts[i]:
                free += front_end["per_chunk_s"]
                times[i].append(free + front_end["network_s"])
    return times


def streams_back(seed: int, number: int = 400) -> tuple[Planted, StreamProfile]:
    """A planted server, and what is fitted to its streams."""
    given = planted(seed)
    seen = []
    for load in given.loads:
        streams = streams_of(given, load, seed, number)
        steps = rebuild_steps(streams)
        seen.append(Seen(f"loop of {load}", None, streams, steps, judge(steps)))
    return given, fit_seen(seen, is_judged=False)


def stream_differences(given: Planted, found: StreamProfile) -> Iterator[tuple[str, float]]:
    """What was given back over what was planted, less 1: at both loads, and where the fit says that it knows."""
    costs = load_profile(given.profile, folder=Path()).cost_model(), found.profile.cost_model()
    budget, n = given.settings["max_num_batched_tokens"], given.loads[1]
    yield from _decodes(given, *costs)
    for tokens in (budget // 4, budget // 2, budget - n):
        if is_told(found.steps, np.array([tokens + n]))[0]:
            yield _prefill(n, tokens, *costs)
    host, problem = given.profile["host"]["launch"], found.steps.problem
    for kind, key in ((1, "piecewise"), (2, "none")):
        if f"launch {key}" not in found.fit.taken and found.fit.sure[f"launch {key}"] <= HARDLY_TOLD:
            section = getattr(found.profile.host.launch, key)  # type: ignore[union-attr]
            seen = problem.used & (problem.kind == kind)  # the mean launch of these, whatever it grows by
            seqs, prefills = (float(each[seen].mean()) for each in (problem.all.num_decodes, problem.all.num_prefills))
            ours = section.base_s + section.per_seq_s * seqs + section.per_prefill_s * prefills
            yield f"launch {key}", float(ours / host[key]["base_s"] - 1)


def _decodes(given: Planted, real: CostModel, ours: CostModel) -> Iterator[tuple[str, float]]:
    for n in given.loads:
        planted_ps, found_ps = (cost.decode_ps(n) + cost.decode_context_ps * MEAN_CONTEXT * n for cost in (real, ours))
        yield f"decode of {n}", float(found_ps / planted_ps - 1)


def _prefill(n: int, tokens: int, real: CostModel, ours: CostModel) -> tuple[str, float]:
    """Beside so many decodes."""
    step = (n, MEAN_CONTEXT * n, tokens, tokens, tokens * min(tokens, 600))
    return f"prefill of {tokens}", float(ours.mixed_ps(*step) / real.mixed_ps(*step) - 1)


def streams() -> None:
    """Print a line a profile, and the quantiles."""
    parser = parser_of(__doc__)
    parser.add_argument("--number", type=int, default=50, help="random profiles")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first one")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.number)
    _print_all("part", seeds, lambda seed: ("", stream_differences(*streams_back(seed))))


def _print_all(head: str, seeds: range, back: Callable[[int], tuple[str, Iterator[tuple[str, float]]]]) -> None:
    """A line a seed, with what `back` says of it and the differences, and the quantiles of these by part."""
    table: dict[str, list[float]] = {}
    for seed in seeds:
        try:
            told, differences = back(seed)
        except UserError as refused:
            print(f"{seed:3d} refused: {refused}")
            continue
        shares = dict(differences)
        print(f"{seed:3d} {told}{', '.join(f'{name} {share:+.1%}' for name, share in shares.items())}", flush=True)
        for name, share in shares.items():
            table.setdefault(name.split(" of ")[0] + name.partition("launch of")[2], []).append(abs(share))
    print(f"\n| {head} | number | median | 90 % | largest |\n|---|---|---|---|---|")
    for name, values in table.items():
        cells = [f"{np.quantile(values, share):.1%}" for share in (0.5, 0.9, 1.0)]
        print(f"| {name} | {len(values)} | {' | '.join(cells)} |")


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
    facts = {key: settings[key] for key in ("max_num_batched_tokens", "max_num_seqs", "async_scheduling")}
    yield {"recorder": 1, **facts, "num_gpu_blocks": 2**20}
    requests, admit = record.requests, HOST["admit"]
    prompts = requests.num_prompt_tokens
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


def recorder_back(
    seed: int, *, has_device: bool, is_async: bool = True, number: int = 200
) -> tuple[Planted, RecorderProfile]:
    """A planted server, and what is fitted to its recorder's files."""
    given = server(seed, is_async=is_async)
    with TemporaryDirectory() as folder:
        paths = []
        for load in given.loads:
            record, path = served(given, load, seed, number), Path(folder) / f"load{load}.jsonl"
            paths.append(write_recorded(path, record, given, has_device=has_device))
        return given, fit_recorder(paths)


def recorder_differences(given: Planted, found: RecorderProfile) -> Iterator[tuple[str, float]]:
    """What was given back over what was planted, less 1, where it shows."""
    costs = load_profile(given.profile, folder=Path()).cost_model(), found.profile.cost_model()
    budget = given.settings["max_num_batched_tokens"]
    yield from _decodes(given, *costs)
    fit, n = found.sections.fit, float(np.mean(given.loads))
    if "prefills on the device" not in fit.taken:
        yield from (_prefill(given.loads[0], tokens, *costs) for tokens in (budget // 4, budget // 2))
    for kind, launch in found.sections.host["launch"].items():
        if fit.launches[kind] >= 30:
            mean = launch["base_s"] + launch.get("per_seq_s", 0) * n + launch.get("per_prefill_s", 0) * 1.1
            mean += launch.get("per_token_s", 0) * {"graph": n, "piecewise": 300, "none": budget / 4}[kind]
            yield f"launch of {kind}", mean / given.profile["host"]["launch"][kind]["base_s"] - 1


def recorder() -> None:
    """Print a line a profile, and the quantiles."""
    parser = parser_of(__doc__)
    parser.add_argument("--number", type=int, default=10, help="random profiles")
    options = parser.parse_args()
    for has_device in (True, False):

        def back(seed: int, has_device: bool = has_device) -> tuple[str, Iterator[tuple[str, float]]]:
            given, found = recorder_back(seed, has_device=has_device)
            gaps, told = found.sections.fit.gaps, ""
            if gaps is not None:
                told = f"gaps {gaps.error_ms:.2f} of {gaps.mean_ms:.2f} ms, total {gaps.total:+.1%}; "
            return told, recorder_differences(given, found)

        _print_all(f"part ({'' if has_device else 'no '}device times)", range(options.number), back)


if __name__ == "__main__":
    run_one_of(streams, recorder=recorder)
