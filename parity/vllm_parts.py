"""vLLM's scheduler, of whatever version is importable (0.12 to 0.33), and what it is given: tokens, turns of sessions.

A setting that a version does not know is dropped, and what a version or a platform overrides is put back; both are
named in `dropped`. What was called otherwise once is found by introspection, so that one file serves all versions.
Nothing of simbatch is imported: it runs in vLLM's own environment.

Requests with a key "session" are turns that a client sends: one that has "after" (ids) when the last of those has
ended, "delay_ns" later, or at its own "arrival_ns" if that is later. A turn that is rejected ends its session: what is
sent later is never sent. With "users" in the case a session begins at its time or when one of so many others has ended.
Of equal times, who waited for others goes first, in the order of the case; then sessions that begin, in the order of
their own.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

for variable, value in {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_V1": "1",
    "VLLM_TARGET_DEVICE": "cpu",
}.items():
    os.environ.setdefault(variable, value)  # before vLLM is imported

import torch  # noqa: E402
import vllm  # noqa: E402
import vllm.v1.core.kv_cache_utils as kvu  # noqa: E402
from vllm.engine.arg_utils import EngineArgs  # noqa: E402
from vllm.sampling_params import SamplingParams  # noqa: E402
from vllm.usage.usage_lib import UsageContext  # noqa: E402
from vllm.utils.hashing import get_hash_fn_by_name  # noqa: E402
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402
from vllm.v1.engine.input_processor import InputProcessor  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec  # noqa: E402
from vllm.v1.outputs import ModelRunnerOutput  # noqa: E402
from vllm.v1.request import Request  # noqa: E402
from vllm.v1.structured_output import StructuredOutputManager  # noqa: E402

torch.set_num_threads(1)
MODEL = Path(__file__).parent / "model"
VERSION = vllm.__version__
MINOR = tuple(int(part) for part in VERSION.split("+")[0].split(".")[:2])
KNOWN = {field.name for field in dataclasses.fields(EngineArgs)}
# a setting at its neutral value: nothing is lost without it
NEUTRAL = {"watermark": 0.0, "long_prefill_token_threshold_adaptive": False, "max_num_active_seqs": None}
STREAM_STRIDE = 1 << 24
Row = dict[str, Any]
OF_OTHER_CONFIGS = ("scheduling_policy", "max_model_len", "block_size", "enable_prefix_caching")


def build_scheduler(settings: Row, dropped: Row | None = None, **given: Any) -> tuple[Any, ...]:
    """The config, its scheduler, and what hashes requests' blocks (None without caching).

    `settings` are a case's, `given` further arguments of the engine's, `dropped` is written to.
    """
    config = _vllm_config(settings, {} if dropped is None else dropped, given)
    block_size = settings["block_size"]
    spec = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=16, dtype=torch.bfloat16)
    groups = [KVCacheGroupSpec(["layer.0"], spec)]
    kv = KVCacheConfig(num_blocks=settings["num_gpu_blocks"], kv_cache_tensors=[], kv_cache_groups=groups)
    hash_block_size = block_size
    if hasattr(kvu, "resolve_kv_cache_block_sizes"):
        block_size, hash_block_size = kvu.resolve_kv_cache_block_sizes(kv, config)
    arguments = {
        "vllm_config": config,
        "kv_cache_config": kv,
        "structured_output_manager": StructuredOutputManager(config),
        "include_finished_set": False,
        "log_stats": False,
        "block_size": block_size,
        "hash_block_size": hash_block_size,
    }
    scheduler = config.scheduler_config.get_scheduler_cls()(**_taken_by(Scheduler.__init__, arguments))
    if not config.cache_config.enable_prefix_caching:
        return config, scheduler, None
    hash_function = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
    kvu.init_none_hash(hash_function)
    return config, scheduler, kvu.get_request_block_hasher(hash_block_size, hash_function)


def _vllm_config(settings: Row, dropped: Row, given: Row) -> Any:
    asked = {"enable_prefix_caching": False, **settings}
    num_blocks, is_async = asked.pop("num_gpu_blocks"), asked.pop("async_scheduling", False)
    asked["scheduling_policy"] = asked.pop("policy", "fcfs")
    for key in [key for key in asked if key not in KNOWN]:
        if key not in NEUTRAL or asked[key] != NEUTRAL[key]:
            dropped[key] = asked[key]
        del asked[key]
    fixed = {"model": str(MODEL), "load_format": "dummy", "skip_tokenizer_init": True, "dtype": "bfloat16"}
    fixed |= {"enforce_eager": True, "num_gpu_blocks_override": num_blocks, "disable_log_stats": True}
    try:
        config = EngineArgs(**fixed, **asked, **given).create_engine_config(UsageContext.ENGINE_CONTEXT)
    except RuntimeError as error:
        if "intel_extension" not in str(error):
            raise
        arguments = EngineArgs(**fixed, **{**asked, "block_size": 16}, **given)
        config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
    config.scheduler_config.async_scheduling = is_async
    for key in asked:
        if key not in OF_OTHER_CONFIGS:
            _force(config.scheduler_config, key, asked[key], dropped)
    assert config.scheduler_config.policy == asked["scheduling_policy"]
    assert config.model_config.max_model_len == settings["max_model_len"]
    _force(config.cache_config, "block_size", settings["block_size"], dropped)
    caches = asked["enable_prefix_caching"]
    if bool(config.cache_config.enable_prefix_caching) != caches:
        dropped["forced_caching"] = [config.cache_config.enable_prefix_caching, caches]
        config.cache_config.enable_prefix_caching = caches
    config.cache_config.num_gpu_blocks = num_blocks
    return config


def _force(config: Any, key: str, wanted: Any, dropped: Row) -> None:
    """Put back what was asked for where the platform or the version overrode it, and say so."""
    got = getattr(config, key, "absent")
    if got != wanted:
        dropped[f"forced_{key}"] = [got if isinstance(got, int | float | str | bool | None) else str(got), wanted]
        setattr(config, key, wanted)


def _taken_by(function: Callable[..., Any], arguments: Row) -> Row:
    """Those arguments that this version's function has."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


