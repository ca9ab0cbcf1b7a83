"""Wrong inputs as a newcomer or an attacker types them: one line that helps, exit code 2, and nothing written."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from simbatch.sim.cost.by_name import shipped_text
from tests import exit_code

PROFILE = "profile: {num_gpu_blocks: 1000, step_time: {base_s: 0.01}}\n"
WORKLOAD = """\
workload:
  num_prompts: 10
  request_rate: 3
  prompt_len: {distribution: fixed, mean: 10}
  output_len: {distribution: fixed, mean: 10}
"""
GOOD = PROFILE + WORKLOAD
TRACE = PROFILE + "workload: {trace: {path: FILE}}\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
OURS = "arrival_s,num_prompt_tokens,num_output_tokens\n"
POLICY = "from simbatch import Policy\n"


def everything_in(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command in an empty folder with some files; gives its complaint, and checks that nothing was written."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, **files: str) -> str:
        for name, text in files.items():
            Path(name.replace("__", ".")).write_text(text, encoding="utf-8", newline="")
        before = everything_in(tmp_path)
        assert exit_code(*arguments) == 2
        assert everything_in(tmp_path) == before
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert "Traceback" not in printed.err
        return printed.err.removeprefix("error: ").strip()

    return run


SCENARIOS = {
    "a huge float for a whole number": ("seed: 1e308\n", "s.yaml:7:7 seed: must be a whole number", "a smaller one"),
    "a comma within a number": (
        *("engine: {max_num_seqs: 1,024}\n", "s.yaml:7:26 engine[24]: a key must be a name (got 24)"),
        "1024, not 1,024",
    ),
    "a number as a key": ("1: 2\n", "s.yaml:7:1 [1]: a key must be a name (got 1)", "remove it"),
    "a block of text for the policy": (
        "policy: |\n  name: fixed\n",
        "s.yaml:7:9 policy: ",
        "write policy: {name: fixed}",
    ),
    "an empty name": ("policy: {name: ''}\n", "policy.name: must not be empty (got '')", "give it a value"),
    "a Windows path": ('policy: {name: "C:\\my\\x.py:P"}\n', "a backslash in double quotes", "single quotes"),
    "a second part": ("...\nfoo: 1\n", "s.yaml:8:1: this line does not belong", "`key: value` in every line"),
    "no such choice": ("engine: {scheduling_policy: lifo}\n", "must be fcfs or priority (got 'lifo')", "one of these"),
    "a unit that the key has not": ("engine: {max_num_seqs: 64 seqs}\n", "(got '64 seqs')", "alone, without a unit"),
}


@pytest.mark.parametrize(("added", "start", "mend"), SCENARIOS.values(), ids=SCENARIOS.keys())
def test_scenarios(refused: Callable[..., str], added: str, start: str, mend: str) -> None:
    answer = refused("run", "s.yaml", s__yaml=GOOD + added)
    assert start in answer
    assert mend in answer
    assert "\n" not in answer


WORKLOADS = {
    "a rate that no time is long enough for": ("request_rate: 3", "request_rate: 1e-308", "106 days"),
    "arrivals that cannot be told apart": (
        "request_rate: 3",
        "request_rate: 3\n  burstiness: 1e-300",
        "burstiness: all",
    ),
    "nothing after a required key": (WORKLOAD, "workload:\n", "(got null); give it a value\n"),
    "a rate with its unit": ("request_rate: 3", "request_rate: 3 req/s", "alone, without a unit"),
    "a home of nobody's": (
        WORKLOAD,
        "workload: {trace: {path: ~nobody-is-called-so/x.csv}}\n",
        "there is no such file",
    ),
    "a very long path": (WORKLOAD, f"workload: {{trace: {{path: {'x' * 5000}.csv}}}}\n", "there is no such file"),
    "a NUL in a profile's path": (PROFILE, 'profile: "a\\0b.json"\n', "cannot be read: embedded null byte"),
}


@pytest.mark.parametrize(("old", "new", "expected"), WORKLOADS.values(), ids=WORKLOADS.keys())
def test_workloads_and_profiles(refused: Callable[..., str], old: str, new: str, expected: str) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new).replace("mean: 10}\n", "mean: 999}\n")
    assert expected in refused("run", "s.yaml", s__yaml=text) + "\n"


ONE_REQUEST = '{"request_id": "\\ud800", "arrival_s": 0, "num_prompt_tokens": 1, "num_output_tokens": 1}'
TRACES = {
    "two years apart": (
        AZURE + "2023-11-16 18:17:03,5,3\n2025-11-16 18:17:03,5,3\n",
        "t.csv:3 TIMESTAMP: is 63158400 s after the trace's first request",
    ),
    "semicolons": (AZURE.replace(",", ";") + "x;1;2\n", "t.csv:2 TIMESTAMP: must be a timestamp (got 'x')"),
    "small letters": (AZURE.lower() + "x,1,2\n", "--columns arrival=timestamp,prompt=contexttokens,output="),
    "columns of another tool and no row": ("arrival_s,prompt_tokens,output_tokens\n", "the trace has no requests"),
    "a column that stands elsewhere": (
        "TIMESTAMP,ContextTokens\n",
        "has TIMESTAMP, ContextTokens; name it: --columns out",
    ),
    "a list of objects": (
        '[{"arrival_s": 0}]',
        "num_prompt_tokens, num_output_tokens: the columns are missing; the file has arrival_s",
    ),
    "Git LFS's pointer": ("version https://git-lfs.github.com/spec/v1\noid x\n", "git lfs pull"),
    "a benchmark of nothing": ('{"start_times": [], "input_lens": [], "output_lens": []}', "no requests"),
    "half a character": (ONE_REQUEST, "t.jsonl:1 request_id: is not text"),
}


@pytest.mark.parametrize(("content", "expected"), TRACES.values(), ids=TRACES.keys())
def test_traces(refused: Callable[..., str], content: str, expected: str) -> None:
    file = "t.jsonl" if content == ONE_REQUEST else "t.json" if content[0] in "[{" else "t.csv"
    Path(file).write_text(content)
    assert expected in refused("run", "s.yaml", s__yaml=TRACE.replace("FILE", file))


def test_a_trace_that_is_slowed_down_beyond_the_clock(refused: Callable[..., str]) -> None:
    arguments = ("trace", "convert", "t.csv", "out.csv", "--rate-scale", "0.000001")
    assert "raise rate_scale" in refused(*arguments, t__csv=OURS + "0,1,1\n9000000,1,1\n")


def test_a_number_of_thousands_of_digits_in_a_profile(refused: Callable[..., str]) -> None:
    content = json.loads(shipped_text("rtx4090-llama-3.1-8b-bf16")) | {"tensor_parallel_size": 7}
    text = json.dumps(content).replace('"tensor_parallel_size": 7', f'"tensor_parallel_size": {"7" * 5000}')
    answer = refused("run", "s.yaml", s__yaml="profile: p.json\n" + WORKLOAD, p__json=text)
    assert answer.endswith("p.json: a number has thousands of digits; shorten it")


FLAGS = {
    "a bracket left open": ("slo={ttft_ms: 1", "--set slo: a bracket is opened and never closed (got '{ttft_ms: 1')"),
    "a tag inside": ("slo={ttft_ms: !!int 3}", "--set slo.ttft_ms: YAML tags are not allowed"),
    "deep": (f"{'a.' * 3000}a=1", "keys are nested more than 40 deep"),
    "a number as a key": ("workload.0=5", "--set workload[0]: a key must be a name (got 0)"),
    "no equals sign": ("x" * 3000, "xxx...: must be a dotted key, =, and a value"),
}


@pytest.mark.parametrize(("flag", "expected"), FLAGS.values(), ids=FLAGS.keys())
def test_set(refused: Callable[..., str], flag: str, expected: str) -> None:
    answer = refused("run", "s.yaml", "--set", flag, s__yaml=GOOD)
    assert expected in answer
    assert len(answer) < 300


def test_a_pipe_without_a_writer_keeps_nobody_waiting(refused: Callable[..., str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "the file is empty" in refused("run", "pipe")
    assert "not valid JSON" in refused("profiles", "show", "./pipe")
    assert "is a pipe or a device" in refused("trace", "describe", "pipe")


def test_a_scenario_without_an_end_is_not_read_to_its_end(refused: Callable[..., str]) -> None:
    assert "is larger than" in refused("run", "/dev/zero")


def test_links_to_nowhere(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "t.csv").symlink_to("nothing.csv")
    (tmp_path / "loop").symlink_to("loop")
    assert "is a link that leads to no file" in refused("trace", "describe", "t.csv")
    assert refused("run", "loop").endswith("; check the path")
    assert "loop is a link that leads nowhere" in refused("run", "s.yaml", "-o", "loop/x", s__yaml=GOOD)


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_what_is_read_is_not_written_over(refused: Callable[..., str], tmp_path: Path, link: str) -> None:
    (tmp_path / "t.csv").write_text(OURS + "0,1,1\n")
    getattr(tmp_path / "u.csv", link)(tmp_path / "t.csv")
    for target in ("t.csv", "./t.csv", "u.csv"):
        assert "would be written over what is read" in refused("trace", "convert", "t.csv", target)
    generate = ("trace", "generate", "s.yaml", "--to", "csv", "--scenario", "s.yaml")
    assert "would be written over what is read" in refused(*generate, s__yaml=GOOD)


def test_a_file_takes_the_place_of_nothing_but_files(refused: Callable[..., str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")  # as for a device: a rename would replace it
    (tmp_path / "folder.csv").mkdir()
    convert = ("trace", "convert", "t.csv")
    assert "is a device or a pipe" in refused(*convert, "pipe.csv", t__csv=OURS + "0,1,1\n")
    assert "is a folder, not a file" in refused(*convert, "folder.csv")
    (tmp_path / "results/s/timeline.png").mkdir(parents=True)
    assert "a file of the results has its name" in refused("run", "s.yaml", s__yaml=GOOD)


def test_a_name_that_no_system_takes(refused: Callable[..., str]) -> None:
    assert "a name is longer than 255 bytes" in refused("run", "s.yaml", "-o", "x" * 300, s__yaml=GOOD)


@pytest.mark.parametrize(
    "body", ["import sys\nsys.exit(0)\n", "class P(Policy):\n  def order(self, r): raise SystemExit\n"]
)
def test_a_policy_that_ends_the_program(refused: Callable[..., str], body: str) -> None:
    answer = refused("run", "s.yaml", "--policy", "p.py:P", s__yaml=GOOD, p__py=POLICY + body)
    assert "sys.exit" in answer or "SystemExit" in answer


GENERATE = ("trace", "generate", "out.csv", "--num-prompts", 5, "--request-rate", 1, "--output-len-mean", 5)


def test_flags_of_generate(refused: Callable[..., str]) -> None:
    assert "needs to know what to generate" in refused("trace", "generate", "out.csv")
    assert "--prompt-len-max: needs --prompt-len-cv" in refused(
        *GENERATE, "--prompt-len-mean", 5, "--prompt-len-max", 3
    )
    assert "--prompt-len-cv: must be at least 0" in refused(*GENERATE, "--prompt-len-mean", 5, "--prompt-len-cv", -1)


def test_all_rejected_is_a_result_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(GOOD)
    assert exit_code("run", "s.yaml", "--set", "workload.prompt_len.mean=9000") == 0
    assert capsys.readouterr().err == ""
    summary = json.loads(Path("results/s/summary.json").read_text())
    assert (summary["completed"], summary["failed"]) == (0, 10)


def test_a_stored_scenario_finds_its_policy_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(GOOD)
    Path("p.py").write_text(POLICY + "class P(Policy):\n  def order(self, request): return -request.arrival_s\n")
    assert exit_code("run", "s.yaml", "--policy", "p.py:P", "-o", "first", "--quiet") == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert exit_code("run", "../first/scenario.yaml", "-o", "second", "--quiet") == 0
    first, second = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("first", "elsewhere/second")
    )
    assert first.pop("simbatch")["num_steps"] == second.pop("simbatch")["num_steps"]
    assert first == second
