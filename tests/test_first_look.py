"""The first look at host and front end: with them a simulation is nearer to the real server (docs/accuracy.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import first_look
from benchmarks.first_look import ENGINE, HOST_FILE, PROFILE, RECORDED, SERVED, errors, main, read_host, recorded_run
from simbatch import Scenario
from simbatch.sim.cost.load import shipped_text
from simbatch.sim.scenario import resolve

WORKLOAD = {
    **{"num_prompts": 1, "request_rate": 1},
    **{f"{name}_len": {"distribution": "fixed", "mean": 9} for name in ("prompt", "output")},
}
needs_recorded = pytest.mark.skipif(
    not (RECORDED / "serve").is_dir(), reason="../shared (the recorded runs of the H100) is not here"
)


@needs_recorded
@pytest.mark.parametrize("name", ["c1", "p8"])
def test_with_host_times_a_run_is_nearer_to_the_real_server(name: str) -> None:
    run = next(run for run in SERVED if run.name == name)
    recorded = recorded_run(run, RECORDED)
    alone, with_host = errors(run, recorded, None), errors(run, recorded, read_host(), seeds=2)
    assert -0.6 < alone["mean TTFT"] < -0.3  # what the GPU alone leaves out
    assert abs(with_host["mean TTFT"]) < 0.1
    for figure in ("mean TPOT", "mean E2EL", "mean ITL"):
        assert abs(with_host[figure]) < min(0.05, abs(alone[figure]))


def test_the_file_of_host_times_serves_any_scenario() -> None:
    content = {"profile": PROFILE, "engine": ENGINE, "workload": WORKLOAD, "host": {"from": str(HOST_FILE)}}
    resolved = resolve(Scenario.from_dict(content))
    assert resolved.host_profile == "h100-host"
    assert resolved.engine.host is not None
    assert resolved.engine.host.none.base_ps == 24_300_000_000
    assert resolved.engine.front_end is not None
    assert resolved.engine.front_end.network_ps == 8_000_000_000
    assert resolved.host_noise() is not None
    for section in read_host().values():
        assert "that machine's host, not every H100's" in section["source"]


def test_the_device_is_the_shipped_profile_a_little_slower() -> None:
    shipped = json.loads(shipped_text(PROFILE))["step_time"]
    scaled = first_look.scaled_profile(2.0)["step_time"]
    assert scaled["form"] == shipped["form"]
    assert scaled["decode"]["seqs"]["count"] == shipped["decode"]["seqs"]["count"]
    assert scaled["decode"]["seqs"]["time_s"][0] == pytest.approx(1.03 * shipped["decode"]["seqs"]["time_s"][0])
    for regime, factor in (("decode", 1.03), ("mixed", 2.06)):
        term = "per_context_token_s"
        assert scaled[regime][term] == pytest.approx(factor * shipped[regime][term])


def test_without_the_recorded_runs_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["first_look", "--recorded", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"{tmp_path}: the recorded runs are not here; --recorded names their folder\n"
    )
