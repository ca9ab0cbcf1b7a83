"""What must hold in every scenario that ships; and each is found by its name, wherever a command runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from simbatch import Result, Scenario, UserError, simulate
from simbatch.sim.cost.by_name import shipped_text
from simbatch.sim.cost.profile import HOST_KEYS
from simbatch.sim.files import write_json
from simbatch.sim.scenario import resolve
from simbatch.sim.scenario.presets import shipped_scenarios
from tests import exit_code as run
from tests.made_scenarios import INLINE, fixed, serving

ROOT = Path(__file__).parents[1]
AZURE = ROOT.parent / "shared" / "traces" / "azure" / "AzureLLMInferenceTrace_conv.csv"
FEW = ("--set", "workload.num_prompts=20")
HERE = pytest.mark.usefixtures("elsewhere")
SCENARIOS = sorted(path.stem for path in (ROOT / "scenarios").glob("*.yaml"))


def load(name: str) -> Scenario:
    scenario = Scenario.load(ROOT / "scenarios" / f"{name}.yaml")
    if name == "azure_conversation":
        if not AZURE.is_file():
            pytest.skip("../shared/traces/azure (the Azure conversation trace) is not here")
        scenario = scenario.override({"workload.trace.path": str(AZURE)})
    return scenario


@pytest.fixture(scope="module", params=SCENARIOS)
def result(request: pytest.FixtureRequest) -> Result:
    """On the device alone: with host and front end the client has its tokens later than the engine."""
    scenario = load(request.param)
    profile = json.loads(shipped_text(str(scenario.profile)))
    alone = {key: profile[key] for key in profile if key not in HOST_KEYS}
    return simulate(scenario.override({"profile": alone}))


def test_littles_law(result: Result) -> None:
    """Mean number = arrival rate x mean time: of the queue, of the whole system, and of the batches on the device.

    The last is the engine's own count, step by step, against the requests' times: a request is in every step from its
    first to its last token, but for those that it misses by a preemption.
    """
    requests, duration_s = result.requests, result.summary["duration"]
    assert set(requests["status"]) <= {"finished", "rejected"}
    arrival_s, scheduled_s, finish_s = requests["arrival_s"], requests["scheduled_s"], requests["finish_s"]
    rate_per_s, ours = len(arrival_s) / duration_s, result.summary["simbatch"]
    assert ours["queue"]["mean_waiting"] == pytest.approx(rate_per_s * (scheduled_s - arrival_s).mean(), rel=1e-9)
    assert ours["mean_concurrent_requests"] == pytest.approx(rate_per_s * (finish_s - arrival_s).mean(), rel=1e-9)
    if ours["engine"]["batching"] == "static":  # members finish together, after their own last tokens
        return
    spans, columns = result.record.segments, result.record.requests
    steps = spans["num_steps"]
    time_ps = steps * spans["duration_ps"] + spans["slope_ps"] * (steps * (steps - 1) // 2)
    on_device_ps = int(((spans["num_decodes"] + spans["num_prefills"]) * time_ps).sum())
    in_system_ps = int((columns.finish_ps - columns.scheduled_ps).sum())
    if ours["num_preemptions"]:
        assert 0.97 * in_system_ps < on_device_ps < in_system_ps
    else:
        assert on_device_ps == in_system_ps


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "azure_conversation"])
def test_the_same_seed_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    scenario = load(name)
    if scenario.workload.sessions:
        scenario = scenario.override({"workload.sessions.num_sessions": 8})
    elif not scenario.workload.mix:
        scenario = scenario.override({"workload.num_prompts": 150})
    first, again = (simulate(scenario).summary for _ in range(2))
    for folder, summary in (("first", first), ("again", again)):
        write_json(tmp_path / folder, summary)
    text = (tmp_path / "first").read_bytes()
    assert text == (tmp_path / "again").read_bytes()
    assert b"Infinity" not in text
    assert b"NaN" not in text
    assert simulate(scenario.override({"seed": 12345})).summary["mean_ttft_ms"] != first["mean_ttft_ms"]


def test_the_azure_trace_keeps_its_lengths() -> None:
    """All 19,366 rows, none left out, prompt and output lengths as in the file."""
    result = simulate(load("azure_conversation"))
    rows = np.loadtxt(AZURE, delimiter=",", skiprows=1, usecols=(1, 2), dtype=int)
    assert len(rows) == 19_366
    assert np.array_equal(result.requests["num_prompt_tokens"], rows[:, 0])
    assert np.array_equal(result.requests["num_output_tokens"], rows[:, 1])
    assert result.summary["completed"] == 19_366


def test_an_output_that_is_cut_is_counted_and_said() -> None:
    """Prompts of 900 and outputs of 200 where prompt and output may have 1,000 tokens: 100 are produced, as in vLLM."""
    lengths = {"prompt_len": fixed(900), "output_len": fixed(200)}
    result = simulate(serving(INLINE, 20, 1, engine={"max_model_len": 1000}, **lengths))
    assert (result.requests["num_output_tokens"] == 100).all()
    assert result.summary["simbatch"]["num_truncated"] == 20
    assert "20 of 20 requests had their output cut" in result.text()


def test_the_demo_shows_a_difference() -> None:
    """In a burst, `priority` keeps the high class out of the queue, and the three differ in goodput."""

    bursty = Scenario.load(ROOT / "scenarios" / "bursty.yaml")
    summaries = {name: simulate(bursty, name).summary for name in ("fixed", "adaptive", "priority")}
    goodput = [summary["request_goodput"] for summary in summaries.values()]
    assert max(goodput) > 1.1 * sorted(goodput)[1] > 1.2 * min(goodput)
    high = {name: summary["simbatch"]["classes"]["high"]["p99_ttft_ms"] for name, summary in summaries.items()}
    assert high["priority"] < 0.2 * high["fixed"]


@pytest.mark.parametrize("name", ["steady", "priority_mix", "memory_pressure", "long_prompts", "static_batches"])
def test_scenarios_show_what_they_are_for(name: str) -> None:

    resolved = resolve(Scenario.load(ROOT / "scenarios" / f"{name}.yaml"))
    result = simulate(resolved.scenario)
    ours = result.summary["simbatch"]
    assert result.summary["completed"] == resolved.scenario.workload.num_prompts
    assert (ours["num_preemptions"] > 1) == (name == "memory_pressure")
    if name == "long_prompts":
        assert result.requests["num_prompt_tokens"].max() > resolved.engine.max_num_batched_tokens
    if name == "priority_mix":
        classes = ours["classes"]
        assert classes["high"]["p99_ttft_ms"] < classes["normal"]["p99_ttft_ms"] < classes["low"]["p99_ttft_ms"]
    if name != "static_batches":  # below capacity: the queue does not grow
        assert result.summary["request_throughput"] > 0.9 * (resolved.scenario.workload.request_rate or 0)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@HERE
def test_all_that_ship_are_listed_with_what_they_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scenarios", "list", "--json") == 0
    listed = {entry["name"]: entry["about"] for entry in json.loads(capsys.readouterr().out)}
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "scenarios").glob("*.yaml"))
    assert listed["steady"].startswith("Plain Poisson traffic well below capacity")
    assert run("scenarios", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == sorted(listed)
    assert max(map(len, lines)) <= 100


@HERE
def test_a_name_runs_as_its_file_does(elsewhere: Path) -> None:
    assert run("run", "bursty", *FEW, "--quiet") == 0
    by_name = (elsewhere / "results" / "bursty" / "summary.json").read_bytes()
    assert run("run", str(ROOT / "scenarios" / "bursty.yaml"), *FEW, "--quiet", "-o", "by-path") == 0
    assert (elsewhere / "by-path" / "summary.json").read_bytes() == by_name


@HERE
@pytest.mark.parametrize(
    ("words", "written"),
    [
        (("compare", "bursty", "--policy", "vllm", "--policy", "fixed"), "results/bursty-compare/compare.json"),
        (("explain", "bursty", "--request", "3"), None),
        (("trace", "generate", "out.csv", "--scenario", "bursty"), "out.csv"),
        (("sweep", "bursty", "--over", "engine.max_num_seqs=8", "--jobs", "1"), "results/bursty-sweep/summary.csv"),
    ],
)
def test_every_command_that_takes_a_scenario_takes_a_name(words: tuple[str, ...], written: str | None) -> None:
    assert run(*words, *FEW) == 0
    assert written is None or Path(written).is_file()


@HERE
def test_a_file_of_that_name_wins_and_a_folder_does_not() -> None:
    Path("steady").mkdir()
    assert Scenario.load("steady").seed == 1
    text = yaml.safe_load((ROOT / "scenarios" / "steady.yaml").read_text())
    Path("bursty").write_text(yaml.safe_dump({**text, "seed": 99}))
    assert Scenario.load("bursty").seed == 99


@HERE
@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("burst", "scenario: neither a shipped scenario nor a file (got 'burst'); did you mean bursty? "),
        ("small", "scenario: neither a shipped scenario nor a file (got 'small'); did you mean small.yaml? "),
        (
            "scenarios/bursty.yaml",
            "scenarios/bursty.yaml: cannot be read: No such file; write `bursty` for the one that ships",
        ),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(reference: str, said: str) -> None:
    Path("small.yaml").write_text("")
    with pytest.raises(UserError) as refused:
        Scenario.load(reference)
    assert str(refused.value).startswith(said)


@HERE
def test_a_copy_is_the_file_and_nothing_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scenarios", "copy", "priority_mix") == 0
    assert capsys.readouterr().out == "priority_mix.yaml; run it: simbatch run priority_mix.yaml\n"
    assert Path("priority_mix.yaml").read_bytes() == (ROOT / "scenarios" / "priority_mix.yaml").read_bytes()
    assert run("scenarios", "copy", "steady", "-o", "priority_mix.yaml") == 2
    assert "priority_mix.yaml: is there already; name another file with -o" in capsys.readouterr().err
    assert run("scenarios", "copy", "stedy") == 2
    assert "no scenario of this name ships (got 'stedy'); did you mean steady?" in capsys.readouterr().err


@HERE
def test_a_scenario_whose_trace_does_not_ship_says_where_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "azure_conversation") == 2
    said = capsys.readouterr().err
    assert "azure_conversation:15:11 workload.trace.path: there is no such file" in said
    assert "get it from github.com/Azure/AzurePublicDataset (folder data) and say where it is" in said
    assert "--set workload.trace.path=FILE" in said


@HERE
def test_relative_paths_in_a_shipped_one_start_here(elsewhere: Path) -> None:
    """A file of the user's is not looked for where the package is installed."""
    rows = "".join(f"2023-11-16 18:17:0{i}.0000000,{100 + i},{10 + i}\n" for i in range(5))
    Path("mine.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    assert run("run", "azure_conversation", "--set", "workload.trace.path=mine.csv", "--json", "-o", "out") == 0
    assert json.loads((elsewhere / "out" / "summary.json").read_text())["completed"] == 5


def test_help_names_no_file_of_the_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    """What `--help` and the names in it say must hold for a wheel, which has no folder scenarios/ beside it."""
    for path in (ROOT / "simbatch" / "cli").glob("*.py"):
        assert "scenarios/" not in path.read_text(), path
    assert run("--help") == 0
    assert "Start with: simbatch run bursty" in capsys.readouterr().out
    assert "bursty" in shipped_scenarios()
