"""vLLM's own decisions: every recording of its real scheduler, line for line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parity import check
from parity.check import first_difference, load, main, recordings
from parity.recording import CaseLines
from simbatch.sim.compiled import is_compiled
from simbatch.sim.scheduler.names import FIRST_OWN
from simbatch.sim.scheduler.prefix_cache import PrefixKVCache
from simbatch.sim.scheduler.request import Request

FOLDERS = check.RECORDINGS, check.TIMING, check.SESSIONS, check.OTHERS
RECORDINGS = [pair for folder in FOLDERS for pair in recordings(folder)]


@pytest.mark.parametrize(("case", "recording"), RECORDINGS, ids=[case.stem for case, _ in RECORDINGS])
def test_the_recording_is_reproduced(case: Path, recording: Path) -> None:
    assert first_difference(json.loads(case.read_text()), load(recording)) is None


@pytest.mark.skipif(is_compiled(), reason="nobody can look into a compiled class")
def test_a_recording_has_a_block_of_its_own_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rarest branch of the prefix cache: a preempted request may not hit its own last block, and computes it again.

    One random case in 2,000 reaches it, and no other recording.
    """
    found = []

    def enter(cache: PrefixKVCache, request: Request, name: int, end: int) -> None:
        if name >= FIRST_OWN and name in cache._runs:
            found.append(request.request_id)
        original(cache, request, name, end)

    original = PrefixKVCache._enter
    monkeypatch.setattr(PrefixKVCache, "_enter", enter)
    case = check.RECORDINGS / "e11_prio_duplicate.json"
    CaseLines(json.loads(case.read_text())).play()
    assert found == ["b7_0"]


def test_a_difference_is_found_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, recording = RECORDINGS[0]
    changed = json.loads(case.read_text())
    changed["requests"][0]["max_tokens"] += 1
    (tmp_path / case.name).write_text(json.dumps(changed))
    (tmp_path / recording.name).write_bytes(recording.read_bytes())
    assert main([str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "0 of 1 identical" in shown
    assert "vLLM     {" in shown


def test_recordings_in_a_folder_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, recording = RECORDINGS[0]
    for folder, path in (("cases", case), ("expected", recording)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    assert main([str(tmp_path / "cases")]) == 0
    assert "1 of 1 identical" in capsys.readouterr().out


def test_nothing_to_compare_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no case" in capsys.readouterr().out


def test_a_refused_configuration_must_be_refused_here_too() -> None:
    case = json.loads(RECORDINGS[0][0].read_text())
    recorded = [{"case": case["name"], "vllm": "0.32.0", "config_error": "ValidationError"}]
    assert "starts" in str(first_difference(case, recorded))
    case["config"] |= {"max_num_batched_tokens": 8, "max_num_seqs": 16}
    assert first_difference(case, recorded) is None


def test_names_of_physical_blocks_are_not_compared(tmp_path: Path) -> None:
    case, recording = RECORDINGS[0]
    lines = [line | ({"blk": {"r0": [1, 2]}} if "i" in line else {}) for line in load(recording)]
    assert first_difference(json.loads(case.read_text()), lines) is None
    (tmp_path / "broken.json").write_text('{"name": "broken"}')
    (tmp_path / "broken.jsonl.gz").write_bytes(recording.read_bytes())
    assert main([str(tmp_path)]) == 1
