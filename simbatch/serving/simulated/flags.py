"""Flags of `vllm serve`: settings of the scenario are resolved by its rules, the others are handed on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.engine import OURS, EngineSettings
from simbatch.sim.scenario.flags import flag_words
from simbatch.sim.scenario.resolved import Resolved

SETTINGS = {name: field for name, field in EngineSettings.model_fields.items() if name not in {*OURS, "vllm_version"}}
SWITCHES = {name for name, field in SETTINGS.items() if "bool" in str(field.annotation)}
LISTS = {"cudagraph_capture_sizes"}
# vLLM's device is not the profile's: it neither captures graphs nor measures memory
NOT_TOLD = {
    *OURS, "cudagraph_capture_sizes", "max_cudagraph_capture_size", "enforce_eager", "gpu_memory_utilization",
    "kv_cache_dtype", "num_gpu_blocks_override",
}  # fmt: skip
IN_THE_PROFILE = {"tensor_parallel_size": "tensor_parallel_size", "quantization": "quantisation"}
ALIASES = {
    "tp": "tensor_parallel_size",
    "q": "quantization",
    "pp": "pipeline_parallel_size",
    "dp": "data_parallel_size",
}
REFUSED = {
    "config": "write its settings as flags, so that the profile's rules see them",
    "model": "the profile says it: simbatch serve PROFILE",
    "port": "write it before the --",
    "uds": "it is served on a port: --port before the --",
    "load_format": "there are no weights to load",
    "worker_cls": "the worker is the simulated one",
    "distributed_executor_backend": "there is one worker, in the engine's process",
    **dict.fromkeys(
        ("pipeline_parallel_size", "data_parallel_size", "speculative_config", "enable_lora", "kv_transfer_config"),
        "leave it out: a profile does not say how long its steps would take",
    ),
}
MAGNITUDES = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


class Flags(NamedTuple):
    """Settings of the scenario's engine, the words that are vLLM's alone, and the values of those by name."""

    engine: dict[str, Any]
    others: list[str]
    named: dict[str, str]


def read_flags(words: Sequence[str]) -> Flags:
    """Sort the flags; UserError for what a simulated server cannot do."""
    engine, others, named = dict[str, Any](), list[str](), dict[str, str]()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, values = _name_of(word), word.partition("=")[2:] if "=" in word else None
        if name is None:
            others.append(word)
        elif (setting := name.removeprefix("no_")) in SWITCHES:
            engine[setting] = setting == name
        else:
            given = list(values or _values(rest, name))
            if name in SETTINGS:
                engine[name] = [_number(value) for value in given] if name in LISTS else _number(given[0])
            else:
                others += [word, *([] if values else given)]
                named[name] = given[0] if given else ""
    _refuse(named)
    return Flags(engine, others, named)


def in_the_profile(flags: Flags, profile: Any) -> list[str]:
    """The words for vLLM, less what the profile says already; UserError where it says otherwise."""
    others = list(flags.others)
    for name, key in IN_THE_PROFILE.items():
        if name not in flags.named:
            continue
        measured = str(getattr(profile, key, 1 if name == "tensor_parallel_size" else None))
        if flags.named[name] != measured:
            mend = "leave it out, or take a profile that was measured so: simbatch profiles list"
            rule = f"the profile {profile.name} was measured with {measured}"
            raise UserError(Problem(f"--{_dashed(name)}", rule, flags.named[name], mend))
        at = next(i for i, word in enumerate(others) if _name_of(word) == name)
        del others[at : at + (1 if "=" in others[at] else 2)]
    return others


def engine_flags(resolved: Resolved) -> Iterator[str]:
    """The resolved settings as vLLM's flags: limits always, switches where they are not at vLLM's default."""
    settings = resolved.engine_settings()
    told = {
        name: settings[name]
        for name, field in SETTINGS.items()
        if name not in NOT_TOLD and settings.get(name) not in (None, field.default)
    }
    return flag_words(told | {"num_gpu_blocks_override": resolved.engine.num_gpu_blocks})


def flag_of(key: str) -> str:
    """The flag that a setting of the scenario came from."""
    return f"--{_dashed(key.removeprefix('engine.'))}"


def _name_of(word: str) -> str | None:
    if not re.match(r"--?[A-Za-z]", word):
        return None
    name = word.partition("=")[0].lstrip("-").replace("-", "_").partition(".")[0]
    return ALIASES.get(name, name)


def _values(rest: list[str], name: str) -> Iterator[str]:
    """Take the values that follow a flag: one, or all up to the next flag."""
    while rest and _name_of(rest[0]) is None:
        yield rest.pop(0)
        if name in SETTINGS and name not in LISTS:
            return
    if name in SETTINGS and name not in LISTS:
        raise UserError(Problem(f"--{_dashed(name)}", "needs a value", mend="write it behind the flag"))


def _number(text: str) -> Any:
    """A value as YAML would say it, or vLLM's 16k and 8K."""
    from simbatch.sim.scenario.reading.syntax import parse_plain

    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([kmgKMG])", text):
        return int(float(found[1]) * MAGNITUDES[found[2]])
    return parse_plain(text)


def _refuse(named: dict[str, str]) -> None:
    problems = [
        Problem(f"--{_dashed(name)}", "does not go with a simulated server", mend=REFUSED[name])
        for name in named
        if name in REFUSED
    ]
    if problems:
        raise UserError(*problems)


def _dashed(name: str) -> str:
    return name.replace("_", "-")
