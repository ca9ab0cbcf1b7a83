"""A recorder's files line by line: what a line says, checked, and how long its step took.

On a device whose begin and end were recorded: its own time, from where the one before has ended. Elsewhere (vLLM's CPU
build, and several GPUs): from the update of the step before, or from schedule() when the engine was idle, to the step's
own update, less what taking requests in took meanwhile, which a profile says apart.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from simbatch.profiler.records.samples import BatchEntry
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import json_value

Facts = dict[str, Any]  # what a server's first line says of it
MEND = "record again, or take the line out of the file"
STEP_TIMES = {
    "s0": "schedule_s", "s1": "scheduled_s", "x0": "launch_s", "x1": "launched_s", "m0": "sample_s", "m1": "sampled_s",
    "u0": "update_s", "u1": "updated_s", "d0": "start_s", "d1": "end_s",
}  # fmt: skip
ALWAYS = ("s0", "s1", "u0", "u1")
ORDER = ("s0", "s1", "x0", "x1", "m0", "m1", "u0", "u1")  # on the engine's one thread


class RecordedStep(NamedTuple):
    """One step; times in s of the server's monotonic clock, NaN for what was not recorded.

    schedule_s to scheduled_s plans it, launch_s to launched_s is execute_model's call, sample_s to sampled_s
    sample_tokens' call, update_s to updated_s takes its tokens in; start_s and end_s are the device's. `prefills` has
    (tokens computed before, tokens computed now) of each entry that is no decode; `context_tokens` is what the decodes
    had computed before. Counts of requests are those after the scheduling.
    """

    schedule_s: float
    scheduled_s: float
    launch_s: float
    launched_s: float
    sample_s: float
    sampled_s: float
    update_s: float
    updated_s: float
    start_s: float
    end_s: float
    num_decodes: int
    context_tokens: int
    prefills: tuple[tuple[int, int], ...]
    num_running: int
    num_waiting: int
    num_preempted: int
    num_free_blocks: int = -1  # -1: not told

    @property
    def done_s(self) -> float:
        """When the device had done it, as far as that was recorded; else when its tokens were taken in."""
        return self.updated_s if math.isnan(self.end_s) else self.end_s


class RecordedRequest(NamedTuple):
    """A request that the scheduler took in from begin_s to end_s; arrival_s is the server's stamp, on that clock."""

    request_id: str
    num_prompt_tokens: int
    begin_s: float
    end_s: float
    arrival_s: float


def is_recorded(path: Path) -> bool:
    """Whether a file looks like a recorder's, by its first line."""
    first = _first_line(path)
    return not {"recorder", "s0", "add"}.isdisjoint(first)


def stream(path: Path) -> Iterator[Facts | RecordedStep | RecordedRequest]:
    """Everything in the file and its older parts, a line at a time; the server's facts come first.

    What its workers measured of their memory comes as further facts, when they have told.

    Raises UserError where a file cannot be read, and for a malformed line, but for a last one that was cut off.
    """
    parts = _parts(path)
    for part in parts:
        for number, line, is_last in _lines(part):
            try:
                content = json_value(line.decode(errors="replace").strip(), part, line=number, mend=MEND)
            except UserError:
                if is_last and part is parts[-1]:
                    return  # the server was killed in the middle of it
                raise
            if isinstance(content, dict) and "recorder" in content:
                if part is parts[0]:
                    yield content
                continue
            if isinstance(content, dict) and isinstance(content.get("memory"), dict):
                yield content["memory"]
                continue
            yield item_of(content, f"{part}:{number}")


def _parts(path: Path) -> list[Path]:
    """The older parts of the same server, the oldest first, and the file."""
    parts, first, number = [path], _first_line(path), 1
    while "recorder" in first and (older := path.with_name(f"{path.name}.{number}")).exists():
        if _first_line(older) != first:
            break
        parts.insert(0, older)
        number += 1
    return parts


