"""What is asked of an import, what a source of measurements answers, and the fit to its tables: some steps held out.

The fit is made on random batches over what was measured and what the KV cache can hold. Decodes, chunks, contexts and
histories are drawn log-uniformly, so that every order of magnitude counts alike; half of the chunks uniformly, since
busy servers run with full budgets. The contexts inside a batch are lognormal with a coefficient of variation between 0
and 1. No workload had a say in this: what a profile is validated on stays unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.fit.choose import REGIMES, judge, judge_bands
from simbatch.profiler.fit.two_regime import fit_two_regime
from simbatch.profiler.model.config import ModelConfig, read_model_config
from simbatch.profiler.records import Floats, Steps, concatenate
from simbatch.sim.cost.provenance import DecodeRange, FitError, Link, MeasuredRange, MixedRange
from simbatch.sim.cost.sections import KVCacheType
from simbatch.sim.cost.step_time import TwoRegimeStepTime
from simbatch.sim.errors import Problem, UserError

KV_DTYPES: dict[str, KVCacheType] = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp8": "bfloat16",
}  # of the KV cache under `auto`


MIXED_NOTE = (
    "steps with prefills and decodes: both attentions were measured apart and are added; where the two were measured "
    "together (RTX PRO 6000, LLMServingSim) such steps took 3 to 11 % longer in all than so composed"
)
RANDOM_NOTE = (
    "sampling at a temperature above 0, as models' own generation configs have it: {microseconds:.1f} us a sequence "
    "for {vocabulary:,} tokens are added to the tables; at temperature 0 they are not spent: import with --greedy"
)
ELEMENT_BYTES = 2
TRAIN_SEED, HELD_OUT_SEED = 1, 2
TRAIN_STEPS, HELD_OUT_STEPS = 4000, 2000


@dataclass(frozen=True)
class ImportRequest:
    """The arguments of `simbatch profiles import`; None is what was not given."""

    source: str
    folder: Path | None
    output_name: str
    model: str | None = None
    gpu: str | None = None
    quantisation: str | None = None
    kv_cache_dtype: str = "auto"
    tensor_parallel_size: int = 1
    model_config: Path | None = None
    run_meta: Path | None = None
    link: Link | None = None
    greedy: bool = False

    @property
    def command(self) -> str:
        """What was typed; of absolute paths the last two parts: a machine's folders mean nothing elsewhere."""
        options: dict[str, str | Path | int | None] = {
            "--model": self.model,
            "--gpu": self.gpu,
            "--model-config": self.model_config,
            "--quantization": self.quantisation,
            "--kv-cache-dtype": None if self.kv_cache_dtype == "auto" else self.kv_cache_dtype,
            "--tensor-parallel-size": None if self.tensor_parallel_size == 1 else self.tensor_parallel_size,
            "--link-us": None if self.link is None else f"{1e6 * self.link.latency_s:g}",
            "--link-gb-per-s": None if self.link is None else f"{self.link.bandwidth_bytes_per_s / 1e9:g}",
            "--run-meta": self.run_meta,
        }
        words = [f"simbatch profiles import --from {self.source}"]
        if self.folder is not None:
            words.append(portable(self.folder))
        given = {option: value for option, value in options.items() if value is not None}
        words += [
            f"{option} {portable(value) if isinstance(value, Path) else value}" for option, value in given.items()
        ]
        if self.greedy:
            words.append("--greedy")
        return " ".join([*words, f"-o {self.output_name}"])

    def directory(self) -> Path:
        """Where the measurements lie; raises UserError when no folder was named."""
        if self.folder is None:
            raise UserError(Problem("DIR", f"--from {self.source} reads a folder of measurements", mend="name it"))
        return self.folder

    def config(self) -> ModelConfig:
        """The model's shapes; raises UserError when no file was named, and for experts."""
        if self.model_config is None:
            raise UserError(Problem("--model-config", "this source needs the model's config.json", mend="name it"))
        config = read_model_config(self.model_config)
        if config.num_experts > 1:
            rule = "only dense decoders can be imported"
            raise UserError(Problem(f"{self.model_config} architectures", rule, config.architecture))
        return config

    def refuse(self, **options: str) -> None:
        """Raise a UserError for the first of these attributes that was given; the values are the options' names."""
        for attribute, option in options.items():
            value = getattr(self, attribute)
            if value not in (None, False):
                rule = f"means nothing with --from {self.source}"
                raise UserError(Problem(option, rule, str(value), "leave it out"))


class FittedTables(NamedTuple):
    """Step times, how good they are, and where they hold."""

    step_time: TwoRegimeStepTime
    error: FitError
    range: MeasuredRange


@dataclass(frozen=True)
class TableSource:
    """Measurements of one model on one GPU; `fit` is given the tokens that the KV cache holds, shared ones twice."""

    model: str
    gpu: str
    quantisation: str
    kv_cache_dtype: KVCacheType
    vllm_version: str
    credit: str
    licence: str
    config: ModelConfig
    fit: Callable[[int], FittedTables]
    notes: tuple[str, ...] = ()
    link: Link | None = None


