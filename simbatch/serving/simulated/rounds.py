"""The rounds of vLLM's loop, watched: written down, and made to last as long as the profile's host takes.

The scheduler stays whichever it is (vLLM's own, a policy's, a user's class): methods of the live object are wrapped, so
what is decided is vLLM's. Scheduler and worker are objects of one process, the engine's, and of one thread.

The lines have the keys of `simbatch.serving.recording`, and more that only here is known: of a step `batch` [[request,
tokens, computed], ...], and the names of requests `preempted` and `finished`; of a request `q`, when it had reached the
engine's queue, and `max_tokens`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm.logger import init_logger
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore

from simbatch.serving.engine_facts import engine_facts
from simbatch.serving.processes import RotatingFile
from simbatch.serving.recording import LineWriter, batch_keys
from simbatch.serving.simulated.device import HostLaunch, ServeSpec, VirtualGpu

logger = init_logger("vllm.simbatch")  # vLLM prints what is below its own name
now = time.monotonic
Entry = tuple[str, int, int, bool]  # request, tokens, tokens computed before, whether it is a decode


class WatchedStep:
    """One step, from its schedule() to its update, and its line of the log."""

    def __init__(self, line: dict[str, Any]) -> None:
        self.line, self.num_requests, self.end_s = line, 0, 0.0

    def launched(self, called_s: float, launch: HostLaunch, entries: Sequence[Entry]) -> None:
        """Note a launch that has returned."""
        self.num_requests, self.end_s = len(entries), launch.end_s
        self.line |= {
            **{"x0": called_s, "x1": now(), "d0": launch.begin_s, "d1": launch.end_s},
            **batch_keys((done, n, is_decode) for _, n, done, is_decode in entries),
            "batch": [[name, n, done] for name, n, done, _ in entries],
        }


class Rounds:
    """Steps in flight (two at most), by their scheduler output."""

    def __init__(self, spec: ServeSpec, gpu: VirtualGpu) -> None:
        self._gpu = gpu
        self._path = spec.steps
        self._log: LineWriter | None = None
        self._steps: dict[int, WatchedStep] = {}
        self._queued_s: dict[str, float] = {}  # by request, until the engine takes it in
        if spec.steps is not None:
            self._watch_queue()

    def step_of(self, output: Any) -> WatchedStep:
        """The step that was planned so."""
        return self._steps[id(output)]

    def watch(self, scheduler: Any) -> None:
        """Wrap what the engine calls in every round."""
        schedule, update, add = scheduler.schedule, scheduler.update_from_output, scheduler.add_request

        def watched_schedule(*args: Any, **kwargs: Any) -> Any:
            begin_s = now()
            output = schedule(*args, **kwargs)
            if output.total_num_scheduled_tokens:
                self._planned(scheduler, output, begin_s)
            return output

        def watched_update(output: Any, *args: Any, **kwargs: Any) -> Any:
            begin_s = now()
            told = update(output, *args, **kwargs)
            if (step := self._steps.pop(id(output), None)) is not None:
                self._gpu.wait_for_update(step.end_s, step.num_requests)
                self._updated(step, begin_s, told)
            return told

        def watched_add(request: Any, *args: Any, **kwargs: Any) -> Any:
            begin_s, is_busy = now(), bool(scheduler.running)
            answer = add(request, *args, **kwargs)
            self._gpu.wait_for_admission(begin_s, request.num_prompt_tokens, is_busy=is_busy)
            self._added(request, begin_s)
            return answer

        scheduler.schedule, scheduler.update_from_output, scheduler.add_request = (
            watched_schedule,
            watched_update,
            watched_add,
        )

    def _watch_queue(self) -> None:
        """Note when a request has reached the engine's queue, on the thread that reads the sockets."""
        read = EngineCore.preprocess_add_request

        def watched_read(core: Any, request: Any) -> Any:
            answer = read(core, request)
            self._queued_s[request.request_id] = now()
            return answer

        EngineCore.preprocess_add_request = watched_read

    def tell(self, facts: dict[str, Any]) -> None:
        """Begin the log, where one is asked for, with what the engine is."""
        if self._path is not None:
            file = RotatingFile(Path(self._path), facts | {"has_device_times": True})
            self._log = LineWriter(file, logger.warning)

    def close(self) -> None:
        """Write the rest of the log."""
        if self._log is not None:
            self._log.close()

    def _planned(self, scheduler: Any, output: Any, begin_s: float) -> None:
        preempted = sorted(output.preempted_req_ids or ())
        line: dict[str, Any] = {"s0": begin_s, "s1": now()}
        line |= {"run": len(scheduler.running), "wait": len(scheduler.waiting)}
        line |= {"pree": len(preempted), "preempted": preempted}
        line["free"] = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        self._steps[id(output)] = WatchedStep(line)

    def _updated(self, step: WatchedStep, begin_s: float, told: Any) -> None:
        if self._log is None:
            return
        outputs = (output for each in told.values() for output in each.outputs)
        ended = [output.request_id for output in outputs if output.finish_reason is not None]
        self._log.note(step.line | {"u0": begin_s, "u1": now(), "finished": ended})

    def _added(self, request: Any, begin_s: float) -> None:
        if self._log is None:
            return
        queued_s = self._queued_s.pop(request.request_id, begin_s)
        line = {"add": request.request_id, "q": queued_s, "t": begin_s, "t1": now(), "n": request.num_prompt_tokens}
        self._log.note(line | {"arrival": request.arrival_time, "wall": time.time(), "max_tokens": request.max_tokens})


_current: Rounds | None = None  # of this process's engine


def begin(spec: ServeSpec, gpu: VirtualGpu) -> Rounds:
    """Watch the scheduler that this process will have."""
    global _current
    _current = Rounds(spec, gpu)
    return _current


def watched_scheduler(vllm_config: Any, **given: Any) -> Any:
    """What stands in place of a scheduler class: makes the scheduler that would be there, and watches it."""
    assert _current is not None
    spec = ServeSpec.of_environment()
    named = spec.scheduler_cls
    _current.tell(engine_facts(vllm_config, given["kv_cache_config"]) | spec.facts())
    own = AsyncScheduler if vllm_config.scheduler_config.async_scheduling else Scheduler
    scheduler = (own if named is None else resolve_obj_by_qualname(named))(vllm_config=vllm_config, **given)
    _current.watch(scheduler)
    return scheduler
