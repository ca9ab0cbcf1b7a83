"""The recorder without vLLM: what it writes, what survives, what the reader makes of it; tests/vllm has the rest."""

from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from simbatch.profiler.fit.recorder.moments import moments_of, read_steps
from simbatch.serving.processes import RotatingFile
from simbatch.serving.recording import EVERY_S, IN_FLIGHT, DeviceClock, StepRecorder, device_ran
from simbatch.sim.errors import UserError


def output(new=(), cached=(), tokens=None, finished=(), preempted=()):
    """As vLLM's scheduler gives it: (request, computed before) of new and known requests."""
    tokens = tokens or {name: 1 for name, _ in (*new, *cached)}
    return SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id=name, num_computed_tokens=n) for name, n in new],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[name for name, _ in cached], num_computed_tokens=[n for _, n in cached]
        ),
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
        finished_req_ids=set(finished),
        preempted_req_ids=set(preempted),
    )


def request(name, num_prompt_tokens):
    return SimpleNamespace(request_id=name, num_prompt_tokens=num_prompt_tokens, arrival_time=1e9)


def runs(recorder, planned, begin_s):
    """A step that takes 10 ms from schedule() to the end of its update."""
    recorder.planned(planned, begin_s, begin_s + 0.001, (2, 1, 9))
    step = IN_FLIGHT.get(id(planned))
    if step is not None:
        step.begins(), step.launched(), step.samples(), step.sampled()
        step.line |= {"x0": begin_s + 0.002, "x1": begin_s + 0.003, "m0": begin_s + 0.004, "m1": begin_s + 0.005}
    recorder.updated(planned, begin_s + 0.008, begin_s + 0.010)


@pytest.fixture
def recorder(tmp_path):
    def make(device=None, warn=pytest.fail, **facts):
        return StepRecorder(RotatingFile(tmp_path / "steps.jsonl", facts), device, warn)

    return make


def test_the_batch_of_each_step_and_the_requests(recorder, tmp_path):
    made = recorder(async_scheduling=False)
    made.added(request("a", 100), 1.0, 1.001)
    runs(made, output(new=[("a", 64)], tokens={"a": 36}), 2.0)  # 64 tokens from the prefix cache
    made.added(request("b", 1), 2.5, 2.501)
    runs(made, output(new=[("b", 0)], cached=[("a", 100)], preempted=["c"]), 3.0)
    runs(made, output(tokens={"none": 0}), 3.5)  # nothing to do: no step
    runs(made, output(cached=[("a", 101), ("b", 1)], finished=["c"]), 4.0)
    made.close()
    steps = read_steps(tmp_path / "steps.jsonl")
    assert steps.num_decodes.tolist() == [0, 1, 2]  # one token of a prompt of one is a prefill
    assert steps.context_tokens.tolist() == [0, 100, 102]
    assert steps.prefills.tolist() == [[64, 36], [0, 1]]
    assert steps.num_prefills.tolist() == [1, 1, 0]
    assert steps.prefill_tokens.tolist() == [36, 1, 0]
    assert steps.num_preempted.tolist() == [0, 1, 0]
    assert (steps.num_running.tolist(), steps.num_waiting.tolist()) == ([2] * 3, [1] * 3)
    assert steps.num_free_blocks.tolist() == [9] * 3
    assert steps.S.tolist() == [2.0, 3.0, 4.0]
    assert steps.U.tolist() == [2.01, 3.01, 4.01]
    assert steps.L.tolist() == pytest.approx([2.003, 3.003, 4.003])  # synchronous: sampling waits for the device
    assert np.isnan(steps.D).all()
    assert [(r.request_id, r.num_prompt_tokens, r.begin_s) for r in steps.requests] == [("a", 100, 1.0), ("b", 1, 2.5)]


def test_who_has_left_is_forgotten(recorder):
    made = recorder()
    for name in "ab":
        made.added(request(name, 50), 1.0, 1.1)
    runs(made, output(new=[("a", 0), ("b", 0)], tokens={"a": 50, "b": 50}), 2.0)
    runs(made, output(tokens={"none": 0}, finished=["a"]), 2.5)
    runs(made, output(cached=[("b", 50)]), 3.0)
    made.close()
    assert made._num_prompt_tokens == {"b": 50}
    assert not IN_FLIGHT


def test_two_batches_in_flight(recorder, tmp_path):
    made = recorder(async_scheduling=True)
    first, second = output(new=[("a", 0)], tokens={"a": 8}), output(cached=[("a", 8)])
    made.added(request("a", 8), 0.5, 0.6)
    for planned, begin_s in ((first, 1.0), (second, 1.01)):
        made.planned(planned, begin_s, begin_s + 0.001, (1, 0, 9))
        IN_FLIGHT[id(planned)].line |= {
            "x0": begin_s + 0.001,
            "x1": begin_s + 0.002,
            "m0": begin_s + 0.002,
            "m1": begin_s + 0.003,
        }
        device_ran(planned, begin_s + 0.001, begin_s + 0.03)
    made.updated(first, 1.031, 1.032)
    made.updated(second, 1.042, 1.043)
    made.close()
    steps = read_steps(tmp_path / "steps.jsonl")
    assert steps.is_async
    assert steps.L.tolist() == pytest.approx([1.003, 1.013])
    assert steps.D.tolist() == pytest.approx([1.03, 1.04])


