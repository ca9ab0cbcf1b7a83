"""Pictures of the batch table: throughput against latency with the knee, and KV memory by batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simbatch.profiler.fitting.samples import EngineFacts
from simbatch.profiler.measuring.batches import knee
from simbatch.sim.report.style import INK, LIMIT, PALETTE, duration_text, figure, headline

MIB = 2**20


def plot_throughput(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Output tokens per second over the step latency, and each latency over the batch size."""
    with figure(path, 10.5, 4.2) as drawing:
        headline(drawing, f"Throughput and latency by batch size: {title}")
        left, right = drawing.subplots(1, 2)
        shown = [row for row in rows if row["step_ms"]]
        latency, throughput = [row["step_ms"] for row in shown], [row["output_throughput"] for row in shown]
        left.plot(latency, throughput, color=PALETTE[0], marker="o", ms=4)
        at = knee(rows)
        for row, x, y in zip(shown, latency, throughput, strict=True):
            is_knee = row["batch_size"] == at
            text = f"{row['batch_size']}{' (knee)' if is_knee else ''}{' (KV full)' if row['kv_full'] else ''}"
            style = {"color": LIMIT, "weight": "bold"} if is_knee else {"color": INK}
            left.annotate(text, (x, y), (5, -10), textcoords="offset points", fontsize=8, **style)
            if is_knee:
                left.plot([x], [y], "o", color=LIMIT, ms=8)
        left.set(xlabel="step latency (ms), the whole batch decoding", ylabel="output tokens per second")
        left.set_xlim(0, max(latency, default=1) * 1.12)
        left.set_ylim(0, max(throughput, default=1) * 1.08)
        sizes = [row["batch_size"] for row in rows]
        for key, label, colour in (("e2el_ms", "E2EL", 2), ("ttft_ms", "TTFT", 1), ("tpot_ms", "TPOT", 0)):
            right.plot(sizes, [row[key] for row in rows], marker="o", ms=4, color=PALETTE[colour], label=label)
        right.set(xlabel="batch size", ylabel="mean over the requests", yscale="log")
        _plain(right, duration_text)
        _by_batch(right, sizes)
        right.legend()


def plot_memory(rows: Sequence[dict[str, Any]], facts: EngineFacts, title: str, path: Path) -> None:
    """KV blocks in use at their peak, in MiB, against what was allocated at the start."""
    block = facts.block_size * facts.kv_bytes_per_token / MIB
    with figure(path, 7.0, 4.2) as drawing:
        headline(drawing, f"KV memory by batch size: {title}")
        axes = drawing.subplots()
        sizes = [row["batch_size"] for row in rows]
        used = [row["kv_blocks"] * block for row in rows]
        axes.plot(sizes, used, marker="o", ms=4, color=PALETTE[0], label="in use at the peak")
        axes.axhline(facts.kv_cache_bytes / MIB, color=LIMIT, lw=1, ls="--", label="allocated at the start")
        for row, y in zip(rows, used, strict=True):
            if row["kv_full"]:
                axes.annotate("KV full", (row["batch_size"], y), (0, 6), textcoords="offset points", fontsize=8)
        axes.set(xlabel="batch size", ylabel="MiB per GPU", yscale="log")
        _plain(axes, lambda mib: f"{mib:,.4g}")
        _by_batch(axes, sizes)
        axes.legend(loc="center left")


def _plain(axes: Any, text: Callable[[float], str]) -> None:
    """Labels of a logarithmic y axis; matplotlib's own are formulae, which our style shows as they are written."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _by_batch(axes: Any, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
