"""`simbatch compare --replications`: paired differences, verdicts, refusals, files."""

from __future__ import annotations

import csv
import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import yaml
from PIL import Image
from scipy import stats

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.metrics.run_figures import HIGHER, LOWER, Metric
from simbatch.sim.report.compare import Comparison, ReplicatedComparison
from simbatch.sim.report.result import Result
from simbatch.sim.results import Experiment
from simbatch.sim.results.runs import Difference
from tests import exit_code as run
from tests.results_records import MS, Toy, back_to_back, build, facts

SCENARIO = {
    "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01, "per_decode_seq_s": 0.001}},
    "workload": {
        "num_prompts": 300,
        "arrival": {"process": "poisson", "request_rate": 8},
        "prompt_len": {"distribution": "fixed", "mean": 20},
        "output_len": {"distribution": "lognormal", "mean": 20, "cv": 0.5},
    },
    "slo": {"e2el_ms": 1000},
    "seed": 3,
}
CANDIDATES = ["--policy", "fixed", "--policy", "vllm"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump({**SCENARIO, "policy": {"name": "fixed", "batch_size": 3}}))
    return tmp_path


def compared(*arguments: str, file: str = "small.yaml") -> dict[str, Any]:
    assert run("compare", file, *CANDIDATES, "--replications", "4", "--jobs", "1", "--quiet", *arguments) == 0
    content: dict[str, Any] = json.loads(Path(f"results/{Path(file).stem}-compare/compare.json").read_text())
    return content


def metric(content: dict[str, Any], key: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in content["metrics"] if row["key"] == key)
    return found


@pytest.mark.usefixtures("folder")
def test_intervals_are_those_of_the_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    content = compared()
    assert (content["seeds"], content["base"], content["same_arrivals"]) == ([3, 4, 5, 6], "fixed", True)
    row = metric(content, "mean_e2el_ms")
    base, other = row["runs"]["fixed"], row["runs"]["vllm"]
    expected = stats.ttest_rel(other, base).confidence_interval(0.95)
    difference = row["differences"]["vllm"]
    assert (difference["low"], difference["high"]) == pytest.approx((expected.low, expected.high))
    assert difference["verdict"] == ("better" if expected.high < 0 else "no difference shown")
    assert row["values"]["vllm"] == pytest.approx(sum(other) / 4)
    low, high = stats.t.interval(0.95, 3, sum(base) / 4, stats.sem(base))
    assert (row["intervals"]["fixed"]["low"], row["intervals"]["fixed"]["high"]) == pytest.approx((low, high))
    assert metric(content, "completed")["differences"]["vllm"]["verdict"] == "no difference shown"
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("folder")
def test_a_seed_of_a_comparison_is_the_run_of_that_seed() -> None:
    row = metric(compared(), "p99_ttft_ms")
    assert run("run", "small.yaml", "--policy", "vllm", "--seed", "5", "--quiet") == 0
    assert row["runs"]["vllm"][2] == json.loads(Path("results/small/summary.json").read_text())["p99_ttft_ms"]


@pytest.mark.usefixtures("folder")
def test_processes_change_nothing() -> None:
    alone = compared()
    assert run("compare", "small.yaml", *CANDIDATES, "--replications", "4", "--jobs", "2", "--quiet") == 0
    assert json.loads(Path("results/small-compare/compare.json").read_text()) == alone


