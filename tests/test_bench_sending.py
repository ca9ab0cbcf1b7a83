"""When a recorded run's requests were sent, and when those of its simulation are."""

from __future__ import annotations

import gzip
import json
from typing import Any

import numpy as np
import pytest

from simbatch.sim.errors import UserError
from simbatch.sim.workload.bench import vllm
from simbatch.sim.workload.bench.document import Document
from simbatch.sim.workload.bench.run import BenchRun
from simbatch.sim.workload.bench.sending import CLOSED, sending_of
from tests import bench_files as files

CLOSED_LOOP = files.ran(files.closed_loop(8, num_prompts=80))
POISSON = {
    "num_prompts": 200,
    "request_rate": 9.0,
    "prompt_len": files.lengths(300, 0.6),
    "output_len": files.lengths(60, 0.5),
}


def drawn(seed: int, *, rescale: bool = True, burstiness: float = 1.0) -> dict[str, Any]:
    """A trace's arrivals as vLLM's client draws them under a seed."""
    n, rate = POISSON["num_prompts"], POISSON["request_rate"]
    gaps = np.random.RandomState(seed).gamma(burstiness, 1 / (rate * burstiness), n)
    times = np.cumsum(gaps)
    return {"times": times * (n / rate / times[-1]) if rescale else np.concatenate([[0.0], times[:-1]])}


