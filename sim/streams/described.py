"""What a run's streams say of the server behind them, in figures: steps, batch, prefills, and its client."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from simbatch.sim.errors import UserError
from simbatch.sim.streams import Floats, Ints, RebuiltSteps, Streams, rebuild_steps
from simbatch.sim.streams.steps import BLURRED, BUDGETS, Judgement, StepBatches, batches_of, infer_budget, judge
from simbatch.sim.workload.bench import BenchRun, BenchTotals, sending_of

QUANTILES = (0.05, 0.5, 0.95)
EDGE = 0.1  # of the time at either end: a run fills up and drains there
GROWS, FALLS = 1.25, 0.8  # batch of the last third over the first's
DRIFTS = 0.03  # share by which steps of the same batch become slower or faster
FREE, SURE = 0.25, 4.0  # a prefill costs nothing below that share of the usual, where the usual is so many deviations
DECIDABLE = 0.1  # share of the prompt tokens whose cost shows: below it nothing is said of prefix hits
MIN_STEPS = 30  # for a figure of steps of one kind


@dataclass(frozen=True)
class Described:
    """A run's steps as they were rebuilt; the figures hold where `judgement` refuses nothing."""

    steps: RebuiltSteps
    batches: StepBatches
    judgement: Judgement
    budget: int  # tokens a step, the smallest that nothing contradicts
    is_full: bool  # whether steps were seen to be full under it

    @classmethod
    def of(cls, streams: Streams, num_failed: int = 0) -> Described:
        """Rebuild, judge, and lay the prompts into the smallest budget that nothing contradicts."""
        steps = rebuild_steps(streams)
        budget, is_full = infer_budget([steps])
        # a budget that was never full is a lower bound: under it prompts would be cut that were not
        batches = batches_of(steps, budget if is_full else BUDGETS[-1])
        return cls(steps, batches, judge(steps, num_failed), budget, is_full)

    @cached_property
    def has_prefills(self) -> Any:
        """By step: whether prompts were computed in it."""
        return self.batches.num_prefills > 0

    @cached_property
    def is_waiting(self) -> Any:
        """By step: whether its tokens wait for the launch of the next one's prefills."""
        following = np.append(self.has_prefills[1:] & (self.steps.num_decodes[1:] > 0), False)
        return ~self.has_prefills & following & (self.steps.num_decodes > 0)

    @cached_property
    def is_plain(self) -> Any:
        """By step: whether it is of decodes, with no prefill in it nor in the next."""
        return ~self.has_prefills & ~self.is_waiting & (self.steps.num_decodes > 0)

    @cached_property
    def batch(self) -> Ints:
        """By step: requests that got a token in it."""
        return self.steps.num_decodes + self.steps.num_first

    @cached_property
    def lasted_s(self) -> Floats:
        """By step, from the tokens before to its own; where nobody decoded, from its first prompt's send."""
        mean_s, num_decodes = self.steps.mean_s, self.steps.num_decodes
        before_s = np.concatenate([[-np.inf], mean_s[:-1]])
        sent_s = np.full(len(mean_s), np.inf)
        np.minimum.at(sent_s, self.batches.begun, self.steps.streams.sent_s)
        alone_s = np.where(np.isfinite(sent_s), np.maximum(before_s, sent_s), before_s)
        begun_s = np.where(num_decodes > 0, before_s, alone_s)
        return np.maximum(0.0, np.where(np.isfinite(begun_s), mean_s - begun_s, 0.0))

    def summary(self) -> dict[str, Any]:
        """The figures of `simbatch trace describe --json`; `refusals` alone where the steps cannot be believed."""
        judged = self.judgement
        said: dict[str, Any] = {"refusals": list(judged.refusals), "warnings": list(judged.warnings)}
        if judged.refusals:
            return said
        span_s = float(self.steps.mean_s[-1] - self.steps.streams.sent_s.min())
        with_s = float(self.lasted_s[self.has_prefills].sum())
        waiting_s = float(self.lasted_s[self.is_waiting].sum())
        busy_s = float(self.lasted_s.sum())
        return said | {
            "num_steps": len(self.steps),
            "batch": _over_time(self.batch, self.lasted_s),
            "gap_ms": {
                "decodes_only": self._gaps_ms(self.is_plain),
                "before_prefills": self._gaps_ms(self.is_waiting),
                "with_prefills": self._gaps_ms(self.has_prefills),
            },
            "share_of_time": {
                "with_prefills": with_s / span_s,
                "before_prefills": waiting_s / span_s,
                "decodes_only": (busy_s - with_s - waiting_s) / span_s,
                "idle": max(0.0, 1 - busy_s / span_s),
            },
            "token_budget": {"at_least": self.budget, "was_full": self.is_full},
            "client": {
                "us_per_chunk": 1e6 * judged.chunk_s,
                "share_of_gap": judged.share_of_gap,
                "kept_up": judged.share_of_gap <= BLURRED,
            },
            "prefix_hits": self._prefix_hits(),
            "stationarity": self._stationarity(),
        }

    def _gaps_ms(self, chosen: Any) -> dict[str, float] | None:
        """Of steps of one kind that somebody decoded in; None where they are few."""
        gaps_s = self.lasted_s[chosen & (self.steps.num_decodes > 0)]
        if len(gaps_s) < MIN_STEPS:
            return None
        return {f"p{round(100 * q)}": 1000 * float(np.quantile(gaps_s, q)) for q in QUANTILES}

    @cached_property
    def usual_s(self) -> Floats:
        """By step: what one of as many decodes lasts without prefills, between the sizes that were seen."""
        plain = self.is_plain
        sizes = np.unique(self.steps.num_decodes[plain])
        if not len(sizes):
            return np.zeros(len(self.steps))
        medians = [float(np.median(self.lasted_s[plain & (self.steps.num_decodes == size)])) for size in sizes]
        return np.interp(self.steps.num_decodes, sizes, medians)

    def _prefix_hits(self) -> dict[str, Any]:
        """Prompt tokens whose steps took hardly longer than others: they were in the cache, or computed elsewhere.

        An episode is a step with prefills and the one before, whose tokens wait for its launch.
        """
        chosen = np.flatnonzero(self.has_prefills & (self.steps.num_decodes > 0))
        chosen = chosen[chosen > 0]
        plain = self.is_plain
        told = int(self.batches.prefill_tokens[chosen].sum())
        total = int(self.batches.prefill_tokens.sum())
        if len(chosen) < MIN_STEPS or plain.sum() < MIN_STEPS or told < DECIDABLE * total:
            return {"share": None, "why": "too few steps have both prefills and decodes"}
        over_s = self.lasted_s - self.usual_s
        noise_s = 1.4826 * float(np.median(np.abs(over_s[plain] - np.median(over_s[plain])))) * np.sqrt(2)
        before_s = np.where(self.has_prefills[chosen - 1], 0.0, over_s[chosen - 1])
        cost_s, tokens = over_s[chosen] + before_s, self.batches.prefill_tokens[chosen]
        a_token_s = _median(cost_s / tokens, tokens)
        is_sure = a_token_s * tokens > SURE * noise_s
        if tokens[is_sure].sum() < DECIDABLE * total:
            return {"share": None, "why": "prefills take no longer than steps vary"}
        usual_s = a_token_s * tokens
        free, dear = (
            float(tokens[is_sure & odd].sum()) for odd in (cost_s < FREE * usual_s, cost_s > (2 - FREE) * usual_s)
        )
        share = max(0.0, free - dear) / float(tokens[is_sure].sum())  # as many are dear by chance as are free by chance
        return {"share": share, "prefill_us_per_token": 1e6 * a_token_s}

    def _stationarity(self) -> dict[str, Any]:
        """The batch over the thirds of the time between the run's ends, and how much slower like steps became."""
        begin_s, end_s = np.quantile(self.steps.mean_s[[0, -1]], (EDGE, 1 - EDGE))
        edges = np.linspace(begin_s, end_s, 4)
        third = np.searchsorted(edges, self.steps.mean_s, side="right") - 1
        parts = [third == i for i in range(3)]
        if any(part.sum() < MIN_STEPS for part in parts):
            return {"batch": None, "why": "too few steps"}
        batch = [float(np.average(self.batch[part], weights=np.maximum(self.lasted_s[part], 1e-9))) for part in parts]
        ratio = batch[2] / batch[0]
        verdict = "grows" if ratio > GROWS else "falls" if ratio < FALLS else "steady"
        plain = self.is_plain & (self.usual_s > 0)
        drift = None
        if all((part & plain).sum() >= MIN_STEPS for part in (parts[0], parts[2])):
            slower = self.lasted_s / np.where(self.usual_s > 0, self.usual_s, 1.0)
            drift = float(np.median(slower[parts[2] & plain]) / np.median(slower[parts[0] & plain]) - 1)
        return {"batch": batch, "verdict": verdict, "drift": drift, "drifts": drift is not None and abs(drift) > DRIFTS}


