"""The traffic of a scenario: of a `vllm bench serve` command, a trace, a preset, else an example that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.flags import Given, number, parse_bench, whole_number
from simbatch.sim.scenario.presets import SLO_KEYS, preset_of

EXAMPLE_RATE = 1.0  # requests a second, where nobody says how many come
_DEFAULTS = {"num-prompts": 1000.0, "random-input-len": 1024.0, "random-output-len": 128.0}  # of vllm bench serve
_LENGTHS = {
    "random": ("random-input-len", "random-output-len"),
    "prefix_repetition": ("prefix-repetition-suffix-len", "prefix-repetition-output-len"),
}
_PREFIX_DEFAULTS = {
    "prefix-repetition-prefix-len": 256.0,
    "prefix-repetition-suffix-len": 256.0,
    "prefix-repetition-num-prefixes": 10.0,
    "prefix-repetition-output-len": 128.0,
}
_TRACES = ("timed_trace", "trace")
_RAMP = ("ramp-up-strategy", "ramp-up-start-rps", "ramp-up-end-rps")


@dataclass
class Offered:
    """The `workload`, `slo` and `seed` of a scenario, what is to be said about them, and the answers to flags."""

    workload: dict[str, Any]
    words: list[str]
    slo: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    given: list[Given] = field(default_factory=list)
    is_example: bool = False


def of_preset(name: str, rate: float | None, room: int | None, *, is_example: bool = False) -> Offered:
    """A preset's traffic, at `rate` or at one request a second."""
    preset = preset_of(name)
    workload = preset.workload(EXAMPLE_RATE if rate is None else rate, room)
    words = [f"Lengths as of {preset.words}: {preset.source}."]
    if preset.assumed:
        words.append(f"Assumed: {preset.assumed}.")
    if is_example:
        words.insert(0, "AN EXAMPLE, since no traffic was given: put yours here (--trace FILE, --preset, --rate).")
    if rate is None:
        words.append(f"How many come was not said: {EXAMPLE_RATE:g} a second stands for it (--rate).")
    return Offered(workload, words, dict(preset.slo), is_example=is_example)


def of_trace(path: str, reading: Mapping[str, Any], rate: float | None, folder: Path) -> Offered:
    """The requests of a file, at its own rate or at `rate`; `reading` has other keys of `workload.trace`."""
    trace: dict[str, Any] = {"path": _relative(path, folder), **reading}
    if rate is not None:
        trace["rate_scale"] = float(f"{rate / _rate_of({**trace, 'path': str(Path(path).absolute())}):.6g}")
    words = [] if rate is None else [f"rate_scale makes {rate:g} requests a second of what the file has."]
    return Offered({"trace": trace}, words)


def _relative(path: str, folder: Path) -> str:
    """From the scenario's folder on, where the file lies below it."""
    whole = Path(path).expanduser().absolute()
    return str(whole.relative_to(folder.absolute())) if whole.is_relative_to(folder.absolute()) else str(whole)


def _rate_of(trace: dict[str, Any]) -> float:
    from simbatch.sim.scenario.model import Scenario
    from simbatch.sim.workload import open_workload
    from simbatch.sim.workload.turns import rate_of

    inline = {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}}
    scenario = Scenario.from_dict({"profile": inline, "workload": {"trace": trace}})
    rate = rate_of(open_workload(scenario.workload, seed=0, folder=Path()))
    if rate is None:
        raise UserError(Problem("--rate", "the trace's requests come all at once: it has no rate", trace["path"]))
    return rate


def of_bench(words: list[str], rate: float | None, room: int | None) -> Offered:
    """What `vllm bench serve` would send."""
    given, _ = parse_bench(words)
    said = {one.flag.removeprefix("--"): one for one in given}
    values = {name: one.text for name, one in said.items()}
    dataset = values.get("dataset-name", "random")
    if dataset in _TRACES and "dataset-path" in values:
        offered = Offered({"trace": {"path": values["dataset-path"], "format": "timed_trace"}}, [])
    elif dataset in _LENGTHS:
        offered = Offered(_synthetic(said, dataset), [])
    else:
        offered = of_preset("chat", 1.0, room)
        offered.words = [f"The command takes its lengths from {dataset}; those of people who chat stand for them."]
        offered.workload["num_prompts"] = int(_figure(said, "num-prompts"))
    if "trace" not in offered.workload:
        offered.workload |= _arrivals(said, rate)
    offered.slo = _goodput(said)
    offered.seed = int(_figure(said, "seed")) if "seed" in said else 0
    offered.given = given
    return offered


def _figure(said: Mapping[str, Given], name: str) -> float:
    if name in said:
        return number(said[name]) if "ratio" in name or "rps" in name else whole_number(said[name])
    return _DEFAULTS.get(name, _PREFIX_DEFAULTS.get(name, 0.0))


def _synthetic(said: Mapping[str, Given], dataset: str) -> dict[str, Any]:
    """`random` draws each length from its mean +- the range ratio; `prefix_repetition` has fixed ones."""
    ratio = _figure(said, "random-range-ratio") if dataset == "random" else 0.0
    data: dict[str, Any] = {"num_prompts": int(_figure(said, "num-prompts"))}
    for key, name, short in zip(
        ("prompt_len", "output_len"), _LENGTHS[dataset], ("input-len", "output-len"), strict=True
    ):
        mean = _figure(said, short if short in said and name not in said else name)
        low, high = max(1, math.floor(mean * (1 - ratio))), math.ceil(mean * (1 + ratio))
        data[key] = {"distribution": "uniform", "min": low, "max": high} if low < high else _fixed(mean)
    prefix = _figure(said, f"{'random' if dataset == 'random' else 'prefix-repetition'}-prefix-len")
    if prefix:
        count = 1 if dataset == "random" else int(_figure(said, "prefix-repetition-num-prefixes"))
        data["prefix"] = {"prefix_len": int(prefix), "num_prefixes": count}
    return data


def _fixed(mean: float) -> dict[str, Any]:
    return {"distribution": "fixed", "mean": int(mean)}


def _arrivals(said: Mapping[str, Given], rate: float | None) -> dict[str, Any]:
    """Rate, burstiness and concurrency, or a ramp."""
    data: dict[str, Any] = (
        {"max_concurrency": int(_figure(said, "max-concurrency"))} if "max-concurrency" in said else {}
    )
    if _RAMP[0] in said:
        ramp = {"ramp_up_strategy": said[_RAMP[0]].text}
        ends = {name.replace("-", "_"): _figure(said, name) for name in _RAMP[1:]}
        return data | {"request_rate": None, "arrival": {"process": "ramp", **ramp, **ends}}
    asked = rate if rate is not None else number(said["request-rate"]) if "request-rate" in said else math.inf
    data["request_rate"] = "inf" if math.isinf(asked) else asked
    if "burstiness" in said and not math.isinf(asked):
        data["burstiness"] = number(said["burstiness"])
    return data


def _goodput(said: Mapping[str, Given]) -> dict[str, float]:
    """`--goodput ttft:1000 tpot:50`."""
    pairs = (pair.partition(":") for pair in (said["goodput"].value if "goodput" in said else []) or [])  # type: ignore[union-attr]
    return {f"{name}_ms": float(value) for name, _, value in pairs if f"{name}_ms" in SLO_KEYS}
