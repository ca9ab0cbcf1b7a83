"""What the command line prints about itself: the schema of scenarios, the policies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.test_cli import run

ROOT = Path(__file__).parents[1]


def test_schema_in_the_repository_is_the_one_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema") == 0
    printed = capsys.readouterr().out
    assert (ROOT / "scenarios" / "schema.json").read_text() == printed, "simbatch schema > scenarios/schema.json"


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
