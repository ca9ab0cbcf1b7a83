"""`simbatch init`: a command of vLLM's to a scenario that runs, with an answer for every flag.

Commands are `vllm serve` and `vllm bench serve`, from a shell, Docker, Compose or Kubernetes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simbatch.sim.commands.choose import Facts, choose, longest_of, weights_of
from simbatch.sim.commands.found import Command, read_commands
from simbatch.sim.commands.settings import Served, read_server
from simbatch.sim.commands.written import Offered, of_bench, of_preset, of_trace, scenario_text
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.gpus import gpu_of
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.scenario.flags import Given, config_words, parse
from simbatch.sim.workload import open_workload

SECRET = ("key", "token", "secret", "password")


@dataclass(frozen=True)
class Wish:
    """What the user says beside the command."""

    gpu: str | None = None
    profile: str | None = None
    trace: str | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)  # other keys of `workload.trace`
    rate: float | None = None
    preset: str | None = None
    slo: Mapping[str, float] | None = None
    facts: Facts = lambda _: None  # what is known of models


@dataclass(frozen=True)
class Made:
    """A scenario's text, and what became of each flag."""

    text: str
    scenario: Scenario
    profile: str
    given: tuple[Given, ...]
    is_example: bool  # whether its traffic is

    def as_json(self) -> dict[str, Any]:
        """As CONTRACT has it."""
        return {"profile": self.profile, "flags": [one.as_json() for one in self.given]}


def make(reference: str, wish: Wish, target: Path) -> Made:
    """The scenario for a line, or for the file that holds one; UserError with what is in the way."""
    commands = read_commands(reference)
    serve = next((one for one in commands if one.kind == "serve"), None)
    bench = next((one for one in commands if one.kind == "bench"), None)
    served = read_server(_with_config(serve or _for_bench(bench), Path(reference).parent))
    served.facts = wish.facts(served.model)
    name, profile = _profile_of(served, wish, (serve or Command("serve", [])).gpu)
    _fit_memory(served, profile)
    offered = _traffic(served, wish, bench, profile, target.parent)
    if wish.slo:
        offered.slo = dict(wish.slo)
    given = [_masked(one) for one in [*served.given, *offered.given]]
    text = scenario_text(name, _about(served, profile), served, offered, given)
    scenario = _checked(text, target, given)
    return Made(text, scenario, name, tuple(given), offered.is_example)


def _for_bench(bench: Command | None) -> Command:
    """A server with vLLM's defaults for a benchmark's model."""
    words = list(bench.words) if bench is not None else []
    for i, word in enumerate(words):
        if word == "--model" and i + 1 < len(words):
            return Command("serve", [words[i + 1]])
        if word.startswith("--model="):
            return Command("serve", [word.partition("=")[2]])
    raise UserError(Problem("LINE", "names no model", mend="put --model into vllm bench serve, or give vllm serve too"))


def _with_config(command: Command, folder: Path) -> Command:
    """The command with the keys of its `--config` file before its own words, as vLLM reads them."""
    import yaml

    words = list(command.words)
    at = next((i for i, word in enumerate(words) if word.partition("=")[0] == "--config"), None)
    if at is None:
        return command
    name = words[at].partition("=")[2] or (words[at + 1] if at + 1 < len(words) else "")
    path = next((path for path in (folder / name, Path(name)) if path.is_file()), None)
    if path is None:
        raise UserError(Problem("--config", "there is no such file", name, "run this in the folder where it lies"))
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    rest = [*words[:at], *words[at + (1 if "=" in words[at] else 2) :]]
    has_model = bool(parse(rest)[1])
    extra = config_words({key: data[key] for key in data if not (has_model and key in ("model", "model_tag"))})
    cut = 1 if has_model and not rest[0].startswith("-") else 0
    return replace(command, words=[*rest[:cut], *extra, *rest[cut:]])


