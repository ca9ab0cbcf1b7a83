"""A profile by name, from a file, or from what a scenario says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from simbatch.sim.cost import error as error_module
from simbatch.sim.cost import host_section, link, measured_range, memory, recorder_fit, step_time, stream_fit
from simbatch.sim.cost import noise as noise_module
from simbatch.sim.cost.host_section import HostFile
from simbatch.sim.cost.load import parse_json, problems_of, read_text, shipped_names, shipped_text, unknown_profile
from simbatch.sim.cost.profile import InlineProfile, MeasuredProfile, Profile
from simbatch.sim.paths import stat_of, user_path

Kind = TypeVar("Kind", bound=BaseModel)


def load_profile(reference: str | Mapping[str, Any], *, folder: Path) -> Profile:
    """A shipped profile by name, a JSON file by path (relative to `folder`), or what a scenario wrote inline.

    Raises UserError with the place and what to mend.
    """
    if isinstance(reference, Mapping):
        return _validated(dict(reference), "profile", joint=".")
    return _validated(*_content(reference, folder))


def load_host(reference: str, *, folder: Path) -> Profile | HostFile:
    """The same, of which `host` and `front_end` are wanted: a file may have these two alone, and its name."""
    content, place = _content(reference, folder)
    if content.keys() <= HostFile.model_fields.keys():
        return _checked(HostFile, content, place)
    return _validated(content, place)


def _content(reference: str, folder: Path) -> tuple[dict[str, Any], str]:
    """What a profile's file says, and its place."""
    if reference in shipped_names():
        return parse_json(shipped_text(reference), reference), reference
    path = user_path(folder, reference)
    if stat_of(path) is None and not re.search(r"[/\\]|\.json$", reference):
        raise unknown_profile(reference)
    return {"name": path.stem, **parse_json(read_text(path, str(path)), str(path))}, str(path)


def _validated(content: dict[str, Any], place: str, joint: str = " ") -> Profile:
    if {"model", "gpu", "memory"} & content.keys():
        return _checked(MeasuredProfile, content, place, joint)
    return _checked(InlineProfile, content, place, joint)


def _checked(kind: type[Kind], content: dict[str, Any], place: str, joint: str = " ") -> Kind:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise problems_of(error, place, _all_keys(kind), joint) from None


def _all_keys(kind: type[BaseModel]) -> set[str]:
    parts: list[type[BaseModel]] = [
        part
        for module in (
            error_module,
            host_section,
            link,
            measured_range,
            memory,
            noise_module,
            recorder_fit,
            step_time,
            stream_fit,
        )
        for part in vars(module).values()
        if isinstance(part, type) and issubclass(part, BaseModel)
    ]
    return {key for part in (kind, *parts) for key in part.model_fields}
