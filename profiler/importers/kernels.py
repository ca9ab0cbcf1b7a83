"""Kernel latencies of aiconfigurator (parquet, ms): GEMMs, attention of prompts and of decodes, all-reduce.

Times of GEMMs, prompts and all-reduce follow power laws between their points, so they are interpolated in logarithms.
Attention of decodes is a floor and then a slope: it is interpolated as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.importers.tables import Floats
from simbatch.sim.cost.provenance import Link
from simbatch.sim.errors import Problem, UserError

MS = 1e-3
ELEMENT_BYTES = 2
MEASURED_KV_HEADS = 8  # more of them are more batch
GRAPH_TOKENS = 512  # vLLM's largest CUDA graph


class Gemm:
    """One matrix product: m tokens by an n x k weight; n and k between measured ones are interpolated, m as well."""

    def __init__(self, path: Path, dtype: str, n: int, k: int) -> None:
        table = rows_of(path, ("m", "n", "k", "latency"), {"gemm_dtype": dtype})
        corners: dict[tuple[float, float], float] = {}
        for at_n, n_weight in _between(np.unique(table["n"]), n).items():
            for at_k, k_weight in _between(np.unique(table["k"]), k).items():
                corners[at_n, at_k] = n_weight * k_weight
        curves = [_curve(path, table, at_n, at_k) for at_n, at_k in corners]
        self.tokens = np.unique(np.concatenate([tokens for tokens, _ in curves]))
        mean = sum(
            weight * _log_interp(self.tokens, *curve) for weight, curve in zip(corners.values(), curves, strict=True)
        )
        # Above the largest n or k that was measured, time is in proportion to it.
        beyond = max(1.0, n / table["n"].max()) * max(1.0, k / table["k"].max())
        self._times = np.exp(mean) * beyond

    def time_s(self, tokens: NDArray[Any]) -> Floats:
        """By the number of tokens, 1 or more."""
        return np.exp(_log_interp(tokens, self.tokens, self._times)) * MS


class ContextAttention:
    """Attention of one layer in a prompt's chunk of q tokens after h: ctx(q + h) - ctx(h), at least ctx(q)."""

    def __init__(self, path: Path, heads: int, kv_heads: int, head_dim: int, kv_cache_dtype: str) -> None:
        fold = _fold(kv_heads)
        wanted = _attention_keys(heads, kv_heads, head_dim, kv_cache_dtype) | {"batch_size": fold}
        table = rows_of(path, ("isl", "latency"), wanted, {"window_size": 0})
        order = np.argsort(table["isl"])
        self.lengths, self._times = table["isl"][order], table["latency"][order]

    def time_s(self, chunk: Floats, history: Floats) -> Floats:
        """One request's; 0 without a chunk."""
        alone = self._whole(np.maximum(1.0, chunk))
        after = self._whole(np.maximum(1.0, chunk + history)) - self._whole(np.maximum(1.0, history))
        return np.where(chunk == 0, 0.0, np.maximum(alone, np.where(history > 0, after, 0.0)))

    def _whole(self, length: Floats) -> Floats:
        return np.exp(_log_interp(length, self.lengths, self._times)) * MS


class GenerationAttention:
    """Attention of one layer for n decodes at their mean context.

    It was measured with a warm L2 cache, so it is never less than reading the KV from memory takes.
    """

    def __init__(self, path: Path, heads: int, kv_heads: int, head_dim: int, kv_cache_dtype: str) -> None:
        from scipy.interpolate import RegularGridInterpolator

        wanted = _attention_keys(heads, kv_heads, head_dim, kv_cache_dtype)
        table = rows_of(path, ("batch_size", "step", "latency"), wanted, {"window_size": 0})
        self._fold = _fold(kv_heads)
        self.seqs, self.contexts = np.unique(table["batch_size"]) / self._fold, np.unique(table["step"])
        times = np.full((len(self.seqs), len(self.contexts)), np.nan)
        where = (
            np.searchsorted(self.seqs, table["batch_size"] / self._fold),
            np.searchsorted(self.contexts, table["step"]),
        )
        times[where] = table["latency"]
        for row in times:
            _extend(row, self.contexts)
        self._at = RegularGridInterpolator((self.seqs, self.contexts), times, bounds_error=False, fill_value=None)

    def time_s(self, num_decodes: NDArray[Any], mean_context: Floats, least_s: Floats) -> Floats:
        """0 without decodes; `least_s`: what reading the KV takes."""
        seqs = np.maximum(num_decodes, self.seqs[0])
        times = self._at(np.column_stack([seqs, np.maximum(mean_context, self.contexts[0])])) * MS
        return np.where(num_decodes == 0, 0.0, np.maximum(times, least_s))


class AllReduce:
    """All-reduce among GPUs by message size: inside a CUDA graph for steps of up to 512 tokens, else eager."""

    def __init__(self, path: Path, num_gpus: int) -> None:
        wanted = {"num_gpus": num_gpus}
        self.vllm_version = str(columns_of(path)["version"][0])
        self._curves = []
        for backend in ("vllm_graph", "vllm_eager"):
            table = rows_of(path, ("message_size", "latency"), wanted | {"backend": backend})
            order = np.argsort(table["message_size"])
            self._curves.append((table["message_size"][order], table["latency"][order]))

    def time_s(self, tokens: NDArray[Any], hidden_size: int) -> Floats:
        """One call on `tokens` x `hidden_size` elements."""
        in_graph, eager = (np.exp(_log_interp(tokens * hidden_size, *curve)) * MS for curve in self._curves)
        return np.where(tokens <= GRAPH_TOKENS, in_graph, eager)


