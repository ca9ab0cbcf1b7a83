"""Reports on a narrow page: no line is wider than it, and no figure is broken or lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from simbatch.cli import main
from simbatch.sim.text import beside, table, wrapped

SCENARIO = """\
profile: {num_gpu_blocks: 1000, step_time: {base_s: 0.01, per_decode_seq_s: 0.0001}}
workload:
  num_prompts: 20
  request_rate: 3
  prompt_len: {distribution: fixed, mean: 10}
  output_len: {distribution: lognormal, mean: 10, cv: 1}
  priorities: {high: 0.2, normal: 0.8}
slo: {ttft_ms: 100}
sweep: {workload.request_rate: [1, 4], engine.max_num_seqs: [8, 64]}
"""
TRACE = "arrival,prompt_tokens,output_tokens\n0,100,10\n1,200,20\n2,300,30\n"
COMMANDS = (
    "run small.yaml -o run",
    "sweep small.yaml --jobs 1 --replications 2 -o sweep",
    "compare small.yaml --policy vllm --policy fixed --jobs 1 -o compare",
    "tune small.yaml --over engine.max_num_seqs=4,8,64 --over engine.max_num_batched_tokens=256,512 --jobs 1 -o tune",
    "trace describe trace.csv",
    "explain small.yaml --request 3",
    "profiles list --gpu a100",
    "profiles gpus",
    "profiles show rtx4090-llama-3.1-8b-bf16 --batches 1,8",
    "memory --list --gpu rtx4090",
    "memory Qwen/Qwen2.5-7B --gpu rtx4090 --prompt-len 512 --output-len 128",
)
COPIED = ("  simbatch ", "  vllm ")  # commands stay on one line, to be copied


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SCENARIO)
    Path("trace.csv").write_text(TRACE)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("columns", [60, 100])
@pytest.mark.parametrize("words", COMMANDS)
def test_no_line_is_wider_than_the_page(
    words: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(COPIED)]
    assert len(lines) > 5
    assert "\x1b" not in "".join(lines)
    assert [line for line in lines if len(line) > columns] == []


def test_columns_that_do_not_fit_stand_below_behind_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    header = ["class", *(f"figure {i}" for i in range(8)), ""]
    rows = [[name, *(f"{i},000.0" for i in range(8)), ""] for name in ("high", "normal")]
    text = table(header, rows)
    parts = "\n".join(text).split("\n\n")
    assert [part.split()[0] for part in parts] == ["class", "class"]
    assert [re.findall(r"figure \d", part) for part in parts] == [
        [f"figure {i}" for i in numbers] for numbers in (range(5), range(5, 8))
    ]
    assert [word for part in parts for word in part.splitlines()[1].split()[1:]] == rows[0][1:-1]


def test_rows_are_numbered_where_names_leave_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = table(("a" * 30, "b" * 30, "req/s"), [("x" * 40, "y" * 50, "1.00")], num_names=2)
    assert [line.split() for line in text if "row" in line or line.strip()[:1] == "1"] == [
        ["row", "a" * 30],
        ["1", "x" * 40],
        ["row", "b" * 30],
        ["1", "y" * 50],
        ["row", "req/s"],
        ["1", "1.00"],
    ]


def test_a_labelled_figure_goes_below_its_name_where_it_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    label = f"{'Longest time in queue (ms):':<40} "
    assert [*wrapped([label + "27,295.5 (request 777, class low)"])] == [
        label.rstrip(),
        "    27,295.5 (request 777, class low)",
    ]
    assert beside("name:  ", "") == ["name:"]
