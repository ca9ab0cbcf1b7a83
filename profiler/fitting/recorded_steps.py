"""The files of `simbatch.vllm_recorder`: every step of a real server, and every request that it took in.

    steps = read_steps(Path("steps.jsonl"))      # arrays
    for item in stream(Path("steps.jsonl")):     # RecordedStep and RecordedRequest, one at a time

What a line holds stands in `simbatch.serving.recording`. Parts that the recorder has rotated away (FILE.1, FILE.2, ...)
are read before FILE, as far as they are the same server's. A last line that was cut off is left out; any other
malformed line is a UserError with file and line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.fitting.recorded_lines import (
    STEP_TIMES,
    Facts,
    RecordedRequest,
    RecordedStep,
    is_recorded,
    stream,
)
from simbatch.sim.errors import Problem, UserError

__all__ = ["Facts", "RecordedRequest", "RecordedStep", "RecordedSteps", "is_recorded", "read_steps", "stream"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RecordedSteps:
    """A whole file as columns, in the order of the updates; `facts` is what the server's first line says, if any.

    Times as in `RecordedStep`. Prefills of step i are rows first_prefill[i] to first_prefill[i + 1] of `prefills`, an
    array of (computed before, computed now).
    """

    facts: Facts
    times: dict[str, Floats]
    num_decodes: Ints
    context_tokens: Ints
    prefills: Ints
    first_prefill: Ints
    num_running: Ints
    num_waiting: Ints
    num_preempted: Ints
    num_free_blocks: Ints  # -1: not told
    requests: list[RecordedRequest] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.num_decodes)

    @property
    def is_async(self) -> bool:
        """Whether two batches were in flight; by the times themselves where the file does not say."""
        said = self.facts.get("async_scheduling")
        if said is not None:
            return bool(said)
        return bool((self.times["schedule_s"][1:] < self.times["update_s"][:-1]).any())

    @property
    def S(self) -> Floats:  # noqa: N802 - the letters of docs/engine.md
        """Begin of schedule()."""
        return self.times["schedule_s"]

    @property
    def L(self) -> Floats:  # noqa: N802
        """When the launch had returned; the sampling's too where it waits for nothing, as in the asynchronous loop."""
        launched, sampled = self.times["launched_s"], self.times["sampled_s"]
        return np.where(np.isnan(sampled), launched, sampled) if self.is_async else launched

    @property
    def D(self) -> Floats:  # noqa: N802
        """The device's end; NaN where it was not recorded."""
        return self.times["end_s"]

    @property
    def U(self) -> Floats:  # noqa: N802
        """End of the update."""
        return self.times["updated_s"]

    @property
    def num_prefills(self) -> Ints:
        """Entries of each step that are no decodes."""
        return np.diff(self.first_prefill)

    @property
    def prefill_tokens(self) -> Ints:
        """What these compute in each step."""
        sums = np.concatenate([[0], np.cumsum(self.prefills[:, 1])])
        tokens: Ints = sums[self.first_prefill[1:]] - sums[self.first_prefill[:-1]]
        return tokens


def read_steps(path: Path) -> RecordedSteps:
    """The whole file; UserError where it cannot be read, is malformed, or holds no step."""
    facts, steps, requests = dict[str, Any](), list[RecordedStep](), list[RecordedRequest]()
    for item in stream(path):
        if isinstance(item, RecordedStep):
            steps.append(item)
        elif isinstance(item, RecordedRequest):
            requests.append(item)
        else:
            facts = facts | item
    if not steps:
        raise UserError(Problem(str(path), "holds no step", mend="send the server some requests"))
    columns = dict(zip(RecordedStep._fields, zip(*steps, strict=True), strict=True))
    counts = ("num_decodes", "context_tokens", "num_running", "num_waiting", "num_preempted", "num_free_blocks")
    return RecordedSteps(
        facts,
        {name: np.array(columns[name], dtype=np.float64) for name in STEP_TIMES.values()},
        prefills=np.array([pair for step in steps for pair in step.prefills], dtype=np.int64).reshape(-1, 2),
        first_prefill=np.cumsum([0, *(len(step.prefills) for step in steps)], dtype=np.int64),
        requests=requests,
        **{name: np.array(columns[name], dtype=np.int64) for name in counts},
    )
