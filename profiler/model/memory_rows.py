"""Rows of an answer about memory: each quantity with its formula, and its bounds where it is an estimate."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap
from typing import Any, NamedTuple

from simbatch.profiler.model.kv_layout import KVLayout
from simbatch.profiler.model.memory_batch import RISK, Fit, HeldBy, RequestLengths, fit
from simbatch.profiler.model.memory_plan import MemoryPlan
from simbatch.profiler.model.weights import Weights
from simbatch.sim.cost.gpus import GIB
from simbatch.sim.text import width, wrapped


class Row(NamedTuple):
    """A quantity with its formula; `unit` is how a person reads it: bytes, or a plain number."""

    key: str
    label: str
    value: float
    formula: str
    is_exact: bool
    low: float | None = None
    high: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Cache:
    """The blocks that requests share; `num_gpu_blocks` counts vLLM's null block, `held_by` says what tokens take."""

    num_gpu_blocks: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    is_exact: bool
    held_by: HeldBy
    full_blocks: int  # of a request of max_model_len, as vLLM counts it
    num_groups: int = 1
    blocks_low: int | None = None
    blocks_high: int | None = None

    @property
    def usable_blocks(self) -> int:
        """Without the null block."""
        return max(0, self.num_gpu_blocks - 1)

    @property
    def max_tokens(self) -> int:
        """Tokens in all usable blocks; of requests of `max_model_len` where layers differ."""
        if self.num_groups == 1:
            return self.usable_blocks * self.block_size
        return int(self.usable_blocks / self.full_blocks * self.max_model_len)

    def fits(self, lengths: RequestLengths) -> tuple[Fit, Fit | None, Fit | None]:
        """How many of these requests run at once: likely, and with the fewest and the most blocks."""
        bounds = [None if n is None else max(0, n - 1) for n in (self.blocks_low, self.blocks_high)]
        low, high = (None if usable is None else fit(lengths, usable, self.held_by) for usable in bounds)
        return fit(lengths, self.usable_blocks, self.held_by), low, high


def plan_rows(plan: MemoryPlan) -> list[Row]:
    """The parts of a plan, then what they leave."""
    share = f"total x utilisation = {plan.total_bytes:,} x {plan.gpu_memory_utilization:g}"
    rows = [
        Row("usable_memory", "usable memory", plan.usable_bytes, share, True, unit="bytes"),
        _weights(plan.weights, plan.quantisation, plan.limits.tensor_parallel_size),
    ]
    for part in plan.parts:
        exact = part.low == part.high
        low, high = (None, None) if exact else (part.low, part.high)
        rows.append(Row(_key(part.label), part.label, part.value, part.formula, exact, low, high, "bytes"))
    cache, least = plan.kv_cache_bytes, max(0, plan.kv_cache_bytes - plan.kv_less)
    blocks = plan.num_gpu_blocks_low, plan.num_gpu_blocks_high
    tokens = plan.kv_cache_tokens_low, plan.kv_cache_tokens_high
    left, a_block = "usable memory - the other parts", f"KV cache / {plan.layout.bytes_per_block:,} bytes of a block"
    return [
        *rows,
        _token(plan),
        Row("kv_cache", "KV cache", cache, left, False, least, cache + plan.kv_more, "bytes"),
        Row("blocks", "blocks", plan.num_gpu_blocks, a_block, False, *blocks),
        Row("kv_tokens", "KV tokens", plan.max_kv_tokens, _tokens_formula(plan), False, *tokens),
    ]


def cache_of_plan(plan: MemoryPlan) -> Cache:
    """What a plan leaves."""
    layout = plan.layout
    return Cache(
        num_gpu_blocks=plan.num_gpu_blocks,
        block_size=layout.block_size,
        max_model_len=plan.limits.max_model_len,
        max_num_seqs=plan.limits.max_num_seqs,
        is_exact=False,
        held_by=layout.held_by,
        full_blocks=layout.blocks_of(plan.limits.max_model_len),
        num_groups=len(layout.groups),
        blocks_low=plan.num_gpu_blocks_low,
        blocks_high=plan.num_gpu_blocks_high,
    )


