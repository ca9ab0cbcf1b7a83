"""The profile for a server: by model, GPU, weights, KV type and number of GPUs, else the command that makes one."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from simbatch.sim.commands.settings import ModelFacts, Served
from simbatch.sim.cost.by_name import shipped_names, shipped_text
from simbatch.sim.cost.gpus import Gpu, known_gpu
from simbatch.sim.errors import Problem, UserError

_FORMS = (  # of weights: what --quantization or a checkpoint's name says, and what profiles call it
    (r"-(bf16|fp16)$", "bf16"),
    (r"nvfp4|modelopt_fp4|fp4", "nvfp4"),
    (r"mxfp4|gpt-oss", "mxfp4"),
    (r"awq", "awq"),
    (r"gptq|w4a16|int4", "gptq"),
    (r"fp8|modelopt", "fp8"),
    (r"w8a8|int8", "int8"),
    (r"bitsandbytes|bnb", "bnb"),
    (r"gguf", "gguf"),
)
_AS_FAST = {  # four bits in groups, through the same Marlin kernels
    "gptq": ("awq", "int4"),
    "awq": ("gptq", "int4"),
    "int4": ("awq", "gptq"),
}
_ENDINGS = re.compile(
    r"-(instruct|it|chat|base|hf|dynamic|awq|gptq|fp8|nvfp4|mxfp4|int4|int8|bnb|gguf|4bit|8bit|marlin|quantized|kv|tp\d"
    r"|v\d+(\.\d+)?|\d{4}|w\dav?\d+|bf16|fp16|hf)(?=[-.]|$)"
)
_SHAPES = (  # checkpoints that have the layers of another one, and with them its memory and its step times
    (r"llama-3(\.\d)?-8b|distill-llama-8b", "llama-3.1-8b"),
    (r"llama-3(\.\d)?-70b|distill-llama-70b|nemotron-70b", "llama-3.1-70b"),
    (r"llama-2-70b", "llama-2-70b"),
    (r"qwen3-32b", "qwen3-32b"),
)
Facts = Callable[[str], ModelFacts | None]  # what is known of a model: its folder, its config.json, or a name
CONTEXTS = ((r"llama-3-\d+b", 8192), (r"llama-3\.\d-\d+b", 131072), (r"qwen3-32b", 40960))  # tokens, by name


class ShippedProfile(NamedTuple):
    """What a profile is of."""

    name: str
    model: str
    gpu: str
    weights: str
    kv: str
    tensor_parallel_size: int


@cache
def heads() -> tuple[ShippedProfile, ...]:
    """What each of the profiles that ship is of."""
    return tuple(_head(name, json.loads(shipped_text(name))) for name in shipped_names())


def _head(name: str, data: dict[str, Any]) -> ShippedProfile:
    gpu = known_gpu(str(data["gpu"]))
    kv = "fp8" if str(data["kv_cache_dtype"]).startswith("fp8") else "auto"
    weights = str(data["quantisation"])
    short = gpu.short if gpu is not None else str(data["gpu"])
    return ShippedProfile(name, str(data["model"]), short, weights, kv, int(data.get("tensor_parallel_size", 1)))


def shape_of(model: str) -> str:
    """`NousResearch/Hermes-3-Llama-3.1-8B` as `llama-3.1-8b`: the layers that its name says it has."""
    name = model.rstrip("/").rsplit("/", 1)[-1].lower().replace("_", "-").removeprefix("meta-")
    for pattern, shape in _SHAPES:
        if re.search(rf"(^|-)({pattern})(?=-|$)", name):
            return shape
    while (shorter := _ENDINGS.sub("", name)) != name:
        name = shorter
    return name


def weights_of(served: Served) -> str:
    """What profiles call the form of its weights: by its checkpoint, else by the flag, else by its name."""
    if served.facts is not None and served.facts.weights:
        return served.facts.weights
    return form_said(served.quantization) or form_said(served.model) or "bf16"


def form_said(text: str) -> str | None:
    """The form of the weights that a flag's value or a checkpoint's name says."""
    name = text.rsplit("/", 1)[-1].lower()
    return next((form for pattern, form in _FORMS if re.search(pattern, name)), None)


def longest_of(served: Served) -> int | None:
    """The most tokens that the model takes, where its config or its name says so."""
    if served.facts is not None:
        return served.facts.max_model_len
    name = served.model.lower().replace("_", "-")
    return next((length for pattern, length in CONTEXTS if re.search(pattern, name)), None)


def choose(served: Served, gpu: Gpu, facts: Facts) -> str:
    """The name of the profile that ships for it; one that was measured in a server before others."""
    weights, kv = weights_of(served), _kv_of(served)
    alike = [head for head in heads() if _is_alike(served, head.model, facts)]
    for form in (weights, *_AS_FAST.get(weights, ())):
        wanted = (gpu.short, form, kv, served.tensor_parallel_size)
        fitting = [head.name for head in alike if head[2:] == wanted]
        if fitting:
            return max(fitting, key=lambda name: (name.endswith("-measured"), -len(name)))
    raise _none(served, gpu, weights, alike)


def _kv_of(served: Served) -> str:
    """`fp8` or `auto`: what the flag says, else what the checkpoint asks for, as vLLM has it."""
    own = served.facts.kv_cache_dtype if served.facts is not None else "auto"
    asked = own if served.kv_cache_dtype == "auto" else served.kv_cache_dtype
    return "fp8" if asked.startswith("fp8") else "auto"


def _is_alike(served: Served, model: str, facts: Facts) -> bool:
    """Whether a step of the server lasts as one of this model: by their configs, else by their names."""
    other = None if served.facts is None else facts(model)
    if served.facts is None or other is None:
        return shape_of(model) == shape_of(served.model)
    return served.facts.is_alike(other)


def _none(served: Served, gpu: Gpu, weights: str, alike: list[ShippedProfile]) -> UserError:
    """That no profile fits, what is missing, and the command that makes one."""
    size = f" ({served.facts.words})" if served.facts is not None and not alike else ""
    what = f"no profile that ships is of this model{size} in {weights} on {served.tensor_parallel_size} x {gpu.short}"
    if _kv_of(served) != "auto":
        what += " with a KV cache in fp8"
    there = [head.name for head in alike if head.gpu == gpu.short] or [head.name for head in alike]
    mend = f"of this model there are {', '.join(there[:3])}; " if there else ""
    if served.facts is None and not alike:
        mend += (
            "its config is not known here: save config.json from its page into a folder, and name that in the line; "
        )
    mend += f"one is made by: {estimate_command(served, gpu, weights)}; then give --profile mine.json"
    return UserError(Problem("profile", what, served.model, mend))


def estimate_command(served: Served, gpu: Gpu, weights: str) -> str:
    """The command that estimates a profile for it without a GPU."""
    is_known = served.facts is not None
    words = ["simbatch", "estimate", served.model if is_known else "FOLDER", "--gpu", gpu.short]
    if weights != "bf16" and not (served.facts is not None and served.facts.weights):
        words += ["--quantization", weights]
    if _kv_of(served) == "fp8":
        words += ["--kv-cache-dtype", "fp8"]
    if served.tensor_parallel_size > 1:
        words += ["--tensor-parallel-size", str(served.tensor_parallel_size)]
    return shlex.join([*words, "-o", "mine.json"])
