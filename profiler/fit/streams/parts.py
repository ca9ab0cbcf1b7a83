"""The parts of a fit, and the sections of a profile that they make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simbatch.profiler.fit.streams.episodes import Decode, FittedEpisodes
from simbatch.profiler.fit.streams.priors import Priors
from simbatch.profiler.fit.streams.way_in import WayIn

DIGITS = 4
MOST_BELOW = 0.3  # of the smallest batch that was seen: how much shorter a step of one decode may be


@dataclass(frozen=True)
class Parts:
    """What the streams said; times in s."""

    decode: Decode
    mixed: FittedEpisodes
    way_in: WayIn
    chunk_s: float
    priors: Priors
    spread: dict[str, Any] | None = None

    def scaled(self, factors: dict[str, float]) -> Parts:
        """With times multiplied: decode, small and large (steps with prefills), launch, work, delay, chunk."""
        knots = self.mixed.knots
        place = np.log(knots / knots[0]) / max(1e-9, np.log(knots[-1] / knots[0]))
        mixed_s = self.mixed.time_s * factors["small"] ** (1 - place) * factors["large"] ** place
        launch = {key: value * factors["launch"] for key, value in self.mixed.host.items() if key != "graph_s"}
        return replace(
            self,
            decode=self.decode._replace(time_s=self.decode.time_s * factors["decode"]),
            mixed=self.mixed._replace(time_s=np.maximum.accumulate(mixed_s), host=self.mixed.host | launch),
            way_in=self.way_in._replace(
                per_request_s=self.way_in.per_request_s * factors["work"],
                per_prompt_token_s=self.way_in.per_prompt_token_s * factors["work"],
                delay_s=self.way_in.delay_s * factors["delay"],
            ),
            chunk_s=self.chunk_s * factors["chunk"],
        )

    def step_time(self) -> dict[str, Any]:
        """The device's."""
        mixed, priors = self.mixed, self.priors
        return {
            "form": "two_regime",
            "decode": {
                "seqs": _knots(*self._decode_knots()),
                "per_context_token_s": _short(self.decode.context_s),
            },
            "mixed": {
                "tokens": _knots(mixed.knots, mixed.time_s),
                "per_decode_seq_s": 0.0,
                "per_context_token_s": _short(priors.mixed_context * self.decode.context_s),
                "per_attention_unit_s": _short(priors.attention * mixed.token_s),
            },
        }

    def _decode_knots(self) -> tuple[Any, Any]:
        """From one decode on: below the smallest batch that was seen along the line of those above."""
        knots, time_s = self.decode.knots, self.decode.time_s
        if knots[0] == 1:
            return knots, time_s
        slope = (time_s[-1] - time_s[0]) / (knots[-1] - knots[0]) if len(knots) > 1 else 0.0
        first = max(time_s[0] - slope * (knots[0] - 1), (1 - MOST_BELOW) * time_s[0])
        return np.append(1, knots), np.append(first, time_s)

    def host(self) -> dict[str, Any]:
        """The engine's thread's."""
        host = self.mixed.host
        slopes = {"per_seq_s": host["per_seq_s"], "per_prefill_s": host["per_prefill_s"]}
        # a slope per prefill counts those beyond the first
        base = {kind: max(0.0, host[f"{kind}_s"] - slope * host["per_prefill_s"]) for kind, slope in _SHARES.items()}
        launch = {
            "graph": {"base_s": _short(host["graph_s"])},
            **{
                kind: {"base_s": _short(base[kind]), **{key: _short(share * v) for key, v in slopes.items()}}
                for kind, share in _SHARES.items()
            },
        }
        return {"launch": launch} | ({"spread": self.spread} if self.spread else {})

    def front_end(self) -> dict[str, Any]:
        """The server's processes'."""
        return {
            "per_request_s": _short(self.way_in.per_request_s),
            "per_prompt_token_s": _short(self.way_in.per_prompt_token_s),
            "per_chunk_s": _short(self.chunk_s),
            "network_s": _short(self.way_in.delay_s),
        }

    def sections(self) -> dict[str, Any]:
        """All of them."""
        return {"step_time": self.step_time(), "host": self.host(), "front_end": self.front_end()}


_SHARES = {"piecewise": 0.5, "none": 1.0}  # of the launches' slopes, see `EpisodesProblem.launch_s`


def _knots(counts: Any, times_s: Any) -> dict[str, Any]:
    return {"count": [int(count) for count in counts], "time_s": [_short(float(time_s)) for time_s in times_s]}


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
