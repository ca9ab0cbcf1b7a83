"""What `simbatch trace describe` prints of a result's streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simbatch.cli._trace_text import line

GAPS = (
    ("Step of decodes alone (ms)", "decodes_only"),
    ("  before one with prefills", "before_prefills"),
    ("Step with prefills (ms)", "with_prefills"),
)
MIN_SHARE = 0.05  # of prompt tokens, below which chance says as much


def stream_lines(said: dict[str, Any]) -> list[str]:
    """The figures of the steps as lines for a person, or why there are none."""
    if said["refusals"]:
        return ["", *(f"Steps cannot be told from the streams: {reason}" for reason in said["refusals"])]
    return [
        "",
        "What its streams say of the engine's steps",
        *_lines(said),
        *(f"- {text}" for text in said["warnings"]),
    ]


def _lines(said: dict[str, Any]) -> Iterator[str]:
    batch, time, client = said["batch"], said["share_of_time"], said["client"]
    yield line("Steps", f"{said['num_steps']:,}")
    yield line(
        "Batch, over time",
        f"mean {_figure(batch['mean'])}, median {batch['p50']:,.0f}, "
        f"5 to 95 % {batch['p5']:,.0f} to {batch['p95']:,.0f}, most {batch['max']:,.0f}",
    )
    for name, key in GAPS:
        gaps, text = said["gap_ms"][key], "too few with decodes to tell"
        if gaps is not None:
            text = f"median {_figure(gaps['p50'])}, 5 to 95 % {_figure(gaps['p5'])} to {_figure(gaps['p95'])}"
        yield line(name, text)
    before = f", {time['before_prefills']:.1%} in steps that wait for their launch, idle {time['idle']:.1%}"
    yield line("Time in steps with prefills", f"{time['with_prefills']:.1%}{before}")
    budget = said["token_budget"]
    full = "seen full" if budget["was_full"] else "at least; no step was seen full"
    yield line("Token budget", f"{budget['at_least']:,} ({full})")
    kept = "kept up" if client["kept_up"] else "did not keep up"
    chunks = (
        f"a step's chunks take {client['share_of_gap']:.0%} of a step to read ({client['us_per_chunk']:.0f} µs each)"
    )
    yield line("Client", f"{kept}: {chunks}")
    yield line("Prefix hits", _prefix_hits(said["prefix_hits"]))
    yield line("Stationarity", _stationarity(said["stationarity"]))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _prefix_hits(hits: dict[str, Any]) -> str:
    if hits["share"] is None:
        return f"cannot be told: {hits['why']}"
    cost = f"a prompt token takes {hits['prefill_us_per_token']:.3g} µs"
    if hits["share"] < MIN_SHARE:
        return f"none that shows ({cost})"
    return f"{hits['share']:.0%} of the prompt tokens take no time: cached, or computed elsewhere ({cost})"


def _stationarity(found: dict[str, Any]) -> str:
    if found["batch"] is None:
        return f"cannot be told: {found['why']}"
    thirds = ", ".join(_figure(value) for value in found["batch"])
    text = f"{found['verdict']} (batch in the thirds of its time: {thirds})"
    if found["drifts"]:
        text += f"; like steps {abs(found['drift']):.0%} {'slower' if found['drift'] > 0 else 'faster'} at its end"
    return text
