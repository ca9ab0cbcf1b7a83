"""Policies by name: those that ship, those that other packages offer, and the user's own classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simbatch.policies.base import Policy
from simbatch.sim.plugins import Plugins

POLICIES: Plugins[Policy] = Plugins(
    "policy",
    "policy",
    "policies",
    "simbatch.policies",
    frozenset({"base", "planning", "random_cases", "registry", "testing"}),
    Policy,
    "simbatch.policies.Policy",
)


def policy_names() -> list[str]:
    """Names of the policies that ship and of those that installed packages offer."""
    return POLICIES.names()


def shipped_names() -> tuple[str, ...]:
    """The policies of this folder: each is a file of its name."""
    return POLICIES.shipped


def load_policy(name: str, params: Mapping[str, Any], *, folder: Path) -> Policy:
    """The policy called `name` with its parameters; see `Plugins.load`."""
    return POLICIES.load(name, params, folder=folder)


def policy_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a named policy's parameters, with its docstring as the description."""
    return POLICIES.schema(name)


def policy_class(name: str, *, folder: Path) -> type[Policy]:
    """The class that a name stands for."""
    return POLICIES.find(name, folder=folder)
