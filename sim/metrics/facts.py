"""What the results need to know about a run beside its record: scenario, policy, SLO, profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PRIORITY_NAMES: Mapping[int, str] = {0: "high", 1: "normal", 2: "low"}


@dataclass(frozen=True, kw_only=True)
class SloLimits:
    """Limits in ms as in vLLM's `--goodput`; None: not asked for."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2el_ms: float | None = None

    def limits(self) -> dict[str, float]:
        """The limits that are set, `{"ttft": 1000.0, ...}` in ms, always in the order ttft, tpot, e2el."""
        given = {"ttft": self.ttft_ms, "tpot": self.tpot_ms, "e2el": self.e2el_ms}
        return {name: float(limit) for name, limit in given.items() if limit is not None}


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Everything the results say that the record does not; plain data, ready for JSON and YAML.

    `scenario`: the resolved scenario, as it goes to `scenario.yaml`. `policy`: the registry's name or
    `package.module:Class`, with every parameter resolved in `policy_params`. `predicted_by`: who predicts output
    lengths for it (`stated_error`, `trace`, a function), None where it does not ask. `engine`: the resolved engine
    settings as in the scenario; `engine_defaults`: which of its keys the user did not write; `without_effect`: which of
    them the user wrote although the profile has no figures for them. `profile_asked_for`: the scenario's, if `profile`
    was taken in its place for the KV cache. `host_profile`: whose host and front end were taken, where that is another
    profile. `profile_error`: one line for people (`decode 1.9 %, mixed 4.8 % (held out)`), None when unknown;
    `profile_vllm_version`: with which vLLM its steps were measured; `profile_caveats`: sentences on what it lacks or
    assumes. `has_free_host`: whether a GPU's profile has no times of the host beside it. `share_in_range`: the share of
    steps inside the profile's measured range, None when nothing was measured (inline). `skipped`: trace rows left
    out by `on_empty: skip`; `unread`: how a trace's file was read and what in it was not, in sentences. `has_host`,
    `has_front_end`: whether the engine's thread, or the server's processes, take time in this run.
    `max_capture_size`: requests, or tokens, of the largest CUDA graph; 0 without any. `policy_holds`: whether the
    policy may hold requests back in an empty engine. `vllm_notes`: what to know of the simulated vLLM, in
    sentences. `cluster`: router and groups of a cluster, whose `engine` and `profile` are those of the first group.
    `class_names`: names of the integer priorities that have one; the others go by their number.
    """

    scenario_name: str
    scenario: Mapping[str, Any]
    policy: str
    policy_params: Mapping[str, Any] = field(default_factory=dict)
    predicted_by: str | None = None
    slo: SloLimits = field(default_factory=SloLimits)
    seed: int = 0
    engine: Mapping[str, Any] = field(default_factory=dict)
    engine_defaults: tuple[str, ...] = ()
    without_effect: tuple[str, ...] = ()
    profile: str
    profile_asked_for: str | None = None
    profile_source: str | None = None
    profile_vllm_version: str | None = None
    host_profile: str | None = None
    profile_error: str | None = None
    profile_is_estimate: bool = False
    profile_caveats: tuple[str, ...] = ()
    has_free_host: bool = False
    share_in_range: float | None = None
    skipped: int = 0
    unread: tuple[str, ...] = ()
    has_host: bool = False
    has_front_end: bool = False
    max_capture_size: int = 0
    policy_holds: bool = False
    cluster: Mapping[str, Any] | None = None
    vllm_notes: tuple[str, ...] = ()
    class_names: Mapping[int, str] = field(default_factory=lambda: PRIORITY_NAMES)

    def class_name(self, priority: int) -> str:
        """`high`, `normal`, `low`, or the number."""
        return self.class_names.get(priority, str(priority))
