"""`simbatch profile --server` on a server of the tests' own, whose steps last as planted; tests/vllm has real ones."""

import json
import re

import pytest

from simbatch.cli import main
from simbatch.profiler.records.samples import read_samples
from simbatch.sim.cost.by_name import load_profile
from tests.recording_server import StandInRecorder, planted_s
from tests.streaming_server import StreamingServer


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


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
        assert run("profile", *arguments, "-o", target) == 2
        return capsys.readouterr().err

    assert "--steps FILE" in said("--server", serving.url)
    assert "goes with --server alone" in said("m", "--steps", steps)
    assert "leave it out" in said("--server", serving.url, "--steps", steps, "--max-num-seqs", 4)
    assert "either a MODEL" in said("m", "--server", serving.url, "--steps", steps)
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
