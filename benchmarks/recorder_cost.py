"""What recording a step costs the engine's thread, beside a thread that writes: `python -m benchmarks.recorder_cost`.

Without vLLM and without a device. The two events of a step on a CUDA device come on top, some us more.
"""

import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from simbatch.serving.processes import RotatingFile
from simbatch.serving.recording import IN_FLIGHT, StepRecorder

BATCHES = (1, 64, 256, 1024)
STEPS, STEP_S = 400, 0.005


def output(names, before):
    cached = SimpleNamespace(req_ids=names, num_computed_tokens=[before] * len(names))
    tokens = dict.fromkeys(names, 1)
    return SimpleNamespace(
        scheduled_new_reqs=[], scheduled_cached_reqs=cached, num_scheduled_tokens=tokens, finished_req_ids=set(),
        total_num_scheduled_tokens=len(names), preempted_req_ids=set(),
    )  # fmt: skip


def cost(recorder, batch):
    """Seconds that each step's calls took; the rest of a step is slept, as an engine waits for its device."""
    names, took_s = [f"cmpl-{i:016x}-0" for i in range(batch)], []
    for name in names:
        recorder.added(SimpleNamespace(request_id=name, num_prompt_tokens=100, arrival_time=0.0), 0.0, 0.0)
    for i in range(STEPS):
        planned = output(names, 100 + i)
        begin_s = time.perf_counter()
        recorder.planned(planned, time.monotonic(), time.monotonic(), (batch, 0, 0))
        step = IN_FLIGHT[id(planned)]
        step.begins(), step.launched(), step.samples(), step.sampled()
        recorder.updated(planned, time.monotonic(), time.monotonic())
        took_s.append(time.perf_counter() - begin_s)
        time.sleep(STEP_S)
    return np.array(took_s)


def main():
    for batch in BATCHES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "steps.jsonl"
            recorder = StepRecorder(RotatingFile(path, {}), None, print)
            cpu_s = time.process_time()
            took_s = cost(recorder, batch)
            cpu_us = 1e6 * (time.process_time() - cpu_s) / STEPS
            recorder.close()
            lines = path.read_text().splitlines()
            size = sum(map(len, lines[-STEPS:])) / STEPS
            assert json.loads(lines[-1])["nd"] == batch
        median, high = 1e6 * np.percentile(took_s, (50, 99))
        print(
            f"{batch:5} decodes: {median:5.1f} us a step on the engine's thread (p99 {high:.1f}), "
            f"{cpu_us:.0f} us of CPU in all, {size:.0f} bytes"
        )


if __name__ == "__main__":
    main()
