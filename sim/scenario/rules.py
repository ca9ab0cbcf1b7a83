"""What vLLM makes of its flags: defaults by version and GPU, CUDA graphs, and what it refuses at start.

Keys under `engine` may be written as in vLLM's own `--config` file, with hyphens, and `no-` before what is off:
`max-num-seqs: 64` is `max_num_seqs: 64`, and `no-enable-prefix-caching: true` is `enable_prefix_caching: false`. What
is no key here but a flag of vLLM's is answered by name: of the profile, without effect, or not simulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.document import Key, KeyPath
from simbatch.sim.scenario.engine import EngineSettings
from simbatch.sim.scenario.flags import spellings
from simbatch.sim.scheduler.config import ALL, Changes, EngineConfig, default_of

if TYPE_CHECKING:
    from simbatch.sim.cost.profile import Profile
    from simbatch.sim.scenario.reading import Source


def async_scheduling(settings: EngineSettings, profile: Profile, changes: Changes) -> bool:
    """What is written, else what the server had that the profile was fitted on, else this vLLM's default."""
    if settings.async_scheduling is not None:
        return settings.async_scheduling
    is_known = profile.streams is not None or default_of("async_scheduling", changes)
    return profile.default_async_scheduling and is_known


def batch_limits(settings: EngineSettings, profile: Profile, max_model_len: int, changes: Changes) -> tuple[int, int]:
    """`max_num_seqs` and `max_num_batched_tokens`; one left out gives way to the other (vLLM engine/arg_utils.py)."""
    seqs = settings.max_num_seqs or profile.default_max_num_seqs
    tokens = settings.max_num_batched_tokens
    if tokens is None:
        tokens = profile.default_max_num_batched_tokens
        if profile.streams is None:
            tokens = min(tokens, default_of("large_gpu_budget", changes))
        if not settings.enable_chunked_prefill:
            tokens = max(tokens, max_model_len)
        tokens = max(min(tokens, seqs * max_model_len), 1)
    if settings.max_num_seqs is None:
        seqs = min(seqs, tokens)
    return seqs, tokens


def memory_share(settings: EngineSettings, profile: Profile, changes: Changes) -> float | None:
    """`gpu_memory_utilization`: what is written, else this vLLM's default on a GPU, else the profile's own."""
    if settings.gpu_memory_utilization is not None:
        return settings.gpu_memory_utilization
    default = profile.default_gpu_memory_utilization
    if default is None or not profile.is_gpu:
        return default
    share: float = default_of("gpu_memory_utilization", changes)
    return share


def capture_sizes(
    settings: EngineSettings,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    default_max: int,
    changes: Changes = ALL,
    *,
    of_model: int | None = None,
) -> tuple[int, ...]:
    """Sizes of the CUDA graphs in tokens, rising: a batch of up to the largest is padded to the next of them.

    None where there are no graphs. `default_max` is the GPU's, 0 where it has none; `of_model` what vLLM sets for the
    model as if it were written. As vLLM makes them without speculative decoding (`VllmConfig._set_cudagraph_sizes`,
    vllm/config/vllm.py).

    Raises UserError where vLLM does not start.
    """
    if settings.enforce_eager or default_max == 0:
        return ()
    largest = settings.max_cudagraph_capture_size
    if largest == 0:
        rule = "vLLM needs --max-cudagraph-capture-size to be at least 1"
        raise UserError(Problem("engine.max_cudagraph_capture_size", rule, 0, "write enforce_eager: true instead"))
    if settings.cudagraph_capture_sizes is not None:
        return _given(settings.cudagraph_capture_sizes, largest, max_num_batched_tokens)
    default_max, largest = min(default_max, default_of("large_gpu_graphs", changes)), largest or of_model
    odd = [max_num_batched_tokens] if "budget_graph" in changes else []
    odd += [max_num_seqs] if largest is None and "seats_graph" in changes else []
    largest = min(largest or min(2 * max_num_seqs, default_max), max_num_batched_tokens)
    sizes = {1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16), *odd}
    return tuple(sorted(size for size in sizes if size <= largest))


