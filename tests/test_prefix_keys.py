"""The identity of KV blocks: equal keys exactly where all tokens up to the block's end are equal."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from simbatch.sim.scheduler.names import PrefixKeys, as_ranges, cut, num_alike, num_in, one_by_one, past

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