def rows_of(cache: Cache, lengths: RequestLengths | None) -> tuple[list[Row], Fit | None]:
    """What the cache holds, with and without lengths."""
    usable, full = cache.usable_blocks, cache.full_blocks
    blocks = f"ceil({cache.max_model_len:,} / {cache.block_size}) = {full:,} blocks each"
    if cache.num_groups > 1:
        blocks = f"{full:,} blocks each, in {cache.num_groups} groups"
    rows = [
        Row(
            "at_max_model_len",
            "requests of max_model_len",
            round(usable / full, 2),
            f"{usable:,} usable blocks / {blocks}",
            cache.is_exact,
        )
    ]
    if lengths is None:
        return rows, None
    found, low, high = cache.fits(lengths)
    more = _fixed(cache, lengths, found, low, high) if lengths.is_fixed else _varied(cache, lengths, found)
    return [*rows, *more, _at_risk(cache, found, low, high)], found


def _fixed(cache: Cache, lengths: RequestLengths, found: Fit, low: Fit | None, high: Fit | None) -> list[Row]:
    prompt, output = int(lengths.num_prompt_tokens[0]), int(lengths.num_output_tokens[0])
    blocks = f"ceil(({prompt:,} + {output:,} - 1) / {cache.block_size}) = {found.longest_blocks:,} blocks each"
    if cache.num_groups > 1:
        blocks = f"{found.longest_blocks:,} blocks each, in {cache.num_groups} groups"
    formula = f"{cache.usable_blocks:,} usable blocks / {blocks}; the last token is never stored"
    least, most = (None if one is None else one.worst for one in (low, high))
    return [Row("without_preemption", "requests that fit", found.worst, formula, cache.is_exact, least, most)]


def _varied(cache: Cache, lengths: RequestLengths, found: Fit) -> list[Row]:
    longest = int((lengths.num_prompt_tokens + lengths.num_output_tokens).max())
    usable = f"{cache.usable_blocks:,} usable blocks"
    each = f"ceil(({longest:,} - 1) / {cache.block_size}) = " if cache.num_groups == 1 else ""
    return [
        Row("mean_blocks", "blocks of a request", round(found.mean_blocks, 2), "mean over all steps of all", True),
        Row("average", "full on average", found.average, f"{usable} / {found.mean_blocks:.2f}", cache.is_exact),
        Row(
            "without_preemption",
            "if all were the longest",
            found.worst,
            f"{usable} / {each}{found.longest_blocks:,} blocks each",
            cache.is_exact,
        ),
    ]


def _at_risk(cache: Cache, found: Fit, low: Fit | None, high: Fit | None) -> Row:
    risks = f"{found.risk:.2%}, with one more {found.risk_above:.2%}"
    formula = f"most with P(blocks of all in a step > {cache.usable_blocks:,}) <= {RISK:.0%}: {risks}"
    least, most = (None if one is None else one.at_risk for one in (low, high))
    return Row("at_risk", f"at {RISK:.0%} preemption risk", found.at_risk, formula, cache.is_exact, least, most)


def _weights(weights: Weights, stored: str, gpus: int) -> Row:
    parts = {
        "embeddings": weights.embeddings,
        "head": weights.head,
        f"{stored} layers": weights.layers,
        "norms": weights.others,
        "MLA's copies": weights.copies,
        "vision tower, estimated": weights.vision,
    }
    text = " + ".join(f"{name} {value:,}" for name, value in parts.items() if value)
    text = text if gpus == 1 else f"on each of {gpus} GPUs: {text}"
    return Row("weights", "weights", weights.total, text, not weights.vision, unit="bytes")