def _given(sizes: list[int], largest: int | None, max_num_batched_tokens: int) -> tuple[int, ...]:
    """What is left of the user's own list: in order, each once, none above the token budget."""
    kept = tuple(sorted({size for size in sizes if size <= max_num_batched_tokens}))
    if not kept:
        dropped = f"vLLM drops sizes above --max-num-batched-tokens ({max_num_batched_tokens}), and none is left"
        rule = dropped if sizes else "vLLM needs at least one size"
        mend = "add one, or write enforce_eager: true instead"
        raise UserError(Problem("engine.cudagraph_capture_sizes", rule, sizes, mend))
    if largest is not None and largest != kept[-1]:
        rule = f"vLLM needs --max-cudagraph-capture-size to be the largest of --cudagraph-capture-sizes ({kept[-1]})"
        raise UserError(Problem("engine.max_cudagraph_capture_size", rule, largest, "remove one of the two"))
    return kept


_GRAPH_KEYS = ("cudagraph_capture_sizes", "max_cudagraph_capture_size", "enforce_eager")
_FRONT_END_KEYS = ("front_end", "api_server_count", "max_num_queued_reqs", "max_num_queued_tokens")


def idle_keys(profile: Profile) -> set[str]:
    """Keys of `engine` whose defaults change nothing on this profile, which does not say what they cost."""
    keys: set[str] = set()
    if profile.host is None:
        keys.add("host_noise")
        if not profile.step_time.padded:
            keys.update(_GRAPH_KEYS)
    if profile.front_end_times() is None:
        keys.update(_FRONT_END_KEYS)
    return keys


def start_problems(config: EngineConfig) -> Iterator[Problem]:
    """Every rule of vLLM's that `config` breaks; places are the keys of the scenario.

    Sources: vllm/config/scheduler.py, v1/core/kv_cache_utils.py.
    """
    tokens, seqs, length = config.max_num_batched_tokens, config.max_num_seqs, config.max_model_len
    if tokens < seqs:
        rule = f"vLLM needs --max-num-batched-tokens to be at least --max-num-seqs ({seqs})"
        mend = f"raise it to {seqs}, or lower engine.max_num_seqs to {tokens}"
        yield Problem("engine.max_num_batched_tokens", rule, tokens, mend)
    if not config.enable_chunked_prefill and tokens < length:
        rule = f"without chunked prefill vLLM needs --max-num-batched-tokens to be at least --max-model-len ({length})"
        mend = f"raise it to {length}, lower engine.max_model_len, or set engine.enable_chunked_prefill: true"
        yield Problem("engine.max_num_batched_tokens", rule, tokens, mend)
    if config.max_num_active_seqs is not None and config.max_num_active_seqs > seqs:
        rule = f"vLLM needs --max-num-active-seqs to be at most --max-num-seqs ({seqs})"
        yield Problem("engine.max_num_active_seqs", rule, config.max_num_active_seqs, f"lower it to {seqs}")
    if config.long_prefill_token_threshold > length:
        rule = f"--long-prefill-token-threshold cannot be more than --max-model-len ({length})"
        value = config.long_prefill_token_threshold
        yield Problem("engine.long_prefill_token_threshold", rule, value, "lower it; 0 switches it off")
    yield from _blocks_problem(config)


def _blocks_problem(config: EngineConfig) -> Iterator[Problem]:
    usable_tokens = (config.num_gpu_blocks - 1) * config.block_size
    if usable_tokens < config.max_model_len:
        rule = (
            f"vLLM does not start when the KV cache cannot hold one request of --max-model-len: "
            f"{config.num_gpu_blocks - 1} usable blocks of {config.block_size} hold {usable_tokens} tokens"
        )
        mend = f"set engine.max_model_len to at most {usable_tokens}" if usable_tokens else "give it more KV blocks"
        yield Problem("engine.max_model_len", rule, config.max_model_len, mend)


