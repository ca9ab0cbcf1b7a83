"""The contract between a cluster's gateway and a router: one question, where to send this request.

A router sees what a gateway can see. Of a request: what the client sent, never the length of its output. Of a replica:
the gateway's own books (requests and prompt tokens that it sent there and whose answers are not over), always of this
very moment; and what the engine publishes of itself (queue, seats, KV use, cached prefixes), as of its last schedule()
or, with `refresh_s` in the scenario, as of the last time that the gateway asked for it.

Looking at what an engine publishes costs time: the engine is brought to this moment for it. Books cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, ClassVar, Literal, Protocol

from simbatch.sim.plugins import Plugin, Plugins, SentRequest


class RoutedRequest(SentRequest, Protocol):
    """What a gateway knows about a request."""

    @property
    def prefix_keys(self) -> Sequence[int]:
        """A name for each full block of the prompt that others may share: equal where all tokens up to it are equal."""


RequestView = RoutedRequest


class ReplicaView(Protocol):
    """What a gateway knows about a replica."""

    index: int  # its number, from 0
    group: int  # of replicas with one profile and one engine, from 0
    profile: str
    block_size: int  # tokens a KV block holds
    num_gpu_blocks: int
    max_num_seqs: int
    # the gateway's books
    num_requests: int  # sent there, and not over
    num_tokens: int  # prompt tokens of those
    num_sent: int  # requests sent there so far

    @property
    def num_running(self) -> int:
        """Requests that hold a seat: the engine says so."""

    @property
    def num_waiting(self) -> int:
        """Requests in the engine's queue: the engine says so."""

    @property
    def kv_use(self) -> float:
        """Share of the KV blocks that requests hold, from 0 to 1: the engine says so."""

    def cached_tokens(self, request: Any, /) -> int:
        """How many tokens of the prompt, from the first on, are in its prefix cache: the engine says so."""


BOOKS = ("num_requests", "num_tokens")  # that a gateway compares itself


class Router(Plugin):
    """Sends every request to a replica.

    A subclass is a dataclass without saying so: its annotated attributes are the parameters, given in YAML beside the
    name and checked by their types (`Annotated[int, Field(ge=1)]`). State belongs in `start`.

    >>> class ShortestQueue(Router):
    ...     '''To the replica with the shortest queue.'''
    ...     def route(self, request, replicas):
    ...         return min(replicas, key=lambda replica: replica.num_waiting)
    >>> ShortestQueue().parameters()
    {}
    """

    known_as: ClassVar[str] = ""  # what the field calls it: the system that it comes from
    draws: ClassVar[bool] = True  # whether it may call `draw`, so that another seed may be another run
    # books that are all it compares: to the replica with the least of the first, of equals of the next, of equals the
    # first; the gateway then does so itself, in compiled code, and does not ask `route`
    least: ClassVar[tuple[Literal["num_requests", "num_tokens"], ...]] = ()

    def start(self, replicas: Sequence[ReplicaView], draw: Callable[[], float]) -> None:
        """Set the state for a run; called once before it. `draw()`: numbers from 0 to 1, by the scenario's seed."""

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> ReplicaView:
        """One of `replicas`, which are all that are up, in their order; there is at least one."""
        if self.least:
            return min(replicas, key=attrgetter(*self.least))
        raise NotImplementedError

    def why(self, request: RequestView, replicas: Sequence[ReplicaView]) -> str:
        """For `simbatch explain`, before `route` is asked: what the choice will hang on."""
        return f"requests in flight: {', '.join(f'{r.index}: {r.num_requests}' for r in replicas)}"


ROUTERS = Plugins("router", "cluster.router", "routers", "simbatch.routers", Router, "simbatch.routers.Router")


__all__ = ["ReplicaView", "RequestView", "Router"]
