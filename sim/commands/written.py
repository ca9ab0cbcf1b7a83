"""The scenario that `simbatch init` writes, with the comments that a person would give it, and its traffic.

That is the traffic of a `vllm bench serve` command, a trace, a preset, else an example that says so.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simbatch.sim.commands.settings import Served
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.flags import Given, Status, number, parse_bench, whole_number
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


WIDTH, COLUMN = 118, 40  # of a line, and where the comments behind values stand


def scenario_text(profile: str, about: str, served: Served, offered: Offered, given: Sequence[Given]) -> str:
    """The YAML of a whole scenario."""
    lines = [
        *_comment(f"{served.model} as `vllm serve` runs it, written by `simbatch init`. Every flag is accounted for:"),
        *_comment("what is simulated stands at its key, the others at the end."),
        "",
        *_chosen_by(given),
        _line(f"profile: {_flow(profile)}", about),
        _line(f"model: {_flow(served.model)}", "as `vllm serve` lines name it"),
        *_engine(served, given),
        *_cluster(served, given),
        "",
        *_workload(offered, given),
        *_slo(offered),
        f"seed: {offered.seed}",
        *_rest(given),
    ]
    return "\n".join(lines) + "\n"


def _chosen_by(given: Sequence[Given]) -> Iterator[str]:
    if said := _from_flags("profile", given):
        yield from _comment(f"Chosen by {said}.")


def _engine(served: Served, given: Sequence[Given]) -> Iterator[str]:
    if not served.engine:
        yield ""
        yield "# engine: the command sets none of its keys, so vLLM's defaults hold; `simbatch run` prints them"
        return
    yield ""
    yield "engine:"
    for key, value in served.engine.items():
        yield _line(f"  {key}: {_flow(value)}", _from_flags(f"engine.{key}", given) or "the model's own limit")


def _cluster(served: Served, given: Sequence[Given]) -> Iterator[str]:
    if served.replicas > 1:
        yield ""
        said = _from_flags("cluster.replicas", given)
        yield _line(f"cluster: {{replicas: {served.replicas}, router: {{name: least_requests}}}}", said)


def _from_flags(key: str, given: Iterable[Given]) -> str:
    """The flags that set a key, as they were written."""
    found = [one for one in given if one.status == "used" and one.key == key]
    return ", ".join(f"{one.flag} {one.text}".strip() for one in found)


def _workload(offered: Offered, given: Sequence[Given]) -> Iterator[str]:
    keys = ("workload", "workload.arrival", "slo", "seed")
    if said := ", ".join(filter(None, (_from_flags(key, given) for key in keys))):
        yield from _comment(f"As vllm bench serve sends it: {said}.")
    for word in offered.words:
        yield from _comment(word)
    yield "workload:"
    for key, value in offered.workload.items():
        if value is not None:
            yield f"  {key}: {_flow(value)}"


def _slo(offered: Offered) -> Iterator[str]:
    if offered.slo:
        yield ""
        yield _line(f"slo: {_flow(dict(offered.slo))}", "what a request must keep to, ms")


def _rest(given: Sequence[Given]) -> Iterator[str]:
    """What has no key: flags without effect on one line, what is not simulated with its reason."""
    quiet = [one.flag for one in given if one.status == "no_effect"]
    if quiet:
        yield ""
        yield from _comment(f"No effect on scheduling: {', '.join(dict.fromkeys(quiet))}.")
    reasons = by_reason(given, "not_simulated")
    if reasons:
        yield ""
        yield "# Not simulated:"
        for reason, flags in reasons.items():
            yield from _comment(f"- {flags}: {reason}", "  ")


def by_reason(given: Iterable[Given], status: Status) -> dict[str, str]:
    """Flags with this status, those with one reason together."""
    found: dict[str, list[str]] = {}
    for one in given:
        if one.status == status:
            found.setdefault(one.reason, []).append(f"{one.flag} {one.text}".strip())
    return {reason: ", ".join(flags) for reason, flags in found.items()}


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"# {indent}", subsequent_indent=f"# {indent}{indent}", break_on_hyphens=False
    )


def _line(text: str, comment: str) -> str:
    return f"{text:<{COLUMN}} # {comment}" if comment else text


def _flow(value: Any) -> str:
    """A value as YAML on one line; whole numbers without a point."""
    import yaml

    plain = _plain(value)
    text: str = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain(child) for child in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
