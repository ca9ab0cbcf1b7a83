"""What commands show at 100 and at 60 columns, without colours, and their report.html (`make test-browser` opens it).

No line is wider, no figure is cut, no column is left out; a page asks no network, and plotly takes its charts.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from simbatch import Result, simulate
from simbatch.sim.files import write_yaml
from simbatch.sim.report.engine_text import answer
from simbatch.sim.report.page import run as run_page_module
from simbatch.sim.report.page.charts import beside, line
from simbatch.sim.report.page.page import PageTable, ReportPage, rendered
from simbatch.sim.report.page.run import run_page
from simbatch.sim.text import table, wrapped
from tests import exit_code
from tests.bench_files import closed_loop, ran, scenario, vllm
from tests.made_scenarios import fixed, serving, uniform

LENGTHS = {"prompt_len": fixed(300), "output_len": uniform(1, 60)}
SLO = {"ttft_ms": 100, "tpot_ms": 20}


@pytest.fixture(scope="module")
def result() -> Result:
    classes = {"high": 0.3, "normal": 0.7}
    return simulate(serving("h100-llama-3.1-8b-bf16-measured", 60, 20, slo=SLO, priorities=classes, **LENGTHS))


@pytest.fixture(scope="module")
def page(result: Result, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    result.save(folder, html=True)
    return (folder / "report.html").read_text(encoding="utf-8")


def charts_of(page: str) -> list[dict[str, Any]]:
    (found,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)
    charts: list[dict[str, Any]] = json.loads(found)
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
    command = "<dt>Command</dt><dd><code>from Python</code></dd>"
    for part in ("<dt>Seed</dt><dd>0</dd>", command, "simbatch 0", "num_prompts: 60"):
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
    tune, rate = "<code>simbatch tune <span class=flag>--capacity</span></code>", "<code><span class=flag>--rate</span>"
    assert f"{tune}, or {rate}" in page
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
    (tmp_path / "report.html").write_text("of an earlier run")
    result.save(tmp_path)
    assert not (tmp_path / "report.html").exists()


SEATS = "--over engine.max_num_seqs"
SEARCH = f"{SEATS}=2,64 --over engine.max_num_batched_tokens=256,512 --over policy.name=vllm,sjf"
COMMANDS = (
    "run FILE --verbose",
    "run FILE --set cluster.replicas=3",
    "compare FILE --policy vllm --policy sjf --policy fixed --policy fair --policy srpt --policy edf --policy mlfq",
    "compare FILE --policy vllm --policy sjf --replications 3 --jobs 1 --all",
    "compare FILE --policy vllm --rate 4,8 --jobs 1",
    "compare FILE --vllm-version 0.12 --vllm-version 0.33",
    f"sweep FILE {SEARCH} --replications 2 --jobs 1",
    f"sweep FILE {SEATS}=2,64 --over workload.request_rate=4,8 --jobs 1",
    f"sweep FILE {SEATS}=2,64 --over policy.name=vllm,sjf --replications 2 --jobs 1",
    f"sweep FILE {SEARCH} --dry-run",
    f"tune FILE {SEARCH} --limit p99_ttft_ms=90 --jobs 1",
    f"tune FILE {SEATS}=2,16,64 --pareto throughput,p99_tpot_ms --knee --jobs 1",
    "tune FILE --capacity --replications 2 --set workload.num_prompts=20 --jobs 1",
    "rank FILE --policy vllm --policy sjf --replications 2 --jobs 1",
    "plan FILE --rate 40 --seconds 10 --max-gpus 8 --jobs 1",
    "validate FILE --recorded RESULT --bounds mean=90",
    "validate FILE --recorded RESULT OTHER",
    "explain FILE --request 30",
    "trace describe RESULT",
    "memory Qwen/Qwen3-32B --gpu h100 --prompt-len 1000 --output-len 500 --batches 1,8,64",
    "memory --list --gpu rtx3090 --context 32k",
    "profiles list",
    "profiles gpus",
    "profiles show l4-qwen2.5-7b-instruct-awq",
    "profiles show rtx4090-llama-3.1-8b-bf16 --batches 1,64",
    "policies",
    "policies show mlfq",
    "routers show prefix_aware",
    "scenarios list",
    "init LINE --profile h100-qwen3-32b-bf16 -o MADE",
)
FOLDERS = {"run", "compare", "sweep", "tune", "rank", "plan", "validate"}
WITHOUT_PAGE = ("rank", "--dry-run", "--vllm-version")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read: a scenario, two benchmark results, and how somebody starts vLLM."""
    folder = tmp_path_factory.mktemp("pages")
    workload = {"num_prompts": 60, "request_rate": 8, **LENGTHS}
    write_yaml(folder / "FILE", scenario(workload) | {"slo": SLO})
    for name, users in (("RESULT", 4), ("OTHER", 8)):
        (folder / name).write_text(json.dumps(vllm(ran(closed_loop(users)))), encoding="utf-8")
    (folder / "LINE").write_text("vllm serve Qwen/Qwen3-32B --max-num-seqs 64 --swap-space 4", encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_is_wider_than_the_page(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines that name a file aside: a path is not broken."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NO_COLOR", "1")
    has_folder, figures = command.split()[0] in FOLDERS, []
    has_page = has_folder and not any(word in command for word in WITHOUT_PAGE)
    for columns in (100, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        words = shlex.split(command.replace("MADE", str(tmp_path / f"{columns}.yaml")))
        words += ["-o", str(tmp_path / str(columns))] if has_folder else []
        assert exit_code(*words, *(["--html"] if has_page and columns == 100 else [])) == 0
        page = capsys.readouterr().out
        assert "\x1b" not in page
        assert [each for each in page.splitlines() if len(each) > columns and str(tmp_path) not in each] == []
        assert not re.search(r"\d(…|\.\.\.)", page), "a figure that is cut"
        figures.append({*re.findall(r"\d[\d,.]*[,.]\d+", page)})
    assert figures[0] == figures[1], "figures that are lost"
    if has_page:
        assert_whole((tmp_path / "100" / "report.html").read_text(encoding="utf-8"))


def assert_whole(page: str) -> None:
    """An answer, charts that plotly takes, tables as wide as their headers."""
    charts = charts_of(page)
    assert charts
    for chart in charts:
        go.Figure(chart["data"], chart["layout"])
    text = without_plotly(page)
    (answer,) = re.findall(r'<dl class="answer">(.*?)</dl>', text, re.DOTALL)
    assert re.findall(r"<dd>(.*?)</dd>", answer, re.DOTALL)
    assert not re.findall(r"\bnan\b|None of them None|<td>None</td>", text)
    assert all(len(table[0]) == len(row) for table in tables_of(text) for row in table)


def tables_of(text: str) -> list[list[list[str]]]:
    """Each table's rows, the header first."""
    tables = re.findall(r"<table>(.*?)</table>", text, re.DOTALL)
    rows = [re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL) for table in tables]
    return [[re.findall(r"<t[hd][^>]*>", row) for row in table] for table in rows]


def test_titles_and_texts_give_way_before_columns_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    rows = [["a name of many words", "1,234.5", "of words that may be broken"], ["another", "9.0", ""]]
    lines = table(("name", "max_num_batched_tokens", ""), rows)
    assert [line.split() for line in lines[:3]] == [["max_num_"], ["batched_"], ["name", "tokens"]]
    first, second = "a name of many words    1,234.5  of words that may be broken", "another                     9.0"
    assert lines[3:] == [first, second]


def test_parts_repeat_the_names_and_long_lists_go_on_below_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    header = ["name", *(f"figure_{i}" for i in range(9))]
    row = ["one", *["1,234,567.8"] * 9]
    lines = table(header, [row] * 2)
    assert [line.split()[0] for line in lines if line] == ["name", "one", "one"] * (len(lines) // 3)
    assert " ".join(lines).count("1,234,567.8") == 18
    lines = table(header, [row] * 30)
    assert [line.startswith("one") for line in lines].count(True) == 30
    assert all(line.startswith(("name", "one", "  ")) for line in lines)
    assert max(map(len, lines)) <= 60


def test_where_names_fill_the_page_rows_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    header = ("one_name_of_a_setting", "another_name_of_a_setting", "third", "tok/s", "P99 TTFT ms")
    row = ("a" * 24, "b" * 24, "c", "1,234.5", "12,345,678.9")
    assert [line.split()[0] for line in table(header, [row, row], 3) if line].count("2") == 2


def test_a_command_is_broken_so_that_a_shell_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    command = "  vllm serve some/model --compilation-config '{\"mode\": 3}' --max-num-seqs 128 --enable-prefix-caching"
    lines = [*wrapped([command])]
    assert len(lines) > 1
    assert max(map(len, lines)) <= 60
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == shlex.split(command)


@pytest.mark.parametrize(("is_terminal", "num_lines"), [(True, 2), (False, 1)])
def test_an_error_is_broken_for_a_person_alone(
    is_terminal: bool, num_lines: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    assert exit_code("run", "FILE", "--set", "engine.max_num_batched_tokens=twothousandandfortyeight") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == num_lines
    assert said[0].startswith("error: --set engine.max_num_batched_tokens")
    assert max(map(len, said)) <= 60 or not is_terminal