def _profile_of(served: Served, wish: Wish, stated_gpu: str) -> tuple[str, MeasuredProfile]:
    """The profile that was named, else the one that ships for it."""
    name = choose(served, gpu_of(wish.gpu or stated_gpu or None), wish.facts) if wish.profile is None else wish.profile
    profile = load_profile(name, folder=Path())
    if not isinstance(profile, MeasuredProfile):
        raise UserError(Problem("--profile", "names no model and no GPU", name, "take one that ships"))
    if wish.profile is not None:
        _refuse_other(served, profile, wish.profile)
    return name, profile


def _refuse_other(served: Served, profile: MeasuredProfile, name: str) -> None:
    """UserError where the profile is of another number of GPUs than the command, which no step time bears."""
    if profile.tensor_parallel_size != served.tensor_parallel_size:
        rule = f"is of {profile.tensor_parallel_size} GPU(s), and the command has {served.tensor_parallel_size}"
        mend = "take one of the same number: simbatch profiles list"
        raise UserError(Problem("--profile", rule, name, mend))


def _fit_memory(served: Served, profile: MeasuredProfile) -> None:
    """Settings that follow the KV cache: its bytes as blocks, the longest request that fits, the model's own limit."""
    memory = profile.memory
    if served.kv_cache_bytes is not None:
        block = memory.kv_bytes_per_token * (served.engine.get("block_size") or memory.block_size)
        served.engine["num_gpu_blocks_override"] = max(2, served.kv_cache_bytes // block)
    longest = longest_of(served)
    if served.longest_that_fits:
        served.engine["max_model_len"] = min(_cache_tokens(served, profile), longest or profile.max_model_len)
    elif "max_model_len" not in served.engine and longest is not None and longest < profile.max_model_len:
        served.engine["max_model_len"] = longest


def _cache_tokens(served: Served, profile: MeasuredProfile) -> int:
    """Tokens of the whole KV cache under the command's other settings."""
    blocks = served.engine.get("num_gpu_blocks_override") or profile.num_gpu_blocks_for(
        served.engine.get("gpu_memory_utilization"), "auto", served.engine.get("block_size")
    )
    size = served.engine.get("block_size") or profile.memory.block_size
    return (blocks - 1) * size


def _traffic(served: Served, wish: Wish, bench: Command | None, profile: MeasuredProfile, folder: Path) -> Offered:
    room = min(served.engine.get("max_model_len", profile.max_model_len), _cache_tokens(served, profile))
    if wish.trace is not None:
        return of_trace(wish.trace, wish.reading, wish.rate, folder)
    if wish.preset is not None:
        return of_preset(wish.preset, wish.rate, room)
    if bench is not None:
        return of_bench(bench.words, wish.rate, room)
    return of_preset("chat", wish.rate, room, is_example=True)


def _masked(one: Given) -> Given:
    """A flag without what nobody else should read."""
    name = one.flag.lower().replace("-", "_")
    is_secret = any(name.endswith(word) or f"_{word}_" in name for word in SECRET) and "tokens" not in name
    return replace(one, value="***") if is_secret and not isinstance(one.value, bool) else one


def _about(served: Served, profile: MeasuredProfile) -> str:
    """What the profile is of, and where it is not the command's own model."""
    count = f"{profile.tensor_parallel_size} x " if profile.tensor_parallel_size > 1 else ""
    what = f"{profile.model} in {profile.quantisation} on {count}{profile.gpu}"
    asked = weights_of(served)
    if asked != profile.quantisation:
        what += f"; {asked} is taken for as fast as {profile.quantisation}"
    return f"{what}, an estimate" if profile.is_estimate else what


def _checked(text: str, target: Path, given: Iterable[Given]) -> Scenario:
    """The scenario of this text; a rule that it breaks at the flag that breaks it."""
    flags = {one.key: one.flag for one in given if one.status == "used"}
    try:
        scenario = Scenario.from_text(text, target)
        resolve(scenario)
    except UserError as error:
        raise UserError(*(_at_flag(problem, flags) for problem in error.problems)) from None
    next(iter(open_workload(scenario.workload, seed=scenario.seed, folder=scenario.folder).chunks()))  # a trace is read
    return scenario


def _at_flag(problem: Problem, flags: Mapping[str, str]) -> Problem:
    key = problem.place.rpartition(" ")[2]
    return replace(problem, place=flags.get(key, key))
