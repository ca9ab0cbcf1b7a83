"""Pages at 100 and at 60 columns, without colours: no line is wider, no figure is cut, no column is left out."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from simbatch.sim.text import table, wrapped
from tests import exit_code
from tests.test_report_page import with_files

SEARCH = "--over engine.max_num_seqs=2,64 --over engine.max_num_batched_tokens=256,512 --over policy.name=vllm,sjf"
COMMANDS = (
    "run FILE --verbose",
    "run FILE --set cluster.replicas=3",
    "compare FILE --policy vllm --policy sjf --policy fixed --policy fair --policy srpt --policy edf --policy mlfq",
    "compare FILE --policy vllm --policy sjf --replications 3 --jobs 1 --all",
    "compare FILE --policy vllm --rate 4,8 --jobs 1",
    "compare FILE --vllm-version 0.12 --vllm-version 0.33",
    f"sweep FILE {SEARCH} --replications 2 --jobs 1",
    f"sweep FILE {SEARCH} --dry-run",
    f"tune FILE {SEARCH} --limit p99_ttft_ms=90 --jobs 1",
    "tune FILE --capacity --replications 2 --set workload.num_prompts=10 --jobs 1",
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = with_files(tmp_path_factory.mktemp("pages"))
    (folder / "LINE").write_text("vllm serve Qwen/Qwen3-32B --max-num-seqs 64 --swap-space 4", encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_is_wider_than_the_page(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines that name a file aside: a path is not broken."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NO_COLOR", "1")
    figures = []
    for columns in (100, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        words = shlex.split(command.replace("MADE", str(tmp_path / f"{columns}.yaml")))
        target = ["-o", str(tmp_path / str(columns))] if words[0] in FOLDERS else []
        assert exit_code(*words, *target) == 0
        page = capsys.readouterr().out
        assert "\x1b" not in page
        for line in page.splitlines():
            assert len(line) <= columns or str(tmp_path) in line, line
        assert not re.search(r"\d(…|\.\.\.)", page), "a figure that is cut"
        figures.append({*re.findall(r"\d[\d,.]*[,.]\d+", page)})
    assert figures[0] == figures[1], "figures that are lost"


def test_titles_and_texts_give_way_before_columns_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    rows = [["a name of many words", "1,234.5", "of words that may be broken"], ["another", "9.0", ""]]
    lines = table(("name", "max_num_batched_tokens", ""), rows)
    assert [line.split() for line in lines[:3]] == [["max_num_"], ["batched_"], ["name", "tokens"]]
    assert lines[3:] == [
        "a name of many words    1,234.5  of words that may be broken",
        "another                     9.0",
    ]


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
    is_terminal: bool,
    num_lines: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    assert exit_code("run", "FILE", "--set", "engine.max_num_batched_tokens=twothousandandfortyeight") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == num_lines
    assert said[0].startswith("error: --set engine.max_num_batched_tokens")
    assert max(map(len, said)) <= 60 or not is_terminal
