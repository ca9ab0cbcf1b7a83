"""`simbatch serve` as its users have it: a server in processes of its own, real clients, Ctrl-C; and vLLM's own parser.

A profile that is known is given back by a server of `simbatch serve`: measured, and fitted from what that leaves.
The machine that runs this may do other things too, so launches, which are waited for, may come late: their bounds are
wide here. benchmarks/serve_planted.py is the same for more profiles, for a machine that is quiet. What `recommend`
writes is put through vLLM's parser, whose every flag has an answer in the table that `simbatch init` reads.
"""

from __future__ import annotations

import json
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serve_planted import differences, measured
from parity.serve_flags import differences as flag_differences
from parity.serve_flags import listed
from simbatch.sim.cost.by_name import load_profile, shipped_names
from simbatch.sim.cost.model import Features, step_ps, sums_of
from simbatch.sim.scenario.flags import spellings
from simbatch.sim.tuning.recommend import BatchChoice, CaseLoad, Recommendation
from simbatch.sim.tuning.recommend_cases import USE_CASES, scenario_of
from simbatch.sim.tuning.vllm_flags import arguments, config_yaml, vllm_serve
from simbatch.sim.tuning.vllm_flags import command as serve_command

PROFILE = "h100-llama-3.1-8b-bf16"
FLAGS = ("--max-num-seqs", "64", "--max-model-len", "4k", "--num-gpu-blocks-override", "2000")
ANSWER_TOKENS = 12
WAIT_S = 60
RATE_PER_S, NUM_REQUESTS = 15, 200


def command(port, *more):
    return [sys.executable, "-m", "simbatch", "serve", PROFILE, "--port", str(port), *more]


class Served:
    """A server that is up, where it writes its steps, and what it said."""

    def __init__(self, folder):
        import psutil

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.steps = f"http://127.0.0.1:{self.port}", folder / "steps.jsonl"
        options = ("--output-len", str(ANSWER_TOKENS), "--steps", str(self.steps), "--", *FLAGS)
        self.process = subprocess.Popen(command(self.port, *options), stdout=subprocess.PIPE, text=True)
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("ready"):
                break
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def post(self, path, **body):
        data = json.dumps({"model": PROFILE, **body}).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return json.load(answer)

    def metric(self, name):
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=WAIT_S) as answer:
            found = re.search(rf"^{name}{{.*}} (\S+)$", answer.read().decode(), re.MULTILINE)
        return float(found[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    served = Served(tmp_path_factory.mktemp("serve"))
    yield served
    served.process.kill()
    served.process.wait()


def test_it_says_what_it_serves(served):
    assert served.said[-1].startswith("ready"), served.said
    assert "2,000 KV blocks of 16 tokens, max_num_seqs 64, max_num_batched_tokens 8,192" in served.said[0]


def test_answers_end_where_their_drawn_length_does(served):
    chat = served.post("/v1/chat/completions", messages=[{"role": "user", "content": "Wie geht es dir?"}])
    assert chat["usage"]["completion_tokens"] == ANSWER_TOKENS
    assert chat["choices"][0]["finish_reason"] == "stop"
    assert len(chat["choices"][0]["message"]["content"].split()) == ANSWER_TOKENS - 1  # the last one is the end
    longer = served.post("/v1/completions", prompt="x", max_tokens=40, ignore_eos=True, logprobs=1)
    assert longer["usage"]["completion_tokens"] == len(longer["choices"][0]["logprobs"]["tokens"]) == 40


def test_a_grammar_is_kept(served):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema | {"required": ["a", "b"]}}}
    messages = [{"role": "user", "content": "hi"}]
    chat = served.post("/v1/chat/completions", messages=messages, response_format=form, max_tokens=60)
    assert set(json.loads(chat["choices"][0]["message"]["content"])) == {"a", "b"}


def test_equal_beginnings_hit_the_prefix_cache(served):
    before = served.metric("vllm:prefix_cache_hits_total")
    for _ in range(2):
        served.post("/v1/completions", prompt=[7] * 160, max_tokens=1)
    assert served.metric("vllm:prefix_cache_hits_total") - before == 144  # all whole blocks but the last


