"""Profiles that are known, given back by their own streams: `python -m benchmarks.stream_planted [--number N]`.

Random profiles (device, launches and their spread, front end) serve two workloads each in the engine; what a client
would have seen, with a lag from chunk to chunk, is fitted, and laid beside what was planted: how long decodes and steps
with prefills take on the device, and launches, where the fit says that it knows them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.fit.streams.covered import is_told
from simbatch.profiler.fit.streams.from_streams import StreamProfile, fit_seen
from simbatch.profiler.fit.streams.runs import Seen, requests_of
from simbatch.sim import engine
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.provenance import HARDLY_TOLD
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.errors import UserError
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.streams import Streams, rebuild_steps
from simbatch.sim.streams.steps import judge

NOTHING = {
    **{"num_prompts": 1, "request_rate": 1},
    **{f"{name}_len": {"distribution": "fixed", "mean": 1} for name in ("prompt", "output")},
}


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
    ratios = {"share": [0, 0.1, 0.5, 0.9, 1], "ratio": [0.6, 0.7, 0.95, 1.3, 2.2]}
    mean = float(
        np.sum(np.diff(ratios["share"]) * (np.array(ratios["ratio"])[1:] + np.array(ratios["ratio"])[:-1]) / 2)
    )
    spread = {"share": ratios["share"], "ratio": [ratio / mean for ratio in ratios["ratio"]]}
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
    content = {"profile": given.profile, "engine": given.settings, "workload": NOTHING, "seed": seed}
    resolved = resolve(Scenario.from_dict(content))
    return engine.run(
        resolved.engine,
        resolved.cost_model(),
        resolved.policy,
        requests_of(asked),
        steps=True,
        host_noise=resolved.host_noise(),
    )


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


def given_back(seed: int, number: int = 400) -> tuple[Planted, StreamProfile]:
    """A planted server, and what is fitted to its streams."""
    given = planted(seed)
    seen = []
    for load in given.loads:
        streams = streams_of(given, load, seed, number)
        steps = rebuild_steps(streams)
        seen.append(Seen(f"loop of {load}", None, streams, steps, judge(steps)))
    return given, fit_seen(seen, is_judged=False)


def differences(given: Planted, found: StreamProfile) -> Iterator[tuple[str, float]]:
    """What was given back over what was planted, less 1: at both loads, and where the fit says that it knows."""
    real, ours = (profile.cost_model() for profile in (load_profile(given.profile, folder=Path()), found.profile))
    budget = given.settings["max_num_batched_tokens"]
    for n in given.loads:
        context = 900 * n
        yield (
            f"decode of {n}",
            _less_one(
                ours.decode_ps(n) + ours.decode_context_ps * context,
                real.decode_ps(n) + real.decode_context_ps * context,
            ),
        )
    for tokens in (budget // 4, budget // 2, budget - given.loads[1]):
        if not is_told(found.steps, np.array([tokens + given.loads[1]]))[0]:
            continue
        n, mean = given.loads[1], min(tokens, 600)
        attention = tokens * mean
        yield (
            f"prefill of {tokens}",
            _less_one(
                ours.mixed_ps(n, 900 * n, tokens, tokens, attention),
                real.mixed_ps(n, 900 * n, tokens, tokens, attention),
            ),
        )
    host, problem = given.profile["host"]["launch"], found.steps.problem
    for kind, key in ((1, "piecewise"), (2, "none")):
        if f"launch {key}" not in _fit(found).taken and _fit(found).sure[f"launch {key}"] <= HARDLY_TOLD:
            section = getattr(found.profile.host.launch, key)  # type: ignore[union-attr]
            seen = problem.used & (problem.kind == kind)  # the mean launch of these, whatever it grows by
            n, prefills = (float(column[seen].mean()) for column in (problem.all.num_decodes, problem.all.num_prefills))
            ours = section.base_s + section.per_seq_s * n + section.per_prefill_s * prefills
            yield f"launch {key}", _less_one(ours, host[key]["base_s"])


def _fit(found: StreamProfile) -> Any:
    return found.profile.streams


def _less_one(ours: float, real: float) -> float:
    return float(ours / real - 1)


def main() -> None:
    """Print a line a profile, and the quantiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=50, help="random profiles")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first one")
    options = parser.parse_args()
    table: dict[str, list[float]] = {}
    for seed in range(options.first, options.first + options.number):
        try:
            shares = dict(differences(*given_back(seed)))
        except UserError as refused:
            print(f"{seed:3d} refused: {refused}")
            continue
        print(f"{seed:3d} " + ", ".join(f"{name} {share:+.1%}" for name, share in shares.items()), flush=True)
        for name, share in shares.items():
            table.setdefault(name.split(" of ")[0], []).append(abs(share))
    print("\n| part | number | median | 90 % | largest |\n|---|---|---|---|---|")
    for name, values in table.items():
        cells = [f"{np.quantile(values, share):.1%}" for share in (0.5, 0.9, 1.0)]
        print(f"| {name} | {len(values)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