class FakeCuda:
    """A device whose clock goes wrong by 50 millionths, and which says distances in ms as 32-bit floats."""

    def __init__(self):
        self.host_s = 0.0

    def now(self):
        self.host_s += 2e-6  # looking at it takes time
        return self.host_s

    def current_device(self):
        return 0

    def device(self, number):
        return nullcontext()

    def Stream(self, device):  # noqa: N802 - torch's name
        return None

    def Event(self, enable_timing):  # noqa: N802
        assert enable_timing
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, cuda):
        self.cuda = cuda

    def record(self, stream=None):
        self.at_s = self.cuda.host_s * (1 + 50e-6) + 1000.0
        self.cuda.host_s += 3e-6

    def synchronize(self):
        self.cuda.host_s += 5e-6

    def elapsed_time(self, end):
        return float(np.float32(1000 * (end.at_s - self.at_s)))


def test_device_times_after_an_hour():
    cuda = FakeCuda()
    clock = DeviceClock(cuda, cuda.now)
    first = clock._anchors[0]
    while cuda.host_s < 3600:
        clock.set_anchor()
        cuda.host_s += EVERY_S
    launched_s = cuda.host_s
    event = clock.mark()
    assert clock.moment_s(event, launched_s) == pytest.approx(launched_s, abs=30e-6)
    assert abs(first.moment_s + first.event.elapsed_time(event) / 1000 - launched_s) > 0.1  # by one anchor alone
    assert clock.mark() is event  # and no event is made anew


def test_an_anchor_that_was_held_up_is_not_taken():
    cuda = FakeCuda()
    clock = DeviceClock(cuda, cuda.now)
    cuda.host_s += 1.0
    wait, FakeEvent.synchronize = FakeEvent.synchronize, lambda event: setattr(cuda, "host_s", cuda.host_s + 0.004)
    try:
        clock.set_anchor()  # another thread had the interpreter for 4 ms
    finally:
        FakeEvent.synchronize = wait
    assert len(clock._anchors) == 1
    clock.set_anchor()
    assert len(clock._anchors) == 2


def test_device_times_are_written_of_each_step(recorder, tmp_path):
    cuda = FakeCuda()
    made = recorder(DeviceClock(cuda, cuda.now))
    planned = output(new=[("a", 0)], tokens={"a": 8})
    made.planned(planned, cuda.host_s, cuda.host_s, (1, 0, 9))
    step = IN_FLIGHT[id(planned)]
    begun_s = cuda.host_s
    step.begins(), step.launched(), step.samples()
    cuda.host_s += 0.02
    step.sampled()
    step.line |= {"x0": begun_s, "x1": begun_s, "m0": begun_s, "m1": begun_s}
    made.updated(planned, cuda.host_s, cuda.host_s)
    made.close()
    steps = read_steps(tmp_path / "steps.jsonl")
    assert steps.times["start_s"][0] == pytest.approx(begun_s, abs=20e-6)
    assert steps.D[0] - steps.times["start_s"][0] == pytest.approx(0.02, abs=20e-6)


def test_a_full_disk_ends_the_recording_and_not_the_server(recorder):
    warned = []
    made = recorder(warn=warned.append)
    made._file._file.close()
    runs(made, output(new=[("a", 0)]), 1.0)
    made._thread.join(5)
    assert len(warned) == 1
    assert "no more steps are recorded" in warned[0]
    runs(made, output(new=[("b", 0)]), 2.0)
    assert not made._queue
    made.close()


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is here")
def test_without_vllm_the_class_says_so():
    with pytest.raises(UserError, match="vllm: is not installed"):
        __import__("simbatch.vllm_recorder")


def test_a_thread_that_waited_for_a_request_is_idle_however_short_it_was(recorder, tmp_path):
    made = recorder(async_scheduling=False)
    for k, beside in enumerate((False, False, True)):
        begin_s = 2.0 + 0.013 * k  # 3 ms after the update before
        made.added(request(f"r{k}", 64), begin_s - 0.0005, begin_s)
        planned = output(
            new=[(f"r{k}", 0)],
            cached=[("x", 70)] if beside else [],
            tokens={f"r{k}": 64, **({"x": 1} if beside else {})},
        )
        made.planned(planned, begin_s, begin_s + 0.001, (1 + beside, 0, 9))
        IN_FLIGHT[id(planned)].line |= dict.fromkeys(("x0", "x1", "m0", "m1"), begin_s + 0.001)
        made.updated(planned, begin_s + 0.008, begin_s + 0.010)
    made.close()
    assert moments_of(read_steps(tmp_path / "steps.jsonl")).is_idle.tolist() == [True, True, False]