@pytest.fixture(scope="module")
def streamed(served):
    from benchmarks.gateway_sessions import Sent, stream

    rng, at_s, requests = random.Random(5), 0.0, []
    for _ in range(NUM_REQUESTS):
        at_s += rng.expovariate(RATE_PER_S)
        requests.append(Sent(at_s, rng.randint(100, 900), rng.randint(10, 60)))
    before = served.metric("vllm:generation_tokens_total")
    return stream(served.url, PROFILE, requests, seed=5), served.metric("vllm:generation_tokens_total") - before


def test_streams_take_a_gpus_time(streamed):
    """Wide bounds: this machine is shared, and the front end is its own."""
    rows, num_tokens = streamed
    assert len(rows) == NUM_REQUESTS
    assert num_tokens == sum(row.num_output_tokens for row in rows)
    cost = load_profile(PROFILE, folder=Path()).cost_model()
    alone_ms = cost.decode_ps(1) / 1e9
    tpot_ms = np.array([row.tpot_ms for row in rows])
    assert alone_ms < tpot_ms.mean() < 5 * alone_ms
    first_ms = step_ps(cost, Features(*sums_of([(100, 0, False)]))) / 1e9
    assert first_ms < min(row.ttft_ms for row in rows)
    assert np.mean([row.ttft_ms for row in rows]) < 500


def test_the_log_has_every_step_with_the_profiles_times(served, streamed):
    """Two steps in flight, each as long on the device as the profile says, one after the other."""
    rows, _ = streamed
    wait_for_ends(served.steps, {row.name for row in rows})
    lines = [json.loads(line) for line in served.steps.read_text().splitlines()]
    steps = [line for line in lines if "s0" in line]
    assert sum("add" in line for line in lines) >= NUM_REQUESTS
    cost = load_profile(PROFILE, folder=Path()).cost_model()
    for step in steps:
        features = Features(*sums_of(((n, done, False) for done, n in step["pre"]), step["nd"], step["ctx"]))
        assert step["d1"] - step["d0"] == pytest.approx(step_ps(cost, features) / 1e12, abs=3e-6)
        assert step["s0"] <= step["s1"] <= step["x0"] <= step["x1"] <= step["m0"] <= step["m1"] <= step["u0"]
        assert step["d1"] - 2e-6 <= step["u0"] <= step["u1"]
        assert len(step["batch"]) == step["nd"] + len(step["pre"])
    for before, after in pairwise(steps):
        assert max(before["d1"], after["x0"]) - 2e-6 <= after["d0"] <= max(before["d1"], after["x1"]) + 2e-6
    ahead = sum(after["m1"] < before["d1"] for before, after in pairwise(steps))
    assert ahead > 0.3 * len(steps)  # launched while the device still works on the one before


def wait_for_ends(file, names):
    """Until the log, which is written once a second, has the ends of all of these."""
    for _ in range(10 * WAIT_S):
        ended = re.findall(r"cmpl-(\w+)-0", " ".join(re.findall(r'"finished": ?\[([^\]]+)\]', file.read_text())))
        if names <= set(ended):
            return
        time.sleep(0.1)
    raise AssertionError(f"requests have not ended in {file}")


