"""Keys under `engine` as vLLM's own `--config` file writes them: hyphens, and `no-` in front of what is switched off.

`max-num-seqs: 64` is `max_num_seqs: 64`, and `no-enable-prefix-caching: true` is `enable_prefix_caching: false`. What
is no key here but a flag of vLLM's is answered by name: of the profile, without effect, or not simulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.engine import EngineSettings
from simbatch.sim.scenario.flags import spellings
from simbatch.sim.scenario.reading.document import Key, KeyPath
from simbatch.sim.scenario.reading.source import Source

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
        rule = f"stands beside {own}: one setting, twice"
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
