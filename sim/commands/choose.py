"""The profile for a server: by model, GPU, weights, KV type and number of GPUs, else the command that makes one."""

from __future__ import annotations

import json
import re
import shlex
from functools import cache
from typing import Any, NamedTuple

from simbatch.sim.commands.settings import Served
from simbatch.sim.cost.gpus import Gpu, known_gpu
from simbatch.sim.cost.load import shipped_names, shipped_text
from simbatch.sim.errors import Problem, UserError

_FORMS = (  # of weights: what --quantization or a checkpoint's name says, and what profiles call it
    (r"nvfp4|modelopt_fp4|fp4", "nvfp4"),
    (r"mxfp4|gpt-oss", "mxfp4"),
    (r"awq", "awq"),
    (r"gptq|w4a16|int4", "gptq"),
    (r"fp8|modelopt", "fp8"),
    (r"w8a8|int8", "int8"),
    (r"bitsandbytes|bnb", "bnb"),
    (r"gguf", "gguf"),
)
_AS_FAST = {"gptq": ("awq",), "awq": ("gptq",)}  # four bits in groups, through the same Marlin kernels
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
    """What profiles call the form of its weights."""
    for text in (served.quantization.lower(), served.model.rsplit("/", 1)[-1].lower()):
        for pattern, form in _FORMS:
            if re.search(pattern, text):
                return form
    return "bf16"


def longest_of(model: str) -> int | None:
    """The most tokens that a model of this name takes, where its name says so."""
    name = model.lower().replace("_", "-")
    return next((length for pattern, length in CONTEXTS if re.search(pattern, name)), None)


def choose(served: Served, gpu: Gpu) -> str:
    """The name of the profile that ships for it; one that was measured in a server before others."""
    shape, weights = shape_of(served.model), weights_of(served)
    kv = "fp8" if served.kv_cache_dtype.startswith("fp8") else "auto"
    alike = [head for head in heads() if shape_of(head.model) == shape]
    for form in (weights, *_AS_FAST.get(weights, ())):
        wanted = (gpu.short, form, kv, served.tensor_parallel_size)
        fitting = [head.name for head in alike if head[2:] == wanted]
        if fitting:
            return max(fitting, key=lambda name: (name.endswith("-measured"), -len(name)))
    raise _none(served, gpu, weights, alike)


def _none(served: Served, gpu: Gpu, weights: str, alike: list[ShippedProfile]) -> UserError:
    """That no profile fits, and the one command that makes one."""
    what = f"no profile that ships is of {weights} weights on {served.tensor_parallel_size} x {gpu.short}"
    if served.kv_cache_dtype != "auto":
        what += f" with a KV cache in {served.kv_cache_dtype}"
    there = [head.name for head in alike if head.gpu == gpu.short] or [head.name for head in alike]
    near = f"of this model there are {', '.join(there[:3])}; " if there else ""
    mend = f"{near}one is made by: {estimate_command(served, gpu, weights)}; then give --profile mine.json"
    return UserError(Problem("profile", what, served.model, mend))


def estimate_command(served: Served, gpu: Gpu, weights: str) -> str:
    """The command that estimates a profile for it without a GPU."""
    words = ["simbatch", "estimate", served.model, "--gpu", gpu.short]
    if weights != "bf16":
        words += ["--quantization", weights]
    if served.kv_cache_dtype.startswith("fp8"):
        words += ["--kv-cache-dtype", "fp8"]
    if served.tensor_parallel_size > 1:
        words += ["--tensor-parallel-size", str(served.tensor_parallel_size)]
    return shlex.join([*words, "-o", "mine.json"])
