"""The batch table: for each batch size, what its requests see and what it takes.

All requests of a batch are sent at once, with prompts that no cache knows. TTFT, TPOT and E2EL are those of
`vllm bench serve`, means over the requests; the step latency is the median of the steps in which the whole batch
decodes; throughput is output tokens over the time from the first send to the last token. Elapsed time over batch size
is none of them: it is inverse throughput.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.fitting.durations import durations_s
from simbatch.profiler.fitting.recorded_lines import RecordedStep
from simbatch.profiler.fitting.samples import EngineFacts
from simbatch.sim.statistics.pareto import find_knee

PROMPT_LEN, OUTPUT_LEN = 256, 32
KNEE_FIGURES = "throughput over step latency, without rows that are kv_full"


class Shape(NamedTuple):
    """Tokens of each request of the table."""

    prompt_len: int
    output_len: int

    @classmethod
    def of(cls, facts: EngineFacts) -> Shape:
        """The usual one, or what the model's length and the memory allow."""
        longest = min(facts.max_model_len, (facts.num_gpu_blocks - 1) * facts.block_size)
        output_len = max(2, min(OUTPUT_LEN, longest // 4))
        return cls(max(1, min(PROMPT_LEN, longest - output_len)), output_len)


class Lived(NamedTuple):
    """One request of a batch: when it was sent, and when each of its tokens reached the client, s."""

    sent_s: float
    token_s: Sequence[float]


def batch_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4 ... and the highest."""
    return sorted({2**power for power in range(max_num_seqs.bit_length())} | {max_num_seqs})


def row_of(facts: EngineFacts, shape: Shape, lives: Sequence[Lived], steps: Sequence[RecordedStep]) -> dict[str, Any]:
    """A row of the table from the requests' lives and the engine's steps; latencies in ms."""
    sent = np.array([life.sent_s for life in lives])
    first, last = (np.array([life.token_s[at] for life in lives]) for at in (0, -1))
    usable = facts.num_gpu_blocks - 1
    needed = len(lives) * -(-(shape.prompt_len + shape.output_len - 1) // facts.block_size)
    decodes = [step for step in steps if not step.prefills]
    most = max((step.num_decodes for step in decodes), default=0)
    whole = [took_s for step, took_s in durations_s(steps) if step.num_decodes == most and not step.prefills]
    context = [step.context_tokens / most for step in decodes if step.num_decodes == most]
    used, running = max(((usable - step.num_free_blocks, step.num_running) for step in steps), default=(0, 0))
    block_bytes = facts.block_size * facts.kv_bytes_per_token
    return {
        "batch_size": len(lives),
        "prompt_len": shape.prompt_len,
        "output_len": shape.output_len,
        "output_throughput": float(sum(len(life.token_s) for life in lives) / (last.max() - sent.min())),
        "step_ms": float(1e3 * np.median(whole)) if whole else None,
        "step_batch": most,
        "step_context": float(np.mean(context)) if whole else None,
        "ttft_ms": float(1e3 * (first - sent).mean()),
        "tpot_ms": float(1e3 * ((last - first) / (shape.output_len - 1)).mean()),
        "e2el_ms": float(1e3 * (last - sent).mean()),
        "kv_blocks": used,
        "kv_bytes_per_seq": used * block_bytes // max(1, running),
        "kv_full": needed > usable,
    }


def knee(rows: Sequence[dict[str, Any]]) -> int | None:
    """The batch size at the knee of throughput over step latency, or None; rows with kv_full are left out."""
    rows = [row for row in rows if not row["kv_full"] and row["step_ms"]]
    found = find_knee([row["output_throughput"] for row in rows], [row["step_ms"] for row in rows])
    return None if found is None else int(rows[found.index]["batch_size"])
