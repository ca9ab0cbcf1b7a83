"""Comparisons, capacities and fleets in Python: policies as objects, tables in long form, the figure of a paper."""

from __future__ import annotations

import csv
import gc
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

import simbatch
from benchmarks.one_step import NOTEBOOK, executed
from simbatch import Policy, Scenario, UserError, capacity, compare, plan, simulate
from simbatch.sim.files import git_commit
from simbatch.sim.report.figures import Figures, parse_width
from simbatch.sim.report.loads import LoadComparison
from simbatch.sim.scheduler.config import CERTIFIED, NEWEST, certificate_of
from tests import exit_code

LENGTHS = {"distribution": "lognormal", "mean": 20, "cv": 0.5}
SCENARIO = Scenario.from_dict(
    {
        "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01, "per_decode_seq_s": 0.001}},
        "engine": {"max_num_seqs": 4},
        "workload": {"num_prompts": 60, "request_rate": 8, "prompt_len": LENGTHS, "output_len": LENGTHS},
        "slo": {"ttft_ms": 200, "tpot_ms": 100},
        "seed": 3,
    },
    name="small",
)


class Backwards(Policy):
    """The newest first, or (told so by an attribute that is no parameter) the oldest."""

    def __init__(self, *, sign: int = -1) -> None:
        super().__init__()
        self._sign = sign

    def order(self, request: Any) -> float:
        return float(self._sign * request.arrival_s)


@pytest.fixture(scope="module")
def compared() -> Figures:
    return compare(SCENARIO, {"newest": Backwards(), "oldest": Backwards(sign=1)}, rates=[8, 12], replications=3)


def test_policies_as_objects_run_on_all_cores_and_are_not_taken_for_one_another(compared: Figures) -> None:
    assert isinstance(compared, LoadComparison)
    assert repr(compared) == "LoadComparison(newest, oldest: 3 runs each at 2 loads)"
    rows = compared.table(["p99_ttft_ms"], each_run=True)
    assert [*rows[0]] == ["rate", "metric", "candidate", "seed", "value"]
    assert len(rows) == 2 * 2 * 3
    at = {(row["rate"], row["candidate"], row["seed"]): row["value"] for row in rows}
    for sign, label in ((-1, "newest"), (1, "oldest")):
        changed = SCENARIO.override({"workload.request_rate": 12, "seed": 4})
        assert at[12, label, 4] == simulate(changed, Backwards(sign=sign)).summary["p99_ttft_ms"]
    assert at[12, "newest", 4] != at[12, "oldest", 4]


def test_one_candidate_is_compared_with_the_scenario_as_it_stands() -> None:
    alone = compare(SCENARIO, {"mine": Backwards()})
    assert repr(alone) == "Comparison(vllm, mine: 1 runs each)"
    assert [row["candidate"] for row in alone.table(["goodput"])] == ["vllm", "mine"]
    assert [row["low"] for row in alone.table(["goodput"])] == [None, None]
    other = SCENARIO.override({"engine.max_num_seqs": 8})
    seats = compare(SCENARIO, {"4 seats": SCENARIO, "8 seats": other}, replications=2)
    (first, second) = seats.table(["p99_ttft_ms"])
    assert second["mean"] < first["mean"]
    assert second["difference"] == pytest.approx(second["mean"] - first["mean"])
    curve = compare(SCENARIO, rates=[4, 8])
    assert [row["candidate"] for row in curve.table(["goodput"])] == ["vllm", "vllm"]
    with pytest.raises(UserError, match="too few to compare"):
        compare(SCENARIO)


