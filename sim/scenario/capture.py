"""The sizes of vLLM's CUDA graphs: a batch of up to the largest is padded to the next of them.

As vLLM makes them without speculative decoding (`VllmConfig._set_cudagraph_sizes`, vllm/config/vllm.py).
"""

from __future__ import annotations

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.engine import EngineSettings
from simbatch.sim.scheduler.versions import ALL, Changes, default_of


def capture_sizes(
    settings: EngineSettings, max_num_seqs: int, max_num_batched_tokens: int, default_max: int, changes: Changes = ALL
) -> tuple[int, ...]:
    """All sizes in tokens, rising; none where there are no graphs. `default_max` is the GPU's, 0 where it has none.

    Raises UserError where vLLM does not start.
    """
    if settings.enforce_eager or default_max == 0:
        return ()
    largest = settings.max_cudagraph_capture_size
    if largest == 0:
        rule = "vLLM needs --max-cudagraph-capture-size to be at least 1"
        raise UserError(Problem("engine.max_cudagraph_capture_size", rule, 0, "write enforce_eager: true instead"))
    if settings.cudagraph_capture_sizes is not None:
        return _given(settings.cudagraph_capture_sizes, largest, max_num_batched_tokens)
    default_max = min(default_max, default_of("large_gpu_graphs", changes))
    odd = [max_num_batched_tokens] if "budget_graph" in changes else []
    odd += [max_num_seqs] if largest is None and "seats_graph" in changes else []
    largest = min(largest or min(2 * max_num_seqs, default_max), max_num_batched_tokens)
    sizes = {1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16), *odd}
    return tuple(sorted(size for size in sizes if size <= largest))


def _given(sizes: list[int], largest: int | None, max_num_batched_tokens: int) -> tuple[int, ...]:
    """What is left of the user's own list: in order, each once, none above the token budget."""
    kept = tuple(sorted({size for size in sizes if size <= max_num_batched_tokens}))
    if not kept:
        dropped = f"vLLM drops sizes above --max-num-batched-tokens ({max_num_batched_tokens}), and none is left"
        rule = dropped if sizes else "vLLM needs at least one size"
        mend = "add one, or write enforce_eager: true instead"
        raise UserError(Problem("engine.cudagraph_capture_sizes", rule, sizes, mend))
    if largest is not None and largest != kept[-1]:
        rule = f"vLLM needs --max-cudagraph-capture-size to be the largest of --cudagraph-capture-sizes ({kept[-1]})"
        raise UserError(Problem("engine.max_cudagraph_capture_size", rule, largest, "remove one of the two"))
    return kept
