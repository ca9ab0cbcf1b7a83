"""What a recorder writes: a line a step and a line a request, made beside the engine's thread.

A step (times in s of `time.monotonic`): `s0 s1` begin and end of schedule(), `x0 x1` of execute_model's call, `m0 m1`
of sample_tokens' call, `u0 u1` of the update; `d0 d1` begin and end on the device, where there is one. The batch:
`nd` decodes with `ctx` tokens computed before in all, `pre` [[computed, tokens], ...] of the others; `run` and `wait`
requests and `free` blocks after the scheduling, `pree` preempted ones. A request: `add` its id, `t t1` begin and end of
its way into the scheduler, `n` prompt tokens, `arrival` (the server's stamp) and `wall` (now), both by the wall's
clock. `memory` is what a worker measured at its start, bytes.

The engine's thread only reads clocks and appends to a queue. A thread of ours makes lines of it, one at a time with a
pause after each: Python's threads take turns, and a turn of ours must not be long.

`DeviceClock` says when a CUDA device begins and ends a step, on the host's clock (s of `time.monotonic`). An event has
no time of its own, only a distance to another event, in ms as a 32-bit float: a quarter of a millisecond coarse after
an hour, and device and host clocks drift apart meanwhile. So an event at a known moment (the anchor) is set again a few
times a second, by the recorder's thread on a stream of its own: it waits for nothing, and nobody waits for it.
"""

from __future__ import annotations

import atexit
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

from simbatch.serving.processes import RotatingFile

EVERY_S = 0.25  # clocks that differ by 50 millionths are 12 us apart by then
MAX_WIDTH_S = 0.0002  # of the moment of an anchor; wider ones are for want of a better
TRIES = 3
KEPT = 8  # steps are resolved within two anchors


class Anchor(NamedTuple):
    """An event that happened at `moment_s`, give or take half of `width_s`."""

    event: Any
    moment_s: float
    width_s: float


class DeviceClock:
    """Events on the stream of the engine's thread, and their times; `cuda` is `torch.cuda`."""

    def __init__(self, cuda: Any, now: Any = time.monotonic) -> None:
        self._cuda, self._now = cuda, now
        self._device = cuda.current_device()
        self._free: list[Any] = []
        self._stream = cuda.Stream(device=self._device)
        self._anchors = deque[Anchor](maxlen=KEPT)
        self.set_anchor()

    @classmethod
    def of_process(cls) -> Self | None:
        """The clock of this process's CUDA device, None where there is none."""
        import torch

        return cls(torch.cuda) if torch.cuda.is_available() and torch.cuda.is_initialized() else None

    def mark(self, event: Any = None) -> Any:
        """An event behind all that the calling thread has launched; `event` itself where it is given, set again."""
        if event is None:
            event = self._free.pop() if self._free else self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def set_anchor(self) -> None:
        """Set an anchor if it is time for one; called by one thread."""
        if self._anchors and self._now() - self._anchors[-1].moment_s < EVERY_S:
            return
        with self._cuda.device(self._device):
            best = min((self._try() for _ in range(TRIES)), key=lambda anchor: anchor.width_s)
        if best.width_s <= MAX_WIDTH_S or not self._anchors:
            self._anchors.append(best)

    def moment_s(self, event: Any, not_before_s: float) -> float:
        """When an event happened; it is known to be later than `not_before_s`. Waits for it, and takes it back."""
        event.synchronize()
        before = [anchor for anchor in self._anchors if anchor.moment_s <= not_before_s]
        anchor = before[-1] if before else self._anchors[0]
        moment_s = anchor.moment_s + anchor.event.elapsed_time(event) / 1000
        self._free.append(event)
        return float(moment_s)

    def _try(self) -> Anchor:
        event = self._cuda.Event(enable_timing=True)
        begin_s = self._now()
        event.record(self._stream)
        event.synchronize()
        end_s = self._now()
        return Anchor(event, (begin_s + end_s) / 2, end_s - begin_s)


PAUSE_S = 0.0003  # after a line
WAIT_S = 0.05  # for the next ones
now = time.monotonic


class StepInFlight:
    """A step on its way: what is known of it so far, and its events on the device."""

    __slots__ = ("_device", "begin", "end", "forget", "line", "output")

    def __init__(self, output: Any, line: dict[str, Any], forget: list[str], device: DeviceClock | None) -> None:
        self.output, self.line, self.forget, self._device = output, line, forget, device
        self.begin: Any = None
        self.end: Any = None

    def begins(self) -> None:
        """execute_model is called."""
        if self._device is not None:
            self.begin = self._device.mark()
        self.line["x0"] = now()

    def launched(self) -> None:
        """It has returned."""
        self.line["x1"] = now()
        self._ends()

    def samples(self) -> None:
        """sample_tokens is called."""
        self.line["m0"] = now()

    def sampled(self) -> None:
        """It has returned."""
        self.line["m1"] = now()
        self._ends()

    def _ends(self) -> None:
        if self._device is not None:
            self.end = self._device.mark(self.end)


class Added(NamedTuple):
    """A request that was taken in."""

    request_id: str
    num_prompt_tokens: int
    line: dict[str, Any]


IN_FLIGHT: dict[int, StepInFlight] = {}  # from schedule() to update, by the identity of their output, which they hold


