"""What a `vllm serve` command says, as settings of a scenario, with an answer for each of its flags."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

from simbatch.sim.commands.found import Command
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.engine import EngineSettings
from simbatch.sim.scenario.flags import Given, entries, number, parse, whole_number
from simbatch.sim.scheduler.config import NEWEST, parse_version, short

VOCAB_TOLERANCE = 0.02  # tokens that somebody added; more is another model
FITS = "the longest that fits the KV cache"
_IMAGE_VERSION = re.compile(r":v?(\d+\.\d+)(?:\.\d+)?")
_QUIET = re.compile(r"(VLLM_)?(HF_|HUGGING|NCCL_|CUDA_|NVIDIA_|TRANSFORMERS_|LOG|.*LOGGING|.*API_KEY|.*CACHE|.*TOKEN)")
# The last versions that --quantization of these keeps from the Marlin kernels which the checkpoint alone would get.
_FAST_ALONE = {"awq": (0, 22), "gptq": (0, 20)}
_FULL = ("full_and_piecewise",)  # the mode of CUDA graphs that is vLLM's own
_POOLING = ("runner", "convert", "task", "pooler_config", "override_pooler_config")


class ModelFacts(NamedTuple):
    """What is known of a model's config: models of equal `layers` and about one vocabulary take as long for a step."""

    layers: Hashable
    vocab_size: int
    weights: str  # as its checkpoint stores them, in the words of profiles; nothing: as they were published
    kv_cache_dtype: str  # that its checkpoint asks for, or auto
    max_model_len: int
    words: str  # of its size, for messages

    def is_alike(self, other: ModelFacts) -> bool:
        """Whether steps of both last alike, in the same weights."""
        return self.layers == other.layers and abs(self.vocab_size / other.vocab_size - 1) <= VOCAB_TOLERANCE


@dataclass
class Served:
    """A server as its command describes it; `engine` has the keys of a scenario."""

    model: str
    given: list[Given]
    engine: dict[str, Any] = field(default_factory=dict)
    quantization: str = ""
    version: tuple[int, ...] | None = None  # of its image, where that says one
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    tensor_parallel_size: int = 1
    replicas: int = 1
    kv_cache_bytes: int | None = None
    longest_that_fits: bool = False
    facts: ModelFacts | None = None  # None: nobody knows its config


def read_server(command: Command) -> Served:
    """Every flag of the command with what it is here; UserError where vLLM would not start, or serves no text."""
    given, alone = parse(command.words)
    served = Served(_model(given, alone), [], replicas=command.replicas)
    _refuse_pooling(given)
    served.given += _surroundings(command, served)
    for one in given:
        served.given += _applied(served, one) if one.status == "used" else [one]
    return served


def _model(given: list[Given], alone: list[str]) -> str:
    named = [one.text for one in given if one.row is not None and one.row.flag == "model"]
    if len(alone) + len(named[-1:]) > 1:
        rule = "stands alone: vLLM takes one model and no more words without a flag"
        raise UserError(
            Problem("LINE", rule, alone[0 if named else 1], "put it behind its flag, or quote what has blanks")
        )
    if not alone and not named:
        raise UserError(Problem("LINE", "names no model", mend="write vllm serve MODEL ..."))
    model = (alone or named)[-1]
    if model.startswith("$"):
        raise UserError(Problem("LINE", "the model is a variable that is set nowhere here", model, "write its value"))
    return model


def _refuse_pooling(given: list[Given]) -> None:
    for one in given:
        if one.row is not None and one.row.flag in _POOLING and one.status == "not_simulated":
            raise UserError(Problem(one.flag, one.reason, one.text, "nothing here would say how such a server fares"))


def _surroundings(command: Command, served: Served) -> list[Given]:
    """The image's version of vLLM, replicas of a manifest, and environment variables, answered as flags are."""
    found: list[Given] = []
    if (match := _IMAGE_VERSION.search(command.image)) is not None:
        found.append(_of_image(command.image, match[1], served))
    if command.replicas > 1:
        found.append(Given("replicas", str(command.replicas), None, "used", "cluster.replicas"))
    for name, value in command.environment.items():
        quiet = Given(name, value, None, "no_effect", reason="of the process, not of its scheduler")
        if name == "VLLM_USE_V1":
            is_old, why = value == "0", "the engine of before vLLM 0.11 (V0) is not simulated"
            quiet = quiet.answered("not_simulated", why) if is_old else quiet
        elif name.startswith("VLLM_") and not _QUIET.match(name):
            quiet = quiet.answered("not_simulated", "kernels and processes are those of the profile")
        found.append(quiet)
    return found


def _of_image(image: str, version: str, served: Served) -> Given:
    one = Given("image", image, None)
    served.version = tuple(map(int, version.split(".")))
    try:
        parse_version(version)
    except UserError:
        return one.answered("not_simulated", f"vLLM {version} is older than 0.12: the rules of {NEWEST} hold")
    served.engine["vllm_version"] = version
    return one.answered("used", "whose rules and defaults hold", "engine.vllm_version")


