"""The design of experiments, without an engine: what is drawn stays within limits and covers them."""

import numpy as np
import pytest

from simbatch.profiler.measuring.design import DENSE, Limits, counts, draw, stream_tokens

ENGINES = {
    "cpu": Limits(32, 512, 4096, 128, 4095),
    "rtx4090": Limits(256, 2048, 8192, 16, 2587),
    "h100": Limits(1024, 8192, 131072, 16, 30000),
    "no longer than a step": Limits(64, 4096, 2048, 16, 4000),
}


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
def limits(request):
    return request.param


def test_an_episode_fits_into_the_engine(limits):
    for index in range(300):
        episode = draw(limits, 0, index)
        num_prompts = len(episode.injections)
        assert episode.num_decodes + num_prompts <= limits.max_num_seqs
        assert all(1 <= context <= limits.max_model_len - episode.num_steps for context in episode.contexts)
        assert all(episode.num_decodes < budget <= limits.max_num_batched_tokens for budget in episode.budgets)
        assert all(0 < part.num_tokens + part.history < limits.max_model_len for part in episode.injections)
        blocks = sum(limits.blocks(context + episode.num_steps) for context in episode.contexts)
        blocks += sum(limits.blocks(part.history + part.num_tokens + 8) for part in episode.injections)
        assert blocks <= limits.num_blocks


def test_an_episode_is_a_function_of_seed_and_index(limits):
    assert draw(limits, 3, 17) == draw(limits, 3, 17)
    assert draw(limits, 3, 17) != draw(limits, 4, 17)


def test_both_ends_of_each_range_are_drawn(limits):
    episodes = [draw(limits, 0, index) for index in range(300)]
    sizes = {episode.num_decodes for episode in episodes}
    assert {0, 1, limits.largest_batch} <= sizes
    budgets = {budget for episode in episodes for budget in episode.budgets}
    assert limits.max_num_batched_tokens in budgets
    alone = [episode.contexts[0] for episode in episodes if episode.num_decodes == 1]
    assert min(alone) <= 20
    assert max(alone) > 0.8 * min(limits.max_model_len, limits.num_blocks * limits.block_size / 2)
    histories = [part.history for episode in episodes for part in episode.injections]
    assert 0 in histories
    assert max(histories) > limits.max_model_len / 8
    assert all(history % limits.block_size == 0 for history in histories)


def test_a_batch_decodes_alone_for_as_long_as_nobody_arrives():
    """n requests of L tokens: one ends every L / n steps, so small batches go on for long and large ones do not."""
    episodes = [draw(ENGINES["cpu"], 0, index) for index in range(1000)]
    steps = {n: [e.num_decode_steps for e in episodes if e.num_decodes == n] for n in (0, 1, 4, 32)}
    assert set(steps[0]) == {0}
    means = [np.mean(steps[n]) for n in (1, 4, 32)]
    assert means[0] > 1.2 * means[1] > 2 * means[2]
    assert (min(steps[32]), max(steps[1])) == (4, 32)


def test_small_and_large_batches_get_the_same_attention():
    sizes = np.array([draw(ENGINES["h100"], 0, index).num_decodes for index in range(2000)])
    shares = [((sizes >= low) & (sizes < 4 * low)).sum() / (sizes > 0).sum() for low in (1, 4, 16, 64, 256)]
    assert min(shares) > 0.1


def test_steps_have_token_counts_of_the_warm_up(limits):
    for index in range(100):
        episode = draw(limits, 0, index)
        assert set(episode.budgets) <= set(limits.warm_tokens)
        assert episode.num_decodes in {0, *limits.warm_decodes}


def test_counts_are_dense_at_first_and_reach_the_end():
    assert counts(5) == (1, 2, 3, 4, 5)
    found = counts(8192)
    assert found[:DENSE] == tuple(range(1, DENSE + 1))
    assert found[-1] == 8192
    assert len(found) < 120


def test_a_longer_context_begins_with_a_shorter_one_and_no_two_streams_are_alike():
    assert stream_tokens(5, 400, 32000, 0)[:100] == stream_tokens(5, 100, 32000, 0)
    assert stream_tokens(5, 100, 32000, 0) != stream_tokens(6, 100, 32000, 0)
    assert max(stream_tokens(0, 5000, 100, 0)) == 99


def test_a_small_memory_makes_smaller_batches():
    limits = Limits(max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=2048, block_size=16, num_blocks=129)
    assert limits.largest_batch < 20
    assert max(draw(limits, 0, index).num_decodes for index in range(100)) == limits.largest_batch
