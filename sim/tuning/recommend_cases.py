"""The use cases of `simbatch recommend`: the source material's table, and the traffic that each is checked with.

The traffic of a use case is an assumption, written down here and in docs/recommend.md; whoever knows theirs better runs
`simbatch tune` on the scenario that is written beside the recommendation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.metrics.registry import GOODPUT, THROUGHPUT
from simbatch.sim.scenario import Scenario
from simbatch.sim.scenario.presets import Preset
from simbatch.sim.workload.formats import Trace

SMALL_GB, LARGE_GB = 24, 80
GB = 10**9  # so that what CUDA reports of a card of 80 GB (79.1 GiB) counts as 80 GB


@dataclass(frozen=True)
class UseCase:
    """A row of the table, and its traffic; `lengths` are (mean, cv, max) of prompts and of outputs."""

    name: str
    low: int
    high: int
    usual: int
    prompt: tuple[int, float, int]
    output: tuple[int, float, int]
    slo: Mapping[str, float]
    burstiness: float | None  # None: everything at once
    num_prompts: int
    words: str

    @property
    def goal(self) -> str:
        """The key of summary.json that is made large."""
        return GOODPUT if self.slo else THROUGHPUT

    def prior(self, total_bytes: int) -> int:
        """The table's batch for this memory: halved under 24 GB, doubled from 80 GB, clipped to the range."""
        if total_bytes < SMALL_GB * GB:
            return max(self.low, self.usual // 2)
        if total_bytes >= LARGE_GB * GB:
            return min(self.high, self.usual * 2)
        return self.usual

    def thumb(self, total_bytes: int) -> str:
        """That batch in words, and how this memory changes it."""
        is_small, is_large = total_bytes < SMALL_GB * GB, total_bytes >= LARGE_GB * GB
        rule = (
            f"halved under {SMALL_GB} GB" if is_small else f"doubled from {LARGE_GB} GB" if is_large else "as it stands"
        )
        gpu = f"{self.usual} {rule}, GPU of {total_bytes / GB:.1f} GB"
        return f"max_num_seqs {self.prior(total_bytes)} ({self.low} to {self.high}; {gpu})"


USE_CASES = {
    case.name: case
    for case in (
        UseCase(
            name="interactive",
            low=1,
            high=4,
            usual=2,
            prompt=(1155, 0.96, 7168),
            output=(211, 0.77, 1024),
            slo={"ttft_ms": 1000, "tpot_ms": 50},
            burstiness=1.0,
            num_prompts=1500,
            words="chat: lengths as in Azure's conversation trace of 2023, Poisson arrivals",
        ),
        UseCase(
            name="batch",
            low=32,
            high=256,
            usual=64,
            prompt=(1500, 0.8, 7168),
            output=(250, 0.6, 1024),
            slo={},
            burstiness=None,
            num_prompts=2000,
            words="summaries and translations: medium prompts, short outputs, all there at the start",
        ),
        UseCase(
            name="mixed",
            low=8,
            high=64,
            usual=16,
            prompt=(1500, 1.5, 14336),
            output=(200, 1.5, 2048),
            slo={"ttft_ms": 2000, "tpot_ms": 100},
            burstiness=0.5,
            num_prompts=1500,
            words="an API for many purposes: lengths that vary widely, bursty arrivals (gaps with cv 1.4)",
        ),
        UseCase(
            name="longform",
            low=4,
            high=16,
            usual=8,
            prompt=(300, 1.0, 4096),
            output=(1500, 0.5, 4096),
            slo={"ttft_ms": 5000, "tpot_ms": 100},
            burstiness=1.0,
            num_prompts=800,
            words="articles and stories: short prompts, outputs of a thousand tokens and more, Poisson arrivals",
        ),
    )
}


def case_of(case: UseCase, scenario: Scenario) -> UseCase:
    """The use case's range of batches under a scenario's own traffic and SLO; UserError where that has no one rate."""
    workload = scenario.workload
    if workload.request_rate is None or scenario.cluster is not None:
        rule = "recommend takes a scenario of one engine with workload.request_rate"
        raise UserError(Problem("--scenario", rule, scenario.name, "`simbatch tune` takes any traffic"))
    return replace(
        case,
        words=f"that of {scenario.name}, {workload.request_rate:g} req/s",
        slo=scenario.slo.of_requests(),
        num_prompts=workload.num_prompts or case.num_prompts,
        burstiness=workload.burstiness,
    )


def scenario_of(
    case: UseCase,
    profile: MeasuredProfile,
    reference: str,
    slo: Mapping[str, float],
    seed: int,
    preset: Preset | None = None,
    traced: Mapping[str, Any] | None = None,
) -> Scenario:
    """The use case on this profile at one request a second; a model with less context takes shorter requests.

    `preset`: its traffic in place of the use case's own, whose range of batches stays; `traced`: a file whose lengths
    are taken, as `workload.trace` has it.
    """
    prompt_max, output_max = (case.prompt[2], case.output[2]) if traced is None else _longest(traced)
    room = min(profile.max_model_len, (profile.memory.num_gpu_blocks - 1) * profile.memory.block_size)
    if preset is not None:
        workload = {**preset.workload(1.0, room), "num_prompts": case.num_prompts}
        longest = sum(workload[key]["max"] for key in ("prompt_len", "output_len"))
        longest += workload.get("prefix", {}).get("prefix_len", 0)
        data = {"profile": reference, "engine": {"max_model_len": longest}, "workload": workload, "seed": seed}
        return Scenario.from_dict({**data, "slo": dict(slo)}, name=f"{case.name}-{preset.name}")
    while prompt_max + output_max > room:
        prompt_max, output_max = prompt_max // 2, output_max // 2
    if not output_max:
        rule = "has room for no request of this use case"
        raise UserError(Problem("--profile", rule, profile.name, "take a profile with more KV blocks"))
    at_once = case.burstiness is None
    arrivals: dict[str, Any] = {"arrival": {"process": "all_at_once"}}
    if not at_once:
        arrivals = {"request_rate": 1.0, "burstiness": case.burstiness}
    data = {
        "profile": reference,
        "engine": {"max_model_len": prompt_max + output_max},
        "workload": {
            "num_prompts": case.num_prompts,
            **arrivals,
            "prompt_len": _lengths(case.prompt, prompt_max, traced),
            "output_len": _lengths(case.output, output_max, traced),
        },
        "slo": dict(slo),
        "seed": seed,
    }
    return Scenario.from_dict(data, name=case.name)


def _longest(traced: Mapping[str, Any]) -> tuple[int, int]:
    """The longest prompt and the longest output of a file."""
    from simbatch.sim.workload.traces import open_trace

    longest = [0, 0]
    for chunk in open_trace(Trace(**traced), place="", wanted=("prompt", "output")).chunks():
        longest = [max(longest[0], *chunk.num_prompt_tokens), max(longest[1], *chunk.num_output_tokens)]
    return longest[0], longest[1]


def _lengths(own: tuple[int, float, int], most: int, traced: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those of the use case, or drawn from the file's, at most so many tokens."""
    if traced is not None:
        return {"distribution": "empirical", **{k: v for k, v in traced.items() if k != "sort"}, "max": most}
    return {"distribution": "lognormal", "mean": min(own[0], most), "cv": own[1], "max": most}