def test_what_is_plotted_has_names_units_the_slo_and_a_line_a_candidate(compared: Figures) -> None:
    figure = compared.plot(["p99_ttft_ms", "slo_share"], width=3.35)
    assert isinstance(figure, Figure)
    assert figure.get_size_inches()[0] == 3.35
    tail, share = figure.axes
    assert (tail.get_position().x0, tail.get_title(loc="left")) == (share.get_position().x0, "P99 TTFT")
    assert share.get_xlabel() == "request rate (req/s)"
    texts = {text.get_text() for text in tail.texts}
    assert {"newest", "oldest", "SLO 200 ms"} <= texts
    assert [line.get_linewidth() for line in tail.lines if line.get_label() in ("newest", "oldest")] == [1.75, 1.1]
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    first, second = compare(SCENARIO, {"mine": Backwards()}).plot().axes[:2]
    assert [label.get_text() for label in first.get_yticklabels()] == ["vllm", "mine"]
    assert [label.get_text() for label in second.get_yticklabels()] == ["", ""]


def test_candidates_that_never_differ_are_one_line_with_both_names() -> None:
    same = compare(SCENARIO, ["vllm", "sjf"], rates=[0.1, 0.2])
    (axes,) = same.plot(["p99_tpot_ms"]).axes
    assert "vllm = sjf" in [text.get_text() for text in axes.texts]


def test_the_figure_of_a_paper_has_a_tidy_table_beside_it(
    compared: Figures, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = compared.save_figure("F.pdf", ["p99_ttft_ms"], width=3.35)
    assert [path.name for path in written] == ["F.pdf", "F.csv"]
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ", Path("F.pdf").read_bytes())
    assert float(box[1]) == pytest.approx(3.35 * 72, abs=0.1)
    with Path("F.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["rate"], row["candidate"]) for row in rows[:2]] == [("8.0", "newest"), ("8.0", "oldest")]
    wanted = compared.table(["p99_ttft_ms"])
    assert [float(row["mean"]) for row in rows] == [row["mean"] for row in wanted]
    assert [row["verdict"] for row in rows] == [row["verdict"] or "" for row in wanted]
    few = ["--set", "workload.num_prompts=20", "--policy", "vllm", "--policy", "fixed"]
    command = ["compare", "steady", *few, "--metrics", "goodput,p99_ttft_ms", "--figure", "G.svg", "--width", "85mm"]
    assert exit_code(*command) == 0
    assert capsys.readouterr().out.endswith("figure: G.svg and G.csv\n")
    assert 'width="240.9' in Path("G.svg").read_text()[:1200]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--figure", "F.gif"], "must end in .pdf, .png or .svg"),
        (["--figure", "none/F.pdf"], "there is no such folder"),
        (["--figure", "F.pdf", "--width", "wide"], "must be a length"),
        (["--figure", "F.pdf", "--width", "1mm"], "must be 2 to 40 inches"),
        (["--metrics", "goodput"], "says what a figure shows"),
    ],
)
def test_a_figure_that_cannot_be_is_said_before_anything_runs(
    arguments: list[str], rule: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code("compare", "steady", "--policy", "vllm", "--policy", "fixed", *arguments) == 2
    assert rule in capsys.readouterr().err


def test_lengths_and_names_of_a_figure(compared: Figures) -> None:
    assert [parse_width(text) for text in ("3.35in", "85 mm", "8.5cm", "241pt", "3.35")] == pytest.approx(
        [3.35, 85 / 25.4, 8.5 / 2.54, 241 / 72, 3.35]
    )
    with pytest.raises(UserError, match="did you mean p99_ttft_ms"):
        compared.plot(["p99_ttft"])


def test_a_capacity_in_python_is_that_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = capacity(SCENARIO, {"p99_ttft_ms": 400}, replications=2, jobs=1)
    assert 0 < found.rate < max(row["rate"] for row in found.table() if row["met"]) * 1.01
    assert found.table()[-1]["broken"]
    monkeypatch.chdir(tmp_path)
    found.save("kept")
    assert json.loads(Path("kept/tune.json").read_text()) == found.as_dict()
    (axes,) = found.plot().axes
    assert (axes.get_yscale(), axes.get_ylabel(), axes.get_xlabel()) == ("log", "P99 TTFT", "rate (req/s)")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["holds", "fails", "limit 400 ms", f"{found.rate:.4g} req/s, kept in 12 of 12"]


def test_a_fleet_in_python_is_that_of_the_command() -> None:
    asked: dict[str, Any] = {"model": "Llama-3.1-8B", "prompt_len": 200, "output_len": 50, "rate": 20}
    found = plan(**asked, limits={"p99_ttft_ms": 1000}, gpus=["l40s", "rtx4090"], seconds=10, bands=False)
    rows = found.table()
    assert rows == sorted(rows, key=lambda row: row["cost_per_hour"])
    assert rows[0]["p99_ttft_ms"] <= 1000
    assert found.as_dict()["num_gpus"] == rows[0]["num_gpus"]
    (axes,) = found.plot().axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("cost of the fleet ($/h)", "P99 TTFT")
    assert {f"{row['replicas']} x {row['gpu'].upper()} TP1" for row in rows} <= {t.get_text() for t in axes.texts}
    with pytest.raises(UserError, match="needs a FILE or a --model"):
        plan(limits={"p99_ttft_ms": 1000})


def test_run_json_has_the_commit_and_the_scheduler_s_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent), "GIT_CONFIG_GLOBAL": "/dev/null"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert git_commit() is None
    Path("mine.py").write_text("")
    as_somebody = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "mine.py"], [*as_somebody, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], check=True, capture_output=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_commit() == commit
    Path("mine.py").write_text("changed")
    simulate(SCENARIO).save("out")
    written = json.loads(Path("out/run.json").read_text())
    assert written["git_commit"] == f"{commit}-dirty"
    assert written["scheduler"] == {"vllm_version": NEWEST, "certificate": "identical", "recorded_from": NEWEST}
    compare(SCENARIO, ["vllm", "fixed"]).save("two")
    assert json.loads(Path("two/run.json").read_text())["scheduler"].keys() == {"vllm", "fixed"}


