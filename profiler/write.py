"""Profiles to JSON: the same profile gives the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simbatch.sim.cost.profile import Profile
from simbatch.sim.files import write_text

OPTIONAL = (
    "host",
    "front_end",
    "noise",
    "real_runs",
    "streams",
    "recorder",
    "link",
    "power",
)  # not written where there are none
LAST = ("host", "front_end", "step_time", "noise")  # the long tables, below what a person reads


def profile_json(profile: Profile) -> str:
    """Render the file's text: one key a line, a list on one."""
    content = profile.model_dump(mode="json")
    content = {key: value for key, value in content.items() if value is not None or key not in OPTIONAL}
    content |= profile.model_dump(mode="json", include={"host", "front_end"}, exclude_defaults=True)
    fits = {key for key in ("streams", "recorder") if getattr(profile, key) is not None}
    content |= profile.model_dump(mode="json", include=fits, exclude_none=True)
    if "memory" in content and content["memory"]["peak"] is None:
        del content["memory"]["peak"]
    if not content["step_time"]["padded"]:
        del content["step_time"]["padded"]
    if content["step_time"].get("window", 0) is None:
        del content["step_time"]["window"]
    first = {key: value for key, value in content.items() if key not in LAST}
    ordered = first | {key: content[key] for key in LAST if key in content}
    return _indented(ordered, 0) + "\n"


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile's file; an interrupted run leaves the old one."""
    write_text(path, profile_json(profile))


def _indented(value: Any, depth: int) -> str:
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = "  " * (depth + 1)
    lines = [f"{inner}{json.dumps(key)}: {_indented(part, depth + 1)}" for key, part in value.items()]
    return "{\n" + ",\n".join(lines) + "\n" + "  " * depth + "}"
