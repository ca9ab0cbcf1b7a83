"""LLMServingSim's attention latencies: a grid over chunk P, history H, decodes n and their mean context k.

Between its points the grid is linear. Steps without prefill run another kernel and have a grid of their own (n, k).
Where the contexts of a batch differ, attention = t(mean k) + alpha * (t(max k) - t(mean k)), with alpha from
`skew_fit.csv` by P, n, the skew rate (mean - min) / (max - min), max k and H.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.importers.source import StepLimits
from simbatch.profiler.records import Steps
from simbatch.sim.errors import Problem, UserError

Floats = NDArray[np.float64]


def read_columns(path: Path, texts: Sequence[str], numbers: Sequence[str]) -> tuple[list[list[str]], list[Floats]]:
    """Columns of a CSV file by name, text and numbers apart.

    Raises UserError for a missing file or column, and for a number that is none.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or ()
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(Problem(str(path), f"cannot be read: {error}")) from None
    missing = [name for name in (*texts, *numbers) if name not in header]
    if missing or not rows:
        rule = f"columns missing: {', '.join(missing)}" if missing else "no rows"
        raise UserError(Problem(str(path), rule, list(header)))
    words = [[row[name] for row in rows] for name in texts]
    return words, [np.array([_number(path, line, name, row) for line, row in enumerate(rows, 2)]) for name in numbers]


def _number(path: Path, line: int, name: str, row: Mapping[str, str]) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(Problem(f"{path}:{line} {name}", "must be a finite number", row[name]))
    return value


def on_grid(path: Path, axes: Sequence[Floats], points: Sequence[Floats], values: Floats) -> Floats:
    """The values at every point of a grid.

    Points off the grid are left out. Raises UserError when a point of the grid was not measured.
    """
    inside = np.logical_and.reduce([np.isin(point, axis) for axis, point in zip(axes, points, strict=True)])
    where = tuple(np.searchsorted(axis, point[inside]) for axis, point in zip(axes, points, strict=True))
    table = np.full([len(axis) for axis in axes], np.nan)
    table[where] = values[inside]
    holes = np.argwhere(np.isnan(table))
    if len(holes):
        first = tuple(float(axis[i]) for axis, i in zip(axes, holes[0], strict=True))
        raise UserError(Problem(str(path), f"{len(holes)} points of the grid were not measured", first))
    return table


def best_axes(points: Sequence[Floats]) -> list[Floats]:
    """The axes of the grid that the points fill: all their values if complete, else those on the doubling ladder.

    A finer ladder laid over a doubling one shares only its ends with it, and leaves holes between the two.
    """
    axes = [np.unique(point) for point in points]
    filled = len(set(zip(*points, strict=True)))
    if filled == len(list(itertools.product(*axes))):
        return axes
    return [axis[(axis == 0) | (np.log2(np.maximum(axis, 1)) % 1 == 0)] for axis in axes]


POINT = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
# Upper edges of the buckets and their labels; the last has none.
SEQ_EDGES = [2, 4, 8, 16, 32, 64, 128, 256]
SEQ_LABELS = [*(f"n<={edge}" for edge in SEQ_EDGES), "n>256"]
RATE_EDGES = [0.05, 0.15, 0.4, 0.7]
RATE_LABELS = ["sr<=5%", "sr<=15%", "sr<=40%", "sr<=70%", "sr>70%"]
LONGEST_EDGES = [1024, 4096, 16384]
LONGEST_LABELS = ["kvB<=1k", "kvB<=4k", "kvB<=16k", "kvB>16k"]
HISTORY_EDGES = [0, 512, 1024, 2048, 4096, 8192]
HISTORY_LABELS = ["kp=0", "kp<=512", "kp<=1k", "kp<=2k", "kp<=4k", "kp<=8k", "kp>8k"]


