"""Synthetic requests: seeds, streams of their own, classes, prefixes, closed loops.

The identity of KV blocks: equal keys exactly where all tokens up to the block's end are equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simbatch.sim.scheduler.names import PrefixKeys, as_ranges, cut, num_alike, num_in, one_by_one, past
from simbatch.sim.workload import RequestSource, open_workload
from simbatch.sim.workload.chunk import CHUNK_SIZE
from simbatch.sim.workload.model import Workload

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


COLUMNS = ("arrival_ps", "num_prompt_tokens", "num_output_tokens", "priority", "hash_ids")
FULL = {
    "priorities": {"high": 0.1, "normal": 0.6, "low": 0.3},
    "prefix": {"num_prefixes": 4, "prefix_len": 100, "share": 0.5},
}


def test_the_same_seed_gives_the_same_requests_again_and_again() -> None:
    first, second = source(7, **FULL), source(7, **FULL)
    for name in COLUMNS:
        assert column(first, name) == column(second, name) == column(first, name)


def test_another_seed_gives_other_requests() -> None:
    for name in COLUMNS:
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
    for name in COLUMNS:
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
    assert one_by_one(past(ranges, num)) == names[num:]
    other = [*names[:num], 99, *names[num:]]
    assert num_alike(ranges, as_ranges(other)) == min(num, len(names))
