"""What `simbatch trace describe` prints."""

from __future__ import annotations

from typing import Any

_WIDTH = 32
_COLUMNS = ("mean", "cv", "min", "p5", "p50", "p90", "p99", "max")


def description(facts: dict[str, Any]) -> str:
    """The facts of a trace as lines for a person."""
    recorded = [line("Recorded by", f"{facts['tool']}: {facts['load']}")] if "tool" in facts else []
    lines = [
        line("Trace", facts["path"] + (f" (run {facts['run']})" if "run" in facts else "")),
        line("Format", facts["format"]),
        *recorded,
        line("Requests", f"{facts['num_requests']:,}"),
        line("First arrival (s)", number(facts["first_arrival_s"])),
        line("Duration (s)", number(facts["duration_s"])),
        line("Mean request rate (req/s)", number(facts["mean_request_rate"])),
        line("Gaps: cv (Poisson: 1)", number(facts["gap_cv"])),
        line("Burstiness (1 / cv^2)", number(facts["burstiness"])),
    ]
    lines += [line("Sent", note) for note in facts["sending"]]
    lines += [line(f"Peak / mean rate, {w} windows", number(x)) for w, x in facts["peak_to_mean_rate"].items()]
    if "prefix_blocks" in facts:
        blocks = facts["prefix_blocks"]
        lines.append(line("Prefix blocks", f"{blocks['total']:,}, {blocks['share']:.1%} seen before"))
    for name, key in (("Priorities", "priorities"), ("Tenants", "num_tenants")):
        if key in facts:
            lines.append(line(name, _classes(facts[key])))
    if facts["skipped"]:
        lines.append(line("Skipped (no output tokens)", f"{facts['skipped']:,}"))
    if facts["ignored_columns"]:
        lines.append(line("Columns not used", ", ".join(facts["ignored_columns"])))
    lines += ["", "Tokens".ljust(10) + "".join(name.rjust(9) for name in _COLUMNS) + "total".rjust(14)]
    lines += [_lengths(name, facts[f"num_{name}_tokens"]) for name in ("prompt", "output")]
    return "\n".join(lines)


def line(name: str, value: object) -> str:
    """One fact."""
    return f"{name + ':':<{_WIDTH}}{value}"


def number(value: float | None) -> str:
    """In three digits or so."""
    return "-" if value is None else f"{value:,.2f}" if abs(value) >= 100 else f"{value:.3g}"


def _classes(value: dict[str, int] | int) -> str:
    return ", ".join(f"{level}: {n:,}" for level, n in value.items()) if isinstance(value, dict) else f"{value:,}"


def _lengths(name: str, summary: dict[str, float]) -> str:
    cells = [f"{summary[key]:.2f}" if key == "cv" else f"{summary[key]:,.0f}" for key in _COLUMNS]
    return name.ljust(10) + "".join(cell.rjust(9) for cell in cells) + f"{summary['total']:,}".rjust(14)
