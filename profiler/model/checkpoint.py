"""What a checkpoint says of its own quantisation, layer by layer, and of its KV cache's type."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from simbatch.profiler.model.quantisation import ALIASES, AUTO_ROUND, GROUP, WHOLE_COLUMN
from simbatch.sim.errors import Problem, UserError


@dataclass(frozen=True)
class Stored:
    """How one matrix is stored."""

    name: str
    group_size: int = GROUP


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of its weights and KV cache: `default` for linear layers, exceptions by their names.

    `names` are modules as the checkpoint calls them (`model.layers.0.self_attn.q_proj`), their beginnings, parts of
    their names (`self_attn`), patterns with `*`, or regular expressions after `re:`.
    """

    default: Stored | None = None
    ignored: tuple[str, ...] = ()
    named: tuple[tuple[str, Stored], ...] = ()
    kv_cache_dtype: str | None = None

    def of(self, modules: Sequence[str]) -> Stored | None:
        """How the matrix with these parts is stored (`layers.0.self_attn.q_proj`, ...); None: as published."""
        if self.ignored and any(self._exceptions.match(name) is not None for name in modules):
            return None
        if self.named:
            found = next((hit for name in modules if (hit := self._own.match(name)) is not None), None)
            return self.named[found][1] if found is not None else self.default
        return self.default

    @property
    def main(self) -> str | None:
        """The type of most quantised layers, in the words above; None without one."""
        if self.default is not None:
            return self.default.name
        names = [stored.name for _, stored in self.named]
        return max(names, key=names.count) if names else None

    @cached_property
    def _exceptions(self) -> Names:
        return Names(self.ignored)

    @cached_property
    def _own(self) -> Names:
        return Names([name for name, _ in self.named])


class Names:
    """Names of modules and patterns of them, looked up by the module's own name."""

    def __init__(self, names: Sequence[str]) -> None:
        self._exact: dict[str, int] = {}
        self._patterns: list[tuple[re.Pattern[str], int]] = []
        for index, name in enumerate(names):
            plain = name.rstrip(".")
            if plain.startswith("re:"):
                self._patterns.append((re.compile(plain[3:]), index))
            elif "*" not in plain:
                self._exact[bare(plain)] = index
        self._wild = [(bare(name), index) for index, name in enumerate(names) if "*" in name and name[:3] != "re:"]

    def match(self, module: str) -> int | None:
        """The first name that means `module` (without the model's prefix); None when there is none."""
        parts = module.split(".")
        for end in range(len(parts), 0, -1):
            if (found := self._exact.get(".".join(parts[:end]))) is not None:
                return found
        for part in parts:
            if part not in ("mlp", "layers") and (found := self._exact.get(part)) is not None:
                return found
        for wild, index in self._wild:
            if fnmatchcase(module, wild) or fnmatchcase(module, f"{wild}.*"):
                return index
        full = [f"{prefix}{module}" for prefix in ("", "model.", "model.language_model.")]
        return next((i for pattern, i in self._patterns if any(pattern.match(name) for name in full)), None)


def bare(name: str) -> str:
    """A module's name without what stands before the language model's own."""
    return re.sub(r"^(model\.|language_model\.|backbone\.)+", "", name)


def checkpoint_of(content: Mapping[str, Any] | None, place: str) -> Checkpoint:
    """What a `quantization_config` (or ModelOpt's `quantization`) means; UserError for a method that is not known."""
    if content is None:
        return Checkpoint()
    if not isinstance(content, Mapping):
        raise UserError(Problem(place, "must be an object with keys", content))
    ignored: list[str] = []
    for key in ("ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules"):
        ignored += [str(name) for name in content.get(key) or ()]
    ignored += _kept_by_auto_round(content.get("extra_config"))
    named, algorithm = _named(content, place), str(content.get("quant_algo") or "").lower()
    mixed = algorithm == "mixed_precision"
    default = None if mixed or _only_named(content) else _default(content, place)
    return Checkpoint(default, tuple(ignored), tuple(named), _kv_cache_dtype(content))


def _kept_by_auto_round(extra: object) -> list[str]:
    """Layers that AutoRound leaves in 16 bits."""
    layers = extra.items() if isinstance(extra, Mapping) else ()
    return [str(name) for name, own in layers if isinstance(own, Mapping) and own.get("bits", 4) >= 16]


