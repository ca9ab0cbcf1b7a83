"""What is asked of an import, and what a source of measurements answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from simbatch.profiler.model.config import ModelConfig, read_model_config
from simbatch.sim.cost.error import FitError
from simbatch.sim.cost.link import Link
from simbatch.sim.cost.measured_range import MeasuredRange
from simbatch.sim.cost.memory import KVCacheType
from simbatch.sim.cost.step_time import TwoRegimeStepTime
from simbatch.sim.errors import Problem, UserError

KV_DTYPES: dict[str, KVCacheType] = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp8": "bfloat16",
}  # of the KV cache under `auto`


@dataclass(frozen=True)
class Request:
    """The arguments of `simbatch profiles import`; None is what was not given."""

    source: str
    folder: Path
    output_name: str
    model: str | None = None
    quantisation: str | None = None
    kv_cache_dtype: str = "auto"
    tensor_parallel_size: int = 1
    model_config: Path | None = None
    run_meta: Path | None = None
    all_reduce: Path | None = None
    link: Link | None = None
    greedy: bool = False

    @property
    def command(self) -> str:
        """What was typed; of absolute paths the last two parts: a machine's folders mean nothing elsewhere."""
        options: dict[str, str | Path | int | None] = {
            "--model": self.model,
            "--model-config": self.model_config,
            "--quantization": self.quantisation,
            "--kv-cache-dtype": None if self.kv_cache_dtype == "auto" else self.kv_cache_dtype,
            "--tensor-parallel-size": None if self.tensor_parallel_size == 1 else self.tensor_parallel_size,
            "--all-reduce": self.all_reduce,
            "--link-us": None if self.link is None else f"{1e6 * self.link.latency_s:g}",
            "--link-gb-per-s": None if self.link is None else f"{self.link.bandwidth_bytes_per_s / 1e9:g}",
            "--run-meta": self.run_meta,
        }
        words = [f"simbatch profiles import --from {self.source}", portable(self.folder)]
        given = {option: value for option, value in options.items() if value is not None}
        words += [
            f"{option} {portable(value) if isinstance(value, Path) else value}" for option, value in given.items()
        ]
        if self.greedy:
            words.append("--greedy")
        return " ".join([*words, f"-o {self.output_name}"])

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


class Fitted(NamedTuple):
    """Step times, how good they are, and where they hold."""

    step_time: TwoRegimeStepTime
    error: FitError
    range: MeasuredRange


@dataclass(frozen=True)
class Source:
    """Measurements of one model on one GPU; `fit` is given the tokens that the KV cache holds, shared ones twice."""

    model: str
    gpu: str
    quantisation: str
    kv_cache_dtype: KVCacheType
    vllm_version: str
    credit: str
    licence: str
    config: ModelConfig
    fit: Callable[[int], Fitted]
    notes: tuple[str, ...] = ()
    link: Link | None = None


def portable(path: Path) -> str:
    """As it was typed; of an absolute path the last two parts."""
    return "/".join(path.parts[-2:]) if path.is_absolute() else path.as_posix()