def length_check(config: Any) -> Callable[[int], None]:
    """What raises where the front end would refuse a prompt of that many tokens: its own check, or what it says."""
    if hasattr(InputProcessor, "_validate_prompt_len"):
        front = SimpleNamespace(
            skip_prompt_length_check=False, supports_mm_inputs=False, model_config=config.model_config
        )
        return lambda num_tokens: InputProcessor._validate_prompt_len(front, num_tokens, "decoder")

    def check(num_tokens: int) -> None:
        if num_tokens >= config.model_config.max_model_len:
            raise ValueError("too long")

    return check


def request_of(case_request: Row, tokens: list[int], arrival_time: float, hasher: Any) -> Request:
    """A request as vLLM's front end hands it on."""
    sampling = {"ignore_eos": True, "temperature": 0.0, "detokenize": False}
    arguments = {
        "request_id": case_request["id"],
        "prompt_token_ids": tokens,
        "sampling_params": SamplingParams(max_tokens=case_request["max_tokens"], **sampling),
        "pooling_params": None,
        "arrival_time": arrival_time,
        "priority": case_request.get("priority", 0),
        "block_hasher": hasher,
        "eos_token_id": None,
    }
    return Request(**_taken_by(Request.__init__, arguments))


def gives_token(request: Request, is_async: bool) -> bool:
    """Whether the step just scheduled samples a token for this request."""
    if hasattr(request, "is_prefill_chunk"):
        return not request.is_prefill_chunk
    place = request.num_output_placeholders
    if is_async:
        return place > 0 and request.num_computed_tokens == request.num_tokens + place - 1
    return bool(request.num_computed_tokens >= request.num_tokens)


def model_output(names: list[str], sampled: list[list[int]]) -> ModelRunnerOutput:
    """What a model would return: the tokens that it sampled of each request."""
    known: Row = {
        "req_ids": names,
        "req_id_to_index": {name: i for i, name in enumerate(names)},
        "sampled_token_ids": sampled,
    }
    for field in dataclasses.fields(ModelRunnerOutput):
        is_needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if is_needed and field.name not in known:
            known[field.name] = {} if "dict" in field.name else [] if field.name == "pooler_output" else None
    return ModelRunnerOutput(**known)


