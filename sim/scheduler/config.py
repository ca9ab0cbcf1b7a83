"""The resolved engine settings, in vLLM's words, and its versions: the one table of what changed, and since when.

A version is the set of changes in force in it, so that one of them can be switched alone. One of them came with a patch
release; a version that names none (`0.20`) is the last of its releases. `parity.conform` holds a version against its
own code, and docs/versions.md is what it found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from simbatch.sim.cost.host import FrontEndTimes, HostTimes
from simbatch.sim.errors import Problem, UserError

Version = tuple[int, ...]
Changes = frozenset[str]

OLDEST: Version = (0, 12)
NEWEST = "0.33.0"  # that is tested, and what runs where nothing names another
# whose own scheduler was recorded and decided as this one does, step for step: parity/certificates, docs/versions.md
CERTIFIED = (
    *("0.12.0", "0.13.0", "0.14.1", "0.15.1", "0.16.0", "0.17.1", "0.18.1", "0.19.0", "0.20.0", "0.20.2", "0.21.0"),
    *("0.22.1", "0.23.0", "0.24.0", "0.25.1", "0.26.0", "0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0"),
    "0.33.0",
)
PLACE = "engine.vllm_version"
LAST_PATCH = 1_000_000  # of a version that names none
RULE, DEFAULT, SETTING = "rule", "default", "setting"


class Change(NamedTuple):
    """One change: a scheduler's rule, a default (its value before and after), or a setting that is new."""

    since: Version
    kind: str
    text: str
    before: Any = None
    after: Any = None


CHANGES: dict[str, Change] = {
    "async_scheduling": Change((0, 14), DEFAULT, "asynchronous scheduling is on by default", False, True),
    "scheduler_reserve_full_isl": Change(
        (0, 19), SETTING, "a prompt is admitted only when all of it fits the KV cache", False, True
    ),
    "gpu_memory_utilization": Change((0, 20), DEFAULT, "vLLM takes 0.92 of the GPU's memory, not 0.9", 0.9, 0.92),
    "graph_memory": Change(
        (0, 20), DEFAULT, "the memory of CUDA graphs is set aside before the KV cache is made", False, True
    ),
    "budget_graph": Change((0, 20, 1), DEFAULT, "a CUDA graph is captured for max_num_batched_tokens, where it fits"),
    "hashless_blocks_first": Change((0, 24), RULE, "freed blocks without a hash are the first to be used again"),
    "watermark": Change((0, 24), SETTING, "a share of the KV cache can be kept free when admitting", 0.0, 0.0),
    "prefill_schedule_interval": Change((0, 24), SETTING, "prefills can be held back, with data parallelism", 1, 1),
    "large_gpu_budget": Change(
        (0, 28), DEFAULT, "max_num_batched_tokens of a server is 16,384 from 160 GiB, not 8,192", 8192, 16384
    ),
    "large_gpu_graphs": Change((0, 28), DEFAULT, "CUDA graphs go up to 1,024 tokens on B200, not 512", 512, 1024),
    "index_follows_victims": Change(
        (0, 28), RULE, "priority: whoever is preempted, the next request is not left out of the step"
    ),
    "max_num_queued_reqs": Change((0, 29), SETTING, "requests can be refused while too many wait"),
    "max_num_queued_tokens": Change((0, 29), SETTING, "requests can be refused while too many tokens wait"),
    "seats_graph": Change((0, 31), DEFAULT, "a CUDA graph is captured for max_num_seqs, where it fits"),
    "spares_lone_prefill": Change((0, 31), RULE, "long_prefill_token_threshold spares a request that is alone"),
    "max_num_active_seqs": Change((0, 31), SETTING, "fewer requests than max_num_seqs can be let run"),
    "long_prefill_token_threshold_adaptive": Change(
        (0, 31), SETTING, "that threshold can follow the number of requests", False, False
    ),
    "goes_on_behind_victim": Change(
        (0, 33), RULE, "priority: behind a request that preempted itself, the others still run in that step"
    ),
    "interval_alone": Change((0, 33), RULE, "prefill_schedule_interval holds without data parallelism too"),
}
ALL: Changes = frozenset(CHANGES)