def _default(content: Mapping[str, Any], place: str) -> Stored:
    method, bits = content.get("quant_method"), content.get("bits")
    algorithm = content.get("quant_algo")
    if algorithm is not None:
        return _of_modelopt(str(algorithm), content, place)
    if method in ("awq", "gptq", *AUTO_ROUND) and bits in (4, 8, None):
        name = "gptq8" if bits == 8 else "awq" if method == "awq" else "gptq"
        return Stored(name, _group_size(content.get("group_size"), place))
    if method == "fp8":
        return Stored("fp8_block" if content.get("weight_block_size") else "fp8")
    if method == "bitsandbytes":
        return Stored("int8" if content.get("load_in_8bit") else "bitsandbytes")
    if method == "compressed-tensors" and (found := _compressed(_groups(content), content, place)) is not None:
        return found
    if str(method) in ALIASES or method == "mxfp4":
        return Stored(ALIASES.get(str(method), str(method)))
    rule = (
        "only awq and gptq in 4 and 8 bits, fp8, fbgemm_fp8, bitsandbytes, mxfp4, modelopt, and compressed-tensors in "
        "int4, int8, fp8 and nvfp4 are known"
    )
    raise UserError(Problem(place, rule, {"quant_method": method, "bits": bits}, "plan with --quantization NAME"))


def _of_modelopt(algorithm: str, content: Mapping[str, Any], place: str) -> Stored:
    name = algorithm.lower()
    if "nvfp4" in name or name == "w4a16_nvfp4":
        return Stored("nvfp4")
    if "mxfp4" in name:
        return Stored("mxfp4")
    if name.startswith("mxfp8"):
        return Stored("mxfp8")
    if name.startswith("fp8"):
        return Stored("fp8_block" if "block" in name else "fp8")
    if name.startswith("w4a16") or name == "int4_awq":
        return Stored("int4", _group_size(content.get("group_size"), place))
    raise UserError(Problem(f"{place} quant_algo", "must be FP8, NVFP4, MXFP4, MXFP8 or W4A16", algorithm))


def _named(content: Mapping[str, Any], place: str) -> list[tuple[str, Stored]]:
    """Layers with a type of their own: ModelOpt's `quantized_layers`, and groups with targets but "Linear"."""
    layers = content.get("quantized_layers")
    if isinstance(layers, Mapping):
        return [(name, _of_modelopt(str(one.get("quant_algo")), one, place)) for name, one in layers.items()]
    found = []
    for group in _groups(content):
        stored = _compressed([group], content, place)
        targets = [str(target) for target in group.get("targets") or ()]
        if stored is not None and "Linear" not in targets:
            found += [(target, stored) for target in targets]
    return found


def _only_named(content: Mapping[str, Any]) -> bool:
    groups = _groups(content)
    return bool(groups) and all(group.get("targets") and "Linear" not in group["targets"] for group in groups)


def _groups(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = content.get("config_groups")
    return [one for one in groups.values() if isinstance(one, Mapping)] if isinstance(groups, Mapping) else []


def _compressed(groups: Sequence[Mapping[str, Any]], content: Mapping[str, Any], place: str) -> Stored | None:
    """What compressed-tensors says of the weights of a group of layers."""
    weights = groups[0].get("weights") if groups else None
    if not isinstance(weights, Mapping):
        return None
    kind, strategy = (weights.get("type"), weights.get("num_bits")), weights.get("strategy")
    size = weights.get("group_size", content.get("group_size"))
    if kind == ("float", 8):
        return Stored("fp8_block" if strategy == "block" else "mxfp8" if strategy == "group" else "fp8")
    if kind == ("float", 4):
        return Stored("mxfp4" if size == 32 else "nvfp4")
    if kind == ("int", 4):
        return Stored("int4" if weights.get("symmetric", True) else "int4_zeros", _group_size(size, place))
    if kind == ("int", 8):
        return Stored("int8_group" if strategy == "group" else "int8", _group_size(size, place))
    return None


def _group_size(size: object, place: str) -> int:
    """Inputs that share a scale; -1 is a whole column."""
    if size is None:
        return GROUP
    if isinstance(size, bool) or not isinstance(size, int) or size == 0 or size < -1:
        raise UserError(Problem(f"{place} group_size", "must be a whole number above 0, or -1", size))
    return size if size > 0 else WHOLE_COLUMN


def _kv_cache_dtype(content: Mapping[str, Any]) -> str | None:
    """The type that vLLM takes for the KV cache where the flag says auto (attention.py, torch_utils.py, vLLM 0.32)."""
    algorithm, scheme = content.get("kv_cache_quant_algo"), content.get("kv_cache_scheme")
    if isinstance(algorithm, str) and algorithm.lower() in ("fp8", "nvfp4"):
        return algorithm.lower()
    if isinstance(scheme, Mapping) and scheme.get("type", "float") == "float":
        return "nvfp4" if scheme.get("num_bits") == 4 else "fp8"
    return None
