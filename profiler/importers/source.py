"""What is asked of an import, what a source of measurements answers, and the fit to its tables: some steps held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.fit.two_regime import REGIMES, StepLimits, fit_two_regime, judge, judge_bands, sample_steps
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
