"""Profiles that are known, given back through a server: `python -m benchmarks.serve_planted [--number N]`.

Random profiles (device, launches by kind, updates, admissions) are served by `simbatch serve --host profile`, and
measured there with `simbatch profile --server`; the files that it leaves are fitted again by `simbatch fit`, from the
recorder's steps and from the streams of its traffic alone. A line a profile says how far each fit is from what was
planted. It needs vLLM, and a machine that does nothing else: what is waited for comes late otherwise.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from benchmarks import parser_of
from benchmarks.gateway_sessions import served
from simbatch.profiler.fit.streams import StreamProfile, fit_streams
from simbatch.profiler.fit.streams.covered import is_told
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.profile import Profile

SEATS, BUDGET, LENGTH = 32, 2048, 4096
FLAGS = ("--max-num-seqs", SEATS, "--max-num-batched-tokens", BUDGET, "--max-model-len", LENGTH, "--async-scheduling")
BLOCKS, CONTEXT = 6000, 300
KINDS = {"graph": (8, 0, 8), "piecewise": (8, 1, 200), "none": (8, 1, 1200)}  # requests, prefills, tokens
LOADS = ("light", "heavy")


def planted(seed: int) -> dict[str, Any]:
    """A profile: decodes of 8 to 20 ms that launches do not hide, prefills that they hide in part."""
    rng = np.random.default_rng([17, seed])
    base, token = rng.uniform(0.008, 0.02), rng.uniform(2e-5, 5e-5)
    context = token * rng.uniform(5e-4, 2e-3)
    tokens = [1, 256, BUDGET, 2 * BUDGET]
    launch = base * rng.uniform(0.3, 0.6)
    others = {"per_seq_s": launch * 0.01, "per_prefill_s": launch * 0.05, "per_token_s": 1e-6}
    return {
        "name": f"planted-{seed}",
        "num_gpu_blocks": BLOCKS,
        "max_model_len": LENGTH,
        "step_time": {
            "form": "two_regime",
            "decode": {
                "seqs": {"count": [1, SEATS], "time_s": [base, base * rng.uniform(1.1, 1.5)]},
                "per_context_token_s": context,
            },
            "mixed": {
                "tokens": {"count": tokens, "time_s": [base * 1.1 + token * number for number in tokens]},
                "per_decode_seq_s": 0.0,
                "per_context_token_s": 1.5 * context,
                "per_attention_unit_s": 2e-5 * token,
            },
        },
        "host": {
            "launch": {
                "graph": {"base_s": launch, "per_seq_s": launch * 0.01},
                "piecewise": {"base_s": launch * rng.uniform(1.2, 2.0), **others},
                "none": {"base_s": launch * rng.uniform(1.5, 3.0), **others},
            },
            "update": {"base_s": 1e-3, "per_seq_s": 3e-5},
            "admit": {"base_s": 5e-4},
        },
    }


class Found(NamedTuple):
    """What profile, recorder or streams say; `streams`: the fit of streams, which knows what they do not tell."""

    profile: Profile
    streams: StreamProfile | None = None


def measured(seed: int, folder: Path, minutes: float) -> tuple[Profile, dict[str, Found]]:
    """What was planted, and what is found, by who says so."""
    given, steps, target = folder / f"planted-{seed}.json", folder / "steps.jsonl", folder / "profile.json"
    given.write_text(json.dumps(planted(seed)), encoding="utf-8")
    with served(given, "--host", "profile", "--steps", steps, flags=FLAGS) as url:
        limits = ("--budget-minutes", minutes, "-o", target)
        subprocess.run(command("profile", "--server", url, "--steps", steps, *limits), check=True)
    streams = [folder / f"profile.traffic-{name}.json" for name in LOADS]
    subprocess.run(command("fit", steps, "-o", folder / "recorder.json"), check=True, stdout=subprocess.DEVNULL)
    found = {name: Found(load_profile(str(folder / f"{name}.json"), folder=folder)) for name in ("profile", "recorder")}
    fitted = fit_streams(streams, name="streams", max_num_seqs=SEATS, max_num_batched_tokens=BUDGET)
    return load_profile(str(given), folder=folder), {**found, "streams": Found(fitted.profile, fitted)}


def differences(given: Profile, found: Found) -> dict[str, float]:
    """What was found over what was planted, less 1: decodes and prefills on the device, launches by kind.

    What a fit from streams does not claim to know is left out: larger batches than it saw, prefills and launches that
    it says are not told.
    """
    profile, fitted = found
    streams = getattr(profile, "streams", None)
    shares, (real, ours) = {}, (each.cost_model() for each in (given, profile))
    most = SEATS if streams is None else max(run.batch[1] for run in streams.runs)
    for n in (n for n in (1, 4, 16, SEATS) if n <= most):
        pair = [cost.decode_ps(n) + cost.decode_context_ps * CONTEXT * n for cost in (real, ours)]
        shares[f"decode of {n}"] = pair[1] / pair[0] - 1
    for tokens in (64, 500, 1500):
        if fitted is not None and not is_told(fitted.steps, np.array([4.0 + tokens]))[0]:
            continue
        step = (4, 4 * CONTEXT, tokens, tokens, tokens * tokens)
        shares[f"prefill of {tokens}"] = ours.mixed_ps(*step) / real.mixed_ps(*step) - 1
    for kind, batch in KINDS.items():
        if streams is not None and (f"launch {kind}" in streams.taken or f"launch {kind}" not in streams.sure):
            continue
        pair_s = [_launch_s(each, kind, batch) for each in (given, profile)]
        shares[f"launch of {kind}"] = pair_s[1] / pair_s[0] - 1
    return shares


def _launch_s(profile: Profile, kind: str, batch: Sequence[int]) -> float:
    assert profile.host is not None
    figures: Mapping[str, float] = getattr(profile.host.launch, kind).model_dump()
    per = zip(("per_seq_s", "per_prefill_s", "per_token_s"), batch, strict=True)
    return figures["base_s"] + sum(figures.get(key, 0.0) * number for key, number in per)


def command(*words: object) -> list[str]:
    """`simbatch` in a process of its own."""
    return [sys.executable, "-m", "simbatch", *map(str, words)]


def main() -> None:
    """Print the differences of each profile and the largest of each kind."""
    parser = parser_of(__doc__)
    parser.add_argument("--number", type=int, default=5, help="random profiles")
    parser.add_argument("--first", type=int, default=0, help="the first one's number")
    parser.add_argument("--minutes", type=float, default=0.7, help="of each measurement")
    options = parser.parse_args()
    largest: dict[tuple[str, str], float] = {}
    for seed in range(options.first, options.first + options.number):
        with TemporaryDirectory() as folder:
            given, found = measured(seed, Path(folder), options.minutes)
        for name, one in found.items():
            shares = differences(given, one)
            print(f"{seed} {name:<9}" + ", ".join(f"{key} {share:+.1%}" for key, share in shares.items()), flush=True)
            for key, share in shares.items():
                part = name, key.split(" of ")[0]
                largest[part] = max(largest.get(part, 0.0), abs(share))
    print("\n| from | part | largest difference |\n|---|---|---|")
    for (name, part), share in largest.items():
        print(f"| {name} | {part} | {share:.1%} |")


if __name__ == "__main__":
    main()
