"""What `simbatch serve` does: a scenario of the profile and the flags, a model's folder, a server until it is ended."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simbatch.profiler.server.start import require_vllm
from simbatch.profiler.validate.settings import check_can_run, policy_arguments
from simbatch.serving.processes import ServerProcess, ended_by_signals, reserved
from simbatch.serving.simulated.device import HostChoice, ServeSpec
from simbatch.serving.simulated.flags import engine_flags, flag_of, in_the_profile, read_flags
from simbatch.serving.simulated.model import Tokens, make_model
from simbatch.serving.simulated.plugin import SPEC
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario import Scenario
from simbatch.sim.scenario.flags import flag_words
from simbatch.sim.scenario.resolve import resolve
from simbatch.sim.scenario.resolved import Resolved

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
        from simbatch.sim.paths import check_target

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
