"""What one vLLM decides and has: runs inside its environment, where nothing of simbatch is needed.

`python probe.py FOLDER`: records every case in it (`*.json` to `*.jsonl.gz`; those with a key `timing` by vLLM's own
engine loop, from vLLM 0.24 on), looks for the names in `names.txt`, if it is there, and writes `facts.txt`: version,
defaults, missing names, and what went wrong with a case.
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import inspect
import json
import sys
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
import vllm_oracle
import vllm_parts
from vllm import envs
from vllm.config import CacheConfig, SchedulerConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext

GIB = 2**30
GPUS = {"24 GiB": "rtx4090", "79 GiB": "h100", "80 GiB": "a100", "141 GiB": "h200", "179 GiB": "b200"}
LIMITS = ((256, 2048), (100, 2048), (1024, 8192), (64, 77), (3, 16384))  # seats and budget of graphs
SMALL = {"max_num_seqs": 8, "max_num_batched_tokens": 512, "max_model_len": 256, "block_size": 16, "num_gpu_blocks": 50}
OLDEST_TIMED = (0, 24)  # before, a step of the engine had another form


def record(path: Path) -> str | None:
    """Let the real scheduler decide one case; why it could not, if so."""
    case = json.loads(path.read_text())
    try:
        if "timing" in case:
            from timing_oracle import TimingOracle

            text = TimingOracle(case).text()
        else:
            text = vllm_oracle.run_case(case)
            first = json.loads(text.partition("\n")[0])
            if "crash" in first or ("config_error" in first and "config" not in case.get("expect_error", "")):
                return f"{first.get('crash') or first['config_error']}: {first['said']}"
    except Exception as error:
        return f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"
    with gzip.open(path.with_suffix(".jsonl.gz"), "wt") as file:
        file.write(text)
    return None


def defaults() -> dict[str, Any]:
    """Of all settings that are a number, a word, a switch or left open: `SchedulerConfig.watermark` to its value."""
    found = {}
    for kind in (EngineArgs, SchedulerConfig, CacheConfig):
        for field in dataclasses.fields(kind):
            value = getattr(field.default, "default", field.default)  # pydantic's own fields stand for the value
            if value is None or isinstance(value, bool | int | float | str):
                found[f"{kind.__name__}.{field.name}"] = value
    return found


def batch_defaults() -> dict[str, list[int]]:
    """`max_num_batched_tokens` and `max_num_seqs` of a server, by the GPU's memory and name."""
    found = {}
    place = type(current_platform)
    for memory, name in GPUS.items():
        total_bytes = int(memory.split()[0]) * GIB
        patches = {
            "get_device_total_memory": lambda *_, total_bytes=total_bytes: total_bytes,
            "get_device_name": lambda *_, name=name: f"NVIDIA {name.upper()}",
            "is_cpu": lambda *_: False,
        }
        with mock.patch.multiple(place, **patches):
            tokens, seqs = EngineArgs.get_batch_defaults(1)
        context = UsageContext.OPENAI_API_SERVER
        found[f"{name}, {memory}"] = [tokens[context], seqs[context]]
    return found


def graphs() -> dict[str, list[Any]]:
    """Sizes of CUDA graphs by GPU: lists of [max_num_seqs, max_num_batched_tokens, sizes]."""
    from vllm.config import CUDAGraphMode

    found: dict[str, list[Any]] = {"h100": [], "b200": []}
    for gpu, cases in found.items():
        for seqs, tokens in LIMITS:
            config = vllm_parts.build_scheduler(SMALL)[0]
            config.model_config.enforce_eager = False
            compilation = config.compilation_config
            compilation.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
            compilation.max_cudagraph_capture_size = compilation.cudagraph_capture_sizes = None
            config.scheduler_config.max_num_seqs, config.scheduler_config.max_num_batched_tokens = seqs, tokens
            is_of_family = {"is_device_capability_family": lambda *_, gpu=gpu, **__: gpu == "b200"}
            with mock.patch.multiple(type(current_platform), create=True, **is_of_family):
                config._set_cudagraph_sizes()
            cases.append([seqs, tokens, list(compilation.cudagraph_capture_sizes)])
    return found


def missing(names: list[str]) -> list[str]:
    """Those of `module:name` and `module:Class.attribute` that are not there."""
    return [name for name in names if not is_there(name)]


def is_there(name: str) -> bool:
    """Whether a module has it; what only an object has, or cannot be imported here, is found in the text."""
    module, _, path = name.partition(":")
    kind, _, attribute = path.partition(".")
    try:
        found = getattr(importlib.import_module(module), kind, None)
        if found is None:
            importlib.import_module(f"{module}.{kind}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "vllm":
            return False
        spec = importlib.util.find_spec(module)  # something else is missing here, that a server has
        text = Path(spec.origin).read_text() if spec is not None and spec.origin else ""
        return any(f"\n{word} {kind}" in text for word in ("class", "def"))
    if not attribute or hasattr(found, attribute):
        return True
    texts = "".join(inspect.getsource(base) for base in found.__mro__[:-1] if base.__module__.startswith("vllm"))
    return f"self.{attribute} " in texts or f"self.{attribute}:" in texts


def main(folder: Path) -> None:
    """Record, look, and write the facts."""
    timed = (*map(int, vllm_parts.VERSION.split(".")[:2]),) >= OLDEST_TIMED
    failed = {}
    for path in sorted(folder.glob("*.json")):
        if timed or '"timing"' not in path.read_text():
            print(path.stem, file=sys.stderr, flush=True)
            if (why := record(path)) is not None:
                failed[path.stem] = why
    names = folder / "names.txt"
    facts = {
        "version": vllm_parts.VERSION,
        "timed": timed,
        "failed": failed,
        "defaults": defaults(),
        "batch_defaults": batch_defaults(),
        "graphs": graphs(),
        "graph_memory": bool(getattr(envs, "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", False)),
        "missing": missing(names.read_text().split()) if names.is_file() else [],
    }
    (folder / "facts.txt").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
