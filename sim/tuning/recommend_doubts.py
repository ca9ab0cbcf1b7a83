"""A recommendation's doubts in words: which defaults stand since a gain is inside the band, and the choice's bands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from simbatch.sim.metrics.registry import REGISTRY
from simbatch.sim.search.bands import HEADLINES, Stand

if TYPE_CHECKING:
    from simbatch.sim.tuning.recommend import BatchChoice, Recommendation


def kept_words(found: Recommendation, key: str, share: float) -> str:
    """Why the default of this setting stands: what the search found better by no more than the band, or by `share`."""
    value = getattr(found.chosen, key)
    for stand in found.stands:
        searched = getattr(stand.searched, key)
        if stand.is_kept and getattr(stand.default, key) == value != searched:
            return f"{searched:,} in its place changes {found.unit} by {stand.gain.text()}, inside the band"
    return f"nothing is better by {share:.0%} or more"


def beaten_lines(found: Recommendation) -> Iterator[str]:
    """By how much the choice beats each default that it leaves, over the draws."""
    for stand in found.stands:
        if not stand.is_kept:
            draws = f"over {len(stand.gain.ratios)} draws of what the profile is in doubt about"
            yield f"  Against {_default_words(found, stand)}, {draws}: score {stand.gain.text()}."


def _default_words(found: Recommendation, stand: Stand[BatchChoice]) -> str:
    """`the table's batch of 4`."""
    if stand.searched.max_num_batched_tokens != stand.default.max_num_batched_tokens:
        return f"vLLM's default of {stand.default.max_num_batched_tokens:,} tokens"
    seqs = stand.default.max_num_seqs
    whose = "the table's" if seqs == found.prior.max_num_seqs else "vLLM's"
    return f"{whose} batch of {seqs:,}"


def banded_lines(found: Recommendation) -> Iterator[str]:
    """The bands of the choice's figures at the load, and what to measure to narrow them."""
    bands = found.bands
    if bands is None or not bands.alone:
        return
    known = [(REGISTRY[key], band) for key in HEADLINES if (band := bands.of(REGISTRY[key])) is not None]
    shown = [f"{metric.title} {metric.text(band.low)} to {metric.text(band.high)} ms" for metric, band in known]
    yield f"Nine in ten ({len(bands.draws)} draws of what the profile is in doubt about): {', '.join(shown)}."
    if (advice := bands.narrow()) is not None:
        yield f"What to measure to narrow this most: {advice}."


def stands_content(found: Recommendation) -> list[dict[str, Any]]:
    """For recommend.json."""
    return [
        {
            "searched": stand.searched._asdict(),
            "default": stand.default._asdict(),
            "gain": stand.gain.as_dict(),
            "is_kept": stand.is_kept,
        }
        for stand in found.stands
    ]
