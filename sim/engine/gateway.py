"""The gateway of a cluster: what it knows of its replicas, its books, and whom it asks where to send."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from simbatch.routers.base import Router
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.traffic import FAR
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.plugins.named import place_of
from simbatch.sim.scheduler.request import Request
from simbatch.sim.scheduler.views import SentView

if TYPE_CHECKING:
    from simbatch.sim.engine.cluster import Cluster


class GatewayRequest(SentView):
    """A request as a gateway sees it (`simbatch.routers.RequestView`), with the names of its blocks."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._keys = request.keys

    @property
    def prefix_keys(self) -> Sequence[int]:
        """A name for each full block of the prompt that others may share: equal where all tokens up to it are equal."""
        return self._keys


class Shown(Protocol):
    """What a replica publishes of itself: as of its last schedule(), or of the last refresh."""

    def num_running(self, index: int) -> int:
        """Requests that hold a seat."""

    def num_waiting(self, index: int) -> int:
        """Requests in the engine's queue."""

    def kv_use(self, index: int) -> float:
        """Share of the KV blocks that requests hold."""

    def num_cached(self, index: int, keys: Sequence[int]) -> int:
        """How many of these blocks, from the first on, are in the prefix cache."""


class GatewayReplica:
    """A replica as a gateway sees it (`simbatch.routers.ReplicaView`)."""

    def __init__(
        self,
        index: int,
        shown: Shown,
        *,
        group: int,
        profile: str,
        block_size: int,
        num_gpu_blocks: int,
        max_num_seqs: int,
    ) -> None:
        self.index = index
        self.group = group
        self.profile = profile
        self.block_size = block_size
        self.num_gpu_blocks = num_gpu_blocks
        self.max_num_seqs = max_num_seqs
        self.num_requests = self.num_tokens = self.num_sent = 0
        self.is_up = True
        self._shown = shown

    @property
    def num_running(self) -> int:
        """Requests that hold a seat."""
        return self._shown.num_running(self.index)

    @property
    def num_waiting(self) -> int:
        """Requests in the engine's queue."""
        return self._shown.num_waiting(self.index)

    @property
    def kv_use(self) -> float:
        """Share of the KV blocks that requests hold, from 0 to 1."""
        return self._shown.kv_use(self.index)

    def cached_tokens(self, request: GatewayRequest) -> int:
        """How many tokens of the prompt, from the first on, are in the prefix cache."""
        return self._shown.num_cached(self.index, request.prefix_keys) * self.block_size

    def __repr__(self) -> str:
        return f"<replica {self.index}: {self.num_requests} requests in flight>"


@dataclass
class Snapshot:
    """A replica as it was when the gateway last asked; `keys` None: nobody has looked at a cache yet."""

    state: tuple[int, int, int]
    keys: set[int] | None = None


class Published:
    """The engines' own figures, as of their last schedule() before now or before the last of the rounds of asking.

    `refresh_ps` is how long a round's answers are used, 0: each is asked anew at each look (`Shown`).
    """

    def __init__(self, refresh_ps: int) -> None:
        self.cluster: Cluster
        self.refresh_ps = refresh_ps
        self._asked_ps = 0  # when the last round was
        self._snapshots: list[Snapshot] = []
        self._wants_keys = False

    def due_ps(self, until_ps: int) -> int:
        """When the last round of asking is that somebody sees who is sent then or later; `FAR` if that has been."""
        if not self.refresh_ps or until_ps >= FAR:
            return FAR
        last_ps = until_ps // self.refresh_ps * self.refresh_ps
        return last_ps if last_ps > self._asked_ps else FAR

    @property
    def next_ps(self) -> int:
        """When the next round is."""
        return self._asked_ps + self.refresh_ps if self.refresh_ps else FAR

    def ask(self, at_ps: int) -> None:
        """Ask every engine; all of them have come to this moment."""
        self._asked_ps = at_ps
        for i in range(len(self.cluster.replicas)):
            self.cluster.bring_up(i)
        keys = [replica.kv.cached_keys() if self._wants_keys else None for replica in self.cluster.replicas]
        self._snapshots = [Snapshot(r.shown_at(at_ps), k) for r, k in zip(self.cluster.replicas, keys, strict=True)]

    def num_running(self, index: int) -> int:
        """See `Shown`."""
        return self._state(index)[0]

    def num_waiting(self, index: int) -> int:
        """See `Shown`."""
        return self._state(index)[1]

    def kv_use(self, index: int) -> float:
        """See `Shown`."""
        usable = self.cluster.replicas[index].kv.num_usable
        return 1 - self._state(index)[2] / usable

    def num_cached(self, index: int, keys: Sequence[int]) -> int:
        """See `Shown`."""
        if not self.refresh_ps:
            self.cluster.bring_up(index)
            return self.cluster.replicas[index].kv.num_cached(keys)
        self._wants_keys = True
        known = self._snapshots[index].keys if self._snapshots else None
        return 0 if known is None else next((i for i, key in enumerate(keys) if key not in known), len(keys))

    def _state(self, index: int) -> tuple[int, int, int]:
        replica = self.cluster.replicas[index]
        if self.refresh_ps:
            return self._snapshots[index].state if self._snapshots else (0, 0, replica.kv.num_usable)
        self.cluster.bring_up(index)
        return replica.shown_at(self.cluster.now_ps)


