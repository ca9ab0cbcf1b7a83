"""What the processes of a server must know, and how long host and device take for a step of the real engine.

With S the moment at which the engine's thread is free, L the return of the launch, D the device's end and U that of the
update, as in the simulator (docs/engine.md), the profile's host gives L = S + launch(batch), D = max(max(D before, S +
lag) + device(batch), L + tail) and U = max(D, S) + update(batch): what vLLM's loop takes in between is inside them.
vLLM's own host gives L as it comes, and the device begins when it is called. Times are s of `time.monotonic`.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from simbatch.serving.simulated.plugin import SPEC
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.model import Features
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.engine.resources import Device, Host
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.scenario.resolved import Resolved

HostChoice = Literal["own", "profile"]


@dataclass(frozen=True)
class ServeSpec:
    """A resolved scenario (profile, engine, policy, output lengths), and what only a server needs.

    `words` are tokens that read as words, `closers` those that end what a grammar describes; `steps` names the log of
    steps; `scheduler_cls` is the scheduler that is watched, None for vLLM's own.
    """

    scenario: dict[str, Any]
    host: HostChoice
    words: list[int]
    closers: list[int]
    steps: str | None = None
    scheduler_cls: str | None = None

    @property
    def is_watched(self) -> bool:
        """Whether rounds of the scheduler are timed: they are written down, or last as the profile's host."""
        return self.steps is not None or self.host == "profile"

    @cached_property
    def resolved(self) -> Resolved:
        """The scenario, looked up."""
        return resolve(Scenario.from_dict(self.scenario))

    def facts(self) -> dict[str, Any]:
        """What stands for the model and the GPU, which are not there: the profile's."""
        profile = self.resolved.profile
        if not isinstance(profile, MeasuredProfile):
            return {"model": profile.name}
        keys = ("model", "gpu", "quantisation", "kv_cache_dtype", "tensor_parallel_size")
        memory = ("total_bytes", "weights_bytes", "activation_bytes", "graphs_bytes", "kv_bytes_per_token")
        stands_for = {key: getattr(profile, key) for key in keys} | {"architecture": {}}
        return stands_for | {key: getattr(profile.memory, key) for key in memory}

    def write(self, path: Path) -> None:
        """As a file, for other processes."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def of_environment(cls) -> Self:
        """The one that this process is to serve."""
        return cls(**json.loads(Path(os.environ[SPEC]).read_text(encoding="utf-8")))


SPIN_S = 0.0003  # sleeping ends up to a tenth of a ms late, which is 1 % of a step: the last bit is spun


def wait_until(moment_s: float) -> None:
    """Wait, with the interpreter free for this process's other threads."""
    while (left_s := moment_s - time.monotonic()) > 0:
        time.sleep(left_s - SPIN_S if left_s > SPIN_S else 0)


class HostLaunch(NamedTuple):
    """When a launch may return (in the past: at once), and when the device begins and ends."""

    returns_s: float
    begin_s: float
    end_s: float


class VirtualGpu:
    """A device that works on one batch after the other, and what the host takes beside it."""

    def __init__(self, resolved: Resolved, host: HostChoice) -> None:
        self._device = Device(resolved.cost_model(), resolved.noise())
        self.windows = self._device.cost.windows
        self._free_s = 0.0
        self._thread_s = 0.0  # when the engine's thread ended the last launch, update or admission
        times = resolved.engine.host
        self._host = None
        if host == "profile" and times is not None:
            self._host = Host(times, resolved.engine.max_capture_size, resolved.host_noise())

    def launch(self, features: Features) -> HostLaunch:
        """Take a batch."""
        work_s = self._device.work_ps(features) / PS_PER_S
        called_s = time.monotonic()
        if (host := self._host) is None:
            begin_s = max(self._free_s, called_s)
            self._free_s = begin_s + work_s
            return HostLaunch(called_s, begin_s, self._free_s)
        took_ps = host.launch_ps(features.num_requests, features.num_prefills, features.num_tokens)
        returns_s = max(self._thread_s + took_ps / PS_PER_S, called_s)
        begin_s = max(self._free_s, self._thread_s + host.lag_ps / PS_PER_S)
        self._free_s = max(begin_s + work_s, returns_s + host.tail_ps / PS_PER_S)
        return HostLaunch(returns_s, begin_s, self._free_s)

    def wait_for_launch(self, launch: HostLaunch) -> None:
        """Wait until a launch may return."""
        self._wait(launch.returns_s)

    def wait_for_update(self, end_s: float, num_requests: int) -> None:
        """Wait until the profile's host has taken in the tokens of a step that the device ended at `end_s`."""
        if self._host is not None:
            self._wait(max(end_s, self._thread_s) + self._host.update_ps(num_requests) / PS_PER_S)

    def wait_for_admission(self, begin_s: float, num_prompt_tokens: int, *, is_busy: bool) -> None:
        """Wait until taking a request in has lasted as long as the profile says.

        It began at `begin_s`, or, while others are in the engine (`is_busy`), when the thread was free before.
        """
        if self._host is not None:
            begin_s = self._thread_s if is_busy else begin_s
            self._wait(begin_s + self._host.admit_ps(num_prompt_tokens) / PS_PER_S)

    def _wait(self, moment_s: float) -> None:
        wait_until(moment_s)
        self._thread_s = time.monotonic()