def _first_line(path: Path) -> Facts:
    """What it says; nothing where it cannot be read or says nothing."""
    try:
        with _open(path) as file:
            first = json.loads(file.readline())
    except (OSError, EOFError, ValueError):
        return {}
    return first if isinstance(first, dict) else {}


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Lines that are not empty, by their number, and whether it is the last one."""
    try:
        with _open(path) as file:
            held: tuple[int, bytes] | None = None
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                if held is not None:
                    yield *held, False
                held = number, line
            if held is not None:
                yield *held, True
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(Problem(str(path), f"cannot be read: {reason}")) from None


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def item_of(content: Any, place: str) -> RecordedStep | RecordedRequest:
    """A line that is no fact, checked; `place` is its file and line."""
    if not isinstance(content, dict) or {"s0", "add"}.isdisjoint(content):
        rule = "is neither a step (a key s0) nor a request (a key add)"
        raise UserError(Problem(place, rule, content, MEND))
    return _step(content, place) if "s0" in content else _request(content, place)


def _step(content: Mapping[str, Any], place: str) -> RecordedStep:
    times = {key: _number(content, key, place, needed=key in ALWAYS) for key in STEP_TIMES}
    for before, after in (*pairwise(ORDER), ("d0", "d1"), ("x1", "u0"), ("s1", "u0")):
        if times[after] < times[before]:  # what is not there is NaN, and never less
            rule = f"its times must not fall, and {after} is before {before}"
            raise UserError(Problem(place, rule, times[after] - times[before], MEND))
    prefills = content.get("pre")
    if not isinstance(prefills, list):
        raise UserError(Problem(place, "pre must be a list of pairs", prefills, MEND))
    pairs = tuple(_pair(pair, place) for pair in prefills)
    step = RecordedStep(
        **{name: times[key] for key, name in STEP_TIMES.items()},
        num_decodes=_count(content, "nd", place),
        context_tokens=_count(content, "ctx", place),
        prefills=pairs,
        num_running=_count(content, "run", place),
        num_waiting=_count(content, "wait", place),
        num_preempted=_count(content, "pree", place),
        num_free_blocks=_count(content, "free", place) if "free" in content else -1,
    )
    if not step.num_decodes and not pairs:
        raise UserError(Problem(place, "has neither decodes (nd) nor prefills (pre)", mend=MEND))
    return step


def _request(content: Mapping[str, Any], place: str) -> RecordedRequest:
    begin_s, end_s = (_number(content, key, place, needed=True) for key in ("t", "t1"))
    wall_s, arrival_s = (_number(content, key, place, needed=False) for key in ("wall", "arrival"))
    return RecordedRequest(
        str(content["add"]), _count(content, "n", place), begin_s, end_s, end_s - (wall_s - arrival_s)
    )


def _number(content: Mapping[str, Any], key: str, place: str, *, needed: bool) -> float:
    value = content.get(key)
    if value is None and not needed:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(Problem(place, f"{key} must be a number of seconds", value, MEND))
    return float(value)


def _count(content: Mapping[str, Any], key: str, place: str) -> int:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(Problem(place, f"{key} must be a whole number from 0 on", value, MEND))
    return value


def _pair(pair: object, place: str) -> tuple[int, int]:
    match pair:
        case [int(computed), int(tokens)] if computed >= 0 and tokens > 0:
            return computed, tokens
    raise UserError(Problem(place, "pre must have pairs of [tokens computed before, tokens computed now]", pair, MEND))


class StepClock:
    """Takes a server's lines in their order; says what each step took."""

    def __init__(self) -> None:
        self._device_s = self._updated_s = -math.inf
        self._has_waiting = False
        self._taking_in_s = 0.0  # since the last step was scheduled

    def takes_in(self, request: RecordedRequest) -> None:
        """A request."""
        self._taking_in_s += request.end_s - request.begin_s

    def took_s(self, step: RecordedStep) -> float:
        """Seconds."""
        if math.isnan(step.end_s):
            # who decodes had a step before, and who waits could not get into it: nobody was idle
            is_busy = step.num_decodes > 0 or self._has_waiting
            between_s = step.schedule_s - self._updated_s - self._taking_in_s if is_busy else 0.0
            own_s = step.updated_s - step.schedule_s + max(0.0, between_s)
        else:
            own_s = step.end_s - max(step.start_s, self._device_s)
            self._device_s = step.end_s
        self._updated_s, self._taking_in_s, self._has_waiting = step.updated_s, 0.0, step.num_waiting > 0
        return own_s


def durations_s(lines: Iterable[RecordedStep | RecordedRequest]) -> Iterator[tuple[RecordedStep, float]]:
    """The steps of these lines, each with what it took."""
    clock = StepClock()
    for line in lines:
        if isinstance(line, RecordedRequest):
            clock.takes_in(line)
        else:
            yield line, clock.took_s(line)


def entries_of(step: RecordedStep) -> tuple[BatchEntry, ...]:
    """The batch; decodes share their context evenly, for a recorder writes its sum."""
    each, more = divmod(step.context_tokens, max(1, step.num_decodes))
    decodes = (BatchEntry(each + (i < more), 1, True) for i in range(step.num_decodes))
    return (*decodes, *(BatchEntry(computed, tokens, False) for computed, tokens in step.prefills))