class Gateway:
    """Sends requests where the router says; what it knows of a replica stands in the replica's view."""

    def __init__(self, router: Router, views: list[GatewayReplica], draw: Callable[[], float]) -> None:
        self.router = router
        self.views = views
        self.up = list(views)  # who may be sent requests now
        self.on_routed: Callable[[Request, int, int], None] | None = None  # told the request, when, and where
        # heap of what will have come back: (when, number, replica, prompt tokens)
        self._coming: list[tuple[int, int, int, int]] = []
        self._number = 0
        self._draw = draw

    def start(self) -> None:
        """Tell the router whom it has."""
        try:
            self.router.start(tuple(self.views), self._draw)
        except UserError:
            raise
        except Exception as error:
            self._fail("start", error, 0)

    def choose(self, request: Request, at_ps: int) -> int:
        """Ask the router where to send a request, and enter it in the books; the number of the replica."""
        self.look(at_ps)
        view = GatewayRequest(request)
        try:
            chosen = self.router.route(view, self.up)
        except UserError:
            raise
        except Exception as error:
            self._fail("route", error, at_ps)
        if not isinstance(chosen, GatewayReplica) or not chosen.is_up:
            rule = f"route must return one of the replicas that it was given, for request {request.request_id}"
            self._refuse(rule, chosen, at_ps)
        if self.on_routed is not None:
            self.on_routed(request, at_ps, chosen.index)
        self.enter(chosen, request)
        return chosen.index

    def set_up(self, index: int, is_up: bool) -> None:
        """A replica may be sent requests from now on, or not."""
        self.views[index].is_up = is_up
        self.up = [view for view in self.views if view.is_up]

    def why(self, request: Request) -> str:
        """Why the router would send the request where it does, in its own words."""
        return self.router.why(GatewayRequest(request), self.up)

    def look(self, at_ps: int) -> None:
        """Bring the books to this moment."""
        coming = self._coming
        while coming and coming[0][0] <= at_ps:
            _, _, index, num_tokens = heapq.heappop(coming)
            view = self.views[index]
            view.num_requests -= 1
            view.num_tokens -= num_tokens

    def enter(self, view: GatewayReplica, request: Request) -> None:
        """A request is sent."""
        view.num_requests += 1
        view.num_sent += 1
        view.num_tokens += request.num_prompt_tokens

    def left(self, index: int, request: Request, at_ps: int) -> None:
        """The last token of a request leaves replica `index` then, or it is turned away."""
        self._number = number = self._number + 1
        heapq.heappush(self._coming, (at_ps, number, index, request.num_prompt_tokens))

    def _fail(self, method: str, error: Exception, at_ps: int) -> NoReturn:
        place, mend = place_of(error, type(self.router))
        rule = f"router {type(self.router).__name__} failed in {method} at {at_ps / PS_PER_S:.6f} s"
        raise UserError(Problem(place, f"{rule}: {type(error).__name__}: {error}", mend=mend)) from error

    def _refuse(self, rule: str, value: Any, at_ps: int) -> NoReturn:
        where = f"router {type(self.router).__name__} at {at_ps / PS_PER_S:.6f} s"
        raise UserError(Problem(where, rule, value, "return min(replicas, key=...) or another of them"))
