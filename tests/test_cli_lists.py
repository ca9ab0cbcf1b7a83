"""What the command line prints about itself: the schema of scenarios, the policies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.test_cli import run

ROOT = Path(__file__).parents[1]


def test_schema_in_the_repository_is_the_one_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """But for policies that are newer than it: a policy is one file and its test; `make docs` is for releases."""
    assert run("schema") == 0
    printed, kept = json.loads(capsys.readouterr().out), json.loads((ROOT / "scenarios" / "schema.json").read_text())
    known, there = (content["properties"]["policy"].pop("anyOf") for content in (kept, printed))
    assert kept == printed, "make docs"
    assert [policy for policy in known if policy not in there] == [], "make docs"


def test_the_page_of_policies_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("policies", "--markdown") == 0
    printed = capsys.readouterr().out.split("\n## ")
    kept = (ROOT / "docs" / "policies.md").read_text().split("\n## ")
    assert [section for section in kept if section.strip() not in map(str.strip, printed)] == [], "make docs"
    assert len(kept) > 14


def test_every_policy_names_its_source_and_the_meaning_of_its_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("policies", "--json") == 0
    for policy in json.loads(capsys.readouterr().out):
        assert "Source:" in policy["description"], policy["name"]
        assert all(parameter["description"] for parameter in policy["parameters"].values()), policy["name"]


def test_schema_knows_every_key_of_the_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    from simbatch.sim.scenario.hints import Hints

    assert run("schema") == 0
    hints = Hints(json.loads(capsys.readouterr().out))
    checked = 0

    def check(path: tuple[str | int, ...], value: object, data: object) -> None:
        nonlocal checked
        if isinstance(value, dict):
            known = hints.known_keys(path, data)
            if path[-1:] in (("priorities",), ("sweep",)):
                return
            for key, child in value.items():
                assert key in known, (path, key)
                checked += 1
                check((*path, key), child, data)

    for file in (ROOT / "scenarios").glob("*.yaml"):
        data = yaml.safe_load(file.read_text())
        check((), data, data)
    assert checked > 50


def test_schema_describes_every_engine_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema") == 0
    schema = json.loads(capsys.readouterr().out)
    settings = schema["$defs"]["EngineSettings"]["properties"]
    assert {"max_num_seqs", "max_num_batched_tokens", "kv_cache_dtype", "batching"} <= settings.keys()
    assert all(setting.get("description") for setting in settings.values())
    assert all(setting.get("description") for setting in schema["$defs"]["Workload"]["properties"].values())


def test_policies_are_listed_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("policies") == 0
    out = capsys.readouterr().out
    assert "fixed  (continuous and static batching)" in out
    assert "batch_size: whole number from 1, default 32" in out
    assert run("policies", "--json") == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert {"adaptive", "fixed", "priority", "vllm"} <= listed.keys()
    assert listed["adaptive"]["parameters"]["max_batch_size"]["default"] == 64


def test_a_profile_tells_what_each_batch_size_would_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "batches.png"
    lengths = ["--prompt-len", "256", "--output-len", "16"]
    arguments = ["profiles", "show", "rtx4090-llama-3.1-8b-bf16", "--batches", "64,1,8,256", *lengths]
    assert run(*arguments, "--json", "--plot", str(picture)) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["batch_size"] for row in rows] == [1, 8, 64, 256]
    assert [row["kv_full"] for row in rows] == [False, False, False, True]
    throughput = [row["output_throughput"] for row in rows]
    assert throughput[:3] == sorted(throughput[:3])
    assert rows[2]["kv_gib"] == 64 * 17 * 16 * 131_072 / 2**30
    assert rows[0]["step_ms"] < rows[2]["step_ms"]
    assert picture.stat().st_size > 10_000
    assert run(*arguments) == 0
    assert "KV full: the batch needs more blocks" in capsys.readouterr().out


def test_profiles_are_listed_by_gpu_and_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("profiles", "list", "--gpu", "NVIDIA H100 80GB HBM3", "--model", "Llama-3.1-70b", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {facts["gpu"] for facts in found} == {"h100"}
    assert {facts["model"].rsplit("/", 1)[-1] for facts in found} == {"Llama-3.1-70B"}
