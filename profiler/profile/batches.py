"""The batch table: for each batch size, what its requests see and what it takes.

All requests of a batch are sent at once, with prompts that no cache knows. TTFT, TPOT and E2EL are those of
`vllm bench serve`, means over the requests; the step latency is the median of the steps in which the whole batch
decodes; throughput is output tokens over the time from the first send to the last token. Elapsed time over batch size
is none of them: it is inverse throughput.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.records.lines import RecordedStep, durations_s
from simbatch.profiler.records.samples import EngineFacts
from simbatch.sim.report.style import INK, LIMIT, PALETTE, duration_text, figure, headline
from simbatch.sim.statistics import RULE, find_knee
from simbatch.sim.text import table

PROMPT_LEN, OUTPUT_LEN = 256, 32
KNEE_FIGURES = "throughput over step latency, without rows that are kv_full"


class BatchShape(NamedTuple):
    """Tokens of each request of the table."""

    prompt_len: int
    output_len: int

    @classmethod
    def of(cls, facts: EngineFacts) -> BatchShape:
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


def row_of(
    facts: EngineFacts, shape: BatchShape, lives: Sequence[Lived], steps: Sequence[RecordedStep]
) -> dict[str, Any]:
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


MIB = 2**20


def batch_table(rows: Sequence[dict[str, Any]], facts: EngineFacts, shares: Sequence[float | None]) -> list[str]:
    """One row per batch size; `shares` are the utilisations, None where there is no datasheet."""
    columns = (
        "batch",
        "output tok/s",
        "step ms",
        "TTFT ms",
        "TPOT ms",
        "E2EL ms",
        "KV blocks",
        "MiB/seq",
        "roofline",
        "",
    )
    lines = []
    for row, share in zip(rows, shares, strict=True):
        cells = (
            str(row["batch_size"]),
            f"{row['output_throughput']:,.0f}",
            ms_text(row["step_ms"]),
            ms_text(row["ttft_ms"]),
            ms_text(row["tpot_ms"]),
            ms_text(row["e2el_ms"]),
            f"{row['kv_blocks']:,} of {facts.num_gpu_blocks - 1:,}",
            f"{row['kv_bytes_per_seq'] / MIB:,.2f}",
            "-" if share is None else f"{share:.0%}",
            "kv_full" if row["kv_full"] else "",
        )
        lines.append(cells)
    return table(columns, lines, num_left=0)


def batch_notes(rows: Sequence[dict[str, Any]], facts: EngineFacts, no_roofline: str) -> list[str]:
    """What the table's figures are."""
    if not rows:
        return []
    at = knee(rows)
    notes = [
        f"{rows[0]['prompt_len']} prompt and {rows[0]['output_len']} output tokens each, all sent at once; latencies "
        "are means over the requests, the step is the median with the whole batch decoding",
        f"KV allocated at the start: {facts.kv_cache_bytes / MIB:,.0f} MiB; blocks are those in use at the peak",
        f"knee: {f'batch {at}' if at else 'none'} (of {KNEE_FIGURES}: {RULE})",
    ]
    if no_roofline:
        notes.append(f"roofline: - because {no_roofline}")
    if any(row["kv_full"] for row in rows):
        rule = "kv_full: the batch needs more blocks than there are, so requests queue or are preempted"
        notes.append(f"{rule}; its step is that of those which fit")
    return notes


def ms_text(value: float | None) -> str:
    """Two decimals up to a second, none above."""
    return "-" if value is None else f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


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