class Tokens:
    """Token ids by stream and position: equal ones where prompts are equal."""

    def __init__(self) -> None:
        self.base: dict[str, int] = {}

    def start(self, stream: str) -> int:
        """Where a stream's ids begin."""
        return self.base.setdefault(stream, (len(self.base) + 1) * STREAM_STRIDE)

    def prompt(self, request: Row) -> list[int]:
        """Of a case's request."""
        own, n = "r:" + request["id"], request["prompt_len"]
        parts = request.get("segments")
        if parts is None:
            stream, shared = request.get("prefix") or (own, 0)
            shared = min(shared, n)
            parts = [[stream, 0, shared], [own, shared, n - shared]]
        tokens = []
        for stream, begin, length in parts:
            first = self.start(stream) + begin
            tokens.extend(range(first, first + length))
        assert len(tokens) == n
        return tokens

    def output(self, name: str, position: int) -> int:
        """The token that a request samples at this position."""
        return self.start("r:" + name) + position


class Client:
    """Keeps `pending` (turns that will be sent, the next first) as ends come in; `held` are sessions to begin."""

    def __init__(self, case: Row, pending: deque[Row]) -> None:
        self.pending = pending
        turns = [dict(r, place=(0, j)) for j, r in enumerate(case["requests"])]
        self.turns = {r["id"]: r for r in turns}
        self.missing = {r["id"]: set(r.get("after", ())) for r in turns}
        self.ready_ns = dict.fromkeys(self.turns, 0)
        self.unsent: dict[str, set[str]] = {r["session"]: set() for r in turns}
        for r in turns:
            self.unsent[r["session"]].add(r["id"])
        self.in_flight = dict.fromkeys(self.unsent, 0)
        self.failed_ns: dict[str, int] = {}
        starts = sorted((r for r in turns if not r.get("after")), key=lambda r: r["arrival_ns"])
        for j, r in enumerate(starts):
            r["place"] = (1, j)
        users = case.get("users", len(starts))
        self.held = deque(starts[users:])
        pending.extend(starts[:users])

    def sent(self, name: str) -> None:
        """A turn is on its way."""
        session = self.turns[name]["session"]
        self.unsent[session].discard(name)
        self.in_flight[session] += 1

    def ended(self, name: str, when: int, is_served: bool = True) -> None:
        """A turn has its last token, or was rejected: others are sent for it, or never."""
        session = self.turns[name]["session"]
        self.in_flight[session] -= 1
        if is_served:
            self._let_go(name, session, when)
        else:  # what is to be sent by then is sent, whichever comes first of one moment
            self.failed_ns[session] = min(when, self.failed_ns.get(session, when))
            own = [r for r in self.pending if r["session"] == session]
            for r in own:
                if r["arrival_ns"] > when:
                    self.pending.remove(r)
            self.unsent[session] = {r["id"] for r in own if r["arrival_ns"] <= when}
        if self.held and not self.unsent[session] and not self.in_flight[session]:
            r = self.held.popleft()
            self._put(dict(r, arrival_ns=max(r["arrival_ns"], when)))

    def _let_go(self, name: str, session: str, when: int) -> None:
        for other, missing in self.missing.items():
            if name not in missing:
                continue
            missing.discard(name)
            self.ready_ns[other] = max(self.ready_ns[other], when)
            if not missing:
                r = self.turns[other]
                at = max(r.get("arrival_ns", 0), self.ready_ns[other] + r.get("delay_ns", 0))
                if at <= self.failed_ns.get(session, at):
                    self.unsent[session].add(other)
                    self._put(dict(r, arrival_ns=at))

    def _put(self, turn: Row) -> None:
        ordered = sorted([*self.pending, turn], key=lambda r: (r["arrival_ns"], r["place"]))
        self.pending.clear()
        self.pending.extend(ordered)
