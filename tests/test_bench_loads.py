"""How a benchmark's client sent its requests: read off its result, made again, and simulated."""

import gzip
import json
from typing import Any

import numpy as np
import pytest

from simbatch.sim.errors import UserError
from simbatch.sim.json_values import JsonValue
from simbatch.sim.workload.bench import CLOSED, BenchRun, sending_of
from simbatch.sim.workload.bench.run import read_vllm
from tests import bench_files as files
from tests import run_command, traffic
from tests.bench_files import arguments, by_key, validated, write_inline

CLOSED_LOOP = files.ran(files.closed_loop(8, num_prompts=80))


NUMBER, RATE = 200, 9.0


def drawn(seed: int, *, rescale: bool = True, burstiness: float = 1.0) -> Any:
    """A trace's arrivals as vLLM's client draws them under a seed."""
    times = np.cumsum(np.random.RandomState(seed).gamma(burstiness, 1 / (RATE * burstiness), NUMBER))
    return times * (NUMBER / RATE / times[-1]) if rescale else np.concatenate([[0.0], times[:-1]])


def poisson(tmp_path: Any, seed: int = 0, *, limit: int | None = None, **how: Any) -> dict[str, Any]:
    """A run that was sent so, as vLLM's client writes it down."""
    rng = np.random.default_rng(5)
    rows = [
        {
            "arrival_s": t,
            "num_prompt_tokens": int(rng.integers(20, 600)),
            "num_output_tokens": int(rng.integers(5, 120)),
        }
        for t in drawn(seed, **how).tolist()
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    workload: dict[str, Any] = {"trace": {"path": str(path)}}
    if limit is not None:
        workload["max_concurrency"] = limit
    result = files.ran(workload)
    end = float((result.requests["arrival_s"] + result.requests["e2el_s"]).max())
    end += rows[0]["arrival_s"]  # a client's run begins before its first request
    burstiness = how.get("burstiness", 1.0)
    return files.vllm(result, request_rate=RATE, burstiness=burstiness, max_concurrency=limit, duration=end)


def run_of(bench: dict[str, Any], *, is_timed: bool = True) -> BenchRun:
    content = {key: value for key, value in bench.items() if is_timed or key != "start_times"}
    run = read_vllm(JsonValue("r.json", content))
    assert isinstance(run, BenchRun)
    return run


def counted(times_s: Any) -> Any:
    return np.asarray(times_s) - np.min(times_s)


def test_a_closed_loop_is_known_by_its_limit() -> None:
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
        planned = sending.planned_s - sending.sent_s.min() + counted(drawn(0)).min()
        assert counted(planned) == pytest.approx(counted(drawn(0)), abs=1e-6)
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


def agreeing(tmp_path, capsys, file, workload=None, within=1e-6):
    """The answer about a file that has no error against the simulation of a scenario."""
    content, output = validated(tmp_path, capsys, file, scenario=write_inline(tmp_path, workload))
    assert output.code == 0, output.err
    for key, figure in by_key(content).items():
        assert figure["error"] == pytest.approx(0, abs=within), key
    return content


def refusal(tmp_path, capsys, file, workload=None):
    done = run_command(capsys, *arguments(tmp_path, file, scenario=write_inline(tmp_path, workload)))
    assert done.code == 2
    return done.err


def test_a_closed_loop_is_simulated_as_one(tmp_path, capsys):
    """So that a server half as fast has half the throughput, and not the recorded one at the recorded times."""
    bench = files.vllm(files.ran(files.closed_loop(4)), max_concurrency=4)
    file = files.save(tmp_path / "bench.json", bench)
    assert agreeing(tmp_path, capsys, file)["real"]["load"] == "4 in flight"
    slower = [f"--set=profile.step_time.{key}={2 * value}" for key, value in files.STEP_TIME.items()]
    content, output = validated(
        tmp_path, capsys, file, *slower, "--bounds", "throughput=7", scenario=write_inline(tmp_path)
    )
    assert output.code == 1
    figures = by_key(content)
    assert figures["request_throughput"]["error"] == pytest.approx(-0.5, abs=1e-3)
    assert figures["mean_e2el_ms"]["error"] == pytest.approx(1.0, abs=1e-3)
    assert figures["simbatch.mean_concurrent_requests"]["error"] == pytest.approx(0, abs=0.01)


def test_a_closed_loop_sends_the_file_s_lengths_in_its_order(tmp_path, capsys):
    """One after the other: the order of sending decides when each is sent, and a shuffled file is put in order."""
    bench = files.vllm(files.ran(files.closed_loop(1, num_prompts=12, cv=1.0)), max_concurrency=1)
    order = np.random.default_rng(0).permutation(12)
    shuffled = {
        key: [column[i] for i in order] if isinstance(column, list) else column for key, column in bench.items()
    }
    agreeing(tmp_path, capsys, files.save(tmp_path / "bench.json", shuffled))


def test_without_times_of_sending_the_load_says_how_they_were_sent(tmp_path, capsys):
    bench = files.vllm(files.ran(files.closed_loop(4)), max_concurrency=4, start_times=None)
    file = files.save(tmp_path / "bench.json", bench)
    content = agreeing(tmp_path, capsys, file)
    assert any("does not say when requests were sent" in note for note in content["notes"])
    untold = {"start_times": None, "request_rate": 2.0, "model_id": None, "tag": ""}
    files.save(file, files.vllm(files.ran(files.closed_loop(4)), **untold))
    assert "cannot be drawn again" in refusal(tmp_path, capsys, file)


def test_what_a_client_does_not_tell_is_left_out_with_a_sentence(tmp_path, capsys):
    run_of = files.guidellm(files.ran(files.closed_loop(4)), {"type_": "concurrent", "streams": 4})
    for row in run_of["requests"]["successful"]:
        del row["time_to_first_token_ms"]
    file = files.save(tmp_path / "benchmarks.json", {"benchmarks": [run_of]})
    flags = ("--bounds", "mean_e2el=1,mean_tpot=1")
    content, output = validated(tmp_path, capsys, file, *flags, scenario=write_inline(tmp_path))
    assert not [key for key in by_key(content) if "ttft" in key or "tpot" in key or "itl" in key]
    assert by_key(content)["mean_e2el_ms"]["error"] == pytest.approx(0, abs=1e-6)
    notes = " ".join(content["notes"])
    assert "TTFT, TPOT left out: the report has no time of the first token" in notes
    assert output.code == 1  # a bound on what the file does not tell is not kept
    shown = run_command(capsys, *arguments(tmp_path, file, *flags, scenario=write_inline(tmp_path)))
    assert "OUTSIDE the bounds: mean_tpot (the real run does not tell it)" in shown.out


@pytest.mark.parametrize("write_file", [files.aiperf, files.inference_perf])
def test_other_clients_records_have_no_error_against_their_own_simulation(tmp_path, capsys, write_file):
    content = write_file(files.ran(files.closed_loop(4)))
    name = "profile_export.jsonl" if write_file is files.aiperf else "per_request_lifecycle_metrics.json"
    file = files.save(tmp_path / name, content, lines=write_file is files.aiperf)
    content = agreeing(tmp_path, capsys, file, within=1e-5)
    assert any("every send followed an end, 4 in flight" in note for note in content["notes"])


def test_totals_alone_against_the_workload_of_the_scenario(tmp_path, capsys):
    workload = traffic(50, 300, 40, request_rate=4.0) | {"prompt_len": files.lengths(300, 0.5)}
    summary = files.ran(workload).summary
    totals = {key: value for key, value in summary.items() if key != "simbatch"} | {"request_rate": 4.0}
    file = files.save(tmp_path / "totals.json", totals)
    stated = workload | {"num_prompts": 7, "request_rate": 1.0}
    content = agreeing(tmp_path, capsys, file, stated)
    assert content["num_requests"] == 50  # number and rate are the file's
    told = {"mean_ttft_ms", "p99_e2el_ms", "mean_itl_ms", "request_throughput", "duration"}
    assert told <= by_key(content).keys()
    assert not (tmp_path / "out" / "latency.png").exists()  # nothing is known of single requests
    other = refusal(tmp_path, capsys, file, stated | {"prompt_len": files.lengths(600)})
    assert "and the scenario's have 600.0; state the workload that was run" in other


@pytest.mark.parametrize(
    ("load", "arrival"),
    [
        ({"request_rate": "inf", "max_concurrency": 4}, {"process": "all_at_once"}),
        ({"request_rate": "inf"}, {"process": "all_at_once"}),
        ({"request_rate": "inf", "max_concurrency": 4}, {"process": "closed_loop", "max_concurrency": 9}),
    ],
)
def test_the_load_of_totals_is_the_file_s(tmp_path, capsys, load, arrival):
    workload = files.closed_loop(4, num_prompts=30)
    arrived = {"process": "closed_loop", "max_concurrency": load.get("max_concurrency", 30)}
    totals = {k: v for k, v in files.ran(workload | {"arrival": arrived}).summary.items() if k != "simbatch"} | load
    file = files.save(tmp_path / "totals.json", totals)
    agreeing(tmp_path, capsys, file, workload | {"arrival": arrival})


def test_the_scenario_may_say_the_limit_that_the_file_does_not(tmp_path, capsys):
    result = files.ran(files.closed_loop(4))
    workload = files.closed_loop(4)
    file = files.save(tmp_path / "bench.json", files.vllm(result, request_rate=None))
    assert agreeing(tmp_path, capsys, file, workload)["real"]["load"] == "4 in flight"
    files.save(file, files.vllm(result, max_concurrency=5))
    said = refusal(tmp_path, capsys, file, workload)
    assert "workload.arrival: the recorded run had another number of requests in flight (got 4)" in said
