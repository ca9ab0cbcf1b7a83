"""What `simbatch serve` does: a scenario of the profile and the flags, a model's folder, a server until it is ended.

Of the flags of `vllm serve`, settings of the scenario are resolved by its rules, the others are handed on.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from simbatch.profiler.server.start import require_vllm
from simbatch.profiler.validate.matching import check_can_run
from simbatch.serving.options import policy_arguments
from simbatch.serving.processes import ServerProcess, ended_by_signals, reserved
from simbatch.serving.simulated.device import HostChoice, ServeSpec
from simbatch.serving.simulated.model import Tokens, make_model
from simbatch.serving.simulated.plugin import SPEC
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.scenario.engine import OURS, EngineSettings
from simbatch.sim.scenario.flags import Given, flag_words, parse, whole_number
from simbatch.sim.scenario.resolved import Resolved

SETTINGS = {name: field for name, field in EngineSettings.model_fields.items() if name not in {*OURS, "vllm_version"}}
# vLLM's device is not the profile's: it neither captures graphs nor measures memory
NOT_TOLD = {
    *OURS, "cudagraph_capture_sizes", "max_cudagraph_capture_size", "enforce_eager", "gpu_memory_utilization",
    "kv_cache_dtype", "num_gpu_blocks_override",
}  # fmt: skip
IN_THE_PROFILE = {"tensor_parallel_size": "tensor_parallel_size", "quantization": "quantisation"}
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


class Flags(NamedTuple):
    """Settings of the scenario's engine, the flags that are vLLM's alone, and words that belong to none."""

    engine: dict[str, Any]
    others: list[Given]
    alone: list[str]

    @property
    def named(self) -> dict[str, str]:
        """The values of vLLM's own flags, by name."""
        return {one.name: one.text for one in self.others}


def read_flags(words: Sequence[str]) -> Flags:
    """Sort the flags; UserError for what a simulated server cannot do."""
    given, alone = parse(words)
    engine, others = dict[str, Any](), list[Given]()
    for one in given:
        if one.name in SETTINGS:
            engine[one.name] = [*map(_number, one.value)] if isinstance(one.value, list) else _number(one.value)
        else:
            others.append(one)
    if problems := [
        Problem(f"--{_dashed(one.name)}", "does not go with a simulated server", mend=REFUSED[one.name])
        for one in others
        if one.name in REFUSED
    ]:
        raise UserError(*problems)
    return Flags(engine, others, alone)


def in_the_profile(flags: Flags, profile: Any) -> list[str]:
    """The words for vLLM, less what the profile says already; UserError where it says otherwise."""
    others = list(flags.alone)
    for one in flags.others:
        if (key := IN_THE_PROFILE.get(one.name)) is None:
            others += one.words
            continue
        measured = str(getattr(profile, key, 1 if one.name == "tensor_parallel_size" else None))
        if one.text != measured:
            mend = "leave it out, or take a profile that was measured so: simbatch profiles list"
            rule = f"the profile {profile.name} was measured with {measured}"
            raise UserError(Problem(f"--{_dashed(one.name)}", rule, one.text, mend))
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


def _number(value: str | bool) -> Any:
    """A value as YAML would say it, or vLLM's 16k and 8K."""
    from simbatch.sim.scenario.document import parse_plain

    if isinstance(value, bool):
        return value
    has_unit = re.fullmatch(r"\d+(\.\d+)?[kmgKMG]", value)
    return whole_number(Given("", value, None)) if has_unit else parse_plain(value)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


DEFAULT_OUTPUT_LEN = {"distribution": "lognormal", "mean": 200, "cv": 0.8}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "OMP_NUM_THREADS": "1",  # there are no tensors to compute
}
NOBODY = {"num_prompts": 1, "request_rate": 1, "prompt_len": {"distribution": "fixed", "mean": 1}}  # real clients come


@dataclass(frozen=True)
class ServeOptions:
    """What the command line says; `output_len` and `policy` as a scenario would."""

    profile: str
    port: int = 8000
    policy: str | dict[str, Any] | None = None
    host: HostChoice = "own"
    output_len: Any = None
    steps: Path | None = None
    seed: int = 0
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A server that can be started: its scenario, the flags of its engine, and what is vLLM's alone."""

    resolved: Resolved
    spec: Callable[[Tokens], ServeSpec]
    flags: list[str]
    address: str


