"""Scenario files: YAML with places, checked by pydantic, resolved to what the engine runs with."""

from simbatch.sim.scenario.model import PolicyChoice, Scenario, SloSection
from simbatch.sim.scenario.reading.source import parse_overrides
from simbatch.sim.scenario.resolve import resolve
from simbatch.sim.scenario.resolved import Resolved

__all__ = ["PolicyChoice", "Resolved", "Scenario", "SloSection", "parse_overrides", "resolve"]
