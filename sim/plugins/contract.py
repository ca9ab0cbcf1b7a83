"""What policies and routers have in common: parameters that are annotations, and the sight of what clients sent."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol, dataclass_transform


@dataclass_transform(eq_default=False)
@dataclass(eq=False)
class Plugin:
    """A class whose annotated attributes are its parameters.

    A subclass is a dataclass without saying so. In YAML its parameters are given beside the name and checked by their
    types (`Annotated[int, Field(ge=1)]`).
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(eq=False)(cls)

    def parameters(self) -> dict[str, Any]:
        """The parameters by name, as YAML would give them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class SentRequest(Protocol):
    """What a client sends, as anybody on the way may know it."""

    @property
    def request_id(self) -> str:
        """The name it came with."""

    @property
    def arrival_s(self) -> float:
        """When the client sent it."""

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""

    @property
    def priority(self) -> int:
        """Lower goes first, as in vLLM: high 0, normal 1, low 2."""

    @property
    def tenant(self) -> str | None:
        """Whose request it is, when the trace says."""
