"""A fit to tables of op times: steps drawn over what was measured, composed, fitted; others held out."""

from __future__ import annotations

from typing import Protocol

from simbatch.profiler.fit.design import REGIMES, StepLimits, sample_steps
from simbatch.profiler.fit.two_regime import fit_two_regime, judge, judge_bands
from simbatch.profiler.importers.source import Fitted
from simbatch.profiler.records.steps import Floats, Steps, concatenate
from simbatch.sim.cost.error import FitError
from simbatch.sim.cost.measured_range import DecodeRange, MeasuredRange, MixedRange

TRAIN_SEED, HELD_OUT_SEED = 1, 2
TRAIN_STEPS, HELD_OUT_STEPS = 4000, 2000


class OpTimes(Protocol):
    """Tables of op times that compose to steps."""

    def step_time_s(self, steps: Steps, /) -> Floats:
        """What each step lasts, s."""
        ...

    def limits(self, kv_tokens: int, /) -> StepLimits:
        """What was measured, and the tokens that a batch may hold."""
        ...

    @property
    def token_counts(self) -> list[int]:
        """The scheduled tokens that were measured: the knots of a fit."""
        ...


def fit_tables(tables: OpTimes, kv_tokens: int) -> Fitted:
    """Fit the two-regime form to composed steps; the error is against other composed steps."""
    limits, counts = tables.limits(kv_tokens), tables.token_counts
    train = {regime: sample_steps(regime, TRAIN_STEPS, limits, TRAIN_SEED) for regime in REGIMES}
    held_out = {regime: sample_steps(regime, HELD_OUT_STEPS, limits, HELD_OUT_SEED) for regime in REGIMES}
    decode, mixed = train["decode"], concatenate([train["prefill"], train["mixed"]])
    step_time = fit_two_regime((decode, tables.step_time_s(decode)), (mixed, tables.step_time_s(mixed)), counts, counts)
    cost = step_time.cost_model()
    measured_s = {regime: tables.step_time_s(steps) for regime, steps in held_out.items()}
    judged = {regime: judge(cost, held_out[regime], measured_s[regime]) for regime in REGIMES}
    design = (
        f"{TRAIN_STEPS} random steps per regime fitted, {HELD_OUT_STEPS} others held out, over the measured grid and "
        f"contexts of {limits.kv_tokens} tokens in all; against the composed tables, not against a real run"
    )
    error = FitError(
        design=design,
        against="tables",
        decode=judged["decode"],
        decode_bands=judge_bands(cost, held_out["decode"], measured_s["decode"]),
        prefill=judged["prefill"],
        mixed=judged["mixed"],
    )
    return Fitted(step_time, error, _range(limits))


def _range(limits: StepLimits) -> MeasuredRange:
    longest = limits.max_num_batched_tokens
    contexts = {"mean_context": limits.context, "decode_context": (limits.context[0], limits.kv_tokens)}
    return MeasuredRange(
        decode=DecodeRange(num_decodes=limits.decode_only_seqs, **contexts),
        mixed=MixedRange(
            num_tokens=(limits.chunk[0], longest),
            prefill_tokens=limits.chunk,
            mean_history=limits.history,
            num_decodes=(0, limits.mixed_seqs[1]),
            **contexts,
        ),
    )