OF_PROFILE = {
    "model": "it is the profile's: simbatch profiles list --model NAME; or give the whole command to simbatch init",
    "tensor_parallel_size": "the GPUs are the profile's: choose one whose name ends in -tpN (simbatch profiles list)",
    "dtype": "the weights are the profile's: choose one named so (simbatch profiles list); leave it out here",
    "quantization": "the weights are the profile's: choose one named so (simbatch profiles list); leave it out here",
}


def with_own_names(source: Source) -> Source:
    """The source with vLLM's spellings under `engine`, also of a cluster's groups, as ours.

    Raises UserError where a switch is written in a way that vLLM passes over, or a setting stands there twice.
    """
    data = source.data
    for path in _engine_paths(data):
        for key in list(_at(data, path)):
            own = _own_name(key)
            if own is not None:
                source = _renamed(source, path, key, own)
    return source


def advice(name: str) -> str:
    """What to do about a flag of vLLM's that is no key of `engine`; nothing where vLLM has no such flag."""
    found = spellings().get("--" + name.replace("_", "-"))
    if found is None:
        return ""
    row, _ = found
    if row.flag in OF_PROFILE:
        return OF_PROFILE[row.flag]
    if row.status == "used":
        return f"write {row.key}" if row.key and not row.key.startswith("engine.") else f"write {row.flag}"
    why = f": {row.reason}" if row.reason else ""
    return (f"no effect on scheduling{why}" if row.status == "no_effect" else f"not simulated{why}") + "; leave it out"


def _own_name(key: Key) -> str | None:
    """The setting that a key of vLLM's stands for; None for what is written as ours, or is no setting at all."""
    if not isinstance(key, str) or key in EngineSettings.model_fields:
        return None
    name = key.replace("-", "_")
    positive = name.removeprefix("no_")
    return next((one for one in (name, positive) if one in EngineSettings.model_fields), None)


def _renamed(source: Source, path: KeyPath, key: Key, own: str) -> Source:
    """`source` with this key of the mapping at `path` under its own name, its place kept."""
    at = _at(source.data, path)
    value = at[key]
    is_off = str(key).replace("-", "_") != own
    if is_off and value is not True:
        rule = "vLLM takes `true` alone here and passes over anything else"
        raise UserError(Problem(source.locate((*path, key), True), rule, value, f"write {own}: true or false"))
    was_set = source.overrides.get((*path, key))
    if own in at and was_set is None:
        rule = f"is there as {own} too: one setting, twice"
        raise UserError(Problem(source.locate((*path, key), True), rule, value, "remove one of them"))
    renamed = {(own if one == key else one): (not value if is_off and one == key else at[one]) for one in at}
    if own in at:  # a flag of the command line wins over the file
        renamed[own] = not value if is_off else value
    places = {_moved(one, path, key, own): there for one, there in source.places.items()}
    overrides = {_moved(one, path, key, own): there for one, there in source.overrides.items()}
    return replace(source, data=_with(source.data, path, renamed), places=places, overrides=overrides)


def _moved(one: KeyPath, path: KeyPath, key: Key, own: str) -> KeyPath:
    return (*path, own, *one[len(path) + 1 :]) if one[: len(path) + 1] == (*path, key) else one


def _engine_paths(data: Any) -> Iterator[KeyPath]:
    """Where mappings of engine settings stand."""
    if isinstance(data.get("engine"), dict):
        yield ("engine",)
    cluster = data.get("cluster")
    groups = cluster.get("groups") if isinstance(cluster, dict) else None
    for i, group in enumerate(groups if isinstance(groups, list) else ()):
        if isinstance(group, dict) and isinstance(group.get("engine"), dict):
            yield ("cluster", "groups", i, "engine")


def _at(data: Any, path: KeyPath) -> dict[Key, Any]:
    for key in path:
        data = data[key]
    found: dict[Key, Any] = data
    return found


def _with(data: Any, path: KeyPath, value: Any) -> Any:
    """A copy of nested mappings and lists with another value at `path`."""
    if not path:
        return value
    first, *rest = path
    if isinstance(data, list):
        return [_with(one, tuple(rest), value) if i == first else one for i, one in enumerate(data)]
    return {key: _with(one, tuple(rest), value) if key == first else one for key, one in data.items()}
