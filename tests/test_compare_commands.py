"""`simbatch compare --replications` and `--rate`: paired differences over seeds and loads, refusals, files, figures."""

import csv
import json
import re
from itertools import pairwise
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import yaml
from scipy import stats

from simbatch.sim.report.loads_picture import spread
from tests import drawn, lengths, traffic
from tests import exit_code as run

SCENARIO: dict[str, Any] = {
    "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01, "per_decode_seq_s": 0.001}},
    "policy": {"name": "fixed", "batch_size": 3},
    "workload": traffic(200, 20, 20, request_rate=8) | {"output_len": lengths(20, 0.5)},
    "slo": {"ttft_ms": 200, "e2el_ms": 1000},
    "seed": 3,
}
CANDIDATES = ("--policy", "fixed", "--policy", "vllm")
FOUR, LOADS = ("--replications", "4"), ("--rate", "4,8")
STILL = ("--set", "workload.arrival={process: constant}")
STILL += ("--set", "workload.output_len={distribution: fixed, mean: 20}")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(SCENARIO))
    return tmp_path


def compare(*arguments: str, file: str = "small.yaml") -> int:
    return run("compare", file, *(() if "--policy" in arguments else CANDIDATES), "--jobs", "1", *arguments)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, file: str = "small.yaml") -> str:
    assert compare(*arguments, file=file) == 0
    return capsys.readouterr().out


def stored(folder: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("results", folder, "compare.json").read_text())
    return content


def compared(*arguments: str) -> dict[str, Any]:
    assert compare(*arguments, "--quiet") == 0
    return stored("small-loads" if "--rate" in arguments else "small-compare")


def metric(content: dict[str, Any], key: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in content["metrics"] if row["key"] == key)
    return found


