"""A recorder's file as the engine's rule sees it: when the thread was free, what it launched, what the device was told.

The thread's moments follow each other: schedule and launch (S to L), the wait for an older batch, its update (to U). A
batch whose update was waited for was done on the device just then; one that was not waited for was done before. Where
the device's own times were recorded, these say it.

`read_steps(Path("steps.jsonl"))` gives its steps as arrays; one at a time `records.lines.stream` gives them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.records import Floats, Ints, Steps
from simbatch.profiler.records.lines import STEP_TIMES, Facts, RecordedRequest, RecordedStep, stream
from simbatch.sim.errors import Problem, UserError


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


Flags = NDArray[np.bool_]

WAITED_S = 0.3e-3  # between the thread's last moment and an update: less is its own way
LOOP_S = 5e-3  # between an update and the next schedule(): more is waiting for requests
MAX_CAPTURE = 512  # vLLM's largest graph, where a file does not say
GRAPH, PIECEWISE, NONE = 0, 1, 2  # kinds of launch


@dataclass(frozen=True)
class Moments:
    """One entry a step, in the order of the launches; times in s of the server's clock, NaN for what is not known."""

    is_async: bool
    steps: Steps
    kind: Ints
    schedule_s: Floats
    launched_s: Floats
    free_s: Floats  # the thread's last moment before schedule(): an update's end, or a launch's
    in_flight: Ints  # steps that were launched and not taken in when this one was scheduled
    is_idle: Flags  # none were, and the thread waited for requests
    num_added: Ints  # requests that were taken in between that moment and schedule()
    added_tokens: Ints
    ready_s: Floats  # when the thread began to wait for this step
    update_s: Floats  # when its tokens began to be taken in
    updated_s: Floats
    start_s: Floats  # on the device, where it has a clock
    done_s: Floats  # on the device: exact, or at the latest
    is_done_known: Flags

    def __len__(self) -> int:
        return len(self.kind)

    def part(self, begin: int, end: int) -> Moments:
        """Steps `begin` to `end` alone, as if nothing had been before."""
        rows = np.zeros(len(self), dtype=bool)
        rows[begin:end] = True
        arrays = (f.name for f in fields(self) if f.name not in ("is_async", "steps"))
        columns = {name: getattr(self, name)[rows] for name in arrays}
        columns["is_idle"][:1], columns["in_flight"][:1] = True, 0
        return Moments(self.is_async, self.steps.select(rows), **columns)

    @property
    def has_device(self) -> bool:
        """Whether the device's own times were recorded."""
        return not np.isnan(self.start_s).all()

    @property
    def before_s(self) -> Floats:
        """When the device was done with the step before; of the first one it may have been anything."""
        return np.concatenate([[np.inf], self.done_s[:-1]])

    @property
    def loop_s(self) -> Floats:
        """From the thread's last moment to schedule(); NaN where it waited for requests."""
        return np.where(self.is_idle, np.nan, self.schedule_s - self.free_s)


def moments_of(run: RecordedSteps) -> Moments:
    """Of one server's file."""
    order = np.argsort(run.S, kind="stable")
    schedule_s, launched_s = run.S[order], run.L[order]
    launched_s = np.where(np.isnan(launched_s), run.times["scheduled_s"][order], launched_s)
    update_s, updated_s = run.times["update_s"][order], run.U[order]
    free_s, in_flight, is_idle = _free(schedule_s, launched_s, updated_s)
    num_added, added_tokens = _added(run, free_s, schedule_s)
    is_idle |= (in_flight == 0) & (num_added >= (run.num_running + run.num_waiting)[order])  # nobody else was there
    ready_s = _ready(run, schedule_s, launched_s, update_s, order)
    done_s, is_known = _done(run, order, ready_s, update_s)
    steps = _steps(run, order)
    return Moments(
        run.is_async,
        steps,
        kinds(steps, run.facts.get("cudagraph_capture_sizes"), is_eager=bool(run.facts.get("enforce_eager"))),
        schedule_s,
        launched_s,
        free_s,
        in_flight,
        is_idle,
        num_added,
        added_tokens,
        ready_s,
        update_s,
        updated_s,
        run.times["start_s"][order],
        done_s,
        is_known,
    )


