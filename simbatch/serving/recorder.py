"""vLLM's scheduler, unchanged, with a recorder beside it (vllm/v1/core/sched/scheduler.py, v1/executor, vLLM 0.32).

1. `schedule`, `update_from_output` and `add_request` are timed around vLLM's own, or the policy's.
2. `execute_model` and `sample_tokens` are timed where the engine's thread calls them: in its executor's class.
3. Where the worker is in this process and has a CUDA device, events stand around the two on its stream.

This module and `scheduler` alone import vLLM here, whose version `simbatch.vllm_recorder` checks first.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.executor.abstract import Executor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from simbatch.serving.engine_facts import engine_facts, worker_memory
from simbatch.serving.processes import RECORD, RotatingFile, record_file
from simbatch.serving.recording import IN_FLIGHT, DeviceClock, StepInFlight, StepRecorder
from simbatch.serving.scheduler import AsyncPolicyScheduler, PolicyScheduler

logger = init_logger("vllm.simbatch")  # vLLM prints what is below its own name
now = time.monotonic


class RecordingScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, or the policy's that `additional_config` names, whose steps are written to a file.

    Asynchronous where vLLM schedules so. Raises UserError when no file is named, or it cannot be written.
    """

    other_keys: tuple[str, ...] = (RECORD,)  # of additional_config, besides a policy's

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> RecordingScheduler:  # noqa: ARG004 - __init__ has them
        """The one of the four kinds that fits the engine."""
        if cls is not RecordingScheduler:
            return object.__new__(cls)
        given = vllm_config.additional_config
        has_policy = isinstance(given, dict) and "policy" in (given.get("simbatch") or {})
        return object.__new__(KINDS[has_policy, bool(vllm_config.scheduler_config.async_scheduling)])

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        path = record_file(vllm_config.additional_config, vllm_config.parallel_config.data_parallel_rank)
        super().__init__(vllm_config, *args, **kwargs)
        executor = Executor.get_class(vllm_config)
        watch(executor)
        device = DeviceClock.of_process() if issubclass(executor, UniProcExecutor) else None
        self.recorder = StepRecorder(
            RotatingFile(path, self._facts(executor.__name__, device is not None)), device, warn=logger.warning
        )
        executor.recorder = self.recorder
        logger.info("every step is written to %s%s", path, "" if device else ", without the device's times")

    def add_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Queue a request."""
        begin_s = now()
        answer = super().add_request(request, *args, **kwargs)
        self.recorder.added(request, begin_s, now())
        return answer

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan a step."""
        begin_s = now()
        output = super().schedule(*args, **kwargs)
        self.recorder.planned(output, begin_s, now(), (*self.get_request_counts(), self._num_free_blocks()))
        return output

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Take in a step's tokens."""
        begin_s = now()
        outputs = super().update_from_output(scheduler_output, *args, **kwargs)
        self.recorder.updated(scheduler_output, begin_s, now())
        return outputs

    def shutdown(self) -> None:
        """End; what is still in memory is written."""
        self.recorder.close()
        super().shutdown()

    def _num_free_blocks(self) -> int:
        return int(self.kv_cache_manager.block_pool.get_num_free_blocks())

    def _facts(self, executor: str, has_device: bool) -> dict[str, Any]:
        """What a reader of the steps must know of the engine, as vLLM resolved it."""
        return {
            **engine_facts(self.vllm_config, self.kv_cache_config),
            "max_num_batched_tokens": self.max_num_scheduled_tokens,
            "executor": executor,
            "has_device_times": has_device,
        }


class AsyncRecordingScheduler(RecordingScheduler, AsyncScheduler):  # type: ignore[misc]
    """A recorded scheduler with two batches in flight: vLLM's default on a GPU."""


class PolicyRecordingScheduler(RecordingScheduler, PolicyScheduler):
    """A recorded scheduler under a policy."""


class AsyncPolicyRecordingScheduler(PolicyRecordingScheduler, AsyncPolicyScheduler):
    """A recorded scheduler under a policy, with two batches in flight."""


KINDS = {
    (False, False): RecordingScheduler,
    (False, True): AsyncRecordingScheduler,
    (True, False): PolicyRecordingScheduler,
    (True, True): AsyncPolicyRecordingScheduler,
}


def watch(executor: type[Any]) -> None:
    """Time the two calls that launch a step, from now on and once; what is no recorded step passes as before."""
    if "launches_recorded" in vars(executor):
        return
    execute, sample = executor.execute_model, executor.sample_tokens

    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        step: StepInFlight | None = IN_FLIGHT.get(id(scheduler_output))
        self.recorded_step = step  # that `sample_tokens` belongs to
        if step is None:
            return execute(self, scheduler_output, *args, **kwargs)
        recorder = getattr(self, "recorder", None)  # an executor that somebody watches by himself has none
        if recorder is not None and recorder.wants_memory and hasattr(self, "collective_rpc"):
            recorder.told_memory(self.collective_rpc(worker_memory)[0])
        step.begins()
        try:
            return execute(self, scheduler_output, *args, **kwargs)
        finally:
            step.launched()

    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        step: StepInFlight | None = getattr(self, "recorded_step", None)
        if step is None:
            return sample(self, *args, **kwargs)
        step.samples()
        try:
            return sample(self, *args, **kwargs)
        finally:
            step.sampled()

    executor.execute_model, executor.sample_tokens, executor.launches_recorded = execute_model, sample_tokens, True
