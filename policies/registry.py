"""Policies by name: those that ship, those that other packages offer, and the user's own classes."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_type_hints

import simbatch.policies
from simbatch.policies.base import Policy
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.users_code import place_of

if TYPE_CHECKING:
    from pydantic import BaseModel

# every other file of this folder is a policy of that name
MACHINERY = {"base", "planning", "random_cases", "registry", "testing"}
ENTRY_POINTS = "simbatch.policies"  # the group in which other packages offer theirs
OWN = "for your own, write package.module:Class or file.py:Class"


def policy_names() -> list[str]:
    """Names of the policies that ship and of those that installed packages offer."""
    return sorted({*shipped_names(), *_offered()})


@cache
def shipped_names() -> tuple[str, ...]:
    """The policies of this folder: each is a file of its name."""
    return tuple(sorted({module.name for module in pkgutil.iter_modules(simbatch.policies.__path__)} - MACHINERY))


def _shipped_class(name: str) -> type[Policy]:
    """The policy that a file of this folder defines."""
    module = importlib.import_module(f"simbatch.policies.{name}")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Policy)]
    (kind,) = (kind for kind in kinds if kind.__module__ == module.__name__)
    return kind


@cache
def _offered() -> dict[str, str]:
    """What installed packages offer, by name; looked up once, since it reads the metadata of every package."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


def load_policy(name: str, params: Mapping[str, Any], *, folder: Path) -> Policy:
    """The policy called `name` with its parameters; a `file.py:Class` is looked for in `folder` first.

    Raises UserError at `policy.name` for a name that leads to no policy and at `policy` for parameters that do not go
    together, and pydantic's ValidationError, with the parameters as locations, for each that the policy does not take.
    """
    kind = policy_class(name, folder=folder)
    values = dict(_parameters_model(kind).model_validate(dict(params)))
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(Problem("policy", str(error), values, "see `simbatch policies`")) from error


def policy_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a named policy's parameters, with its docstring as the description."""
    kind = policy_class(name, folder=Path())
    return {**_parameters_model(kind).model_json_schema(), "description": inspect.getdoc(kind) or ""}


def _parameters_model(kind: type[Policy]) -> type[BaseModel]:
    """The class's parameters as a pydantic model: numbers are numbers, unknown names are errors."""
    from pydantic import ConfigDict, create_model

    hints = get_type_hints(kind, include_extras=True)
    parameters: dict[str, Any] = {
        field.name: (hints[field.name], ... if field.default is MISSING else field.default) for field in fields(kind)
    }
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model(kind.__name__, __config__=config, **parameters)


def policy_class(name: str, *, folder: Path) -> type[Policy]:
    """The class that a name stands for."""
    if name in shipped_names():
        return _shipped_class(name)
    target = _offered().get(name) or name
    where, colon, class_name = target.rpartition(":")
    if not colon or not where or not class_name:
        if name.endswith(".py"):
            raise UserError(Problem("policy.name", "a file, but which class in it?", name, f"write {name}:Class"))
        near = get_close_matches(name, policy_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(policy_names())}; {OWN}"
        raise UserError(Problem("policy.name", "no such policy", name, hint))
    module = _module_of_file(where, folder, name) if where.endswith(".py") else _module(where, name)
    kind = getattr(module, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, Policy)):
        found = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Policy)]
        own = [key for key in found if vars(module)[key].__module__ == module.__name__]
        rule = f"{where} has no subclass of simbatch.policies.Policy called {class_name}"
        mend = f"it has {', '.join(own)}" if own else "derive your class from simbatch.policies.Policy"
        raise UserError(Problem("policy.name", rule, name, mend))
    return kind


def _module(name: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        mend = "install the package or set PYTHONPATH; a file is named as file.py:Class"
        raise UserError(Problem("policy.name", f"cannot import {name}: {error}", reference, mend)) from error


def _module_of_file(where: str, folder: Path, reference: str) -> ModuleType:
    path = next((p for p in (folder / where, Path(where)) if p.is_file()), None)
    if path is None:
        mend = f"give its path from {folder.resolve()} or from the current folder"
        raise UserError(Problem("policy.name", f"no file {where}", reference, mend))
    name = f"simbatch_policy_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # the user's folder is not ours
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        place, mend = place_of(error)
        rule = f"the policy's file cannot be run: {type(error).__name__}: {error}"
        raise UserError(Problem(place, rule, reference, mend)) from error
    finally:
        sys.dont_write_bytecode = writes_bytecode
    return module
