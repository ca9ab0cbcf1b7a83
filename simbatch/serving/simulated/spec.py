"""What the processes of a server must know: a file that `simbatch serve` writes and an environment variable names."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from simbatch.serving.simulated.plugin import SPEC
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.scenario import Scenario
from simbatch.sim.scenario.resolve import resolve
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
