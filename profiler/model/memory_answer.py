"""The answer of `simbatch memory`: a plan's figures, what they hold, and the sentences beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from simbatch.profiler.model.memory_batch import RISK, Fit, Lengths, blocks_for, fit

MAX_SEQS = 65_536


class Row(NamedTuple):
    """A figure with its formula."""

    key: str
    label: str
    value: float
    formula: str
    is_exact: bool


@dataclass(frozen=True)
class Cache:
    """The blocks that requests share; `num_gpu_blocks` counts vLLM's null block."""

    num_gpu_blocks: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    is_exact: bool

    @property
    def usable_blocks(self) -> int:
        """Without the null block."""
        return self.num_gpu_blocks - 1

    @property
    def max_tokens(self) -> int:
        """Tokens in all usable blocks."""
        return self.usable_blocks * self.block_size


def rows_of(cache: Cache, lengths: Lengths | None) -> tuple[list[Row], Fit | None]:
    """What the cache holds, with and without lengths."""
    size, usable = cache.block_size, cache.usable_blocks
    full = blocks_for(cache.max_model_len, size)
    rows = [
        Row(
            "at_max_model_len",
            "requests of max_model_len",
            round(usable / full, 2),
            f"{usable:,} usable blocks / ceil({cache.max_model_len:,} / {size}) = {full:,} blocks each",
            cache.is_exact,
        )
    ]
    if lengths is None:
        return rows, None
    found = fit(lengths, usable, size)
    if lengths.is_fixed:
        return [*rows, *_fixed(cache, lengths, found)], found
    return [*rows, *_varied(cache, lengths, found)], found


def _fixed(cache: Cache, lengths: Lengths, found: Fit) -> list[Row]:
    prompt, output = int(lengths.num_prompt_tokens[0]), int(lengths.num_output_tokens[0])
    blocks = f"ceil(({prompt:,} + {output:,} - 1) / {cache.block_size}) = {found.longest_blocks:,} blocks each"
    return [
        Row(
            "without_preemption",
            "requests that fit",
            found.worst,
            f"{cache.usable_blocks:,} usable blocks / {blocks}; the last token is never stored",
            cache.is_exact,
        ),
        _at_risk(cache, found),
    ]


def _varied(cache: Cache, lengths: Lengths, found: Fit) -> list[Row]:
    longest = int((lengths.num_prompt_tokens + lengths.num_output_tokens).max())
    usable = f"{cache.usable_blocks:,} usable blocks"
    return [
        Row("mean_blocks", "blocks of a request", round(found.mean_blocks, 2), "mean over all steps of all", True),
        _at_risk(cache, found),
        Row("average", "full on average", found.average, f"{usable} / {found.mean_blocks:.2f}", cache.is_exact),
        Row(
            "without_preemption",
            "if all were the longest",
            found.worst,
            f"{usable} / ceil(({longest:,} - 1) / {cache.block_size}) = {found.longest_blocks:,} blocks each",
            cache.is_exact,
        ),
    ]


def _at_risk(cache: Cache, found: Fit) -> Row:
    risks = f"{found.risk:.2%}, with one more {found.risk_above:.2%}"
    formula = f"most with P(blocks of all in a step > {cache.usable_blocks:,}) <= {RISK:.0%}: {risks}"
    return Row("at_risk", f"at {RISK:.0%} preemption risk", found.at_risk, formula, cache.is_exact)


def notes_of(cache: Cache, lengths: Lengths | None, found: Fit | None, largest: int | None) -> list[str]:
    """What else one must know: limits that bind before memory does, settings that vLLM does not start with."""
    notes = []
    if cache.max_tokens < cache.max_model_len:
        notes.append(
            f"vLLM does not start like this: one request of max_model_len ({cache.max_model_len:,} tokens) is above "
            f"the {cache.max_tokens:,} tokens of KV cache. Set --max-model-len {cache.max_tokens} or less."
        )
    if lengths is None or found is None:
        notes.append("Give --prompt-len and --output-len, or --trace, for the batch of your own requests.")
    elif found.at_risk > cache.max_num_seqs:
        more = "" if largest is None else f" The most that can be had is --max-num-seqs {largest}."
        notes.append(
            f"max_num_seqs ({cache.max_num_seqs:,}) binds before memory does. Raising it takes memory for sampling, "
            f"so fewer fit than the table says.{more}"
        )
    elif found.at_risk < 1:
        notes.append("Not even one of these requests is safe from running out of blocks.")
    if found is not None and lengths is not None and not lengths.is_fixed:
        notes.append("Taken: all seats filled at all times, nothing shared between prompts (that would need less).")
    return notes


def largest_max_num_seqs(batch_with: Callable[[int], int], start: int) -> int | None:
    """The most seats for which there is memory once they are asked for; `batch_with` falls with the seats.

    None when it is `start` or less.
    """
    low, high = start, start
    while high < MAX_SEQS and batch_with(high * 2) >= high * 2:
        high *= 2
    low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if batch_with(middle) >= middle else (low, middle)
    return low if low > start else None


def content(rows: Sequence[Row], notes: Sequence[str], facts: dict[str, Any]) -> dict[str, Any]:
    """As JSON."""
    figures = [{"key": r.key, "value": r.value, "formula": r.formula, "exact": r.is_exact} for r in rows]
    return {**facts, "figures": figures, "notes": list(notes)}


def text(rows: Sequence[Row], notes: Sequence[str], head: Sequence[str]) -> str:
    """As a table for people."""
    shown = [(row.label, f"{row.value:,}", " " if row.is_exact else "~", row.formula) for row in rows]
    name, value = (max(len(row[column]) for row in shown) for column in (0, 1))
    lines = [f"{row[0]:<{name}}  {row[2]}{row[1]:>{value}}  {row[3]}" for row in shown]
    legend = ["~ estimated, or made of what is"] if any(not row.is_exact for row in rows) else []
    return "\n".join([*head, "", *lines, *legend, *([""] if notes else []), *(f"- {note}" for note in notes)])
