"""The same model on the same GPU with another KV cache: step times are measured with one, and hold for no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.load import shipped_names
from simbatch.sim.cost.profile import MeasuredProfile, Profile
from simbatch.sim.errors import Problem, UserError

_ALIASES = {"fp8": "fp8_e4m3"}  # vLLM takes both for one type on CUDA (vllm/config/cache.py)
_KEY = "engine.kv_cache_dtype"
_INFIX = "-kvfp8"  # of the names of shipped profiles


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