def device_ran(output: Any, begin_s: float, end_s: float) -> None:
    """Whoever knows it says when the device works on a step, before its update (a simulated device)."""
    step = IN_FLIGHT.get(id(output))
    if step is not None:
        step.line["d0"], step.line["d1"] = begin_s, end_s


class LineWriter:
    """What one engine notes on its way to a file as lines of JSON; `warn` is told when that is no longer possible."""

    def __init__(self, file: RotatingFile, warn: Callable[[str], None]) -> None:
        self._file, self._warn = file, warn
        self._queue = deque[Any]()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._write, name="simbatch-recorder", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def note(self, item: Any) -> None:
        """Keep an item; nothing is written on the caller's thread."""
        self._queue.append(item)

    def close(self) -> None:
        """Write what is left, and end."""
        if not self._is_closed.is_set():
            self._is_closed.set()
            self._thread.join()
            atexit.unregister(self.close)

    def line_of(self, item: Any) -> dict[str, Any]:
        """The line that an item makes, on the writer's thread."""
        line: dict[str, Any] = item
        return line

    def before_lines(self) -> None:
        """What the writer's thread does each time before it writes."""

    def _write(self) -> None:
        try:
            while not self._is_closed.wait(WAIT_S):
                self.before_lines()
                self._write_queue(PAUSE_S)
            self._write_queue(0)
            self._file.close()
        except Exception as error:  # a full disk, a device that fell over: the server goes on
            self._warn(f"no more steps are recorded: {error!r}")
            self._queue = deque(maxlen=0)

    def _write_queue(self, pause_s: float) -> None:
        while self._queue:
            line = self.line_of(self._queue.popleft())
            rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()}
            self._file.write(json.dumps(rounded, separators=(",", ":")))
            if pause_s:
                time.sleep(pause_s)


def batch_keys(entries: Iterable[tuple[int, int, bool]]) -> dict[str, Any]:
    """A batch's part of a step's line, of entries (tokens computed before, tokens computed now, whether a decode)."""
    entries = tuple(entries)
    contexts = [computed for computed, _, is_decode in entries if is_decode]
    prefills = [[computed, tokens] for computed, tokens, is_decode in entries if not is_decode]
    return {"nd": len(contexts), "ctx": sum(contexts), "pre": prefills}


class StepRecorder(LineWriter):
    """Steps and requests of one scheduler on their way to a file."""

    def __init__(self, file: RotatingFile, device: DeviceClock | None, warn: Callable[[str], None]) -> None:
        self._device = device
        self.wants_memory = True  # until a worker has told
        self._forget: list[str] = []
        self._num_prompt_tokens: dict[str, int] = {}  # of the requests in the engine, as far as they are written
        super().__init__(file, warn)

    def added(self, request: Any, begin_s: float, end_s: float) -> None:
        """The scheduler has a request."""
        line = {"t": begin_s, "t1": end_s, "arrival": request.arrival_time, "wall": time.time()}
        self.note(Added(request.request_id, request.num_prompt_tokens, line))

    def told_memory(self, memory: Mapping[str, int]) -> None:
        """What a worker measured at its start, bytes."""
        self.wants_memory = False
        self.note({"memory": dict(memory)})

    def planned(self, output: Any, begin_s: float, end_s: float, counts: tuple[int, int, int]) -> None:
        """The scheduler has planned a step, or found nothing to do; `counts` are of running, waiting, free blocks."""
        if output.finished_req_ids:
            self._forget.extend(output.finished_req_ids)
        if output.total_num_scheduled_tokens:
            line = {"s0": begin_s, "s1": end_s, "run": counts[0], "wait": counts[1], "free": counts[2]}
            IN_FLIGHT[id(output)] = StepInFlight(output, line, self._forget, self._device)
            self._forget = []

    def updated(self, output: Any, begin_s: float, end_s: float) -> None:
        """The scheduler has taken a step's tokens in."""
        step = IN_FLIGHT.pop(id(output), None)
        if step is not None:
            step.line["u0"], step.line["u1"] = begin_s, end_s
            self.note(step)

    def before_lines(self) -> None:
        """The device's clock is set again where it is time."""
        if self._device is not None:
            self._device.set_anchor()

    def line_of(self, item: StepInFlight | Added | dict[str, Any]) -> dict[str, Any]:
        """A step's, a request's, or what is a line already."""
        if isinstance(item, dict):
            return item
        if isinstance(item, Added):
            self._num_prompt_tokens[item.request_id] = item.num_prompt_tokens
            return {"add": item.request_id, "n": item.num_prompt_tokens, **item.line}
        line = item.line | self._batch(item.output)
        for key, event in (("d0", item.begin), ("d1", item.end)):
            if event is not None and self._device is not None:
                line[key] = self._device.moment_s(event, line["s0"])
        for name in item.forget:
            self._num_prompt_tokens.pop(name, None)
        return line

    def _batch(self, output: Any) -> dict[str, Any]:
        """A decode is one token of a request whose prompt is computed, as everywhere in this project."""
        cached, tokens, known = output.scheduled_cached_reqs, output.num_scheduled_tokens, self._num_prompt_tokens
        computed = [(new.req_id, new.num_computed_tokens) for new in output.scheduled_new_reqs]
        computed += zip(cached.req_ids, cached.num_computed_tokens, strict=True)
        entries = (
            (before, tokens[name], tokens[name] == 1 and before >= known.get(name, 0)) for name, before in computed
        )
        return {**batch_keys(entries), "pree": len(output.preempted_req_ids or ())}
