"""A profile as a picture: how long a step lasts, by batch, by chunk, and with both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.cost.model import CostModel, step_ps_alike
from simbatch.sim.cost.profile import Profile
from simbatch.sim.report.style import PALETTE, figure, headline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PS_PER_MS = 1e9
CONTEXTS = (128, 1024, 4096, 16384)
HISTORIES = (0, 2048, 8192)
BATCHES = (0, 16, 64, 256)
MIXED_CONTEXT = 1024
MAX_BATCH, MAX_CHUNK = 256, 2048  # of a profile that says no range
POINTS = 200


def plot_step_times(profile: Profile, path: Path) -> None:
    """Draw `profile` to a PNG; steps that the KV cache could not hold are left out."""
    cost, measured = profile.cost_model(), profile.measured
    most_seqs = measured.decode.num_decodes[1] if measured else MAX_BATCH
    most_tokens = measured.mixed.prefill_tokens[1] if measured else MAX_CHUNK
    contexts = [context for context in CONTEXTS if context <= profile.max_model_len]
    histories = [history for history in HISTORIES if history < profile.max_model_len]
    batches = [n for n in BATCHES if n <= most_seqs]
    kv_tokens = (profile.num_gpu_blocks_for() - 1) * profile.default_block_size
    with figure(path, 11.5, 3.7) as drawing:
        headline(drawing, _headline(profile))
        decode, prefill, mixed = drawing.subplots(1, 3)
        _decode(decode, cost, contexts, most_seqs, kv_tokens)
        _prefill(prefill, cost, histories, most_tokens, kv_tokens)
        _mixed(mixed, cost, batches, most_tokens, kv_tokens)


def _headline(profile: Profile) -> str:
    error = profile.fit_error
    kind = "estimate" if profile.is_estimate else f"mean error {error.summary()}" if error is not None else ""
    return f"{profile.name}: step times, {kind}" if kind else f"{profile.name}: step times"


def _decode(axes: Axes, cost: CostModel, contexts: Sequence[int], most: int, kv_tokens: int) -> None:
    seqs = _counts(most)
    for colour, context in zip(PALETTE, contexts, strict=False):
        fits = seqs[seqs * context <= kv_tokens]
        times = [step_ps_alike(cost, int(n), int(n) * context) for n in fits]
        _line(axes, fits, times, f"context {context:,}", colour)
    _finish(axes, "Decodes alone", "sequences in the batch", most)


def _prefill(axes: Axes, cost: CostModel, histories: Sequence[int], most: int, kv_tokens: int) -> None:
    tokens = _counts(most)
    for colour, history in zip(PALETTE, histories, strict=False):
        fits = tokens[tokens + history <= kv_tokens]
        times = [step_ps_alike(cost, 0, 0, *_chunk(int(q), history)) for q in fits]
        _line(axes, fits, times, f"after {history:,}" if history else "a prompt's first", colour)
    _finish(axes, "One prefill chunk", "tokens in the chunk", most)


def _mixed(axes: Axes, cost: CostModel, batches: Sequence[int], most: int, kv_tokens: int) -> None:
    tokens = _counts(most)
    for colour, n in zip(PALETTE, batches, strict=False):
        context = n * MIXED_CONTEXT
        fits = tokens[tokens + context <= kv_tokens]
        times = [step_ps_alike(cost, n, context, *_chunk(int(q), 0)) for q in fits]
        _line(axes, fits, times, f"beside {n} decodes" if n else "alone", colour)
    _finish(axes, f"A chunk beside decodes of context {MIXED_CONTEXT:,}", "tokens in the chunk", most)


def _chunk(tokens: int, history: int) -> tuple[int, int, int]:
    return tokens, history + tokens, tokens * (2 * history + tokens)


def _counts(most: int) -> NDArray[np.int64]:
    return np.unique(np.geomspace(1, most, POINTS).round().astype(np.int64))


def _line(axes: Axes, counts: NDArray[np.int64], times_ps: Sequence[int], label: str, colour: str) -> None:
    if len(counts):
        axes.plot(counts, np.array(times_ps) / PS_PER_MS, label=label, color=colour)


def _finish(axes: Axes, name: str, counted: str, most: int) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_title(name)
    axes.set_xlabel(counted)
    axes.set_ylabel("step time (ms)")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(1, most)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: _plain(value) if f"{value:e}"[0] in "235" else ""))
    axes.legend(fontsize=8)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