def test_the_certificates_are_those_of_the_recordings() -> None:
    """A new version of vLLM that is found identical goes into CERTIFIED."""
    found = [json.loads(path.read_text()) for path in (NOTEBOOK.parents[1] / "parity" / "certificates").glob("*.json")]
    identical = {each["version"] for each in found if not (each["differences"] or each["wrong_defaults"])}
    assert set(CERTIFIED) == identical
    assert certificate_of("0.27")["recorded_from"] == "0.27.1"
    assert certificate_of("0.27.0")["certificate"] == certificate_of("0.99")["certificate"] == "untested"


def test_the_notebook_is_stored_as_it_runs_and_uses_public_names_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, "")  # `executed` sets them; so they are put back
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = "\n".join("".join(cell["source"]) for cell in stored["cells"])
    names = {name for line in re.findall(r"from simbatch import (.+)", code) for name in line.split(", ")}
    assert names <= {*simbatch.__all__}
    assert re.findall(r"\b(?:from|import) simbatch\.", code) == []
    ran = executed()
    assert [_shown(cell) for cell in ran.cells] == [_shown(cell) for cell in stored["cells"]]
    assert sum("image/png" in output.get("data", {}) for cell in stored["cells"] for output in _outputs(cell)) == 2


def _outputs(cell: Any) -> list[Any]:
    return list(cell.get("outputs", []))


def _shown(cell: Any) -> list[str]:
    """What a cell prints and shows as text."""
    texts = [output.get("text") or output["data"]["text/plain"] for output in _outputs(cell)]
    return ["".join(text) for text in texts]


class Looks(Policy):
    """Looks how often Python collects while a run is under way."""

    seen: tuple[int, int, int] | None = None

    def seats(self, engine: Any) -> int:
        type(self).seen = gc.get_threshold()
        return 4


class Greedy(Policy):
    """Breaks a rule."""

    def seats(self, engine: Any) -> int:
        raise ValueError("no seats")


def test_collections_are_rare_in_a_run_and_as_before_behind_it() -> None:
    before = gc.get_threshold()
    simulate(SCENARIO, Looks())
    assert Looks.seen[0] > before[0]
    assert gc.get_threshold() == before
    with pytest.raises(Exception, match="no seats"):
        simulate(SCENARIO, Greedy())
    assert gc.get_threshold() == before
