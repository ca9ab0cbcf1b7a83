"""report.html: one file that asks no network, whose charts are what plotly takes; `make test-browser` opens it."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from simbatch import Result, Scenario, simulate
from simbatch.sim.files import write_yaml
from simbatch.sim.report.engine_text import answer
from simbatch.sim.report.page import run as run_page_module
from simbatch.sim.report.page.charts import beside, line
from simbatch.sim.report.page.page import PageTable, ReportPage, rendered
from simbatch.sim.report.page.run import run_page
from tests import exit_code
from tests.bench_files import closed_loop, ran, scenario, vllm

SCENARIO: dict[str, Any] = {
    "profile": "h100-llama-3.1-8b-bf16-measured",
    "workload": {
        "num_prompts": 60,
        "request_rate": 20,
        "prompt_len": {"distribution": "fixed", "mean": 300},
        "output_len": {"distribution": "uniform", "min": 1, "max": 60},
        "priorities": {"high": 0.3, "normal": 0.7},
    },
    "slo": {"ttft_ms": 100, "tpot_ms": 20},
}


@pytest.fixture(scope="module")
def result() -> Result:
    return simulate(Scenario.from_dict(SCENARIO))


@pytest.fixture(scope="module")
def page(result: Result, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    result.save(folder, html=True)
    return (folder / "report.html").read_text(encoding="utf-8")


def charts_of(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    charts: list[dict[str, Any]] = json.loads(found[1])
    return charts


def without_plotly(page: str) -> str:
    return re.sub(r"<script>/\*\*\n\* plotly.*?</script>", "", page, flags=re.DOTALL)


def test_the_answer_stands_above_the_charts(page: str, result: Result) -> None:
    """Word for word the four lines of the console."""
    text = re.sub(r"</?(?:code|span)[^>]*>", "", without_plotly(page))
    console = " ".join(result.text().split())
    for said in answer(result.summary):
        assert said in console
        label, _, sentence = said.partition(": ")
        at = text.index(f"<dt>{label}</dt><dd>{sentence}</dd>")
        assert at < text.index("<h2>Charts</h2>")


def test_nothing_is_fetched(page: str) -> None:
    text = without_plotly(page)
    assert len(text) < 200_000 < 4_000_000 < len(page)
    assert "default-src 'none'" in text
    assert re.findall(r"""(?:src|href)=(?!["']?data:)""", text) == []


def test_the_charts_are_what_plotly_takes(page: str) -> None:
    """Its own check of every key and value; each curve has a name, for the legend."""
    for chart in charts_of(page):
        figure = go.Figure(chart["data"], chart["layout"])
        assert all(trace.name for trace in figure.data)
    titles = [trace["name"] for chart in charts_of(page) for trace in chart["data"]]
    assert {"all requests", "high", "normal", "waiting", "running", "KV cache in use"} <= {*titles}
    assert any(title.startswith("SLO 100 ms: ") for title in titles)


def test_it_says_how_to_reproduce_it(page: str) -> None:
    for part in (
        "<dt>Seed</dt><dd>0</dd>",
        "<dt>Command</dt><dd><code>from Python</code></dd>",
        "simbatch 0",
        "num_prompts: 60",
    ):
        assert part in without_plotly(page)


def test_of_many_requests_the_slowest_are_drawn_and_the_page_says_so(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_page_module, "MAX_DOTS", 20)
    chart = next(chart for chart in run_page(result).charts if chart.question == "Which requests waited long")
    assert "of 60 requests: the 5 with the longest E2EL" in chart.note
    drawn = {trace["name"]: trace["y"] for trace in chart.panels[0].traces}["E2EL"]
    assert 15 <= len(drawn) <= 20
    slowest = np.sort(1000 * result.requests["e2el_s"])[-5:]
    assert sorted(drawn)[-5:] == pytest.approx(slowest, rel=1e-5)


def test_what_users_name_cannot_end_the_page() -> None:
    evil = "</script><script>alert(1)</script>"
    table = PageTable(evil, (evil,), [(evil,)])
    page = ReportPage(evil, evil, [(evil, evil)], [], [table], [table], [(evil, evil)], {evil: evil}, [0], evil, [evil])
    assert "<script>alert" not in without_plotly(rendered(page))


def test_a_flag_stays_in_one_line_and_a_setting_is_broken_where_its_words_end() -> None:
    table = PageTable("", ("setting",), [("engine.max_num_seqs",), ("1.5",)])
    answer = [("Room", "`simbatch tune --capacity`, or --rate <3>"), ("To run it", "simbatch run a --seed 1")]
    page = rendered(ReportPage("t", "a", answer, [], [table], [], [], {}, [0], "text", ["see `--host`"]))
    assert (
        "<code>simbatch tune <span class=flag>--capacity</span></code>, or <code><span class=flag>--rate</span>" in page
    )
    assert "<code>simbatch run a <span class=flag>--seed</span> 1</code>" in page
    assert "<code><span class=flag>--host</span></code>" in page
    assert "&lt;3&gt;" in page
    assert "engine.<wbr>max_<wbr>num_<wbr>seqs" in page
    assert "1.5</td>" in page


def test_candidates_that_run_alike_are_drawn_one_wider_than_the_next() -> None:
    drawn = beside([line(name, [0, 1], [1, 1], "#000000", "") for name in ("a", "b", "c")])
    widths = [trace["line"]["width"] for trace in drawn]
    assert widths == sorted(widths, reverse=True)
    assert min(wide - narrow for wide, narrow in pairwise(widths)) >= 2  # px: one of the line below on either side


def test_without_plotly_it_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("simbatch.sim.report.page.page.find_spec", lambda _: None)
    assert exit_code("run", "bursty", "--html", "-o", str(tmp_path / "out")) == 2
    assert "pip install 'simbatch[html]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_without_html_takes_an_earlier_page_away(result: Result, tmp_path: Path) -> None:
    """It would show other figures than the files beside it."""
    result.save(tmp_path, html=True)
    result.save(tmp_path)
    assert not (tmp_path / "report.html").exists()


THEORY = scenario(
    {
        "num_prompts": 60,
        "request_rate": 8,
        "prompt_len": {"distribution": "fixed", "mean": 300},
        "output_len": {"distribution": "uniform", "min": 1, "max": 60},
    }
) | {"slo": {"ttft_ms": 100, "tpot_ms": 20}}
COMMANDS = (
    "compare FILE --policy vllm --policy sjf --policy fixed",
    "compare FILE --policy vllm --policy sjf --replications 3",
    "compare FILE --policy vllm --rate 4,8",
    "sweep FILE --over engine.max_num_seqs=2,64 --over workload.request_rate=4,8",
    "sweep FILE --over engine.max_num_seqs=2,64 --over policy.name=vllm,sjf --replications 2",
    "tune FILE --over engine.max_num_seqs=2,16,64 --limit p99_ttft_ms=90",
    "tune FILE --over engine.max_num_seqs=2,16,64 --pareto throughput,p99_tpot_ms --knee",
    "tune FILE --capacity --replications 2 --set workload.num_prompts=20",
    "plan FILE --rate 40 --seconds 10 --max-gpus 8",
    "validate FILE --recorded RESULT --bounds mean=90",
    "validate FILE --recorded RESULT OTHER",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_files(tmp_path_factory.mktemp("commands"))


def with_files(folder: Path) -> Path:
    """What the commands of pages' tests read: a scenario and two benchmark results."""
    write_yaml(folder / "FILE", THEORY)
    for name, users in (("RESULT", 4), ("OTHER", 8)):
        (folder / name).write_text(json.dumps(vllm(ran(closed_loop(users)))), encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_writes_its_page(command: str, folder: Path, tmp_path: Path) -> None:
    """An answer, charts that plotly takes, tables as wide as their headers."""
    words = [str(folder / word) if word.isupper() else word for word in command.split()]
    jobs = [] if words[0] == "validate" else ["--jobs", "1"]
    assert exit_code(*words, *jobs, "--html", "--quiet", "-o", str(tmp_path)) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    charts = charts_of(page)
    assert charts
    for chart in charts:
        go.Figure(chart["data"], chart["layout"])
    text = without_plotly(page)
    answer = re.search(r'<dl class="answer">(.*?)</dl>', text, re.DOTALL)
    assert answer is not None
    assert re.findall(r"<dd>(.*?)</dd>", answer[1], re.DOTALL)
    assert not re.findall(r"\bnan\b|None of them None|<td>None</td>", text)
    assert all(len(table[0]) == len(row) for table in tables_of(text) for row in table)


def tables_of(text: str) -> list[list[list[str]]]:
    """Each table's rows, the header first."""
    tables = re.findall(r"<table>(.*?)</table>", text, re.DOTALL)
    rows = [re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL) for table in tables]
    return [[re.findall(r"<t[hd][^>]*>", row) for row in table] for table in rows]
