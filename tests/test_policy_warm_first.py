"""Warm requests first: conversations are used before they are evicted, and nobody starves for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simbatch.policies.vllm import VLLM
from simbatch.policies.warm_first import WarmFirst
from simbatch.sim.metrics.sessions import SessionFigures
from tests.test_policy_plas import ENGINE, conversations, figures


@pytest.mark.parametrize("seed", [1, 2])
def test_more_is_found_in_a_cache_that_cannot_hold_all(seed: int) -> None:
    """Conversations of 8 turns, of which memory holds a part: SGLang's section 3 as a trend."""
    engine = replace(ENGINE, num_gpu_blocks=2000, max_num_seqs=12)
    source = conversations(100, [8], gap_s=0.6, think_s=4, seed=seed)
    vllm, warm = figures(engine, VLLM(), source), figures(engine, WarmFirst(), source)
    assert share(warm) > 2 * share(vllm)
    assert mean(warm, "without_thinking") < 0.7 * mean(vllm, "without_thinking")
    roomy = replace(engine, num_gpu_blocks=20_000)
    assert share(figures(roomy, WarmFirst(), source)) == pytest.approx(share(figures(roomy, VLLM(), source)), rel=0.02)


def share(sessions: SessionFigures) -> float:
    found = sessions.later_cached_tokens_share()
    assert found is not None
    return found


def mean(sessions: SessionFigures, name: str) -> float:
    found = sessions.latencies(name)["mean"]
    assert found is not None
    return found
