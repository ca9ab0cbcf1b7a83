"""Sessions in the engine: who is sent when, what the next turn finds in the cache, and what ends a session."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simbatch.policies.vllm import VLLM
from simbatch.routers.testing import random_cluster
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine import run
from simbatch.sim.engine.gateway import GatewayReplica, GatewayRequest
from simbatch.sim.engine.record import FINISHED, REJECTED, RunRecord
from simbatch.sim.plugins.testing import MS, ListSource, in_sessions
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.request import Request
from simbatch.sim.workload.turns import CycleError, Turns, turns_of, whole_prompts
from tests.engine_cases import Case, assert_same, random_case, timed_case
from tests.test_cluster import NAMES, router

PLAIN = EngineConfig(max_num_seqs=16, max_num_batched_tokens=512, max_model_len=4096, num_gpu_blocks=2000)


def case_of(seed: int, is_timed: bool) -> Case:
    case = timed_case(seed) if is_timed else random_case(seed)
    case.source = in_sessions(case.source, seed)
    return case


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.booleans())
def test_spans_equal_stepping(seed: int, is_timed: bool) -> None:
    case = case_of(seed, is_timed)
    stepped = case.run(steps=True, spans=False)
    walked, leapt = case.run(steps=True), case.run()
    assert_same(stepped, walked)
    assert_same(stepped, leapt)
    assert walked.steps == stepped.steps
    assert_turns_wait(stepped, case.source)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(NAMES))
@example(24130, "prefix_aware")  # a prompt names the answer of a turn that was preempted and still runs
def test_spans_equal_stepping_in_a_cluster(seed: int, name: str) -> None:
    case = random_cluster(seed)
    case.source = in_sessions(case.source, seed)
    stepped = case.run(router(name), spans=False)
    assert_same(stepped, case.run(router(name)))
    assert_turns_wait(stepped, case.source)


def assert_turns_wait(record: RunRecord, source: ListSource) -> None:
    """Nobody is sent before its own time, or before all that it waits for have ended and its delay has passed."""
    turns, requests = record.turns, record.requests
    rows, ended = requests.row.tolist(), dict[int, int]()
    sent = dict(zip(rows, requests.arrival_ps.tolist(), strict=True))
    assert len(sent) == len(rows)
    assert len(rows) + record.num_not_sent == len(source.rows) or (requests.status == 2).any()
    client_finish_ps = record.client_finish_ps.tolist()
    for i, row in enumerate(rows):
        if requests.status[i] == FINISHED:
            ended[row] = client_finish_ps[i]
    for row in rows:
        assert sent[row] >= source.rows[row][0]
    for row in range(len(turns)):
        for follower in turns.waiting[turns.first[row] : turns.first[row + 1]]:
            if follower in sent:
                assert sent[follower] >= ended[row] + turns.delay_ps[follower]


def chains(num_sessions: int, num_turns: int, delay_ps: int = 0, **more: Any) -> Turns:
    """Sessions of so many turns each, one after the other in the list."""
    awaited = [[i - 1] if i % num_turns else [] for i in range(num_sessions * num_turns)]
    return replace(turns_of(awaited, [delay_ps if others else 0 for others in awaited]), **more)


def source_of(turns: Turns, new: list[int], outputs: list[int]) -> ListSource:
    rows = [(0, prompt, n, 0, ()) for prompt, n in zip(whole_prompts(turns, new, outputs), outputs, strict=True)]
    return ListSource(rows, turns=turns)


def simulate(config: EngineConfig, source: ListSource, **options: Any) -> RunRecord:
    return run(config, LinearCost(10 * MS, 0, 0, 0), VLLM(), source, **options)


def test_one_user_is_the_serial_sum() -> None:
    """A step takes 10 ms whatever is in it: a turn of 5 tokens 50 ms; 12 turns and 8 pauses of a second."""
    source = source_of(chains(4, 3, 1000 * MS, max_sessions=1), [40] * 12, [5] * 12)
    record = simulate(replace(PLAIN, async_scheduling=False), source)
    assert record.end_ps == 12 * 50 * MS + 8 * 1000 * MS
    assert record.requests.row.tolist() == list(range(12))
    alone = simulate(
        replace(PLAIN, async_scheduling=False), source_of(chains(4, 3, max_sessions=1), [40] * 12, [5] * 12)
    )
    assert alone.end_ps == 12 * 50 * MS


def test_the_next_turn_finds_prompt_and_answer() -> None:
    """40 + 10 tokens, of which 49 are computed: 3 blocks of 16; with 40 + 10 more 99: 6 blocks."""
    config = replace(PLAIN, enable_prefix_caching=True)
    record = simulate(config, source_of(chains(1, 3), [40] * 3, [10] * 3))
    assert record.requests.num_prompt_tokens.tolist() == [40, 90, 140]
    assert record.requests.num_cached_tokens.tolist() == [0, 48, 96]


def test_a_shorter_prompt_has_left_the_answer_out() -> None:
    config = replace(PLAIN, enable_prefix_caching=True)
    turns = chains(1, 3)
    source = ListSource([(0, 64, 100, 0, ()), (0, 128, 10, 0, ()), (0, 100, 10, 0, ())], turns=turns)
    assert simulate(config, source).requests.num_cached_tokens.tolist() == [0, 64, 0]


def test_hashes_of_the_next_turn_name_the_answer() -> None:
    """In a file the next prompt's hashes say what the answer's blocks are; a cached answer is found by them."""
    config = replace(PLAIN, enable_prefix_caching=True)
    rows = [(0, 600, 500, 0, (1, 2)), (0, 1200, 10, 0, (1, 3, 4)), (0, 600, 40, 0, (1, 9))]
    source = ListSource(rows, hash_block_tokens=512, turns=turns_of([[], [0], []], [0, 0, 0]))
    record = simulate(replace(config, max_num_seqs=1), source)
    found = dict(zip(record.requests.row.tolist(), record.requests.num_cached_tokens.tolist(), strict=True))
    assert found == {0: 0, 1: 1088, 2: 512}  # 1,099 tokens computed: 68 blocks


def test_a_rejected_turn_ends_its_session() -> None:
    config = replace(PLAIN, max_model_len=100)
    source = source_of(chains(2, 4), [40, 10, 10, 10, 5, 5, 5, 5], [30] * 4 + [5] * 4)
    record = simulate(config, source)
    status = dict(zip(record.requests.row.tolist(), record.requests.status.tolist(), strict=True))
    assert status == {0: FINISHED, 1: FINISHED, 2: REJECTED, 4: FINISHED, 5: FINISHED, 6: FINISHED, 7: FINISHED}
    assert record.num_not_sent == 1


def test_branches_join() -> None:
    """Two sub-requests side by side, the next turn behind the longer one."""
    turns = turns_of([[], [0], [0], [1, 2]], [0, 0, 100 * MS, 0])
    record = simulate(replace(PLAIN, async_scheduling=False), source_of(turns, [10] * 4, [1, 30, 5, 1]))
    assert record.requests.arrival_ps.tolist() == [0, 10 * MS, 110 * MS, 310 * MS]


def test_rows_that_wait_for_each_other_are_refused() -> None:
    with pytest.raises(CycleError):
        turns_of([[], [2], [1]], [0, 0, 0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_hits_are_those_of_an_exact_lru(seed: int) -> None:
    """Against a cache of token sequences, one request at a time, with so little memory that blocks are evicted."""
    case = random_case(seed)
    source = in_sessions(case.source, seed)
    source = replace(source, hash_block_tokens=0, turns=replace(source.turns, max_sessions=1))  # type: ignore[type-var]
    config = replace(
        PLAIN, max_num_seqs=1, max_num_batched_tokens=8192, max_model_len=100_000, block_size=4, num_gpu_blocks=400,
        enable_prefix_caching=True,
    )  # fmt: skip
    if max(row[1] + row[2] for row in source.rows) > 4 * 399:
        return
    record = simulate(config, source)
    cache = Cache(399, 4)
    texts = texts_of(record.turns, source)
    by_start = np.argsort(record.requests.scheduled_ps, kind="stable").tolist()
    for i in by_start:
        row = int(record.requests.row[i])
        assert cache.serve(texts[row], source.rows[row][1]) == record.requests.num_cached_tokens[i], row


def texts_of(turns: Turns, source: ListSource) -> dict[int, list[Any]]:
    """All tokens of each row, prompt and answer, as vLLM would see them."""
    texts: dict[int, list[Any]] = {}
    todo = [row for row in range(len(turns)) if not turns.num_awaited[row]]
    awaited = turns.num_awaited.tolist()
    while todo:
        row = todo.pop()
        _, num_prompt, num_output, _, _ = source.rows[row]
        parent = turns.parent[row]
        system = turns.session[row] if turns.system is None else turns.system[turns.session[row]]
        text: list[Any] = [("system", system, i) for i in range(turns.num_system_tokens)][:num_prompt]
        if parent >= 0:
            num_before, whole = source.rows[parent][1], texts[parent]
            if num_prompt >= num_before:
                text = whole if num_prompt >= len(whole) else whole[:num_before]
        text = text + [("own", row, i) for i in range(num_prompt + num_output - len(text))]
        texts[row] = text
        for follower in turns.waiting[turns.first[row] : turns.first[row + 1]]:
            awaited[follower] -= 1
            if not awaited[follower]:
                todo.append(follower)
    return texts


class Cache:
    """Blocks by all tokens up to their ends; freed ones are evicted in order of their last use, tails first.

    A block may have the same tokens as another one: the last of a prompt is computed though it is cached.
    """

    def __init__(self, num_blocks: int, size: int) -> None:
        self.size = size
        self.idle = OrderedDict[int, Any].fromkeys(range(num_blocks))  # block -> its tokens, None: not full
        self.blocks = dict[Any, list[int]]()  # the oldest first

    def serve(self, text: list[Any], num_prompt: int) -> int:
        """How many tokens of the prompt are found; then the request runs to its end."""
        num_computed = len(text) - 1
        names = [tuple(text[: (i + 1) * self.size]) for i in range(num_computed // self.size)]
        held: list[int] = []
        for name in names[: (num_prompt - 1) // self.size]:
            if not self.blocks.get(name):
                break
            held.append(self.blocks[name][0])
        hits = len(held)
        for block in held:
            del self.idle[block]
        while len(held) * self.size < num_computed:
            block, old = self.idle.popitem(last=False)
            if old is not None:
                self.blocks[old].remove(block)
            if len(held) < len(names):
                self.blocks.setdefault(names[len(held)], []).append(block)
            held.append(block)
        for block, name in reversed(list(zip(held, [*names, None], strict=False))):
            self.idle[block] = name
            if name is None:  # it is handed out first
                self.idle.move_to_end(block, last=False)
        return hits * self.size


def test_all_turns_of_a_session_go_to_one_replica() -> None:
    chosen_by = router("session")
    sizes = {"group": 0, "profile": "p", "block_size": 16, "num_gpu_blocks": 9, "max_num_seqs": 9}
    views = [GatewayReplica(i, None, **sizes) for i in range(5)]  # it looks at nothing that they publish
    chosen_by.start(views, lambda: 0.0)
    to: dict[str, set[int]] = {}
    for i in range(60):
        request = Request(i, f"r{i}", 0, 10, 10)
        request.session_id, request.tenant = f"s{i % 20}", f"t{i % 3}"
        to.setdefault(request.session_id, set()).add(chosen_by.route(GatewayRequest(request, 16), views).index)
        request.session_id = None
        to.setdefault(request.tenant, set()).add(chosen_by.route(GatewayRequest(request, 16), views).index)
    assert all(len(replicas) == 1 for replicas in to.values())
    assert len(set.union(*to.values())) == 5