def all_reduce_of(folder: Path, num_gpus: int) -> AllReduce:
    """The all-reduce of a GPU's folder."""
    return AllReduce(tables_of(folder) / "custom_allreduce_perf.parquet", num_gpus)


def tables_of(folder: Path) -> Path:
    """The folder's one `vllm-*`; raises UserError when there is none or more."""
    found = sorted(folder.glob("vllm-*"))
    if len(found) != 1:
        rule = f"must have one folder vllm-<version> inside, has {len(found)}"
        raise UserError(Problem(str(folder), rule, mend="give a GPU's folder, as h100_sxm"))
    return found[0]


def rows_of(
    path: Path, columns: tuple[str, ...], wanted: Mapping[str, Any], if_there: Mapping[str, Any] | None = None
) -> dict[str, Floats]:
    """Columns of the rows of a parquet file with these values; raises UserError when there are none.

    `if_there`: values that only the newer files have a column for.
    """
    content = columns_of(path)
    asked = {**wanted, **{key: value for key, value in (if_there or {}).items() if key in content}}
    missing = [name for name in (*columns, *asked) if name not in content]
    if missing:
        raise UserError(Problem(str(path), f"columns missing: {', '.join(missing)}", sorted(content)))
    chosen = np.ones(len(content[columns[0]]), dtype=bool)
    for key, value in asked.items():
        known = np.unique(content[key][chosen])
        chosen &= content[key] == value
        if not chosen.any():
            rule = f"nothing was measured with {key} {value}"
            others = ", ".join(str(other) for other in known[:40])
            raise UserError(Problem(str(path), rule, mend=f"beside the other settings it has: {others}"))
    return {name: content[name][chosen].astype(np.float64) for name in columns}


def columns_of(path: Path) -> dict[str, NDArray[Any]]:
    """All columns of a parquet file; raises UserError when it cannot be read."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        table = read_table(path)
    except (OSError, ArrowException) as error:
        raise UserError(Problem(str(path), f"cannot be read: {error}")) from None
    return {name: table[name].to_numpy() for name in table.column_names}


def _attention_keys(heads: int, kv_heads: int, head_dim: int, kv_cache_dtype: str) -> dict[str, Any]:
    fold = _fold(kv_heads)
    return {
        "head_dim": head_dim,
        "kv_cache_dtype": kv_cache_dtype,
        "num_key_value_heads": kv_heads // fold,
        "num_heads": heads // fold,
    }


def _fold(kv_heads: int) -> int:
    """What the batch is multiplied by where only fewer KV heads were measured."""
    return -(-kv_heads // MEASURED_KV_HEADS)


def _between(known: Floats, value: float) -> dict[float, float]:
    """Neighbours of a value and their weights, linear in the logarithm; beyond the ends, the end."""
    right = int(np.searchsorted(known, value))
    if right == len(known) or known[right] == value or right == 0:
        return {float(known[min(right, len(known) - 1)]): 1.0}
    low, high = float(known[right - 1]), float(known[right])
    share = float(np.log(value / low) / np.log(high / low))
    return {low: 1 - share, high: share}


def _curve(path: Path, table: Mapping[str, Floats], n: float, k: float) -> tuple[Floats, Floats]:
    rows = np.flatnonzero((table["n"] == n) & (table["k"] == k))
    if len(rows) < 2:
        raise UserError(Problem(str(path), f"no times for n {n:g}, k {k:g}"))
    rows = rows[np.argsort(table["m"][rows])]
    return table["m"][rows], table["latency"][rows]


def _log_interp(at: NDArray[Any], points: Floats, values: Floats) -> Floats:
    """Logarithm of the value, linear between logarithms; above the last point it goes on as over the last doubling."""
    x, y = np.log(points), np.log(values)
    wanted = np.log(at)
    inside = np.interp(wanted, x, y)
    half = np.interp(x[-1] - np.log(2), x, y)
    return np.asarray(inside + np.maximum(0.0, wanted - x[-1]) * (y[-1] - half) / np.log(2))


def _extend(row: Floats, contexts: Floats) -> None:
    """Fill the contexts that this batch was not measured at, with the slope between its last two, in place."""
    known = np.flatnonzero(~np.isnan(row))
    last, before = known[-1], known[-2]
    slope = max(0.0, (row[last] - row[before]) / (contexts[last] - contexts[before]))
    row[last + 1 :] = row[last] + slope * (contexts[last + 1 :] - contexts[last])
    row[:] = np.interp(contexts, contexts[~np.isnan(row)], row[~np.isnan(row)])


class LinkAllReduce:
    """All-reduce over PCIe without peer-to-peer: each message passes through the host, at the board's pace.

    The link is latency and bandwidth: a ring sends 2 (N - 1) / N of the message past each of N GPUs.
    """

    def __init__(self, link: Link, num_gpus: int) -> None:
        self.link = link
        self._share = 2 * (num_gpus - 1) / num_gpus

    def time_s(self, tokens: NDArray[Any], hidden_size: int) -> Floats:
        """One call on `tokens` x `hidden_size` elements, s."""
        message = tokens * hidden_size * ELEMENT_BYTES
        return np.asarray(self.link.latency_s + self._share * message / self.link.bandwidth_bytes_per_s)
