"""Requests that are drawn: seeds, classes, prefixes, closed loops, and sessions that keep the rules of turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simbatch import Scenario, sweep
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.errors import UserError
from simbatch.sim.scenario import has_chance
from simbatch.sim.scheduler.names import PrefixKeys, as_ranges, cut, num_alike, num_in, one_by_one
from simbatch.sim.search.loads import at_rate, of_rates
from simbatch.sim.workload import RequestSource, open_workload
from simbatch.sim.workload.chunk import CHUNK_SIZE, RequestChunk
from simbatch.sim.workload.model import Workload
from simbatch.sim.workload.traces.write import write_trace
from simbatch.sim.workload.turns import Turns, awaited_of, rate_of, turns_in, turns_of
from tests.bench_files import source_of

UNIFORM = {"distribution": "uniform", "min": 1, "max": 5}
FIXED = {"distribution": "fixed", "mean": 10}
SECTION: dict[str, Any] = {
    "num_sessions": 40,
    "concurrency": 3,
    "turns": UNIFORM,
    "new_tokens": FIXED,
    "output_len": FIXED,
}
COLUMNS = ("session", "turn", "parent", "delay_ps", "num_awaited", "first", "waiting")


def drawn(seed: int = 0, **others: Any) -> tuple[Turns, RequestChunk]:
    """Of fewer rows than a chunk holds."""
    workload = Workload.model_validate({"sessions": SECTION | others})
    source = open_workload(workload, seed=seed, folder=Path())
    turns = turns_in(source)
    assert turns is not None
    return turns, next(source.chunks())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    share=st.sampled_from([None, 0.0, 0.4, 1.0]),
    max_context=st.sampled_from([None, 60, 5]),
    num_sessions=st.integers(1, 12),
)
def test_columns_are_what_the_rules_make_of_who_waits(
    seed: int, share: float | None, max_context: int | None, num_sessions: int
) -> None:
    branch = None if share is None else {"share": share, "width": UNIFORM}
    turns, chunk = drawn(seed, num_sessions=num_sessions, branch=branch, max_context=max_context)
    awaited = awaited_of(turns)
    by_rules = turns_of(awaited, turns.delay_ps, turns.parent)
    assert [getattr(turns, name) for name in COLUMNS] == [getattr(by_rules, name) for name in COLUMNS]
    assert turns.num_sessions == num_sessions
    for row, parent in enumerate(turns.parent):
        before = 0 if parent < 0 else chunk.num_prompt_tokens[parent] + chunk.num_output_tokens[parent]
        assert chunk.num_prompt_tokens[row] == before + 10
        if max_context is not None and turns.turn[row]:
            assert turns.parent[row] != row - 1 or chunk.num_prompt_tokens[row] + 10 <= max_context or share
    if share == 1.0 and max_context is None:
        assert all(not later or len(awaited[row]) in range(1, 6) for row, later in enumerate(turns.turn))


def test_system_prompts_times_and_users() -> None:
    turns, chunk = drawn(
        num_sessions=3000,
        turns={"distribution": "fixed", "mean": 4},
        system_prompt_tokens=1000,
        num_system_prompts=5,
        think_time_s={"distribution": "lognormal", "mean": 20, "cv": 1, "max": 120},
        tool_time_s={"distribution": "exponential", "mean": 2},
        tool_share=0.25,
    )
    assert (turns.max_sessions, turns.num_system_tokens) == (3, 1000)
    assert set(turns.system or ()) == set(range(5))
    assert chunk.num_prompt_tokens[:4] == [1010, 1030, 1050, 1070]
    delays = np.array(turns.delay_ps).reshape(-1, 4) / PS_PER_S
    assert (delays[:, 0] == 0).all()
    assert delays.max() == 120
    assert delays[:, 1:].mean() == pytest.approx(0.75 * 20 + 0.25 * 2, rel=0.05)


def test_the_same_seed_gives_the_same_sessions_and_one_figure_leaves_the_others() -> None:
    one, again, other = drawn(1), drawn(1), drawn(2)
    assert (one == again, one == other) == (True, False)
    slow, _ = drawn(1, think_time_s=7)
    assert [getattr(slow, n) for n in COLUMNS if n != "delay_ps"] == [
        getattr(one[0], n) for n in COLUMNS if n != "delay_ps"
    ]


def test_sessions_that_begin_at_a_rate() -> None:
    section = SECTION | {"concurrency": None, "arrival": {"process": "poisson", "request_rate": 0.5}}
    inline = {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}}
    scenario = Scenario.from_dict({"profile": inline, "workload": {"sessions": section}})
    source = open_workload(scenario.workload, seed=0, folder=Path())
    chunk, turns = next(source.chunks()), turns_in(source)
    begins = [ps for ps, num in zip(chunk.arrival_ps, turns.num_awaited, strict=True) if not num]
    assert begins == sorted(begins)
    assert begins[0] > 0
    assert all(ps == 0 for ps, num in zip(chunk.arrival_ps, turns.num_awaited, strict=True) if num)
    assert rate_of(source) == pytest.approx(39 * PS_PER_S / (begins[-1] - begins[0]) * len(turns) / 40)
    assert at_rate(scenario, 2.0) == {"workload.sessions.arrival.request_rate": 2.0}
    assert of_rates(scenario).words == "sessions/s"
    assert has_chance(scenario)


def test_drawn_sessions_are_written_with_who_waits(tmp_path: Path) -> None:
    workload = Workload.model_validate({"sessions": SECTION | {"branch": {"share": 0.5, "width": UNIFORM}}})
    source = open_workload(workload, seed=3, folder=Path())
    write_trace(source, tmp_path / "t.jsonl", "jsonl", hash_block_tokens=16, regroup=True)
    found, turns = source_of(tmp_path / "t.jsonl").turns, turns_in(source)
    for name in ("session", "turn", "parent", "delay_ps"):
        assert getattr(found, name) == getattr(turns, name)
    read, written = awaited_of(found), awaited_of(turns)
    # a turn that goes on behind sub-requests names the turn before them too, which has ended when they have
    assert [set(rows) - {parent} for rows, parent in zip(read, found.parent, strict=True)] == [
        set(rows) - {parent} for rows, parent in zip(written, turns.parent, strict=True)
    ]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"concurrency": None}, "needs one of arrival and concurrency"),
        ({"arrival": {"process": "all_at_once"}}, "needs one of arrival and concurrency"),
        ({"concurrency": None, "arrival": {"process": "closed_loop"}}, "users are sessions.concurrency"),
        ({"concurrency": None, "arrival": {"process": "poisson"}}, "needs request_rate, sessions per second"),
        ({"think_time_s": 1, "tool_time_s": 1}, "tool_share is needed with both"),
        ({"think_time_s": 1, "tool_share": 0.5}, "says nothing without both"),
        ({"think_time_s": {"distribution": "uniform", "min": 3, "max": 2}}, "must be at most max"),
        ({"think_time_s": -1}, "must be at least 0"),
    ],
)
def test_what_sessions_cannot_say(others: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Scenario.from_dict({"profile": "h100-llama-3.1-8b-bf16", "workload": {"sessions": SECTION | others}})


def test_what_does_not_stand_beside_sessions() -> None:
    for key, value in (("num_prompts", 3), ("max_concurrency", 3), ("trace", {"path": "t.csv"})):
        with pytest.raises(UserError, match=rf"workload.{key}"):
            Scenario.from_dict({"profile": "h100-llama-3.1-8b-bf16", "workload": {"sessions": SECTION, key: value}})


def test_users_have_no_rate() -> None:
    scenario = Scenario.from_dict({"profile": "h100-llama-3.1-8b-bf16", "workload": {"sessions": SECTION}})
    with pytest.raises(UserError, match=r"users have no rate.*vary their number: --users"):
        at_rate(scenario, 2.0)


def test_a_sweep_over_users(tmp_path: Path) -> None:
    inline = {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01, "per_decode_seq_s": 0.001}}
    scenario = Scenario.from_dict({"profile": inline, "workload": {"sessions": SECTION}})
    one, eight = sweep(scenario, {"workload.sessions.concurrency": [1, 8]}, folder=tmp_path, jobs=1).rows
    assert (one["max_concurrent_requests"], eight["max_concurrent_requests"]) == (1, 8)
    assert eight["duration"] < one["duration"] / 4


BASE: dict[str, Any] = {
    "num_prompts": 3000,
    "request_rate": 5,
    "burstiness": 0.5,
    "prompt_len": {"distribution": "lognormal", "mean": 300, "cv": 1},
    "output_len": {"distribution": "uniform", "min": 1, "max": 50},
}


def source(seed: int = 0, **changes: Any) -> RequestSource:
    return open_workload(Workload.model_validate({**BASE, **changes}), seed=seed, folder=Path())


def column(found: RequestSource, name: str) -> list[Any]:
    return [value for chunk in found.chunks() for value in getattr(chunk, name)]


CHUNK_COLUMNS = ("arrival_ps", "num_prompt_tokens", "num_output_tokens", "priority", "hash_ids")
FULL = {
    "priorities": {"high": 0.1, "normal": 0.6, "low": 0.3},
    "prefix": {"num_prefixes": 4, "prefix_len": 100, "share": 0.5},
}


def test_the_same_seed_gives_the_same_requests_again_and_again() -> None:
    first, second = source(7, **FULL), source(7, **FULL)
    for name in CHUNK_COLUMNS:
        assert column(first, name) == column(second, name) == column(first, name)


def test_another_seed_gives_other_requests() -> None:
    for name in CHUNK_COLUMNS:
        assert column(source(7, **FULL), name) != column(source(8, **FULL), name)


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"prompt_len": {"distribution": "uniform", "min": 1, "max": 9}}, "num_prompt_tokens"),
        ({"output_len": {"distribution": "fixed", "mean": 3}}, "num_output_tokens"),
        ({"burstiness": 3}, "arrival_ps"),
        ({"priorities": {"high": 0.5, "low": 0.5}}, "priority"),
    ],
)
def test_a_change_of_one_thing_moves_nothing_else(changes: dict[str, Any], moved: str) -> None:
    before, after = source(**FULL), source(**{**FULL, **changes})
    for name in CHUNK_COLUMNS:
        assert (column(before, name) == column(after, name)) == (name != moved)


def test_more_prompts_begin_with_the_same_ones() -> None:
    few, many = source(rescale=False), source(rescale=False, num_prompts=CHUNK_SIZE + 100)
    assert [len(chunk) for chunk in many.chunks()] == [CHUNK_SIZE, 100]
    assert many.num_requests == CHUNK_SIZE + 100
    assert column(many, "arrival_ps")[:3000] == column(few, "arrival_ps")


def test_classes_have_their_shares() -> None:
    priority = np.array(column(source(num_prompts=100_000, **FULL), "priority"))
    assert [(priority == level).mean() for level in (0, 1, 2)] == pytest.approx([0.1, 0.6, 0.3], abs=0.01)


def test_a_class_without_a_share_is_never_drawn() -> None:
    assert set(column(source(priorities={"high": 0, "low": 1}), "priority")) == {2}


def test_without_classes_all_have_the_same_priority() -> None:
    assert next(iter(source().chunks())).priority is None


def test_prefixes_stand_in_front_of_the_prompts() -> None:
    plain, found = source(), source(prefix=FULL["prefix"])
    assert (found.hash_block_tokens, plain.hash_block_tokens) == (100, 0)
    hashes = column(found, "hash_ids")
    grown = np.array(column(found, "num_prompt_tokens")) - column(plain, "num_prompt_tokens")
    assert [100 if row else 0 for row in hashes] == grown.tolist()
    assert np.mean(grown > 0) == pytest.approx(0.5, abs=0.04)
    numbers = np.array([row[0] for row in hashes if row])
    assert np.bincount(numbers) / len(numbers) == pytest.approx([0.25] * 4, abs=0.04)


def test_a_closed_loop_leaves_the_times_to_the_engine() -> None:
    loop = {"process": "closed_loop", "max_concurrency": 8, "think_time_s": 1.5}
    data = {key: value for key, value in BASE.items() if key not in ("request_rate", "burstiness")}
    found = open_workload(Workload.model_validate({**data, "arrival": loop}), seed=0, folder=Path())
    assert (found.max_concurrency, found.think_time_ps) == (8, 1_500_000_000_000)
    assert set(column(found, "arrival_ps")) == {0}


def test_max_concurrency_goes_with_a_rate() -> None:
    found = source(max_concurrency=3)
    assert (found.max_concurrency, found.think_time_ps, found.skipped) == (3, 0, 0)
    assert column(found, "arrival_ps") == column(source(), "arrival_ps")


PROMPTS = st.lists(st.lists(st.integers(0, 3), min_size=0, max_size=8), min_size=1, max_size=12)


@settings(max_examples=200)
@given(PROMPTS, st.sampled_from([4, 8, 16, 512]), st.sampled_from([4, 8, 16, 32]), st.integers(0, 3))
def test_blocks_are_shared_as_far_as_hashes_agree(hashes: list[list[int]], h: int, block_size: int, tail: int) -> None:
    """Hashes name their own tokens alone here, so equal hashes after different ones must not be taken for equal."""
    keys = PrefixKeys(h, block_size)
    prompts = [(tuple(ids), len(ids) * h + min(tail, h - 1)) for ids in hashes]
    named = [one_by_one(keys.of(ids, length)) for ids, length in prompts]
    for (ids, length), blocks in zip(prompts, named, strict=True):
        assert len(blocks) == min(length, len(ids) * h) // block_size
        for (other_ids, _), other_blocks in zip(prompts, named, strict=True):
            for i, (block, other) in enumerate(zip(blocks, other_blocks, strict=False)):
                covered = -(-(i + 1) * block_size // h)  # hashes that cover the first i + 1 blocks
                assert (block == other) == (ids[:covered] == other_ids[:covered])


def test_a_partly_covered_prompt_keeps_its_tail_private() -> None:
    keys = PrefixKeys(512, 16)
    assert num_in(keys.of((7, 8), 1000)) == 62  # 1,000 tokens, the last block is not full
    assert num_in(keys.of((7,), 1000)) == 32  # one hash covers 512 of them
    assert cut(keys.of((7, 8), 1000), 32) == keys.of((7,), 600)


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(0, 25))
def test_names_as_ranges(names: list[int], num: int) -> None:
    ranges = as_ranges(names)
    assert one_by_one(ranges) == names
    assert num_in(ranges) == len(names)
    assert one_by_one(cut(ranges, num)) == names[:num]
    other = [*names[:num], 99, *names[num:]]
    assert num_alike(ranges, as_ranges(other)) == min(num, len(names))
