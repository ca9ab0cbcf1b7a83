"""`simbatch validate --server`: the client's figures, files and sentences, on a server of the tests' own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import yaml

from tests import run_command
from tests.servers import HANGS, MODEL, STEP_S, StreamingServer

# the keys of vllm/benchmarks/serve.py 0.32 with --save-result --save-detailed, as one run of it wrote them
STATISTICS = [f"{s}_{n}_ms" for n in ("ttft", "tpot", "itl", "e2el") for s in ("mean", "median", "std", "p90", "p99")]
BENCH_KEYS = {
    *("date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate"),
    *("burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens", "total_output_tokens"),
    *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput", "input_lens"),
    *("output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times", "generated_texts", "errors"),
    *("max_output_tokens_per_s", "max_concurrent_requests", "rtfx", *STATISTICS),
}


@pytest.fixture
def serving():
    servers = []

    def start(**given):
        servers.append(StreamingServer(**given))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def scenario(tmp_path):
    def write(**workload):
        lengths = {"prompt_len": {"distribution": "uniform", "min": 40, "max": 80, "mean": 60}}
        lengths |= {"output_len": {"distribution": "uniform", "min": 3, "max": 9, "mean": 6}}
        content = {
            "profile": {"num_gpu_blocks": 700, "step_time": {"base_s": STEP_S}},
            "workload": {"num_prompts": 30, "request_rate": 40, **lengths, **workload},
        }
        (tmp_path / "load.yaml").write_text(yaml.safe_dump(content))
        return str(tmp_path / "load.yaml")

    return write


def test_figures_of_a_server_that_does_as_simulated(capsys, serving, scenario, tmp_path):
    server, out = serving(), tmp_path / "out"
    done = run_command(capsys, "validate", scenario(), "--server", f"{server.url}/v1", "--repeat", "2", "-o", str(out))
    assert done.code == 0, done.said
    assert len(server.bodies) == 1 + 2 * 30  # the first asks whether it serves
    content = json.loads((out / "validation.json").read_text())
    figures = {figure["key"]: figure for figure in content["figures"]}
    assert figures["mean_tpot_ms"]["simulated"] == pytest.approx(1000 * STEP_S)
    for key in ("mean_tpot_ms", "mean_e2el_ms", "output_throughput", "duration"):
        # the server sleeps for its steps: on a machine with other work it wakes late, by no more than a step
        assert 0.5 < figures[key]["median"] / figures[key]["simulated"] < 2, key
        assert len(figures[key]["real"]) == 2
    assert content["real"]["mode"] == "server"
    assert content["real"]["model"] == MODEL
    engine = content["simulated"]["engine"]  # what the scenario leaves open is the server's
    assert (engine["num_gpu_blocks"], engine["max_model_len"], engine["block_size"]) == (600, 600, 16)


def test_what_is_sent_is_what_the_scenario_says(capsys, serving, scenario, tmp_path):
    server, file = serving(), scenario(prefix={"num_prefixes": 2, "prefix_len": 32})
    given = ("--server", server.url, "--repeat", "2", "--temperature", "0.7", "-o", str(tmp_path / "out"))
    assert run_command(capsys, "validate", file, *given).code == 0
    bodies = server.bodies[1:]
    recorded = json.loads((tmp_path / "out" / "run-1" / "result.json").read_text())
    sent = Counter((len(body["prompt"]), body["max_tokens"]) for body in bodies[:30])
    # two that go out within a millisecond may be read in either order
    assert sent == Counter(zip(recorded["input_lens"], recorded["output_lens"], strict=True))
    same = {"model": MODEL, "stream": True, "ignore_eos": True, "temperature": 0.7}
    assert all(body.items() >= same.items() for body in bodies)
    first, second = (Counter(tuple(body["prompt"][:32]) for body in part) for part in (bodies[:30], bodies[30:]))
    assert len(first) == 2  # prefixes, shared by all
    assert len({tuple(body["prompt"][32:]) for body in bodies}) == 60
    assert not first.keys() & second.keys()  # the first run's prompts are in the server's cache by then


def test_the_detailed_json_is_that_of_vllm_bench_serve(capsys, serving, scenario, tmp_path):
    server, file = serving(), scenario()
    assert run_command(capsys, "validate", file, "--server", server.url, "-o", str(tmp_path / "out")).code == 0
    result = tmp_path / "out" / "run-1" / "result.json"
    content = json.loads(result.read_text())
    assert content.keys() - {"simbatch"} >= BENCH_KEYS
    assert content.keys() - BENCH_KEYS <= {"simbatch", *(f"p95_{n}_ms" for n in ("ttft", "tpot", "itl", "e2el"))}
    assert content["completed"] == 30
    assert [len(itl) + 1 for itl in content["itls"]] == content["output_lens"]
    latency = [ttft + sum(itl) for ttft, itl in zip(content["ttfts"], content["itls"], strict=True)]
    assert latency == pytest.approx(content["latencies"])
    again = run_command(capsys, "validate", file, "--recorded", str(result), "-o", str(tmp_path / "recorded"))
    assert again.code == 0, again.said
    figures = json.loads((tmp_path / "recorded" / "validation.json").read_text())["figures"]
    assert {f["key"]: f["median"] for f in figures}["mean_ttft_ms"] == pytest.approx(content["mean_ttft_ms"])


def test_a_limit_on_concurrency_holds_on_both_sides(capsys, serving, scenario, tmp_path):
    server, file = serving(), scenario(request_rate=1000)
    given = ("--server", server.url, "--max-concurrency", "4", "-o", str(tmp_path / "out"))
    assert run_command(capsys, "validate", file, *given).code == 0
    assert server.max_at_once == 4
    figures = json.loads((tmp_path / "out" / "validation.json").read_text())["figures"]
    in_flight = next(f for f in figures if f["key"] == "simbatch.mean_concurrent_requests")
    assert 3 < in_flight["simulated"] <= 4
    assert 3 < in_flight["median"] <= 4
    content = json.loads((tmp_path / "out" / "run-1" / "result.json").read_text())
    assert content["max_concurrency"] == 4
    assert max(content["queue_times"]) > STEP_S


def test_resume_goes_on_with_the_runs_that_are_there(capsys, serving, scenario, tmp_path):
    server, file, out = serving(), scenario(), tmp_path / "out"
    given = ("--server", server.url, "-o", str(out), "--resume")
    assert run_command(capsys, "validate", file, *given).code == 0
    before = (out / "run-1" / "result.json").read_bytes()
    assert run_command(capsys, "validate", file, *given, "--repeat", "2").code == 0
    assert (out / "run-1" / "result.json").read_bytes() == before
    content = json.loads((out / "validation.json").read_text())
    ttft = next(f for f in content["figures"] if f["key"] == "mean_ttft_ms")
    assert ttft["real"][0] == pytest.approx(json.loads(before)["mean_ttft_ms"])
    other = run_command(capsys, "validate", file, *given, "--temperature", "1")
    assert other.code == 2
    assert "the runs in it are of another temperature" in other.said


def test_refused_requests_are_told_and_left_out(capsys, serving, scenario, tmp_path):
    refuse = lambda number: (503, "queue is full") if number % 10 == 3 else None  # noqa: E731
    done = run_command(
        capsys, "validate", scenario(), "--server", serving(answer=refuse).url, "-o", str(tmp_path / "out")
    )
    assert done.code == 0
    assert "3 of 30 requests failed in run 1 (HTTP 503: queue is full)" in done.said
    content = json.loads((tmp_path / "out" / "run-1" / "result.json").read_text())
    assert (content["completed"], content["failed"]) == (27, 3)
    assert Counter(content["errors"]) == {"": 27, "HTTP 503: queue is full": 3}


def test_each_thing_that_goes_wrong_is_one_sentence(capsys, serving, scenario, tmp_path):
    file, server = scenario(), serving()

    def said(*arguments):
        done = run_command(capsys, "validate", file, *arguments, "-o", str(tmp_path / "out"))
        assert done.code == 2, done.said
        errors = [line for line in done.said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert "Traceback" not in done.said
        return errors[0]

    server.close()
    assert "cannot be reached: Connection refused" in said("--server", server.url)
    assert "must be an address" in said("--server", "localhost:8000")
    server = serving(max_model_len=300)
    assert f"serves {MODEL} (got 'other')" in said("--server", server.url, "--served-model", "other")
    assert "the real engine has 300 (got 500)" in said("--server", server.url, "--set", "engine.max_model_len=500")
    assert "goes with --server or --engine" in said("--recorded", "x", "--temperature", "1")
    no = serving(answer=lambda number: (400, "no token ids"))
    assert "does not complete a prompt of token ids (HTTP 400: no token ids)" in said("--server", no.url)
    full = serving(answer=lambda number: (503, "full") if number else None)
    assert "answered none of 30 requests: HTTP 503: full" in said("--server", full.url)


def test_a_server_that_dies_leaves_what_it_had_answered(capsys, serving, scenario, tmp_path):
    server, out = serving(lives=12), tmp_path / "out"
    done = run_command(capsys, "validate", scenario(), "--server", server.url, "-o", str(out))
    assert done.code == 2
    assert "is gone: Connection refused; run 1 was cut off after" in done.said
    content = json.loads((out / "run-1" / "cut-off.json").read_text())
    assert f"after {content['completed']} of {len(content['errors'])} requests sent" in done.said
    assert 8 <= content["completed"] == Counter(content["errors"])[""] < len(content["errors"])
    assert not (out / "run-1" / "result.json").exists()


def test_ctrl_c_leaves_what_was_answered(serving, scenario, tmp_path):
    server, out = serving(), tmp_path / "out"
    command = [sys.executable, "-m", "simbatch", "validate", scenario(num_prompts=400), "--server", server.url]
    started = subprocess.Popen(
        [*command, "-o", str(out)], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell may have it ignored
    )  # fmt: skip
    while len(server.bodies) < 60:
        time.sleep(0.02)
    os.kill(started.pid, signal.SIGINT)
    _, said = started.communicate(timeout=30)
    assert started.returncode == 130
    assert "run 1 was cut off after" in said
    assert "go on with --resume" in said
    assert "Traceback" not in said
    assert json.loads((out / "run-1" / "cut-off.json").read_text())["completed"] > 20


def test_tokens_that_come_together_are_told(capsys, serving, scenario, tmp_path):
    done = run_command(capsys, "validate", scenario(), "--server", serving(at_once=2).url, "-o", str(tmp_path / "out"))
    assert done.code == 0, done.said
    content = json.loads((tmp_path / "out" / "run-1" / "result.json").read_text())
    assert [len(itl) + 1 for itl in content["itls"]] == [(n + 1) // 2 for n in content["output_lens"]]
    share = 1 - sum((n + 1) // 2 for n in content["output_lens"]) / sum(content["output_lens"])
    assert f"{share:.0%} of the tokens came together with the one before" in done.said.replace("\n", " ")


def test_a_server_that_hangs_is_given_up(capsys, serving, scenario, tmp_path, monkeypatch):
    monkeypatch.setattr("simbatch.profiler.server.client.STALL_S", 1.5)
    monkeypatch.setattr("simbatch.profiler.server.client.LOOK_S", 0.1)
    server = serving(answer=lambda number: HANGS if number > 20 else None)
    done = run_command(capsys, "validate", scenario(), "--server", server.url, "-o", str(tmp_path / "out"))
    assert done.code == 2
    assert "is gone: nothing has come from it for 1.5 s; run 1 was cut off after 20 of 30 requests sent" in done.said
    assert json.loads((tmp_path / "out" / "run-1" / "cut-off.json").read_text())["completed"] == 20


@pytest.fixture
def sessions(tmp_path):
    """Two sessions of three turns, 40 ms apart; of the second one the last turn leaves the answer out."""
    rows = [
        {"session_id": "a", "arrival_s": 0, "num_prompt_tokens": 40, "num_output_tokens": 5},
        {"session_id": "a", "delay": 0.04, "num_prompt_tokens": 70, "num_output_tokens": 4},
        {"session_id": "a", "delay": 0.04, "num_prompt_tokens": 90, "num_output_tokens": 3},
        {"session_id": "b", "arrival_s": 0.03, "num_prompt_tokens": 33, "num_output_tokens": 6},
        {"session_id": "b", "delay": 0.04, "num_prompt_tokens": 60, "num_output_tokens": 8},
        {"session_id": "b", "delay": 0.04, "num_prompt_tokens": 62, "num_output_tokens": 2},
    ]
    (tmp_path / "turns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "profile": {"num_gpu_blocks": 700, "step_time": {"base_s": STEP_S}},
        "workload": {"trace": {"path": "turns.jsonl"}},
    }
    (tmp_path / "sessions.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "sessions.yaml")


@pytest.mark.parametrize("tells", [True, False])
def test_turns_are_sent_when_others_have_ended_and_go_on_with_what_was_said(capsys, serving, sessions, tmp_path, tells):
    server, out = serving(), tmp_path / "out"
    server.tells_token_ids = tells
    done = run_command(capsys, "validate", sessions, "--server", server.url, "-o", str(out))
    assert done.code == 0, done.said
    result = json.loads((out / "run-1" / "result.json").read_text())
    sent = dict(
        zip(result["simbatch"]["rows"], zip(result["start_times"], result["latencies"], strict=True), strict=True)
    )
    prompts = dict(zip(result["simbatch"]["rows"], (body["prompt"] for body in server.bodies[1:]), strict=True))
    for first, second, num_answer in ((0, 1, 5), (1, 2, 4), (3, 4, 6), (4, 5, 0)):
        assert sent[second][0] >= sum(sent[first]) + 0.04
        n = len(prompts[first])
        assert prompts[second][:n] == prompts[first]
        said = [server.token_id(n, number + 1) for number in range(num_answer)]
        assert (prompts[second][n : n + num_answer] == said) is (tells or not said)
    assert [len(prompts[row]) for row in range(6)] == [40, 70, 90, 33, 60, 62]
    assert ("does not tell all token ids" in done.said) is not tells
    found = json.loads((out / "validation.json").read_text())
    figures = {figure["key"]: figure for figure in found["figures"]}
    session = figures["simbatch.sessions.mean_duration_ms"]
    assert session["median"] > 0.95 * session["simulated"]  # a busy machine is slower, none is faster
    hits = [row["cached_tokens_share"] for row in found["turns"]]
    assert [each["simulated"] for each in hits] == [0, (32 + 32) / 130, (64 + 48) / 152]
    # what another text than the answer stands before is not found: of 70 tokens behind 40 and 5
    assert [each["real"] for each in hits] == [0, (32 + 32) / 130, (64 + 48) / 152] if tells else hits
    assert "sessions, turn by turn" in done.said


def test_a_server_that_tells_no_hits_is_told(capsys, serving, sessions, tmp_path):
    server = serving()
    server.tells_hits = False
    done = run_command(capsys, "validate", sessions, "--server", server.url, "-o", str(tmp_path / "out"), "--html")
    assert "hit rates by turn left out" in " ".join(done.said.split())
    turns = json.loads((tmp_path / "out" / "validation.json").read_text())["turns"]
    assert [row["cached_tokens_share"]["real"] for row in turns] == [None] * 3
    assert [row["num_requests"] for row in turns] == [2, 2, 2]
    assert "Sessions, turn by turn" in (tmp_path / "out" / "report.html").read_text()


def test_a_turn_that_fails_ends_its_session(capsys, serving, sessions, tmp_path):
    server = serving(answer=lambda number: (500, "no") if number == 1 else None)
    done = run_command(capsys, "validate", sessions, "--server", server.url, "-o", str(tmp_path / "out"))
    assert done.code == 0, done.said
    assert len(server.bodies) == 1 + 1 + 3  # a question, a turn of the first session, three of the other
    assert "1 of 4 requests failed in run 1" in done.said
