"""What the engines of a cluster publish of themselves, and how fresh it is when a router looks at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simbatch.sim.engine.traffic import FAR

if TYPE_CHECKING:
    from simbatch.sim.engine.cluster import Cluster


@dataclass
class Snapshot:
    """A replica as it was when the gateway last asked; `keys` None: nobody has looked at a cache yet."""

    state: tuple[int, int, int, int]
    keys: set[int] | None = None


class Published:
    """The engines' own figures, as of their last schedule() before now or before the last of the rounds of asking.

    `refresh_ps` is how long a round's answers are used, 0: each is asked anew at each look (`gateway_views.Shown`).
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
        return self._state(index)[1]

    def num_waiting(self, index: int) -> int:
        """See `Shown`."""
        return self._state(index)[2]

    def kv_use(self, index: int) -> float:
        """See `Shown`."""
        usable = self.cluster.replicas[index].kv.num_usable
        return 1 - self._state(index)[3] / usable

    def num_cached(self, index: int, keys: Sequence[int]) -> int:
        """See `Shown`."""
        if not self.refresh_ps:
            self.cluster.bring_up(index)
            return self.cluster.replicas[index].kv.num_cached(keys)
        self._wants_keys = True
        known = self._snapshots[index].keys if self._snapshots else None
        return 0 if known is None else next((i for i, key in enumerate(keys) if key not in known), len(keys))

    def _state(self, index: int) -> tuple[int, int, int, int]:
        replica = self.cluster.replicas[index]
        if self.refresh_ps:
            return self._snapshots[index].state if self._snapshots else (0, 0, 0, replica.kv.num_usable)
        self.cluster.bring_up(index)
        return replica.shown_at(self.cluster.now_ps)
