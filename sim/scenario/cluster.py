"""The `cluster` section: how many engines, behind which router."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from simbatch.sim.scenario.engine import EngineSettings, Section

_NAME = re.compile(r"[\w.:/-]+")
MAX_REPLICAS = 4096
Replicas = Annotated[int, Field(ge=1, le=MAX_REPLICAS)]


def _router(value: object) -> object:
    if isinstance(value, str):
        mend = f"write router: {{name: {value if _NAME.fullmatch(value) else 'least_requests'}}}"
        raise PydanticCustomError("rule", "must be a mapping with a name", {"mend": mend})
    return value


class RouterChoice(Section):
    """The router by name, with its parameters beside the name."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1)] = Field(
        description="round_robin, least_requests, ..., or your own as package.module:Class or file.py:Class"
    )
    refresh_s: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.0, description="how old what engines publish may be: the gateway asks them so often; 0: always fresh"
    )

    @property
    def params(self) -> dict[str, Any]:
        """The parameters alone."""
        return dict(self.model_extra or {})


class Group(Section):
    """Replicas that are alike; what is left out is as in the scenario."""

    replicas: Replicas = Field(default=1, description="engines in this group")
    profile: str | dict[str, Any] | None = Field(
        default=None, description="a shipped profile's name, a path, or step times inline; default: the scenario's"
    )
    engine: EngineSettings = Field(
        default_factory=EngineSettings, description="settings that differ from the scenario's `engine`"
    )


class ClusterSettings(Section):
    """Several engines behind a gateway: so many alike, or groups of them."""

    replicas: Replicas | None = Field(default=None, description="engines, all alike")
    groups: Annotated[list[Group], Field(min_length=1, max_length=256)] | None = Field(
        default=None, description="engines that differ, in place of `replicas`"
    )
    router: Annotated[RouterChoice, BeforeValidator(_router)] = Field(
        default_factory=lambda: RouterChoice(name="round_robin"), description="where each request is sent"
    )

    @model_validator(mode="after")
    def _has_one_of_both(self) -> ClusterSettings:
        if (self.replicas is None) == (self.groups is None):
            mend = "write cluster: {replicas: 4}, or groups: [{replicas: 2, profile: ...}, ...]"
            raise PydanticCustomError("rule", "needs either replicas or groups", {"mend": mend})
        if self.groups is not None and sum(group.replicas for group in self.groups) > MAX_REPLICAS:
            raise PydanticCustomError("rule", f"has more than {MAX_REPLICAS:,} replicas", {"mend": "take fewer"})
        return self
