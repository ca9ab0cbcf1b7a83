"""`simbatch trace`: what it prints, writes, warns of and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from simbatch.cli.trace import trace
from simbatch.sim.errors import UserError
from simbatch.sim.workload.traces.write import WRITE_FORMATS
from tests.trace_files import read, shared, source_of

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
    facts = dict(line.split(":  ", 1) for line in lines if ":  " in line)
    facts = {name: value.strip() for name, value in facts.items()}
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
    facts = json.loads(call("describe", shared("mooncake/conversation_trace.jsonl"), "--json").stdout)
    assert facts["prefix_blocks"] == {"total": 288_500, "repeated": 105_710, "share": pytest.approx(0.36641, abs=1e-5)}


def test_describe_one_request(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE + "a,5,1,1,0,red\n")
    assert "Mean request rate (req/s):      -" in call("describe", tmp_path / "t.csv", "-o", tmp_path / "p.png").stdout
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_describe_draws_a_picture(table: Path, tmp_path: Path) -> None:
    result = call("describe", table, "-o", tmp_path / "p.png", "--json")
    json.loads(result.stdout)  # what is said of the picture goes to stderr
    assert "p.png" in result.stderr
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["p.png", "t.csv"]


def test_describe_refuses_another_picture_format_before_reading(table: Path) -> None:
    assert "must end in .png" in refused("describe", table, "-o", "p.jpg")


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
    assert "add --to: one of azure, burstgpt" in refused("convert", table, tmp_path / "out.txt")


def test_convert_splits_hashes_so_that_the_defaults_read_them(tmp_path: Path) -> None:
    path = shared("mooncake/conversation_trace.jsonl")
    result = call("convert", path, tmp_path / "out.jsonl", "--limit", 50)
    assert result.stderr == f"warning: {path.name}: 11,981 of its 12,031 rows were left out (limit: 50)\n"
    found = read(tmp_path / "out.jsonl")
    assert [len(row) for row in found["hash_ids"]] == [-(-prompt // 16) for prompt in found["num_prompt_tokens"]]
    assert len({row[0] for row in found["hash_ids"]}) == len({row[0] for row in read(path, limit=50)["hash_ids"]})


def test_convert_can_keep_the_hashes(tmp_path: Path) -> None:
    path = shared("mooncake/conversation_trace.jsonl")
    out = tmp_path / "out.csv"
    result = call("convert", path, out, "--out-hash-block-tokens", 512, "--limit", 50)
    assert f"{out} does not say that a hash stands for 512 tokens: read it with hash_block_tokens" in result.stderr
    assert read(out, hash_block_tokens=512)["hash_ids"] == read(path, limit=50)["hash_ids"]


def test_convert_to_coarser_hashes_warns(tmp_path: Path) -> None:
    path = shared("sharegpt-llama-3.1-8b-300-sps10.timed_trace.jsonl")
    result = call("convert", path, tmp_path / "out.jsonl", "--to", "mooncake")
    assert result.stderr == "warning: hashes of 16 tokens became ones of 512: shorter shared prefixes are lost\n"
    assert source_of(tmp_path / "out.jsonl").format == "mooncake"


def test_convert_counts_what_it_skipped(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE + ROWS + "d,4,1,0,0,red\n")
    assert "t.csv:5 num_output_tokens" in refused("convert", tmp_path / "t.csv", tmp_path / "o.csv")
    assert not (tmp_path / "o.csv").exists()
    assert (
        "1 row without output tokens was left out"
        in call("convert", tmp_path / "t.csv", tmp_path / "o.csv", "--on-empty", "skip").stderr
    )


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
    assert found["num_prompt_tokens"] == [164] * 30
    assert {row[:4] for row in found["hash_ids"]} == {found["hash_ids"][0][:4]}
    assert len({row[4] for row in found["hash_ids"]}) == 30
    assert set(found["priority"]) == {0, 2}


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
    assert "no arrival times before it is simulated" in refused(
        "generate", tmp_path / "g.csv", "--scenario", tmp_path / "s.yaml"
    )


def test_the_flags_are_named_in_messages(table: Path, tmp_path: Path) -> None:
    assert refused("describe", table, "--time-unit", "ms").startswith("--time-unit: format csv has arrival_s")
    assert "--limit: must be at least 1 (got 0)" in refused("describe", table, "--limit", 0)
    assert refused("describe", tmp_path / "u.csv").startswith(f"{tmp_path}/u.csv: there is no such file")
    assert "there is no such folder" in refused("convert", table, tmp_path / "no" / "o.csv")
    with pytest.raises(click.UsageError):
        trace.main(["describe", str(table), "--format", "azur"], standalone_mode=False)
