"""How long host and device take for a step of the real engine, on the clock of the wall (s of `time.monotonic`).

With S the begin of schedule(), L the return of the launch and D the device's end, as in the simulator (docs/engine.md):
the profile's host gives L = S + launch(batch) and D = max(max(D before, S + lag) + device(batch), L + tail). vLLM's own
host gives L as it comes, and the device begins when it is called.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from simbatch.serving.simulated.spec import HostChoice
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.model import Features
from simbatch.sim.engine.resources import Device, Host
from simbatch.sim.scenario.resolved import Resolved

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
        self._free_s = 0.0
        times = resolved.engine.host
        self._host = None
        if host == "profile" and times is not None:
            self._host = Host(times, resolved.engine.max_capture_size, resolved.host_noise())

    def launch(self, schedule_s: float, features: Features) -> HostLaunch:
        """Take a batch whose schedule() began at `schedule_s`."""
        work_s = self._device.work_ps(features) / PS_PER_S
        called_s = time.monotonic()
        if (host := self._host) is None:
            begin_s = max(self._free_s, called_s)
            self._free_s = begin_s + work_s
            return HostLaunch(called_s, begin_s, self._free_s)
        took_ps = host.launch_ps(features.num_requests, features.num_prefills, features.num_tokens)
        returns_s = max(schedule_s + took_ps / PS_PER_S, called_s)
        begin_s = max(self._free_s, schedule_s + host.lag_ps / PS_PER_S)
        self._free_s = max(begin_s + work_s, returns_s + host.tail_ps / PS_PER_S)
        return HostLaunch(returns_s, begin_s, self._free_s)

    def wait_for_update(self, begin_s: float, num_requests: int) -> None:
        """Wait until the profile's host has taken in a step's tokens, begun at `begin_s`."""
        if self._host is not None:
            wait_until(begin_s + self._host.update_ps(num_requests) / PS_PER_S)

    def wait_for_admission(self, begin_s: float, num_prompt_tokens: int) -> None:
        """The same for a request."""
        if self._host is not None:
            wait_until(begin_s + self._host.admit_ps(num_prompt_tokens) / PS_PER_S)
