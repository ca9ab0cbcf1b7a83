"""A real vLLM server of our own: `vllm serve` with the recorder in its engine, up as long as a block lasts."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from simbatch.profiler.served.vllm_start import EngineOptions, check_model, environment, failed_start, require_vllm
from simbatch.serving.processes import Server, ended_by_signals
from simbatch.serving.record_options import VARIABLE
from simbatch.sim.errors import Problem, UserError

ADDRESS = "127.0.0.1"
RECORDER = "simbatch.vllm_recorder.RecordingScheduler"
POLICY_SCHEDULER = "simbatch.vllm_scheduler.PolicyScheduler"  # the recorder's takes the same policy along


class Started(NamedTuple):
    """Where it is, the file of its steps, and its processes."""

    url: str
    steps: Path
    server: Server


@contextmanager
def started(options: EngineOptions, steps: Path, log: Path) -> Iterator[Started]:
    """Start it, wait until it is ready, end it; UserError when it does not start."""
    require_vllm()
    check_model(options)
    words, port = _flags(options), _free_port()
    surroundings = environment(options) | {VARIABLE: str(steps.absolute())}
    words += ["--scheduler-cls", RECORDER, "--host", ADDRESS, "--port", str(port)]
    with ended_by_signals():
        server = Server(words, surroundings, log, lambda said, end: failed_start(said, options, log, end))
        try:
            server.wait_until_ready(ADDRESS, port)
            yield Started(f"http://{ADDRESS}:{port}", steps, server)
        finally:
            server.stop()


def _flags(options: EngineOptions) -> list[str]:
    """Without the scheduler's class: it is the recorder's, under a policy too."""
    arguments = options.extra
    if arguments.get("scheduler_cls") not in (None, POLICY_SCHEDULER):
        rule = "is how the steps are recorded"
        raise UserError(Problem("--engine-arg scheduler_cls", rule, arguments["scheduler_cls"], "leave it out"))
    return options.without("scheduler_cls").flags()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((ADDRESS, 0))
        return int(free.getsockname()[1])