def parse_version(text: str) -> Version:
    """`0.33.0`, `0.33` or `v0.33.1rc2` as (0, 33); UserError where it is none, or older than what is simulated."""
    found = re.match(r"v?(\d+)\.(\d+)(?![\d])", text)
    if found is None:
        raise UserError(Problem(PLACE, "must be a version of vLLM", text, f"for example {NEWEST}"))
    version = int(found[1]), int(found[2])
    if version < OLDEST:
        rule = f"vLLM is simulated from {short(OLDEST)} on"
        raise UserError(Problem(PLACE, rule, text, f"take {short(OLDEST)}, or leave it out for {NEWEST}"))
    return version


def short(version: Version) -> str:
    """(0, 33) as `0.33`."""
    return ".".join(map(str, version))


def changes_in(version: str) -> Changes:
    """What is in force in a version; in one that is newer than tested, all that is known."""
    numbers = parse_version(version)
    patch = re.match(r"v?\d+\.\d+\.(\d+)", version)
    exactly = (*numbers, int(patch[1]) if patch else LAST_PATCH)
    return frozenset(name for name, change in CHANGES.items() if change.since <= exactly)


def default_of(name: str, changes: Changes) -> Any:
    """The value that a change's default has where these are in force."""
    return CHANGES[name].after if name in changes else CHANGES[name].before


def lacks(setting: str, changes: Changes) -> bool:
    """Whether a version with these changes does not know this setting."""
    change = CHANGES.get(setting)
    return change is not None and change.kind == SETTING and setting not in changes


def untested(version: str) -> str | None:
    """A warning, where a version is newer than what has been held against its code."""
    if parse_version(version) <= parse_version(NEWEST):
        return None
    return (
        f"vLLM {version} is newer than the newest that was tested, {NEWEST}, and is simulated by its rules and "
        f"defaults. `make conform VLLM={version}`, in a checkout of simbatch, tests it."
    )


def certificate_of(version: str) -> dict[str, str | None]:
    """Whether a version's own scheduler was seen to decide as it is simulated: `identical` (with which), `untested`.

    A version that names no release (`0.27`) is the last of them.
    """
    exact = version.removeprefix("v")
    ours = [known for known in CERTIFIED if known == exact or known.startswith(f"{exact}.")]
    return {
        "vllm_version": version,
        "certificate": "identical" if ours else "untested",
        "recorded_from": ours[-1] if ours else None,
    }


def unknown_settings(written: Mapping[str, Any], changes: Changes, version: str) -> list[Problem]:
    """What somebody wrote that this version does not have."""
    found = []
    for name, value in written.items():
        if value is not None and lacks(name, changes):
            change = CHANGES[name]
            rule = f"vLLM {version} does not have --{name.replace('_', '-')}, which came with {short(change.since)}"
            mend = f"remove it, or set engine.vllm_version to {short(change.since)} or newer"
            found.append(Problem(f"engine.{name}", rule, value, mend))
    return found


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the scheduler runs with; every default of its version of vLLM is already filled in.

    `num_gpu_blocks` counts vLLM's null block, so one fewer is usable. Lengths are in tokens.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_gpu_blocks: int
    block_size: int = 16
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    scheduling_policy: str = "fcfs"
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    max_num_active_seqs: int | None = None
    watermark: float = 0.0
    scheduler_reserve_full_isl: bool = True
    async_scheduling: bool = False
    batching: str = "continuous"
    step_noise: bool = False
    host: HostTimes | None = None  # None: the engine's thread takes no time
    front_end: FrontEndTimes | None = None  # None: requests reach the engine, and tokens their user, at once
    max_capture_size: int = 512  # of the largest CUDA graph; 0: there are none
    api_server_count: int = 1
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
    prefill_schedule_interval: int = 1
    vllm_version: str = NEWEST
    changes: Changes = ALL  # in force in that version (versions.py)
    seed: int = 0  # of the length predictor