def prepare(options: ServeOptions) -> Prepared:
    """Look everything up, before vLLM is started; UserError for what does not fit."""
    version = require_vllm("serving")
    given = read_flags(options.flags)
    scenario = scenario_of(options, {"vllm_version": version, **given.engine})
    check_can_run(scenario)
    resolved = resolve(scenario)
    if options.host == "profile" and resolved.engine.host is None:
        rule = f"the profile {resolved.profile.name} has no host section"
        raise UserError(Problem("--host", rule, "profile", "leave it out, or take a profile that has one"))
    if options.steps is not None:
        from simbatch.sim.files import check_target

        check_target(options.steps)
    others, named = in_the_profile(given, resolved.profile), given.named
    policy = policy_arguments(scenario)
    if policy and (taken := sorted({"scheduler_cls", "additional_config"} & named.keys())):
        rule = "is how vLLM is told of the policy"
        raise UserError(Problem(flag_of(taken[0]), rule, mend="leave it out, or --policy"))
    flags = [*engine_flags(resolved), *flag_words(policy), *others]
    if "served_model_name" not in named:
        flags += ["--served-model-name", resolved.profile.name]
    scheduler_cls = policy.get("scheduler_cls") or named.get("scheduler_cls")
    steps = None if options.steps is None else str(options.steps.absolute())

    def spec(tokens: Tokens) -> ServeSpec:
        return ServeSpec(resolved.dump(), options.host, *tokens, steps, scheduler_cls)

    return Prepared(resolved, spec, flags, named.get("host", ""))


def scenario_of(options: ServeOptions, engine: dict[str, Any]) -> Scenario:
    """The scenario that the flags mean; messages name the flags."""
    length = DEFAULT_OUTPUT_LEN if options.output_len is None else options.output_len
    if isinstance(length, int) and not isinstance(length, bool):
        length = {"distribution": "fixed", "mean": length}
    base = {"profile": options.profile, "workload": NOBODY | {"output_len": DEFAULT_OUTPUT_LEN}, "seed": options.seed}
    scenario = Scenario.from_dict(base, folder=Path.cwd(), name="serve")
    values: dict[str, Any] = {f"engine.{key}": value for key, value in engine.items()}
    origins = {key: flag_of(key) for key in values}
    values["workload.output_len"], origins["workload.output_len"] = length, "--output-len"
    if options.policy is not None:
        policy = options.policy if isinstance(options.policy, dict) else {"name": options.policy}
        values["policy"], origins["policy"] = policy, "--policy"
    return scenario.override(values, origin=origins)


def serve(options: ServeOptions, tell: Callable[[str], None]) -> None:
    """Serve until interrupted; `tell` is told what is served, and when it is ready."""
    prepared = prepare(options)
    with ended_by_signals(), reserved(prepared.address, options.port):
        folder = Path(tempfile.mkdtemp(prefix="simbatch-serve-"))
        try:
            _run(prepared, options, folder, tell)
        except UserError:  # vLLM's messages stay
            raise
        except BaseException as end:
            shutil.rmtree(folder, ignore_errors=True)
            if not isinstance(end, KeyboardInterrupt):
                raise
            tell("ended")


def _run(prepared: Prepared, options: ServeOptions, folder: Path, tell: Callable[[str], None]) -> None:
    begin_s = time.monotonic()
    resolved, model, log = prepared.resolved, folder / "model", folder / "vllm.log"
    model.mkdir()
    tokens = make_model(model, resolved.profile, resolved.engine.max_model_len)
    prepared.spec(tokens).write(folder / "spec.json")
    engine = resolved.engine
    tell(
        f"{resolved.profile.name}: {engine.num_gpu_blocks:,} KV blocks of {engine.block_size} tokens, "
        f"max_num_seqs {engine.max_num_seqs:,}, max_num_batched_tokens {engine.max_num_batched_tokens:,}, "
        f"max_model_len {engine.max_model_len:,}, policy {resolved.policy_name}"
    )
    tell(f"starting vLLM; its messages go to {log}, model and tokenizer are {model}")
    environment = {key: value for key, value in os.environ.items() if key != "VLLM_TARGET_DEVICE"}
    environment |= ENVIRONMENT | {SPEC: str(folder / "spec.json")}
    server = ServerProcess([str(model), *prepared.flags, "--port", str(options.port)], environment, log)
    try:
        server.wait_until_ready(prepared.address, options.port)
        where = prepared.address or "127.0.0.1"
        tell(f"ready after {time.monotonic() - begin_s:.0f} s: http://{where}:{options.port}/v1 (Ctrl-C ends it)")
        server.wait()
    finally:
        server.stop()
