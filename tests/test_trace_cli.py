"""`simbatch trace`: what it prints, writes, warns of and refuses; and files as people have them.

Those are ../shared/cases/public: each is answered as its README asks.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from simbatch.cli.trace import trace
from simbatch.sim.errors import UserError
from simbatch.sim.workload.traces.write import WRITE_FORMATS
from tests import run_command
from tests.bench_files import by_key, read, shared, source_of, validated

TABLE = "request_id,arrival_s,num_prompt_tokens,num_output_tokens,priority,colour\n"
ROWS = "a,0,100,10,0,red\nb,1,100,20,2,red\nc,3,400,30,0,blue\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(TABLE + ROWS)
    return path


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(trace, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        trace.main([str(argument) for argument in arguments], standalone_mode=False)
    return str(caught.value)


def test_describe_prints_the_facts(table: Path) -> None:
    lines = call("describe", table).stdout.splitlines()
    facts = dict(re.split(":  +", line, maxsplit=1) for line in lines if ":  " in line)
    assert facts["Format"] == "csv"
    assert facts["Requests"] == "3"
    assert facts["Mean request rate (req/s)"] == "0.667"
    assert facts["Priorities"] == "0: 2, 2: 1"
    assert facts["Columns not used"] == "colour"
    assert lines[-2].split()[:2] == ["prompt", "200"]
    assert lines[-1].split()[-1] == "60"


def test_describe_as_json(table: Path) -> None:
    facts: dict[str, Any] = json.loads(call("describe", table, "--json", "--rate-scale", 2).stdout)
    assert (facts["num_requests"], facts["duration_s"], facts["format"]) == (3, 1.5, "csv")
    assert facts["gap_cv"] == pytest.approx(1 / 3)
    assert facts["num_prompt_tokens"]["p50"] == 100
    assert (facts["skipped"], facts["ignored_columns"]) == (0, ["colour"])


def test_describe_a_real_trace_with_hashes() -> None:
    facts = json.loads(call("describe", shared("traces/mooncake/conversation_trace.jsonl"), "--json").stdout)
    assert facts["prefix_blocks"] == {"total": 288_500, "repeated": 105_710, "share": pytest.approx(0.36641, abs=1e-5)}


def test_describe_one_request(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE + "a,5,1,1,0,red\n")
    assert "Mean request rate (req/s):      -" in call("describe", tmp_path / "t.csv", "-o", tmp_path / "p.png").stdout
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_describe_draws_a_picture(table: Path, tmp_path: Path) -> None:
    result = call("describe", table, "-o", tmp_path / "p.png", "--json")
    assert json.loads(result.stdout)  # what is said of the picture goes to stderr
    assert "p.png" in result.stderr
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["p.png", "t.csv"]


def test_convert_names_what_is_lost(table: Path, tmp_path: Path) -> None:
    result = call("convert", table, tmp_path / "out.azure", "--to", "azure")
    assert result.stdout == f"3 requests: {table} (csv) to {tmp_path}/out.azure (azure)\n"
    assert result.stderr.splitlines() == [
        "warning: azure has no request_id: left out (3 requests)",
        "warning: azure has no priority: left out (1 requests)",
        "warning: t.csv: columns not used: colour",
    ]
    assert read(tmp_path / "out.azure", format="azure")["arrival_ps"] == [0, 10**12, 3 * 10**12]


def test_convert_tells_the_format_by_the_ending(table: Path, tmp_path: Path) -> None:
    call("convert", table, tmp_path / "out.parquet", "--limit", 2)
    assert read(tmp_path / "out.parquet")["request_id"] == ["a", "b"]


def test_convert_splits_hashes_so_that_the_defaults_read_them(tmp_path: Path) -> None:
    path = shared("traces/mooncake/conversation_trace.jsonl")
    result = call("convert", path, tmp_path / "out.jsonl", "--limit", 50)
    assert result.stderr == f"warning: {path.name}: 11,981 of its 12,031 rows were left out (limit: 50)\n"
    found = read(tmp_path / "out.jsonl")
    assert [len(row) for row in found["hash_ids"]] == [-(-prompt // 16) for prompt in found["num_prompt_tokens"]]
    assert len({row[0] for row in found["hash_ids"]}) == len({row[0] for row in read(path, limit=50)["hash_ids"]})


def test_convert_can_keep_the_hashes(tmp_path: Path) -> None:
    path = shared("traces/mooncake/conversation_trace.jsonl")
    out = tmp_path / "out.csv"
    result = call("convert", path, out, "--out-hash-block-tokens", 512, "--limit", 50)
    assert f"{out} does not say that a hash stands for 512 tokens: read it with hash_block_tokens" in result.stderr
    assert read(out, hash_block_tokens=512)["hash_ids"] == read(path, limit=50)["hash_ids"]


def test_convert_to_coarser_hashes_warns(tmp_path: Path) -> None:
    path = shared("traces/sharegpt-llama-3.1-8b-300-sps10.timed_trace.jsonl")
    result = call("convert", path, tmp_path / "out.jsonl", "--to", "mooncake")
    assert result.stderr == "warning: hashes of 16 tokens became ones of 512: shorter shared prefixes are lost\n"
    assert source_of(tmp_path / "out.jsonl").format == "mooncake"


def test_convert_counts_what_it_skipped(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE + ROWS + "d,4,1,0,0,red\n")
    assert "t.csv:5 num_output_tokens" in refused("convert", tmp_path / "t.csv", tmp_path / "o.csv")
    assert not (tmp_path / "o.csv").exists()
    said = call("convert", tmp_path / "t.csv", tmp_path / "o.csv", "--on-empty", "skip").stderr
    assert "1 row without output tokens was left out" in said


def test_a_failed_convert_leaves_what_stood_there(table: Path, tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text("before")
    table.write_text(TABLE + ROWS + "d,2,1,1,0,red\n")
    assert "t.csv:5 arrival_s: is 1 s earlier" in refused("convert", table, tmp_path / "o.csv")
    assert (tmp_path / "o.csv").read_text() == "before"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["o.csv", "t.csv"]


OPTIONS = ("--num-prompts", 500, "--request-rate", 5, "--prompt-len-mean", 300, "--output-len-mean", 20)


def test_generate_from_options(tmp_path: Path) -> None:
    out = tmp_path / "g.csv"
    more = ("--burstiness", 0.5, "--prompt-len-cv", 1, "--prompt-len-max", 900, "--seed", 3)
    assert call("generate", out, *OPTIONS, *more).stdout == f"500 requests to {out} (csv), seed 3\n"
    found, first = read(out), out.read_bytes()
    last = out.read_text().splitlines()[-1]
    assert last.split(",")[1] == "100.0"
    assert max(found["num_prompt_tokens"]) == 900
    assert set(found["num_output_tokens"]) == {20}
    call("generate", out, *OPTIONS, *more)
    assert out.read_bytes() == first


@pytest.mark.parametrize("to", WRITE_FORMATS)
def test_generate_every_format(tmp_path: Path, to: str) -> None:
    call("generate", tmp_path / "g", "--to", to, *OPTIONS)
    assert read(tmp_path / "g", format=to)["num_prompt_tokens"] == [300] * 500


SCENARIO = """
profile: {num_gpu_blocks: 1000, step_time: {base_s: 0.01}}
workload:
  num_prompts: 40
  request_rate: 2
  prompt_len: {distribution: fixed, mean: 100}
  output_len: {distribution: fixed, mean: 5}
  prefix: {prefix_len: 64}
  priorities: {high: 0.5, low: 0.5}
  max_concurrency: 4