def _token(plan: MemoryPlan) -> Row:
    value, layout, length = plan.kv_bytes_per_token, plan.layout, plan.limits.max_model_len
    first = layout.groups[0]
    heads, keys, values, _ = first.page.shape
    if layout.is_uniform and values and first.num_layers * heads * (keys + values) * plan.kv_element_bytes == value:
        formula = f"2 x {first.num_layers} layers x {heads} KV heads x {keys} x {plan.kv_element_bytes} bytes"
    elif layout.is_uniform:
        formula = f"{layout.bytes_per_block:,} bytes a block of {first.num_layers} layers / {layout.block_size} tokens"
    elif not plan.counts_requests:
        groups, size = len(layout.groups), layout.smallest_block_size
        value = -(-layout.bytes_per_block * groups // size)
        formula = f"as this vLLM logs it: {layout.bytes_per_block:,} bytes a block x {groups} groups / {size} tokens"
    else:
        blocks, groups = layout.blocks_of(length), len(layout.groups)
        formula = f"of a request of {length:,}: {blocks:,} blocks in {groups} groups x {layout.bytes_per_block:,} bytes"
    return Row("kv_per_token", "KV per token", value, f"{formula} ({plan.kv_cache_dtype})", True)


def _tokens_formula(plan: MemoryPlan) -> str:
    if plan.layout.is_uniform:
        return f"(blocks - vLLM's null block) x {plan.block_size}"
    length = plan.limits.max_model_len
    return f"(blocks - vLLM's null block) / {plan.layout.blocks_of(length):,} of a request x {length:,} tokens"


def _key(label: str) -> str:
    return label.lower().replace(" ", "_").replace("'", "")


def layout_groups(layout: KVLayout) -> str:
    """The groups in words; nothing where there is one."""
    if layout.is_uniform:
        return ""
    kinds = {"full": "all tokens", "sliding": "a window", "state": "a state"}
    names = [
        kinds[group.page.kind] + (f" of {group.page.window:,}" if group.page.window else "") for group in layout.groups
    ]
    counts = [f"{names.count(name)} of {name}" for name in dict.fromkeys(names)]
    return f"the KV cache has {len(names)} groups of {layout.groups[0].num_layers} layers: {', '.join(counts)}"


MIN_FORMULA, INDENT = 24, 4  # columns beside the figures, below which a formula stands under them, so far in


@dataclass(frozen=True)
class MemoryAnswer:
    """What `simbatch memory` answers: head lines, facts for JSON, rows, and notes."""

    head: list[str]
    facts: dict[str, Any]
    rows: list[Row]
    notes: list[str]

    def content(self) -> dict[str, Any]:
        """As JSON."""
        figures = [
            {"key": r.key, "value": r.value, "formula": r.formula, "exact": r.is_exact}
            | ({} if r.low is None else {"low": r.low, "high": r.high})
            for r in self.rows
        ]
        return {**self.facts, "figures": figures, "notes": self.notes}

    def text(self) -> str:
        """As a table for people: bytes in GiB, formulas broken to the page."""
        shown = [
            (r.label, _shown(r.value, r.unit), " " if r.is_exact else "~", _between(r), r.formula) for r in self.rows
        ]
        name, value, bounds = (max(len(row[column]) for row in shown) for column in (0, 1, 3))
        lines: list[str] = []
        for label, size, mark, between, formula in shown:
            begin = f"{label:<{name}}  {mark}{size:>{value}}  {between:<{bounds}}  "
            if width() - len(begin) >= MIN_FORMULA and formula:
                lines += wrap(formula, width(), initial_indent=begin, subsequent_indent=" " * len(begin))
            else:
                below = " " * INDENT
                lines += [begin.rstrip(), *wrap(formula, width(), initial_indent=below, subsequent_indent=below)]
        legend = []
        if any(not row.is_exact for row in self.rows):
            legend = ["~ estimated, or made of what is; the range holds for nine of ten starts"]
        notes = [*wrapped(f"- {note}" for note in self.notes)]
        return "\n".join([*wrapped(self.head), "", *lines, *legend, *([""] if notes else []), *notes])


def _shown(value: float, unit: str) -> str:
    return f"{value / GIB:,.2f} GiB" if unit == "bytes" else f"{value:,}"


def _between(row: Row) -> str:
    if row.low is None or row.high is None:
        return ""
    if row.unit == "bytes":
        return f"{row.low / GIB:,.2f} to {row.high / GIB:,.2f}"
    return f"{row.low:,} to {row.high:,}"