@pytest.mark.usefixtures("folder")
def test_table_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", "small.yaml", *CANDIDATES, "--replications", "4", "--jobs", "1") == 0
    short = capsys.readouterr().out
    assert re.search(
        r"^P99 E2EL \(ms\) +[\d,.]+ +[\d,.]+ +-[\d,.]+ +-[\d,.]+ to -[\d,.]+  better$", short, re.MULTILINE
    )
    assert re.search(r"^vllm against fixed: better in ", short, re.MULTILINE)
    assert max(map(len, short.splitlines())) <= 100
    command = ("compare", "small.yaml", *CANDIDATES, "--replications", "4", "--jobs", "1", "--all")
    assert run(*command, "-o", "results/small-compare") == 0
    out = capsys.readouterr().out
    assert out.startswith("small, seeds 3 to 6: means of 4 runs, differences from fixed with 95 % intervals\n")
    assert re.search(r"^vllm against fixed +fixed +vllm +difference +interval +relative$", out, re.MULTILINE)
    assert re.search(
        r"^Mean E2EL \(ms\) +[\d,.]+ +[\d,.]+ +-[\d,.]+ +-[\d,.]+ to -[\d,.]+ +-[\d.]+ % to -[\d.]+ %  \+$",
        out,
        re.MULTILINE,
    )
    assert re.search(r"^Successful requests .* equal in every run .* =$", out, re.MULTILINE)
    assert re.search(r"^\d+ comparisons, each at 95 % by itself", out, re.MULTILINE)
    folder = Path("results/small-compare")
    assert {path.name for path in folder.iterdir()} == {
        "compare.json",
        "compare.csv",
        "compare.png",
        "differences.png",
        "run.json",
    }
    with Image.open(folder / "differences.png") as image:
        image.load()
        assert image.width == 990
    with (folder / "compare.csv").open(newline="") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert rows["mean_e2el_ms"]["vllm verdict"] == "better"
    assert float(rows["mean_e2el_ms"]["vllm high"]) < 0
    assert run("compare", "small.yaml", *CANDIDATES, "--quiet") == 0  # one run again: its files alone
    assert not (folder / "differences.png").exists()
    assert "runs" not in json.loads((folder / "compare.json").read_text())["metrics"][0]


@pytest.mark.usefixtures("folder")
def test_overload_refuses_the_steady_state_and_keeps_the_means(capsys: pytest.CaptureFixture[str]) -> None:
    heavy = ["--set", "workload.arrival.request_rate=40", "--set", "workload.num_prompts=800"]
    content = compared(*heavy)
    assert content["overloaded_runs"] == {"fixed": 4, "vllm": 0}
    assert content["steady_state_refused"]["fixed"] == "overloaded"
    assert metric(content, "mean_e2el_ms")["intervals"]["fixed"]["low"] > 0
    steady = metric(content, "simbatch.steady_state.mean_e2el_ms.value")
    assert steady["values"]["fixed"] is None
    assert steady["values"]["vllm"] > 0
    assert steady["differences"]["vllm"]["verdict"] == "overloaded"
    assert run("compare", "small.yaml", *CANDIDATES, "--replications", "2", "--jobs", "1", "--all", *heavy) == 0
    out = capsys.readouterr().out
    assert "Steady state: no claim about fixed, 2 of 2 runs: overloaded." in out
    assert "WARNING: fixed: overloaded in 2 of 2 runs" in out
    assert "steady (ms)" not in out


@pytest.mark.usefixtures("folder")
def test_a_seed_that_changes_nothing_gives_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    fixed = ["--set", "workload.arrival={process: constant, request_rate: 8}"]
    fixed += ["--set", "workload.output_len={distribution: fixed, mean: 20}"]
    assert run("compare", "small.yaml", *CANDIDATES, "--replications", "2", "--jobs", "1", *fixed) == 0
    out = capsys.readouterr().out
    assert "NOTE: the seed changes nothing here, so one run says it all; there is no interval." in out
    assert "better" not in out
    assert "runs" not in json.loads(Path("results/small-compare/compare.json").read_text())["metrics"][0]


