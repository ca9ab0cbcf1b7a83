"""`simbatch compare --rate`: policies over loads and seeds, their intervals, the figure."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from scipy import stats

from simbatch.sim.report.loads_picture import spread
from tests import exit_code as run

FIXED = {"distribution": "fixed", "mean": 20}
SCENARIO: dict[str, Any] = {
    "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01, "per_decode_seq_s": 0.001}},
    "policy": {"name": "fixed", "batch_size": 3},
    "workload": {
        "num_prompts": 200,
        "request_rate": 8,
        "prompt_len": FIXED,
        "output_len": {"distribution": "lognormal", "mean": 20, "cv": 0.5},
    },
    "slo": {"ttft_ms": 200, "e2el_ms": 1000},
    "seed": 3,
}
CANDIDATES = ["--policy", "fixed", "--policy", "vllm"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(SCENARIO))
    return tmp_path


def compared(*arguments: str) -> dict[str, Any]:
    assert run("compare", "small.yaml", *CANDIDATES, "--jobs", "1", "--quiet", *arguments) == 0
    content: dict[str, Any] = json.loads(Path("results/small-loads/compare.json").read_text())
    return content


def metric(load: dict[str, Any], key: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in load["metrics"] if row["key"] == key)
    return found


@pytest.mark.usefixtures("folder")
def test_each_load_has_the_same_seeds_and_differences_of_pairs() -> None:
    content = compared("--rate", "12,8", "--rate", "4", "--replications", "3")
    assert (content["rate_key"], content["rates"]) == ("workload.request_rate", [4, 8, 12])
    assert (content["seeds"], content["base"]) == ([3, 4, 5], "fixed")
    row = metric(content["loads"][2], "mean_e2el_ms")
    expected = stats.ttest_rel(row["runs"]["vllm"], row["runs"]["fixed"]).confidence_interval(0.95)
    difference = row["differences"]["vllm"]
    assert (difference["low"], difference["high"]) == pytest.approx((expected.low, expected.high))
    assert difference["verdict"] == ("better" if expected.high < 0 else "no difference shown")
    for rate, seed in ((4, 4), (12, 5)):
        changes = ["--set", f"workload.request_rate={rate}", "--seed", str(seed), "--policy", "fixed", "--quiet"]
        assert run("run", "small.yaml", *changes) == 0
        alone = json.loads(Path("results/small/summary.json").read_text())["p99_ttft_ms"]
        row = metric(content["loads"][content["rates"].index(rate)], "p99_ttft_ms")
        assert row["runs"]["fixed"][content["seeds"].index(seed)] == alone


@pytest.mark.usefixtures("folder")
def test_tables_files_and_a_figure_for_print(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "small.yaml", *CANDIDATES, "--jobs", "1", "--rate", "4,16", "--replications", "3"]
    assert run(*command) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "small, seeds 3 to 5: means of 3 runs at each of 2 loads with 95 % intervals\n\nP99 TTFT (ms)\n"
    )
    [header] = [line for line in out.splitlines() if line.startswith("request_rate")][:1]
    assert header.split() == ["request_rate", "fixed", "vllm"]
    assert out.splitlines()[5].startswith("16 ")
    assert out.splitlines()[5].endswith(" +")
    assert "+ better than fixed, - worse, = no difference shown" in out
    assert "WARNING: fixed: overloaded at 16 (in 3): latencies there say how long the runs were." in out
    folder = Path("results/small-loads")
    assert {path.name for path in folder.iterdir()} == {
        "compare.json",
        "compare.csv",
        "loads.png",
        "loads.pdf",
        "run.json",
    }
    with Image.open(folder / "loads.png") as image:
        image.load()
        assert image.width == round(7.16 * 200)
        grey = image.convert("L")
        assert len(grey.getcolors(1 << 16) or ()) > 20
    pdf = (folder / "loads.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/Subtype /Image" not in pdf  # vectors
    with (folder / "compare.csv").open(newline="") as file:
        rows = {(row["rate"], row["metric"], row["candidate"]): row for row in csv.DictReader(file)}
    row = rows["16.0", "p99_ttft_ms", "vllm"]
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    assert (row["verdict"], rows["16.0", "p99_ttft_ms", "fixed"]["verdict"]) == ("better", "")
    assert run(*command) == 0
    assert (folder / "loads.pdf").read_bytes() == pdf
    assert run("compare", "small.yaml", *CANDIDATES, "--quiet", "-o", str(folder)) == 0  # one load: its files alone
    assert not (folder / "loads.pdf").exists()


@pytest.mark.usefixtures("folder")
def test_one_run_a_load_has_no_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", "small.yaml", *CANDIDATES, "--jobs", "1", "--rate", "4,8") == 0
    out = capsys.readouterr().out
    assert "NOTE: one run a load says nothing of chance" in out
    assert "±" not in out
    content = compared("--rate", "4,8")
    assert metric(content["loads"][0], "p99_ttft_ms")["intervals"] == {"fixed": None, "vllm": None}


@pytest.mark.usefixtures("folder")
def test_a_seed_that_changes_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    constant = [
        "--set",
        "workload.arrival={process: constant}",
        "--set",
        "workload.output_len={distribution: fixed, mean: 9}",
    ]
    assert (
        run("compare", "small.yaml", *CANDIDATES, "--jobs", "1", "--rate", "4,8", "--replications", "2", *constant) == 0
    )
    assert (
        "NOTE: the seed changes nothing here, so one run says it all; there is no interval." in capsys.readouterr().out
    )


def test_a_trace_goes_by_its_scale_and_a_mix_by_its_first_part(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"{i / 4},20,10\n" for i in range(40))
    (folder / "t.csv").write_text("arrival_s,num_prompt_tokens,num_output_tokens\n" + rows)
    traced = {**SCENARIO, "workload": {"trace": {"path": "t.csv", "format": "csv"}}}
    Path("traced.yaml").write_text(yaml.safe_dump(traced))
    assert run("compare", "traced.yaml", *CANDIDATES, "--jobs", "1", "--rate", "0.5,2") == 0
    assert "\nrate_scale " in capsys.readouterr().out
    part = {**SCENARIO["workload"], "num_prompts": 50, "request_rate": 4}
    mixed = {**SCENARIO, "workload": {"mix": [{**part, "tenant": "a"}, {**part, "tenant": "b", "request_rate": 2}]}}
    Path("mixed.yaml").write_text(yaml.safe_dump(mixed))
    assert run("compare", "mixed.yaml", *CANDIDATES, "--jobs", "1", "--rate", "2,8") == 0
    assert "Fairness, tenants (Jain)" in capsys.readouterr().out
    content = json.loads(Path("results/mixed-loads/compare.json").read_text())
    assert content["rate_key"] == "workload.mix.0.request_rate"
    duration = metric(content["loads"][1], "duration")["values"]["vllm"]
    assert 50 / 4 < duration < 50 / 4 + 2  # b at 4 a second, twice as many as written


def test_who_rejects_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = "        return 'full' if engine.num_waiting > 3 else None\n"
    rejects = f"    def reject(self, request, engine):\n{full}"
    (folder / "shed.py").write_text(f"from simbatch import Policy\n\n\nclass Shed(Policy):\n{rejects}")
    few = ["--set", "engine.max_num_seqs=4", "--set", "engine.max_num_batched_tokens=64"]
    candidates = ["--policy", "vllm", "--policy", "shed.py:Shed"]
    assert run("compare", "small.yaml", *candidates, *few, "--rate", "2,60", "--jobs", "1") == 0
    [note] = [line for line in capsys.readouterr().out.splitlines() if "rejected" in line]
    content = json.loads(Path("results/small-loads/compare.json").read_text())
    share = content["loads"][1]["rejected_share"]["shed.py:Shed"]
    assert 0.1 < share < 0.9
    assert note == f"NOTE: shed.py:Shed rejected {100 * share:.2f} % at 60: its latencies are those of the others."


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (["4"], "error: --rate: needs at least two rates (got '4'); for example --rate 4,8"),
        (["4,x"], "error: --rate: must be numbers above 0 (got 'x'); for example --rate 1,2,3"),
        (["4,,5"], "error: --rate: must be numbers above 0 (got '')"),
        (["4,-1"], "error: --rate: must be numbers above 0 (got '-1')"),
        (["4,inf"], "error: --rate: must be numbers above 0 (got 'inf')"),
        (["4,5", "4.0"], "error: --rate: is named twice (got '4')"),
        (["4,1e12"], "error: --rate workload.request_rate: must be at most 1000000000 (got 1000000000000.0); lower it"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_wrong_rate_is_told(rates: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [word for text in rates for word in ("--rate", text)]
    assert run("compare", "small.yaml", *CANDIDATES, *given) == 2
    assert message in capsys.readouterr().err
    assert not Path("results").exists()


@pytest.mark.usefixtures("folder")
def test_what_has_no_rate_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    loop = {key: value for key, value in SCENARIO["workload"].items() if key != "request_rate"}
    loop["arrival"] = {"process": "closed_loop", "max_concurrency": 4}
    Path("loop.yaml").write_text(yaml.safe_dump({**SCENARIO, "workload": loop}))
    assert run("compare", "loop.yaml", *CANDIDATES, "--rate", "1,2") == 2
    assert "has no request rate that could be raised (got 'closed_loop')" in capsys.readouterr().err


def test_names_are_moved_apart_as_little_as_need_be() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    assert spread([0.5, 0.52], 0.1) == pytest.approx([0.5, 0.6])
    assert spread([0.9, 0.95, 0.97], 0.1) == pytest.approx([0.78, 0.88, 0.98])
    placed = spread([0.5] * 14, 0.1)  # more than there is room for: still apart
    assert min(b - a for a, b in pairwise(placed)) == pytest.approx(0.1)
