"""The gateway of a cluster: what it knows of its replicas, its books, and whom it asks where to send."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.plugins import place_of
from simbatch.sim.plugins.router import BOOKS, Router
from simbatch.sim.scheduler.names import one_by_one
from simbatch.sim.scheduler.request import Request
from simbatch.sim.scheduler.views import SentView


class GatewayRequest(SentView):
    """A request as a gateway sees it (`simbatch.routers.RequestView`), with the names of its blocks."""

    __slots__ = ("_block_size", "request")

    def __init__(self, request: Request, block_size: int) -> None:
        super().__init__(request)
        self.request, self._block_size = request, block_size

    @property
    def prefix_keys(self) -> Sequence[int]:
        """A name for each full block of the prompt that others may share: equal where all tokens up to it are equal."""
        return one_by_one(self.request.prompt_names(self._block_size))


class Publisher(Protocol):
    """What a replica publishes of itself: as of its last schedule(), or of the last refresh."""

    def state(self, index: int) -> tuple[int, int, int]:
        """Requests that hold a seat, requests in the engine's queue, and free KV blocks."""

    def num_cached(self, index: int, request: Request) -> int:
        """How many blocks of the prompt, from the first on, are in the prefix cache."""


class GatewayReplica:
    """A replica as a gateway sees it (`simbatch.routers.ReplicaView`)."""

    def __init__(
        self,
        index: int,
        shown: Publisher,
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
        return self._shown.state(self.index)[0]

    @property
    def num_waiting(self) -> int:
        """Requests in the engine's queue."""
        return self._shown.state(self.index)[1]

    @property
    def kv_use(self) -> float:
        """Share of the KV blocks that requests hold, from 0 to 1."""
        return 1 - self._shown.state(self.index)[2] / (self.num_gpu_blocks - 1)

    def cached_tokens(self, request: GatewayRequest) -> int:
        """How many tokens of the prompt, from the first on, are in the prefix cache."""
        return self._shown.num_cached(self.index, request.request) * self.block_size

    def __repr__(self) -> str:
        return f"<replica {self.index}: {self.num_requests} requests in flight>"


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
        # by whether a book counts tokens; none where the router is asked
        self._by_tokens: list[bool] = []
        if not set(router.least) <= set(BOOKS):
            rule = f"`least` may name the books {' and '.join(BOOKS)}, in a tuple"
            raise UserError(Problem(f"router {type(router).__name__}", rule, router.least, 'least = ("num_requests",)'))
        if type(router).route is Router.route:
            self._by_tokens = [book == "num_tokens" for book in router.least]

    def start(self) -> None:
        """Tell the router whom it has."""
        try:
            self.router.start(tuple(self.views), self._draw)
        except UserError:
            raise
        except Exception as error:
            self._fail("start", error, 0)

    def choose(self, request: Request, at_ps: int) -> int:
        """Where the router sends a request, which is entered in the books; the number of the replica."""
        self.look(at_ps)
        chosen = self._with_least() if self._by_tokens else self._asked(request, at_ps)
        if self.on_routed is not None:
            self.on_routed(request, at_ps, chosen.index)
        self.enter(chosen, request)
        return chosen.index

    def _with_least(self) -> GatewayReplica:
        """What `route` of a router that only compares books returns."""
        best = self.up[0]
        for view in self.up:
            for is_tokens in self._by_tokens:
                ours = view.num_tokens if is_tokens else view.num_requests
                least = best.num_tokens if is_tokens else best.num_requests
                if ours != least:
                    if ours < least:
                        best = view
                    break
        return best

    def _asked(self, request: Request, at_ps: int) -> GatewayReplica:
        view = GatewayRequest(request, self.views[0].block_size)
        try:
            chosen = self.router.route(view, self.up)
        except UserError:
            raise
        except Exception as error:
            self._fail("route", error, at_ps)
        if not isinstance(chosen, GatewayReplica) or not chosen.is_up:
            rule = f"route must return one of the replicas that it was given, for request {request.request_id}"
            self._refuse(rule, chosen, at_ps)
        return chosen

    def set_up(self, index: int, is_up: bool) -> None:
        """A replica may be sent requests from now on, or not."""
        self.views[index].is_up = is_up
        self.up = [view for view in self.views if view.is_up]

    def why(self, request: Request) -> str:
        """Why the router would send the request where it does, in its own words."""
        return self.router.why(GatewayRequest(request, self.views[0].block_size), self.up)

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