def portable(path: Path) -> str:
    """As it was typed; of an absolute path the last two parts."""
    return "/".join(path.parts[-2:]) if path.is_absolute() else path.as_posix()


@dataclass(frozen=True)
class StepLimits:
    """The measured grid (lowest and highest, in tokens or sequences) and what the KV cache holds, in tokens."""

    decode_only_seqs: tuple[int, int]
    mixed_seqs: tuple[int, int]
    context: tuple[int, int]
    chunk: tuple[int, int]
    history: tuple[int, int]
    max_num_batched_tokens: int
    kv_tokens: int


def sample_steps(regime: str, count: int, limits: StepLimits, seed: int) -> Steps:
    """Draw `count` steps of one of `REGIMES`; the same seed draws the same."""
    rng = np.random.default_rng([seed, REGIMES.index(regime)])
    rows: list[tuple[int, ...]] = []
    while len(rows) < count:
        row = _draw(rng, regime, limits)
        if row is not None:
            rows.append(row)
    return Steps(*np.array(rows, dtype=np.int64).T)


def _draw(rng: np.random.Generator, regime: str, limits: StepLimits) -> tuple[int, ...] | None:
    """Draw one step, None when it does not fit into the cache."""
    chunk = history = num_decodes = 0
    if regime != "decode":
        chunk, history = _draw_prefill(rng, limits)
    if regime != "prefill":
        low, high = limits.decode_only_seqs if regime == "decode" else limits.mixed_seqs
        high = min(high, limits.max_num_batched_tokens - chunk)
        if high < low:
            return None
        num_decodes = _log_uniform(rng, low, high)
    contexts = np.zeros(1, dtype=np.int64)
    if num_decodes:
        drawn = _draw_contexts(rng, num_decodes, limits, limits.kv_tokens - chunk - history - num_decodes)
        if drawn is None:
            return None
        contexts = drawn
    prefill = (int(chunk > 0), chunk, history + chunk, chunk * (2 * history + chunk))
    return (*prefill, num_decodes, int(contexts.sum()), int(contexts.min()), int(contexts.max()))


def _draw_prefill(rng: np.random.Generator, limits: StepLimits) -> tuple[int, int]:
    low, high = limits.chunk
    chunk = _log_uniform(rng, low, high) if rng.random() < 0.5 else int(rng.integers(low, high, endpoint=True))
    longest = min(limits.history[1], limits.kv_tokens - chunk)
    history = 0 if rng.random() < 0.5 else _log_uniform(rng, limits.context[0], longest)
    return chunk, history


def _draw_contexts(
    rng: np.random.Generator, num_decodes: int, limits: StepLimits, kv_tokens: int
) -> NDArray[np.int64] | None:
    low, high = limits.context
    high = min(high, kv_tokens // num_decodes)
    if high < low:
        return None
    mean = _log_uniform(rng, low, high)
    cv = rng.random()
    variance = np.log1p(cv * cv)
    drawn = np.exp(rng.normal(np.log(mean) - variance / 2, np.sqrt(variance), num_decodes))
    contexts = np.clip(np.rint(drawn), 1, limits.context[1]).astype(np.int64)
    return contexts if contexts.sum() <= kv_tokens else None


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return min(high, int(np.exp(rng.uniform(np.log(low), np.log(high + 1)))))


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

    @property
    def window(self) -> int | None:
        """Tokens that layers with a window look back at; None where there are none."""
        ...


def fit_tables(tables: OpTimes, kv_tokens: int) -> FittedTables:
    """Fit the two-regime form to composed steps; the error is against other composed steps."""
    limits, counts = tables.limits(kv_tokens), tables.token_counts
    train = {regime: sample_steps(regime, TRAIN_STEPS, limits, TRAIN_SEED) for regime in REGIMES}
    held_out = {regime: sample_steps(regime, HELD_OUT_STEPS, limits, HELD_OUT_SEED) for regime in REGIMES}
    decode, mixed = train["decode"], concatenate([train["prefill"], train["mixed"]])
    measured = (decode, tables.step_time_s(decode)), (mixed, tables.step_time_s(mixed))
    step_time = fit_two_regime(*measured, counts, counts, tables.window)
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
    return FittedTables(step_time, error, _range(limits))


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


class LinkAllReduce:
    """All-reduce over PCIe without peer-to-peer: each message passes through the host, at the board's pace.

    The link is latency and bandwidth: a ring sends 2 (N - 1) / N of the message past each of N GPUs.
    """

    def __init__(self, link: Link, num_gpus: int) -> None:
        self.link = link
        self._share = 2 * (num_gpus - 1) / num_gpus

    def time_s(self, tokens: NDArray[Any] | int, hidden_size: int) -> Floats:
        """One call on `tokens` x `hidden_size` elements, s."""
        message = tokens * hidden_size * ELEMENT_BYTES
        return np.asarray(self.link.latency_s + self._share * message / self.link.bandwidth_bytes_per_s)