def test_the_port_is_taken(served):
    second = subprocess.run(command(served.port), capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert second.stderr.startswith("error: --port: cannot be served on: Address already in use")


def test_ctrl_c_ends_all_of_its_processes(served):
    import psutil

    assert len(served.children) >= 2
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(WAIT_S) == 0
    assert served.process.stdout.read() == "ended\n"
    left = [child for child in served.children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert left == []  # a container's first process may never ask how an orphan ended
    folder = re.search(r"go to (\S+)/vllm.log", "".join(served.said))[1]
    assert not Path(folder).exists()


DEVICE, LAUNCH = 0.03, 0.5
STREAMS = 1.0  # of decodes: where others take the cores, a client sees the front end more than the device


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    given, fits = measured(0, tmp_path_factory.mktemp("planted"), 0.6)
    return {name: differences(given, fit) for name, fit in fits.items()}


@pytest.mark.parametrize("name", ["profile", "recorder"])
def test_planted_device_and_launches_come_back(found, name):
    for key, share in found[name].items():
        assert abs(share) < (LAUNCH if key.startswith("launch") else DEVICE), (key, found[name])


def test_the_three_fits_agree_on_decodes(found):
    for key in ("decode of 1", "decode of 4"):  # of larger batches these streams have none
        assert abs(found["profile"][key] - found["recorder"][key]) < DEVICE
        assert abs(found["profile"][key] - found["streams"][key]) < STREAMS, found["streams"]


CHOSEN = BatchChoice(24, 4096)


@pytest.fixture(scope="module")
def parse():
    """`vllm serve ...` as vLLM's command line builds it."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    return lambda words: parser.parse_args(words)


def recommendation(use_case, name, **changes):
    case, profile = USE_CASES[use_case], load_profile(name, folder=Path())
    profile = profile.model_copy(update=changes)
    scenario = scenario_of(case, profile, name, case.slo, 0)
    return Recommendation(case, scenario, profile, case.goal, CHOSEN, CHOSEN, CHOSEN, CaseLoad(1.0), {})


def check(parsed, given):
    assert (parsed.model_tag or parsed.model) == given["model"]
    for name, value in given.items():
        if name not in ("model", "quantization", "dtype"):
            assert getattr(parsed, name.replace("-", "_")) == value, name
    assert parsed.quantization == given.get("quantization")
    assert parsed.dtype == given.get("dtype", "auto")


@pytest.mark.parametrize("name", shipped_names())
def test_command_and_file_of_every_profile(name, parse, tmp_path):
    given = arguments(recommendation("mixed", name))
    check(parse(shlex.split(serve_command(given))[1:]), given)
    file = tmp_path / "vllm.yaml"
    file.write_text(config_yaml(given, "a comment"))
    check(parse(["serve", "--config", str(file)]), given)


@pytest.mark.parametrize("name", shipped_names())
def test_what_tune_prints_is_taken_too(name, parse):
    profile, scenario = load_profile(name, folder=Path()), recommendation("mixed", name).scenario
    words = shlex.split(vllm_serve(scenario, {"engine.max_num_seqs": 24, "engine.enable_prefix_caching": False}))
    parsed = parse(words[1:])
    assert (parsed.model_tag, parsed.max_num_seqs, parsed.enable_prefix_caching) == (profile.model, 24, False)
    assert parsed.tensor_parallel_size == profile.tensor_parallel_size
    assert parsed.max_model_len == scenario.engine.max_model_len
    assert parsed.kv_cache_dtype == (profile.kv_cache_dtype if profile.kv_cache_dtype.startswith("fp8") else "auto")


@pytest.mark.parametrize("use_case", USE_CASES)
@pytest.mark.parametrize("quantisation", ["bf16", "fp32", "awq", "gptq", "fp8", "int8", "int4", "fp8_block"])
def test_every_use_case_and_quantisation(use_case, quantisation, parse):
    given = arguments(recommendation(use_case, "rtx4090-llama-3.1-8b-bf16", quantisation=quantisation))
    check(parse(shlex.split(serve_command(given))[1:]), given)


def test_what_is_off_is_said_as_vllm_says_it(parse, tmp_path):
    found = recommendation("mixed", "rtx4090-llama-3.1-8b-bf16")
    found = replace(found, scenario=found.scenario.override({"engine.enable_prefix_caching": False}))
    given = arguments(found)
    file = tmp_path / "vllm.yaml"
    file.write_text(config_yaml(given, "a comment"))
    assert "--no-enable-prefix-caching" in serve_command(given)
    assert parse(shlex.split(serve_command(given))[1:]).enable_prefix_caching is False
    assert parse(["serve", "--config", str(file)]).enable_prefix_caching is False


STATUSES = {"used", "no_effect", "not_simulated"}


def test_every_flag_of_the_parser_has_an_answer():
    actions = [action for action in listed(sys.executable)["actions"] if action["options"]]
    assert len(actions) > 300
    assert [*flag_differences(actions)] == []
    rows = [spellings()[option][0] for action in actions for option in action["options"] if option != "-h"]
    assert {row.status for row in rows} == STATUSES
    assert all(row.key or row.reason for row in rows)
