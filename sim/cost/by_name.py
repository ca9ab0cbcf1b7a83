"""A profile by name, from a file, or from what a scenario says; and the one beside it with another KV cache."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from simbatch.sim.cost import host_section, measured_range, memory, provenance, step_time
from simbatch.sim.cost.host_section import HostFile
from simbatch.sim.cost.load import read_text, shipped_names, shipped_text, unknown_profile
from simbatch.sim.cost.profile import InlineProfile, MeasuredProfile, Profile
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import json_object
from simbatch.sim.paths import stat_of, user_path
from simbatch.sim.strict import checked

_ALIASES = {"fp8": "fp8_e4m3"}  # vLLM takes both for one type on CUDA (vllm/config/cache.py)
_KEY = "engine.kv_cache_dtype"
WHAT = "a profile"
_INFIX = "-kvfp8"  # of the names of shipped profiles


def load_profile(reference: str | Mapping[str, Any], *, folder: Path) -> Profile:
    """A shipped profile by name, a JSON file by path (relative to `folder`), or what a scenario wrote inline.

    Raises UserError with the place and what to mend.
    """
    if isinstance(reference, Mapping):
        return _validated(dict(reference), "profile", joint=".")
    return _validated(*_content(reference, folder))


def load_host(reference: str, *, folder: Path) -> Profile | HostFile:
    """A profile of which `host` and `front_end` are wanted: a file may have these two alone, and its name."""
    content, place = _content(reference, folder)
    if content.keys() <= HostFile.model_fields.keys():
        return checked(HostFile, content, place, keys=_all_keys(HostFile))
    return _validated(content, place)


def _content(reference: str, folder: Path) -> tuple[dict[str, Any], str]:
    """What a profile's file says, and its place."""
    if reference in shipped_names():
        return json_object(shipped_text(reference), reference, what=WHAT), reference
    path = user_path(folder, reference)
    if stat_of(path) is None and not re.search(r"[/\\]|\.json$", reference):
        raise unknown_profile(reference)
    return {"name": path.stem, **json_object(read_text(path, str(path)), path, what=WHAT)}, str(path)


def _validated(content: dict[str, Any], place: str, joint: str = " ") -> Profile:
    if {"model", "gpu", "memory"} & content.keys():
        kind: type[Profile] = MeasuredProfile
    else:
        kind = InlineProfile
    return checked(kind, content, place, keys=_all_keys(kind), joint=joint)


def _all_keys(kind: type[BaseModel]) -> set[str]:
    parts: list[type[BaseModel]] = [
        part
        for module in (host_section, measured_range, memory, provenance, step_time)
        for part in vars(module).values()
        if isinstance(part, type) and issubclass(part, BaseModel)
    ]
    return {key for part in (kind, *parts) for key in part.model_fields}


def with_kv_cache(profile: Profile, reference: str | Mapping[str, Any], kv_cache_dtype: str) -> Profile:
    """`profile`, which `reference` names, or the one that ships beside it and was measured with this KV cache.

    Raises UserError where there is none: a file of the user's and an inline profile have no others beside them.
    """
    if kv_cache_dtype == "auto":
        return profile
    if not isinstance(profile, MeasuredProfile):
        rule = "an inline profile does not say how its KV cache is held: its blocks and step times are as written"
        raise UserError(
            Problem(_KEY, rule, kv_cache_dtype, "remove it, and write the profile as it is with that cache")
        )
    if _is_same(kv_cache_dtype, profile.kv_cache_dtype):
        return profile
    if reference == profile.name and profile.name in shipped_names():
        own = profile.name.replace(_INFIX, "")
        names = [name for name in shipped_names() if name.replace(_INFIX, "") == own]
        siblings = [load_profile(name, folder=Path()) for name in names]
        for sibling in siblings:
            if isinstance(sibling, MeasuredProfile) and _is_same(kv_cache_dtype, sibling.kv_cache_dtype):
                return sibling
    name = reference if isinstance(reference, str) else profile.name
    rule = f"{name} was measured with a {profile.kv_cache_dtype} cache, and another one has other step times"
    raise UserError(Problem(_KEY, rule, kv_cache_dtype, _mend(profile, kv_cache_dtype)))


def _mend(profile: MeasuredProfile, kv_cache_dtype: str) -> str:
    """Measure it, or what ships of this model with such a cache."""
    loaded = (load_profile(name, folder=Path()) for name in shipped_names())
    others = [
        other.name
        for other in loaded
        if isinstance(other, MeasuredProfile)
        and other.model == profile.model
        and _is_same(kv_cache_dtype, other.kv_cache_dtype)
    ]
    others.sort(key=lambda name: not name.startswith(f"{profile.gpu}-"))
    ships = f", or take one that ships: {', '.join(others)}" if others else ""
    return f"measure it so: `simbatch profile MODEL --kv-cache-dtype {kv_cache_dtype} -o FILE`{ships}"


def _is_same(first: str, second: str) -> bool:
    return _ALIASES.get(first, first) == _ALIASES.get(second, second)