@pytest.mark.usefixtures("folder")
def test_several_runs_of_a_trace_resample_it(capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{i / 9 + (i % 7) / 70},{20 + i % 13},{10 + i * i % 30}\n" for i in range(80))
    Path("t.csv").write_text("arrival_s,num_prompt_tokens,num_output_tokens\n" + rows)
    content = compared("--set", "workload={trace: {path: t.csv, format: csv}}")
    row = metric(content, "mean_e2el_ms")
    values = row["runs"]["vllm"]
    assert len({*values}) == len(values) == content["seeds"][-1] - content["seeds"][0] + 1
    known = row["intervals"]["vllm"]  # as wide as the runs are apart: no number of them knows more than the trace
    assert (known["high"] - known["low"]) / 2 == pytest.approx(stats.t.ppf(0.975, 3) * stdev(values))
    words = ("--replications", "2", "--jobs", "1", "--set", "workload={trace: {path: t.csv, format: csv}}")
    assert run("compare", "small.yaml", *CANDIDATES, *words) == 0
    assert "means of 2 runs of the trace, resampled in blocks, differences from fixed" in capsys.readouterr().out


def candidate(policy: str, step_ms: int) -> Result:
    toys = [Toy(ms * MS, [i, i + 1, i + 2]) for i, ms in enumerate((0, 5, 10))]
    return Result(build(toys, back_to_back([step_ms * MS] * 5, start_ps=10 * MS)), facts(policy=policy))


def replicated(steps_ms: dict[str, Sequence[int]], **settings: Any) -> ReplicatedComparison:
    first = Comparison({name: candidate(name, steps[0]) for name, steps in steps_ms.items()})
    experiment: Experiment[str] = Experiment()
    for name, steps in steps_ms.items():
        for seed, step in enumerate(steps):
            experiment.add(name, seed, candidate(name, step).summary)
    return ReplicatedComparison(experiment, **settings, first=first)


THREE: dict[str, Sequence[int]] = {"a": (20, 24, 28), "b": (10, 13, 15), "c": (20, 25, 27)}


def test_bonferroni_widens_so_that_all_hold_together() -> None:
    each, together = replicated(THREE), replicated(THREE, bonferroni=True)
    [alone] = [row for row in each.differences if row[0].metric.key == "mean_itl_ms"]
    [joint] = [row for row in together.differences if row[0].metric.key == "mean_itl_ms"]
    assert [difference.verdict for difference in alone] == ["better", "no difference shown"]
    for one, wide in zip(alone, joint, strict=True):
        ratio = wide.interval.half_width / one.interval.half_width
        assert ratio == pytest.approx(stats.t.ppf(1 - 0.025 / 2, 2) / stats.t.ppf(0.975, 2))
    assert "The 2 intervals of a metric hold together at 95 % (Bonferroni)" in together.text().replace("\n  ", " ")
    assert "see --bonferroni" in each.text().replace("\n  ", " ")


def test_a_picture_of_three_and_one_without_anything_to_draw(tmp_path: Path) -> None:
    one_run: dict[str, Sequence[int]] = {"a": (20,) * 3, "b": (30,) * 3}
    for name, steps in {"three": THREE, "one run": one_run}.items():
        written = replicated(steps).save(tmp_path / name)
        [picture] = [path for path in written if path.name == "differences.png"]
        with Image.open(picture) as image:
            image.load()
            assert image.width == 990


@pytest.mark.parametrize(
    ("better", "other", "verdict"),
    [
        (LOWER, [2.0, 3.1, 4.0], "worse"),
        (HIGHER, [2.0, 3.1, 4.0], "better"),
        (None, [2.0, 3.1, 4.0], "higher"),
        (LOWER, [0.0, 1.1, 1.9], "better"),
        (None, [0.0, 1.1, 1.9], "lower"),
        (LOWER, [1.0, 2.0, 3.0], "no difference shown"),
        (LOWER, [0.0, 2.0, 4.0], "no difference shown"),
        (LOWER, [None, None, 4.0], "not measured"),
        (LOWER, [2.0, 3.1, None], "worse"),
    ],
)
def test_verdicts(better: str | None, other: list[float | None], verdict: str) -> None:
    difference = Difference.of(Metric("m", "M", better), ("a", [1.0, 2.0, 3.0]), ("b", other), 0.8, None)
    assert difference.verdict == verdict
    assert difference.as_dict()["num_pairs"] == (0 if verdict == "not measured" else 3 - other.count(None))


def test_a_mistake_that_another_process_finds_reads_the_same() -> None:
    error = UserError(Problem("a.yaml:1:1 x", "is wrong", mend="mend it"), Problem("b", "is wrong", 3))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replications", "0"], "0 is not in the range x>=1"),
        (["--replications", "x"], "'x' is not a valid integer"),
        (["--replications", "2", "--jobs", "0"], "error: --jobs: must not be 0 (got 0); -1 is one process per core"),
        (["--replications", "2", "--seed", str(2**63 - 1)], "error: --replications seed: must be less than"),
    ],
)
def test_mistakes(arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", "small.yaml", *CANDIDATES, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert {path.name for path in folder.iterdir()} == {"small.yaml"}
