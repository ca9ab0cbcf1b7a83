"""Tenants of a workload: shares with a stream of their own, mixes of traffic, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simbatch import Scenario, UserError, simulate
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.search.cells import cells_of
from simbatch.sim.search.loads import at_rate, rates_of
from simbatch.sim.workload import RequestSource, open_workload
from simbatch.sim.workload.chunk import CHUNK_SIZE
from simbatch.sim.workload.model import Workload
from tests.test_workload_model import check_mistake

BASE: dict[str, Any] = {
    "num_prompts": 2000,
    "request_rate": 5,
    "prompt_len": {"distribution": "lognormal", "mean": 300, "cv": 1},
    "output_len": {"distribution": "uniform", "min": 1, "max": 50},
}
PROFILE = {"num_gpu_blocks": 2000, "step_time": {"base_s": 0.01}}
COLUMNS = ("arrival_ps", "num_prompt_tokens", "num_output_tokens", "priority", "hash_ids")
CHAT = {**BASE, "tenant": "chat", "num_prompts": 200, "request_rate": 2}
BATCH = {
    **{key: value for key, value in BASE.items() if key != "request_rate"},
    "tenant": "batch",
    "num_prompts": 300,
    "arrival": {"process": "on_off", "request_rate": 10, "on_s": 5, "off_s": 15},
    "priority": "low",
}


def source(seed: int = 0, folder: Path = Path(), **settings: Any) -> RequestSource:
    return open_workload(Workload.model_validate(settings), seed=seed, folder=folder)


def column(found: RequestSource, name: str) -> list[Any]:
    return [value for chunk in found.chunks() for value in getattr(chunk, name) or [None] * len(chunk)]


def test_tenants_have_their_shares_and_move_nothing_else() -> None:
    full = {**BASE, "priorities": {"high": 0.2, "low": 0.8}, "prefix": {"prefix_len": 32, "share": 0.5}}
    plain, found = source(**full), source(**full, tenants={"a": 0.7, "b": 0.3, "never": 0.0})
    for name in COLUMNS:
        assert column(plain, name) == column(found, name)
    tenants = column(found, "tenant")
    assert set(tenants) == {"a", "b"}
    assert np.mean([name == "a" for name in tenants]) == pytest.approx(0.7, abs=0.03)
    assert tenants != column(source(1, **full, tenants={"a": 0.7, "b": 0.3}), "tenant")
    priorities = np.array(column(found, "priority"))
    assert abs(np.corrcoef(priorities, [name == "a" for name in tenants])[0, 1]) < 0.07  # drawn apart


def trace(tmp_path: Path, columns: str, row: str) -> dict[str, Any]:
    (tmp_path / "t.csv").write_text(f"arrival_s,num_prompt_tokens,num_output_tokens{columns}\n" + f"1,10,5{row}\n" * 50)
    return {"trace": {"path": "t.csv", "format": "csv"}}


def test_a_trace_gets_tenants_unless_it_has_its_own(tmp_path: Path) -> None:
    shares = {"tenants": {"a": 0.5, "b": 0.5}}
    assert set(column(source(folder=tmp_path, **trace(tmp_path, "", ""), **shares), "tenant")) == {"a", "b"}
    own = trace(tmp_path, ",tenant", ",acme")
    assert set(column(source(folder=tmp_path, **own), "tenant")) == {"acme"}
    with pytest.raises(UserError, match=r"workload\.tenants: .*t\.csv has tenants of its own.*leave tenants out"):
        column(source(folder=tmp_path, **own, **shares), "tenant")


def test_a_mix_is_its_parts_merged_by_arrival() -> None:
    found = source(mix=[CHAT, BATCH])
    assert found.num_requests == 500
    times, tenants = column(found, "arrival_ps"), column(found, "tenant")
    assert times == sorted(times)
    assert [tenants.count(name) for name in ("chat", "batch")] == [200, 300]
    priorities = zip(column(found, "priority"), tenants, strict=True)
    assert set(priorities) == {(0, "chat"), (2, "batch")}
    batch_s = np.array([t for t, name in zip(times, tenants, strict=True) if name == "batch"]) / PS_PER_S
    assert (batch_s % 20 <= 5).all()  # in its bursts alone
    assert max(t for t, name in zip(times, tenants, strict=True) if name == "chat") == 100 * PS_PER_S


def test_a_part_does_not_depend_on_the_others() -> None:
    alone, together = source(mix=[CHAT]), source(mix=[CHAT, BATCH])
    is_chat = [name == "chat" for name in column(together, "tenant")]
    for name in ("arrival_ps", "num_prompt_tokens", "num_output_tokens"):
        kept = [value for value, mine in zip(column(together, name), is_chat, strict=True) if mine]
        assert kept == column(alone, name)
    first, second = source(mix=[CHAT, {**CHAT, "tenant": "too"}]), source(3, mix=[CHAT])
    prompts = column(first, "num_prompt_tokens")
    whose = column(first, "tenant")
    assert [p for p, t in zip(prompts, whose, strict=True) if t == "chat"] != [
        p for p, t in zip(prompts, whose, strict=True) if t == "too"
    ]
    assert column(second, "num_prompt_tokens") != column(alone, "num_prompt_tokens")


def test_a_large_mix_comes_in_chunks_and_equal_times_in_the_order_of_the_parts() -> None:
    at_once = {key: value for key, value in CHAT.items() if key != "request_rate"}
    part = {**at_once, "arrival": {"process": "all_at_once"}, "num_prompts": CHUNK_SIZE}
    found = source(mix=[part, {**part, "tenant": "second", "num_prompts": 10}])
    chunks = list(found.chunks())
    assert [len(chunk) for chunk in chunks] == [CHUNK_SIZE, 10]
    assert set(chunks[0].tenant or ()) == {"chat"}


ERRORS: list[tuple[str, dict[str, Any], tuple[str | int, ...], str]] = [
    ("sum", {**BASE, "tenants": {"a": 0.5, "b": 0.4}}, ("tenants",), "shares must sum to 1, and sum to 0.9"),
    ("number", {**BASE, "tenants": {1: 1.0}}, ("tenants",), "the tenant 1 must be text"),
    ("no name", {**BASE, "tenants": {" ": 1.0}}, ("tenants",), "the tenant ' ' has no name to show"),
    ("long name", {**BASE, "tenants": {"x" * 101: 1.0}}, ("tenants",), "has 101 characters"),
    ("share", {**BASE, "tenants": {"a": 2}}, ("tenants", "a"), "less than or equal to 1"),
    ("mix and lengths", {"mix": [CHAT], "num_prompts": 3}, ("num_prompts",), "each part of a mix has its own"),
    ("mix and tenants", {"mix": [CHAT], "tenants": {"a": 1.0}}, ("tenants",), "each part of a mix has its own"),
    ("mix and trace", {"mix": [CHAT], "trace": {"path": "x"}}, ("trace",), "cannot be given with a mix"),
    ("empty mix", {"mix": []}, ("mix",), "at least 1 item"),
    ("nobody's", {"mix": [{**BASE}]}, ("mix", 0, "tenant"), "Field required"),
    ("no rate", {"mix": [{**CHAT, "request_rate": None}]}, ("mix", 0, "request_rate"), "Field required"),
    ("priority", {"mix": [{**CHAT, "priority": "urgent"}]}, ("mix", 0, "priority"), "must be high, normal, low"),
    (
        "closed loop",
        {"mix": [{**BATCH, "arrival": {"process": "closed_loop", "max_concurrency": 3}}]},
        ("mix", 0, "arrival"),
        "a closed loop cannot be part of a mix",
    ),
    ("prefix", {"mix": [{**CHAT, "prefix": {"prefix_len": 3}}]}, ("mix", 0, "prefix"), "Extra inputs"),
]


@pytest.mark.parametrize(("data", "place", "rule"), [error[1:] for error in ERRORS], ids=[error[0] for error in ERRORS])
def test_a_mistake_is_shown_at_its_key(data: dict[str, Any], place: tuple[str | int, ...], rule: str) -> None:
    check_mistake(data, place, rule)


def scenario(**workload: Any) -> Scenario:
    return Scenario.from_dict(
        {"profile": {"num_gpu_blocks": 2000, "step_time": {"base_s": 0.01}}, "workload": workload}
    )


def test_a_mix_survives_its_dump_and_a_mistake_names_the_part() -> None:
    found = scenario(mix=[CHAT, BATCH])
    assert Scenario.from_dict(found.dump()).dump() == found.dump()
    assert simulate(found).summary["completed"] == 500
    with pytest.raises(UserError, match=r"workload\.mix\[1\]\.arrival"):
        scenario(mix=[CHAT, {**BATCH, "arrival": {"process": "constant"}}])


def test_the_rates_of_a_mix_go_in_step() -> None:
    found = scenario(mix=[CHAT, BATCH])
    assert rates_of(found) == {"workload.mix.0.request_rate": 2, "workload.mix.1.arrival.request_rate": 10}
    changed = found.override(at_rate(found, 3.0))
    assert rates_of(changed) == {"workload.mix.0.request_rate": 3, "workload.mix.1.arrival.request_rate": 15}


def test_a_file_of_lengths_in_a_mix_is_found_from_anywhere_and_counts_by_its_content(tmp_path: Path) -> None:
    trace(tmp_path, "", "")
    part = {**CHAT, "prompt_len": {"distribution": "empirical", "path": "t.csv"}}
    data = {"profile": PROFILE, "workload": {"mix": [part]}}
    found = Scenario.from_dict(data, folder=tmp_path)
    assert found.dump()["workload"]["mix"][0]["prompt_len"]["path"] == str(tmp_path / "t.csv")
    [before] = cells_of(found, [{}], [0])
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text() + "2,11,5\n")
    [after] = cells_of(found, [{}], [0])
    assert before.key != after.key
