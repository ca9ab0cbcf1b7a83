"""One step on its way through host, device and front end: what it computes and when."""

from __future__ import annotations

from dataclasses import dataclass, field

from simbatch.sim.cost.model import Features
from simbatch.sim.scheduler.request import NEVER, Request
from simbatch.sim.scheduler.scheduler import Batch

NOTHING = Features(0, 0, 0, 0, 0, 0)


@dataclass(slots=True, eq=False)
class Step:
    """A scheduled batch; times in ps. An empty one has no number and takes no time."""

    batch: Batch
    schedule_ps: int  # S: schedule() begins on the host
    launched_ps: int  # L: the launch has returned
    start_ps: int  # the device begins
    end_ps: int  # D: the device is done
    features: Features = NOTHING
    number: int = NEVER
    num_regular: int = 0  # decodes whose previous token came with the step before
    noted: list[Request] = field(default_factory=list)  # those who get a token that is not such a decode's
    updated_ps: int = NEVER  # U: the update is over, its tokens exist