def _over_time(values: Ints, weights_s: Floats) -> dict[str, float]:
    """Mean and quantiles by the time that each value held."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights_s[order]) / max(float(weights_s.sum()), 1e-12)
    found = {
        f"p{round(100 * q)}": float(values[order][np.searchsorted(reached, q).clip(max=len(order) - 1)])
        for q in QUANTILES
    }
    mean = float(np.average(values, weights=np.maximum(weights_s, 1e-12)))
    return {"mean": mean, **found, "max": float(values.max())}


def _median(values: Floats, weights: Ints) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(reached, 0.5)])


def described_result(run: BenchRun | BenchTotals) -> Described | str:
    """Its streams' figures, or in a sentence what the file lacks for them."""
    if isinstance(run, BenchTotals):
        return "the file has a run's totals alone"
    if run.gaps_s is None or run.ttft_s is None:
        return str(run.untold.get("itl") or run.untold.get("ttft"))
    try:
        sending = sending_of(run)
    except UserError as error:
        return error.problems[0].rule
    got = np.flatnonzero((run.error == "") & (run.num_output_tokens > 0))
    if not len(got):
        return "no request of it got a token"
    columns = (run.num_prompt_tokens[got], run.num_output_tokens[got])
    streams = Streams.of(sending.sent_s[got], run.ttft_s[got], run.gaps_s[got], *columns, sending.max_concurrency)
    return Described.of(streams, len(run) - len(got))