def _applied(served: Served, one: Given) -> list[Given]:
    """The flag's effect on `served`; several answers for one that holds several settings."""
    assert one.row is not None
    special = _SPECIAL.get(one.row.flag)
    if special is not None:
        return special(served, one)
    name = one.key.removeprefix("engine.")
    served.engine[name] = _value(name, one)
    return [one]


def _value(name: str, one: Given) -> Any:
    """As the key of `engine` takes it."""
    if isinstance(one.value, bool):
        return one.value
    annotation = str(EngineSettings.model_fields[name].annotation)
    if isinstance(one.value, list):
        return [whole_number(Given(one.flag, text, None)) for text in one.value]
    if choices := [part for part in get_args(EngineSettings.model_fields[name].annotation) if isinstance(part, str)]:
        if one.text not in choices:
            raise UserError(Problem(one.flag, f"must be {' or '.join(choices)}", one.text, "take one of them"))
        return one.text
    return number(one) if "float" in annotation else whole_number(one)


def _as_it_is(_: Served, one: Given) -> list[Given]:
    return [one]


def _to_profile(name: str) -> Callable[[Served, Given], list[Given]]:
    """For a flag that chooses the profile."""

    def apply(served: Served, one: Given) -> list[Given]:
        setattr(served, name, whole_number(one) if name == "tensor_parallel_size" else one.text)
        return [one.answered("used", one.reason, "profile")]

    return apply


def _quantization(served: Served, one: Given) -> list[Given]:
    served.quantization = one.text
    last = _FAST_ALONE.get(one.text.lower())
    if last is None or served.version is None or served.version > last:
        return [one.answered("used", one.reason, "profile")]
    slow = f"vLLM {short(served.version)} takes kernels several times slower for it than those of the profile"
    return [one.answered("not_simulated", f"{slow}; leave it out: the checkpoint says how it is quantised")]


def _max_model_len(served: Served, one: Given) -> list[Given]:
    served.longest_that_fits = one.text.lower() in ("auto", "-1")
    if served.longest_that_fits:
        return [one.answered("used", FITS, one.key)]
    served.engine["max_model_len"] = whole_number(one)
    return [one]


def _scheduled_tokens(served: Served, one: Given) -> list[Given]:
    served.engine["max_num_batched_tokens"] = whole_number(one)
    return [one]


def _kv_cache_memory(served: Served, one: Given) -> list[Given]:
    served.kv_cache_bytes = whole_number(one)
    return [one]


def _data_parallel(served: Served, one: Given) -> list[Given]:
    count = whole_number(one)
    served.replicas *= count
    return [one] if count > 1 else [one.answered("no_effect", "is what vLLM does by itself")]


def _level(served: Served, one: Given) -> list[Given]:
    if one.text != "0":
        return [one.answered("no_effect", "compiled kernels are those of the profile")]
    served.engine["enforce_eager"] = True
    return [one]


def _compilation(served: Served, one: Given) -> list[Given]:
    """`--compilation-config` by its settings; an old vLLM's was a level alone."""
    if one.text.isdigit():
        return _level(served, one)
    found: list[Given] = []
    for name, value in entries(one):
        part = Given(f"{one.flag}.{name}", str(value), one.row)
        key = "cudagraph_capture_sizes" if name == "cuda_graph_sizes" else name
        if key in ("cudagraph_capture_sizes", "max_cudagraph_capture_size"):
            served.engine[key] = value
            found.append(part.answered("used", "", f"engine.{key}"))
        elif name == "cudagraph_mode" and str(value).lower() in ("none", "0"):
            served.engine["enforce_eager"] = True
            found.append(part.answered("used", "no CUDA graphs", "engine.enforce_eager"))
        elif name == "cudagraph_mode" and str(value).lower() not in _FULL:
            found.append(part.answered("not_simulated", "graphs are launched as vLLM does by itself"))
        else:
            found.append(part.answered("no_effect", "compiled kernels are those of the profile"))
    return found


def _old_graph_sizes(served: Served, one: Given) -> list[Given]:
    """One number was the largest size, several were all of them."""
    sizes = _value("cudagraph_capture_sizes", one)
    key = "max_cudagraph_capture_size" if len(sizes) == 1 else "cudagraph_capture_sizes"
    served.engine[key] = sizes[0] if len(sizes) == 1 else sizes
    return [one.answered("used", one.reason, f"engine.{key}")]


_SPECIAL: dict[str, Callable[[Served, Given], list[Given]]] = {
    "model": _as_it_is,
    "config": _as_it_is,
    "dtype": _to_profile("dtype"),
    "quantization": _quantization,
    "kv_cache_dtype": _to_profile("kv_cache_dtype"),
    "tensor_parallel_size": _to_profile("tensor_parallel_size"),
    "max_model_len": _max_model_len,
    "max_num_scheduled_tokens": _scheduled_tokens,
    "kv_cache_memory_bytes": _kv_cache_memory,
    "data_parallel_size": _data_parallel,
    "optimization_level": _level,
    "compilation_config": _compilation,
    "cuda_graph_sizes": _old_graph_sizes,
}