seed: 9
"""


def test_generate_from_a_scenario(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO)
    out = tmp_path / "g.jsonl"
    result = call("generate", out, "--scenario", tmp_path / "s.yaml", "--set", "workload.num_prompts=30")
    assert result.stdout == f"30 requests to {out} (jsonl), seed 9\n"
    assert result.stderr.startswith("warning: max_concurrency (4) holds requests back")
    found = read(out)
    assert (found["num_prompt_tokens"], set(found["priority"])) == ([164] * 30, {0, 2})
    assert {row[:4] for row in found["hash_ids"]} == {found["hash_ids"][0][:4]}
    assert len({row[4] for row in found["hash_ids"]}) == 30


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--num-prompts", 5), "--prompt-len-mean: required, but missing"),
        ((*OPTIONS, "--request-rate", 0), "--request-rate: must be more than 0 (got 0.0)"),
        ((*OPTIONS, "--output-len-mean", 2.5), "--output-len-mean: a fixed length must be a whole number of tokens"),
        ((*OPTIONS, "--set", "seed=1"), "--set: needs a scenario"),
        ((*OPTIONS[:2], "--scenario", "s.yaml"), "--num-prompts: a scenario brings its own workload"),
    ],
)
def test_generate_refuses(tmp_path: Path, arguments: tuple[object, ...], said: str) -> None:
    assert said in refused("generate", tmp_path / "g.csv", *arguments)
    assert not list(tmp_path.iterdir())


def test_a_closed_loop_has_no_times_to_write(tmp_path: Path) -> None:
    text = SCENARIO.replace("  request_rate: 2\n", "  arrival: {process: closed_loop}\n")
    (tmp_path / "s.yaml").write_text(text)
    said = refused("generate", tmp_path / "g.csv", "--scenario", tmp_path / "s.yaml")
    assert "no arrival times before it is simulated" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("describe t.csv -o p.jpg", "must end in .png"),
        ("describe t.csv --time-unit ms", "--time-unit: format csv has arrival_s"),
        ("describe t.csv --limit 0", "--limit: must be at least 1 (got 0)"),
        ("describe u.csv", "u.csv: there is no such file"),
        ("convert t.csv no/o.csv", "there is no such folder"),
        ("convert t.csv out.txt", "add --to: one of azure, burstgpt"),
    ],
)
def test_the_flags_are_named_in_messages(table: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str) -> None:
    monkeypatch.chdir(table.parent)
    assert said in refused(*words.split())
    with pytest.raises(click.UsageError):
        trace.main(["describe", "t.csv", "--format", "azur"], standalone_mode=False)


def case(number: str) -> Path:
    """A file as somebody has it, in its folder."""
    return shared(f"cases/public/{number}-*")


def described(number: str, *flags: str) -> Any:
    file = next(path for path in case(number).iterdir() if path.suffix in (".csv", ".jsonl"))
    return json.loads(call("describe", file, "--json", *flags).stdout)


@pytest.mark.parametrize(
    ("number", "flags", "expected"),
    [
        ("01", (), {"duration_s": 6.109}),  # a slice counts from its first request
        ("02", (), {"num_requests": 3, "duration_s": 82}),  # and so does a late clock
        ("09", (), {"num_requests": 4}),  # Infinity in a key that nobody reads
        ("14", ("--sort",), {"duration_s": 70}),  # rows that are not in order
    ],
)
def test_01_02_09_14_are_described(number: str, flags: tuple[str, ...], expected: dict[str, Any]) -> None:
    assert described(number, *flags).items() >= expected.items()


def test_03_04_turns_wait_for_the_ones_before_them(tmp_path: Path, capsys: Any) -> None:
    for number in ("03", "04"):
        found = described(number)["sessions"]
        assert (found["num_sessions"], found["delay_s"]["max"]) == (2, 2)
        trace = next(case(number).glob("*.jsonl"))
        (tmp_path / "s.yaml").write_text(f"{{profile: h100-llama-3.1-8b-bf16, workload: {{trace: {{path: {trace}}}}}}}")
        done = run_command(capsys, "run", tmp_path / "s.yaml", "-o", tmp_path / "out", "--json")
        assert json.loads(done.out)["duration"] > 2.3, number


def test_05_13_usual_names_are_read_and_no_total_is_an_output() -> None:
    usage = described("05")
    assert usage["num_output_tokens"]["total"] == 12
    assert "total_tokens" in usage["ignored_columns"]
    assert described("13")["num_output_tokens"]["total"] == 161 + 41 + 94


def test_07_a_result_without_start_times_takes_its_load_for_the_arrivals(tmp_path: Path, capsys: Any) -> None:
    file = case("07") / "result.json"
    content, done = validated(tmp_path, capsys, file, scenario=case("07") / "scenario.yaml")
    assert done.code == 0
    assert content["num_requests"] == 4
    assert "does not say when requests were sent: by its load (2 in flight)" in " ".join(content["notes"])
    keys = {figure["key"] for figure in content["figures"]}
    assert {"mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms"} <= keys
    assert "request_throughput" not in keys  # its duration of 4 s is not that of its latencies
    text = call("describe", file).stdout
    assert "does not say when requests were sent" in text
    assert re.search(r"^prompt +250 ", text, re.MULTILINE)


def test_10_a_guidellm_report_is_read(tmp_path: Path, capsys: Any) -> None:
    assert "Format:                         guidellm" in call("describe", case("10") / "guidellm.json").stdout
    llmperf = {f"results_ttft_s_{i}": 0.1 for i in range(300)} | {"mean_input_tokens": 5}
    (tmp_path / "llmperf.json").write_text(json.dumps(llmperf, indent=1))
    done = run_command(capsys, "trace", "describe", tmp_path / "llmperf.json")
    assert (done.code, done.err.count("error:")) == (2, 1)
    assert len(done.err) < 500 + len(str(tmp_path))
    assert "Rename it" not in done.err


def test_18_a_closed_loop_on_a_slower_profile_is_slower(tmp_path: Path, capsys: Any) -> None:
    file, scenario = (case("18") / name for name in ("result.json", "scenario.yaml"))
    content, done = validated(tmp_path, capsys, file, "--bounds", "throughput=7", scenario=scenario)
    assert done.code == 1
    throughput = by_key(content)["request_throughput"]
    assert throughput["median"] == pytest.approx(2.459, abs=0.001)
    assert throughput["simulated"] == pytest.approx(1.58, abs=0.01)
    assert throughput["error"] == pytest.approx(-0.357, abs=0.005)