class AttentionTable:
    """Attention time of one layer, by step."""

    def __init__(self, folder: Path, meta: Mapping[str, Any], tensor_parallel_size: int = 1) -> None:
        self._read_times(folder / "attention.csv")
        self._read_alphas(
            folder / "skew_fit.csv", (meta.get("skew_fit") or {}).get("per_tp", {}).get(tensor_parallel_size, {})
        )

    def time_us(self, steps: Steps) -> Floats:
        """One layer's attention, us."""
        at_mean = self._at(steps, steps.mean_context)
        at_longest = self._at(steps, steps.max_context.astype(np.float64))
        return at_mean + self._alpha(steps) * (at_longest - at_mean)

    def limits(self, max_num_batched_tokens: int, kv_tokens: int) -> StepLimits:
        """The measured grid, for a design."""
        chunk, history, seqs, context = self._mixed.grid
        return StepLimits(
            decode_only_seqs=_ends(self._decode.grid[0]),
            mixed_seqs=(1, int(seqs[-1])),
            context=_ends(context),
            chunk=(int(chunk[0]), min(int(chunk[-1]), max_num_batched_tokens)),
            history=_ends(history),
            max_num_batched_tokens=max_num_batched_tokens,
            kv_tokens=kv_tokens,
        )

    def _read_times(self, path: Path) -> None:
        from scipy.interpolate import RegularGridInterpolator

        _, (chunk, history, seqs, context, time_us) = read_columns(path, [], [*POINT, "time_us"])
        alone = (chunk == 0) & (history == 0)
        points = [seqs[alone], context[alone]]
        axes = best_axes(points)
        times = on_grid(path, axes, points, time_us[alone])
        self._decode = RegularGridInterpolator(axes, times, bounds_error=False, fill_value=None)

        both, prefill = (chunk > 0) & (seqs > 0), (chunk > 0) & (seqs == 0)
        points = [column[both] for column in (chunk, history, seqs, context)]
        axes = best_axes(points)
        times = on_grid(path, axes, points, time_us[both])
        without = on_grid(path, axes[:2], [chunk[prefill], history[prefill]], time_us[prefill])
        # Without decodes their context means nothing: the same time at all of them.
        without = np.broadcast_to(without[:, :, None, None], (*without.shape, 1, len(axes[3])))
        axes[2] = np.concatenate([[0.0], axes[2]])
        times = np.concatenate([without, times], axis=2)
        self._mixed = RegularGridInterpolator(axes, times, bounds_error=False, fill_value=None)

    def _at(self, steps: Steps, context: Floats) -> Floats:
        """Time at one context for all decodes; below the lowest chunk and context that were measured, as there."""
        chunks, contexts = self._mixed.grid[0], self._mixed.grid[3]
        decodes = np.column_stack([steps.num_decodes, np.maximum(context, contexts[0])])
        history = steps.prefill_context - steps.prefill_tokens
        both = np.column_stack([np.maximum(steps.prefill_tokens, chunks[0]), history, decodes])
        return np.where(steps.prefill_tokens == 0, self._decode(decodes), self._mixed(both))

    def _read_alphas(self, path: Path, fitted: Mapping[str, Any]) -> None:
        texts = ["n_label", "skew_rate_label", "kv_big_label", "kp_label"]
        labels, (chunk, alpha, num_samples) = read_columns(path, texts, ["pc", "alpha", "n_samples"])
        self._skew_chunks = np.unique(chunk[chunk > 0])
        stated = fitted.get("alpha_default")
        self.alpha_default_is_stated = stated is not None
        self.alpha_default = float(stated) if stated is not None else _weighted_median(alpha, num_samples)
        known = [SEQ_LABELS, RATE_LABELS, LONGEST_LABELS, HISTORY_LABELS]
        where = [_places(path, column, names) for column, names in zip(labels, known, strict=True)]
        self._alphas = np.full([len(self._skew_chunks) + 1, *map(len, known)], self.alpha_default)
        self._alphas[(_chunk_place(chunk, self._skew_chunks), *where)] = alpha

    def _alpha(self, steps: Steps) -> Floats:
        spread = steps.max_context - steps.min_context
        rate = (steps.mean_context - steps.min_context) / np.maximum(1, spread)
        where = (
            _chunk_place(steps.prefill_tokens.astype(np.float64), self._skew_chunks),
            np.searchsorted(SEQ_EDGES, steps.num_decodes),
            np.searchsorted(RATE_EDGES, rate),
            np.searchsorted(LONGEST_EDGES, steps.max_context),
            np.searchsorted(HISTORY_EDGES, steps.prefill_context - steps.prefill_tokens),
        )
        return np.where(spread > 0, self._alphas[where], 0.0)


def _chunk_place(chunk: Floats, chunks: Floats) -> Any:
    """0 without a prefill, else 1 + the nearest measured chunk, by ratio."""
    distance = np.abs(np.log(np.maximum(chunk, 1.0))[:, None] - np.log(chunks)[None, :])
    return np.where(chunk == 0, 0, 1 + distance.argmin(axis=1))


def _places(path: Path, column: list[str], names: list[str]) -> list[int]:
    unknown = sorted(set(column) - set(names))
    if unknown:
        raise UserError(Problem(str(path), f"unknown bucket; known: {', '.join(names)}", unknown[0]))
    return [names.index(label) for label in column]


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values)
    heap = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(heap, heap[-1] / 2)])


def _ends(axis: Any) -> tuple[int, int]:
    return int(axis[0]), int(axis[-1])