@pytest.mark.parametrize("rates", [(), ("--rate", "12,8", "--rate", "4")], ids=["as written", "three loads"])
def test_intervals_are_those_of_the_pairs_and_runs_those_of_the_seeds(
    rates: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    content = compared(*rates, *FOUR)
    assert capsys.readouterr().out == ""
    assert (content["seeds"], content["base"]) == ([3, 4, 5, 6], "fixed")
    if rates:
        assert (content["rate_key"], content["rates"]) == ("workload.request_rate", [4, 8, 12])
    else:
        assert content["same_arrivals"] is True
    for load, rate, seed in zip(content.get("loads", [content]), content.get("rates", [8]), (4, 6, 5), strict=False):
        row = metric(load, "mean_e2el_ms")
        base, other = row["runs"]["fixed"], row["runs"]["vllm"]
        expected = stats.ttest_rel(other, base).confidence_interval(0.95)
        difference = row["differences"]["vllm"]
        assert (difference["low"], difference["high"]) == pytest.approx((expected.low, expected.high))
        assert difference["verdict"] == ("better" if expected.high < 0 else "no difference shown")
        assert row["values"]["vllm"] == pytest.approx(sum(other) / 4)
        interval = stats.t.interval(0.95, 3, sum(base) / 4, stats.sem(base))
        assert (row["intervals"]["fixed"]["low"], row["intervals"]["fixed"]["high"]) == pytest.approx(interval)
        assert metric(load, "completed")["differences"]["vllm"]["verdict"] == "no difference shown"
        changes = ("--set", f"workload.request_rate={rate}", "--seed", seed, "--policy", "vllm", "--quiet")
        assert run("run", "small.yaml", *changes) == 0
        alone = json.loads(Path("results/small/summary.json").read_text())["p99_ttft_ms"]
        assert metric(load, "p99_ttft_ms")["runs"]["vllm"][content["seeds"].index(seed)] == alone


def test_processes_change_nothing() -> None:
    alone = compared(*FOUR)
    assert compared(*FOUR, "--jobs", "2") == alone


def test_table_and_files_of_replications(capsys: pytest.CaptureFixture[str]) -> None:
    short = printed(capsys, *FOUR)
    assert re.search(r"^P99 E2EL \(ms\) +[\d,.]+ +[\d,.]+ +-[\d,.]+ +-[\d,.]+ to -[\d,.]+  better$", short, re.M)
    assert re.search(r"^vllm against fixed: better in ", short, re.M)
    assert max(map(len, short.splitlines())) <= 100
    out = printed(capsys, *FOUR, "--all", "-o", "results/small-compare")
    assert out.startswith("small, seeds 3 to 6: means of 4 runs, differences from fixed with 95 % intervals\n")
    assert re.search(r"^vllm against fixed +fixed +vllm +difference +interval +relative$", out, re.M)
    figures = r"[\d,.]+ +[\d,.]+ +-[\d,.]+ +-[\d,.]+ to -[\d,.]+ +-[\d.]+ % to -[\d.]+ %  \+"
    assert re.search(rf"^Mean E2EL \(ms\) +{figures}$", out, re.M)
    assert re.search(r"^Successful requests .* equal in every run .* =$", out, re.M)
    assert re.search(r"^\d+ comparisons, each at 95 % by itself", out, re.M)
    folder = Path("results/small-compare")
    pictures = {"compare.png", "differences.png"}
    assert {path.name for path in folder.iterdir()} == {"compare.json", "compare.csv", "run.json", *pictures}
    assert drawn(folder / "differences.png").width == 990
    with (folder / "compare.csv").open(newline="") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert rows["mean_e2el_ms"]["vllm verdict"] == "better"
    assert float(rows["mean_e2el_ms"]["vllm high"]) < 0
    assert "runs" not in compared()["metrics"][0]  # one run again: its files alone
    assert not (folder / "differences.png").exists()


def test_table_files_and_a_figure_for_print_of_loads(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("--rate", "4,16", "--replications", "3")
    out = printed(capsys, *command)
    title = "small, seeds 3 to 5: means of 3 runs at each of 2 loads with 95 % intervals"
    assert out.startswith(f"{title}\n\nP99 TTFT (ms)\n")
    [header] = [line for line in out.splitlines() if line.startswith("request_rate")][:1]
    assert header.split() == ["request_rate", "fixed", "vllm"]
    assert out.splitlines()[5].startswith("16 ")
    assert out.splitlines()[5].endswith(" +")
    assert "+ better than fixed, - worse, = no difference shown" in out
    assert "WARNING: fixed: overloaded at 16 (in 3): latencies there say how long the runs were." in out
    folder = Path("results/small-loads")
    pictures = {"loads.png", "loads.pdf"}
    assert {path.name for path in folder.iterdir()} == {"compare.json", "compare.csv", "run.json", *pictures}
    picture = drawn(folder / "loads.png")
    assert picture.width == round(7.16 * 200)
    assert len(picture.convert("L").getcolors(1 << 16)) > 20
    pdf = (folder / "loads.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/Subtype /Image" not in pdf  # vectors
    with (folder / "compare.csv").open(newline="") as file:
        rows = {(row["rate"], row["metric"], row["candidate"]): row for row in csv.DictReader(file)}
    row = rows["16.0", "p99_ttft_ms", "vllm"]
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    assert (row["verdict"], rows["16.0", "p99_ttft_ms", "fixed"]["verdict"]) == ("better", "")
    printed(capsys, *command)
    assert (folder / "loads.pdf").read_bytes() == pdf
    assert compare("--quiet", "-o", str(folder)) == 0  # one load: its files alone
    assert not (folder / "loads.pdf").exists()


def test_overload_refuses_the_steady_state_and_keeps_the_means(capsys: pytest.CaptureFixture[str]) -> None:
    heavy = ("--set", "workload.request_rate=40", "--set", "workload.num_prompts=800")
    content = compared(*heavy, *FOUR)
    assert content["overloaded_runs"] == {"fixed": 4, "vllm": 0}
    assert content["steady_state_refused"]["fixed"] == "overloaded"
    assert metric(content, "mean_e2el_ms")["intervals"]["fixed"]["low"] > 0
    steady = metric(content, "simbatch.steady_state.mean_e2el_ms.value")
    assert steady["values"]["fixed"] is None
    assert steady["values"]["vllm"] > 0
    assert steady["differences"]["vllm"]["verdict"] == "overloaded"
    out = printed(capsys, "--replications", "2", "--all", *heavy)
    assert "Steady state: no claim about fixed, 2 of 2 runs: overloaded." in out
    assert "WARNING: fixed: overloaded in 2 of 2 runs" in out
    assert "steady (ms)" not in out


def test_one_run_a_load_has_no_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, *LOADS)
    assert "NOTE: one run a load says nothing of chance" in out
    assert "±" not in out
    intervals = metric(stored("small-loads")["loads"][0], "p99_ttft_ms")["intervals"]
    assert intervals == {"fixed": None, "vllm": None}


@pytest.mark.parametrize("more", [(), LOADS], ids=["as written", "loads"])
def test_a_seed_that_changes_nothing_gives_no_interval(
    more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, "--replications", "2", *STILL, *more)
    assert "NOTE: the seed changes nothing here, so one run says it all; there is no interval." in out
    if not more:
        assert "better" not in out
        assert "runs" not in stored("small-compare")["metrics"][0]


def test_several_runs_of_a_trace_resample_it(capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{i / 9 + (i % 7) / 70},{20 + i % 13},{10 + i * i % 30}\n" for i in range(80))
    Path("t.csv").write_text("arrival_s,num_prompt_tokens,num_output_tokens\n" + rows)
    traced = ("--set", "workload={trace: {path: t.csv, format: csv}}")
    row = metric(compared(*FOUR, *traced), "mean_e2el_ms")
    values = row["runs"]["vllm"]
    assert len({*values}) == len(values) == 4
    known = row["intervals"]["vllm"]  # as wide as the runs are apart: no number of them knows more than the trace
    assert (known["high"] - known["low"]) / 2 == pytest.approx(stats.t.ppf(0.975, 3) * stdev(values))
    out = printed(capsys, "--replications", "2", *traced)
    assert "means of 2 runs of the trace, resampled in blocks, differences from fixed" in out
    assert "\nrate_scale " in printed(capsys, "--rate", "0.5,2", *traced)


def test_the_rate_of_a_mix_is_that_of_its_first_part(capsys: pytest.CaptureFixture[str]) -> None:
    part = {**SCENARIO["workload"], "num_prompts": 50, "request_rate": 4}
    mixed = {**SCENARIO, "workload": {"mix": [{**part, "tenant": "a"}, {**part, "tenant": "b", "request_rate": 2}]}}
    Path("mixed.yaml").write_text(yaml.safe_dump(mixed))
    assert "Fairness, tenants (Jain)" in printed(capsys, "--rate", "2,8", file="mixed.yaml")
    content = stored("mixed-loads")
    assert content["rate_key"] == "workload.mix.0.request_rate"
    duration = metric(content["loads"][1], "duration")["values"]["vllm"]
    assert 50 / 4 < duration < 50 / 4 + 2  # b at 4 a second, twice as many as written


def test_who_rejects_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = "        return 'full' if engine.num_waiting > 3 else None\n"
    rejects = f"    def reject(self, request, engine):\n{full}"
    (folder / "shed.py").write_text(f"from simbatch import Policy\n\n\nclass Shed(Policy):\n{rejects}")
    few = ("--set", "engine.max_num_seqs=4", "--set", "engine.max_num_batched_tokens=64")
    out = printed(capsys, "--policy", "vllm", "--policy", "shed.py:Shed", *few, "--rate", "2,60")
    share = stored("small-loads")["loads"][1]["rejected_share"]["shed.py:Shed"]
    assert 0.1 < share < 0.9
    note = f"NOTE: shed.py:Shed rejected {100 * share:.2f} % at 60: its latencies are those of the others."
    assert [line for line in out.splitlines() if "rejected" in line] == [note]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rate 4", "error: --rate: needs at least two rates (got '4'); for example --rate 4,8"),
        ("--rate 4,x", "error: --rate: must be numbers above 0 (got 'x'); for example --rate 1,2,3"),
        ("--rate 4,,5", "error: --rate: must be numbers above 0 (got '')"),
        ("--rate 4,-1", "error: --rate: must be numbers above 0 (got '-1')"),
        ("--rate 4,inf", "error: --rate: must be numbers above 0 (got 'inf')"),
        ("--rate 4,5 --rate 4.0", "error: --rate: is named twice (got '4')"),
        ("--rate 4,1e12", "error: --rate workload.request_rate: must be at most 1000000000 (got 1000000000000.0)"),
        ("--replications 0", "0 is not in the range x>=1"),
        ("--replications x", "'x' is not a valid integer"),
        ("--replications 2 --jobs 0", "error: --jobs: must not be 0 (got 0); -1 is one process per core"),
        (f"--replications 2 --seed {2**63 - 1}", "error: --replications seed: must be less than"),
    ],
)
def test_mistakes(arguments: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(*arguments.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert {path.name for path in folder.iterdir()} == {"small.yaml"}


def test_what_has_no_rate_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    loop = {key: value for key, value in SCENARIO["workload"].items() if key != "request_rate"}
    loop["arrival"] = {"process": "closed_loop", "max_concurrency": 4}
    Path("loop.yaml").write_text(yaml.safe_dump({**SCENARIO, "workload": loop}))
    assert compare("--rate", "1,2", file="loop.yaml") == 2
    assert "has no request rate that could be raised (got 'closed_loop')" in capsys.readouterr().err


def test_names_are_moved_apart_as_little_as_need_be() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    assert spread([0.5, 0.52], 0.1) == pytest.approx([0.5, 0.6])
    assert spread([0.9, 0.95, 0.97], 0.1) == pytest.approx([0.78, 0.88, 0.98])
    placed = spread([0.5] * 14, 0.1)  # more than there is room for: still apart
    assert min(b - a for a, b in pairwise(placed)) == pytest.approx(0.1)