def poisson(tmp_path: Any, seed: int = 0, *, limit: int | None = None, **how: Any) -> dict[str, Any]:
    """A run that was sent so, as vLLM's client writes it down."""
    rng = np.random.default_rng(5)
    rows = [
        {
            "arrival_s": t,
            "num_prompt_tokens": int(rng.integers(20, 600)),
            "num_output_tokens": int(rng.integers(5, 120)),
        }
        for t in drawn(seed, **how)["times"].tolist()
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    workload: dict[str, Any] = {"trace": {"path": str(path)}}
    if limit is not None:
        workload["max_concurrency"] = limit
    result = files.ran(workload)
    end = float((result.requests["arrival_s"] + result.requests["e2el_s"]).max())
    rate, burstiness = POISSON["request_rate"], how.get("burstiness", 1.0)
    return files.vllm(result, request_rate=rate, burstiness=burstiness, max_concurrency=limit, duration=end)


def run_of(bench: dict[str, Any], *, is_timed: bool = True) -> BenchRun:
    content = {key: value for key, value in bench.items() if is_timed or key != "start_times"}
    run = vllm.read(Document("r.json", content))
    assert isinstance(run, BenchRun)
    return run


def counted(times_s: Any) -> Any:
    return np.asarray(times_s) - np.min(times_s)


def test_a_closed_loop_is_simulated_as_one() -> None:
    sending = sending_of(run_of(files.vllm(CLOSED_LOOP, max_concurrency=8)))
    assert (sending.is_closed, sending.max_concurrency, sending.notes) == (True, 8, (CLOSED,))


def test_a_closed_loop_without_times_of_sending_is_made_again() -> None:
    bench = files.vllm(CLOSED_LOOP, max_concurrency=8)
    sending = sending_of(run_of(bench, is_timed=False))
    assert sending.is_closed
    assert not sending.untold
    assert np.abs(counted(sending.sent_s) - counted(bench["start_times"])).max() < 1e-6


def test_a_client_that_paused_says_nothing_of_its_throughput() -> None:
    bench = files.vllm(CLOSED_LOOP, max_concurrency=8)
    sending = sending_of(run_of(bench | {"duration": 2 * bench["duration"]}, is_timed=False))
    assert set(sending.untold) == {"duration", "throughput", "concurrent_requests"}
    assert "its client paused in between" in sending.untold["throughput"]


def test_a_closed_loop_that_nobody_names_is_known_by_its_sends() -> None:
    sending = sending_of(run_of(files.vllm(CLOSED_LOOP, request_rate=None)))
    assert (sending.is_closed, sending.max_concurrency) == (True, 8)
    assert "every send followed an end, 8 in flight" in sending.notes[0]


def test_open_arrivals_are_no_closed_loop(tmp_path: Any) -> None:
    bench = poisson(tmp_path) | {"request_rate": None}
    sending = sending_of(run_of(bench))
    assert (sending.is_closed, sending.max_concurrency, sending.notes) == (False, None, ())


def test_what_the_scenario_knows_of_the_limit_counts() -> None:
    sending = sending_of(run_of(files.vllm(CLOSED_LOOP, request_rate=None)), max_concurrency=9, is_closed=True)
    assert (sending.is_closed, sending.max_concurrency) == (True, 9)


@pytest.mark.parametrize("how", [{}, {"rescale": False}, {"burstiness": 0.5}])
def test_vllm_s_gaps_are_drawn_again(tmp_path: Any, how: dict[str, Any]) -> None:
    bench = poisson(tmp_path, **how)
    sending = sending_of(run_of(bench, is_timed=False))
    assert np.abs(counted(sending.sent_s) - counted(bench["start_times"])).max() < 1e-6
    assert "100% of the streams keep step" in sending.notes[0]


def test_gaps_under_a_limit_are_drawn_again_and_held_back(tmp_path: Any) -> None:
    bench = poisson(tmp_path, limit=6)
    for is_timed in (True, False):
        sending = sending_of(run_of(bench, is_timed=is_timed))
        assert (sending.is_closed, sending.max_concurrency) == (False, 6)
        assert sending.planned_s is not None
        planned = sending.planned_s - sending.sent_s.min() + counted(drawn(0)["times"]).min()
        assert counted(planned) == pytest.approx(counted(drawn(0)["times"]), abs=1e-6)
        assert np.abs(counted(sending.sent_s) - counted(bench["start_times"])).max() < 1e-6
    other = poisson(tmp_path, seed=3, limit=6)
    sending = sending_of(run_of(other))
    assert sending.planned_s is None
    assert "a faster server does not show" in sending.notes[0]


def test_another_seed_is_refused(tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"\d% of the streams keep step with the others: another seed"):
        sending_of(run_of(poisson(tmp_path, seed=1), is_timed=False))


def test_gaps_that_end_off_the_duration_are_refused(tmp_path: Any) -> None:
    bench = poisson(tmp_path)
    with pytest.raises(UserError, match="off its duration of"):
        sending_of(run_of(bench | {"duration": bench["duration"] + 0.5}, is_timed=False))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"request_rate": None}, "nor at which rate"),
        ({"request_rate": 4.0, "duration": None}, "nor how long the run lasted"),
        ({"request_rate": 4.0, "burstiness": 1e-12}, "by which gaps drawn again could be checked"),
        ({"request_rate": 4.0, "model_id": None, "tag": "x"}, "random gaps cannot be drawn again"),
        ({"ramp_up_strategy": "linear", "request_rate": 4.0}, "nor at which rate"),
        ({"max_concurrency": 8, "errors": ["reset"] * 40 + [""] * 40}, "50% of them failed"),
    ],
)
def test_what_cannot_be_made_again_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        sending_of(run_of(files.vllm(CLOSED_LOOP, **changes), is_timed=False))


@pytest.mark.parametrize(
    ("name", "worst_s"), [("c1", 0.004), ("c16", 0.012), ("p8", 0.005), ("p16", 0.007), ("p22", 0.01)]
)
def test_times_of_a_real_client_come_back(name: str, worst_s: float) -> None:
    """vllm bench serve 0.32 against a real server: with the times left out they are made again to some ms."""
    bench = json.loads(gzip.decompress(files.shared(f"gpu/h100-vllm-0.32/serve/{name}.json.gz").read_bytes()))
    sent_s = np.array(bench["start_times"])
    sending = sending_of(run_of(bench, is_timed=False))
    assert np.abs(counted(sending.sent_s) - counted(sent_s)).max() < worst_s
