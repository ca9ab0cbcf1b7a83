"""The lengths whose batch is asked for: one pair, a lognormal pair of distributions, or a trace's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from simbatch.profiler.model.memory_batch import Lengths
from simbatch.sim.errors import Problem, UserError

NUM_DRAWS = 100_000  # where lengths vary without a trace; the seed is always 0


def lengths_of(prompt_len: int | None, prompt_cv: float, output_len: int | None, output_cv: float) -> Lengths | None:
    """What the flags say; None without them, UserError when one is missing."""
    if prompt_len is None or output_len is None:
        if prompt_len is None and output_len is None and not prompt_cv and not output_cv:
            return None
        missing = "--prompt-len" if prompt_len is None else "--output-len"
        raise UserError(Problem(missing, "a request has a prompt and an output", mend="give both lengths"))
    if not prompt_cv and not output_cv:
        return Lengths(np.array([prompt_len]), np.array([output_len]), f"{prompt_len:,} + {output_len:,} tokens")
    from simbatch.sim.workload.lengths import FixedLength, Length, Lognormal, length_draw
    from simbatch.sim.workload.synthetic import Purpose, stream

    def drawn(mean: int, cv: float, purpose: Purpose) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        kind: Length = FixedLength(distribution="fixed", mean=mean)
        if cv:
            kind = Lognormal(distribution="lognormal", mean=mean, cv=cv)
        return length_draw(kind, folder=Path(), of="num_prompt_tokens")(stream(0, purpose), NUM_DRAWS)

    return Lengths(
        drawn(prompt_len, prompt_cv, Purpose.PROMPT_LEN),
        drawn(output_len, output_cv, Purpose.OUTPUT_LEN),
        f"lognormal, means {prompt_len:,} and {output_len:,}, cv {prompt_cv:g} and {output_cv:g} ({NUM_DRAWS:,} draws)",
    )


def lengths_of_trace(path: Path, trace_format: str | None, columns: dict[str, Any] | None = None) -> Lengths:
    """Those of a trace, row by row; rows without output are left out. UserError when it cannot be read."""
    from simbatch.sim.workload.trace_model import Trace
    from simbatch.sim.workload.traces import open_trace

    trace = Trace.model_validate({"path": str(path), "format": trace_format, "columns": columns, "on_empty": "skip"})
    prompts: list[int] = []
    outputs: list[int] = []
    for chunk in open_trace(trace, place="", wanted=("prompt", "output")).chunks():
        prompts += chunk.num_prompt_tokens
        outputs += chunk.num_output_tokens
    return Lengths(np.array(prompts), np.array(outputs), f"{path.name} ({len(prompts):,} requests)")


def runnable(lengths: Lengths, max_model_len: int, place: str) -> tuple[Lengths, list[str]]:
    """Without what vLLM rejects or cuts, and sentences that say so; UserError when nothing is left."""
    kept = lengths.within(max_model_len)
    mend = "raise --max-model-len, or give shorter lengths"
    if not len(kept):
        rule = f"every prompt is as long as max_model_len ({max_model_len:,}) or longer, so vLLM rejects it"
        raise UserError(Problem(place, rule, mend=mend))
    notes = []
    rejected = len(lengths) - len(kept)
    if rejected:
        notes.append(f"{rejected:,} of {len(lengths):,} prompts reach max_model_len ({max_model_len:,}): left out")
    too_long = lengths.num_prompt_tokens + lengths.num_output_tokens > max_model_len
    if cut := int(too_long.sum()) - rejected:
        notes.append(f"{cut:,} of {len(lengths):,} outputs are cut at max_model_len, as vLLM does")
    return kept, notes