def kinds(steps: Steps, sizes: object, *, is_eager: bool = False) -> Ints:
    """The kind of launch of each step (docs/engine.md)."""
    largest = max(sizes, default=0) if isinstance(sizes, list) else MAX_CAPTURE
    largest = 0 if is_eager else largest
    fits = steps.num_tokens <= largest
    return np.where(~fits, NONE, np.where(steps.num_prefills > 0, PIECEWISE, GRAPH))


def _free(schedule_s: Floats, launched_s: Floats, updated_s: Floats) -> tuple[Floats, Ints, Flags]:
    """The thread's last moment before each schedule(), steps in flight by then, and whether it had waited."""
    ends = np.sort(updated_s)
    number = np.searchsorted(ends, schedule_s, side="right")  # updates before it
    last_update = np.where(number > 0, ends[np.maximum(0, number - 1)], -np.inf)
    last_launch = np.concatenate([[-np.inf], launched_s[:-1]])
    free_s = np.maximum(last_update, last_launch)
    free_s[0] = schedule_s[0]
    in_flight = np.maximum(0, np.arange(len(schedule_s)) - number)
    is_idle = (in_flight == 0) & (schedule_s - free_s > LOOP_S)
    is_idle[0] = True
    return free_s, in_flight, is_idle


def _added(run: RecordedSteps, free_s: Floats, schedule_s: Floats) -> tuple[Ints, Ints]:
    """Requests that came into the scheduler, and their tokens, just before each step."""
    at_s = np.array([request.end_s for request in run.requests], dtype=np.float64)
    tokens = np.array([request.num_prompt_tokens for request in run.requests], dtype=np.int64)
    number, total = np.zeros(len(schedule_s), dtype=np.int64), np.zeros(len(schedule_s), dtype=np.int64)
    before = np.searchsorted(schedule_s, at_s)  # the step that may have it
    inside = before < len(schedule_s)
    inside[inside] &= at_s[inside] >= free_s[before[inside]]
    np.add.at(number, before[inside], 1)
    np.add.at(total, before[inside], tokens[inside])
    return number, total


def _ready(run: RecordedSteps, schedule_s: Floats, launched_s: Floats, update_s: Floats, order: Ints) -> Floats:
    """When the thread began to wait for a step: the last of its own launch, a newer one's, an older one's update."""
    if not run.is_async:
        return run.times["sample_s"][order]
    newer = np.searchsorted(schedule_s, update_s) - 1  # the last launch before the update
    ready_s = launched_s[newer]
    older = np.concatenate([[-np.inf], run.U[order][:-1]])
    return np.maximum(ready_s, np.where(older <= update_s, older, -np.inf))


def _done(run: RecordedSteps, order: Ints, ready_s: Floats, update_s: Floats) -> tuple[Floats, Flags]:
    """When the device was done: by its own times, by the end of a wait, or only that it was by then."""
    ends = run.D[order]
    if not run.is_async:
        ends = np.where(np.isnan(ends), run.times["sampled_s"][order], ends)
        return np.where(np.isnan(ends), update_s, ends), np.ones(len(order), dtype=bool)
    waited = update_s - ready_s > WAITED_S
    return np.where(np.isnan(ends), update_s, ends), ~np.isnan(ends) | waited


def _steps(run: RecordedSteps, order: Ints) -> Steps:
    computed, tokens = run.prefills[:, 0], run.prefills[:, 1]

    def sums(values: Ints) -> Ints:
        total = np.concatenate([[0], np.cumsum(values)])
        of_step: Ints = (total[run.first_prefill[1:]] - total[run.first_prefill[:-1]])[order]
        return of_step

    decodes, context = run.num_decodes[order], run.context_tokens[order]
    mean = context // np.maximum(1, decodes)
    columns = (run.num_prefills[order], sums(tokens), sums(computed + tokens), sums(tokens * (2 * computed + tokens)))
    return Steps(*columns, decodes, context, mean, mean)
