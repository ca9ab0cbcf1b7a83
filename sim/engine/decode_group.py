"""All requests that decode, taken together: what a step needs to know of them is counted, never looped over."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Final

from simbatch.sim.scheduler.request import Request

NOBODY: Final[list[Request]] = []
OUTSIDE: Final = -1  # a request's `joined_round` when it is in no group


class DecodeGroup:
    """Requests that get one token in every step, or round.

    A member's own numbers stand still while it is in the group: it has `round - joined_round` more computed tokens than
    it says. `context` is the sum of computed tokens over all members, `in_window` of those inside a window of so many
    tokens (0: there are no windows): it grows by `num_growing` a round, until the window of one of them is full.
    """

    def __init__(self, block_size: int, window: int = 0) -> None:
        self.round = 0
        self.ahead = (0, 0)  # tokens computed, and known, by the step that is being planned
        self.size = 0
        self.context = 0
        self.blocks_next = 0  # KV blocks that the members need in the next round
        self.block_size = block_size
        self.window = window
        self.in_window = 0
        self.num_growing = 0  # members whose window is not full
        self._fills: list[int] = []  # heap of rounds in which windows fill, and how many in each
        self._num_filling: dict[int, int] = {}
        self._needing = [0] * block_size  # how many members need a block in rounds r with r % block_size == index
        self.ends: list[int] = []  # heap of the rounds in which members get their last tokens
        self._ending: dict[int, list[Request]] = {}  # by such a round: whose that is, one at least

    def join(self, request: Request) -> None:
        """Take in a request that wants one token a round from now on."""
        computed, block_size = request.num_computed_tokens, self.block_size
        request.joined_round = this = self.round
        self.size += 1
        self.context += computed
        if not computed % block_size:
            self.blocks_next += 1
        self._needing[(this - computed) % block_size] += 1
        last_round = this + request.max_tokens - request.num_tokens + request.num_prompt_tokens
        if last_round in self._ending:
            self._ending[last_round].append(request)
        else:
            self._ending[last_round] = [request]
            heappush(self.ends, last_round)
        if self.window:
            self._open_window(computed)

    def advance(self, num_rounds: int) -> list[Request]:
        """Every member gets that many tokens; returns those whose last one that was, in order of admission."""
        self.round = this = self.round + num_rounds
        self.context += num_rounds * self.size
        if self.num_growing:
            self._fill_windows(num_rounds)
        ends, ended = self.ends, NOBODY
        if ends and ends[0] <= this:
            ended = self._ending.pop(heappop(ends))
            if len(ended) > 1:
                ended.sort(key=by_seat)
            for request in ended:
                self._take_out(request)
        self.blocks_next = self._needing[this % self.block_size]
        return ended

    def leave(self, request: Request) -> None:
        """Let a member go before its end."""
        last_round = request.joined_round + request.max_tokens - request.num_tokens + request.num_prompt_tokens
        others = self._ending[last_round]
        others.remove(request)
        if not others:
            del self._ending[last_round]
            self.ends.remove(last_round)
            heapify(self.ends)
        self._take_out(request)
        self.blocks_next = self._needing[self.round % self.block_size]

    def members(self) -> list[Request]:
        """All of them, in no order."""
        return [request for ending in self._ending.values() for request in ending]

    def disband(self) -> list[Request]:
        """Let every member go, with its own numbers up to date; in order of admission."""
        members = sorted(self.members(), key=by_seat)
        for request in members:
            self._catch_up(request)
        self.size = self.context = self.blocks_next = self.in_window = self.num_growing = 0
        self._fills.clear()
        self._num_filling.clear()
        self._needing = [0] * self.block_size
        self.ends.clear()
        self._ending.clear()
        return members

    def ahead_of(self, request: Request) -> tuple[int, int]:
        """Tokens computed, and tokens known, that a request's own numbers do not say yet."""
        if request.joined_round == OUTSIDE:
            return 0, 0
        num_rounds = self.round - request.joined_round
        return num_rounds + self.ahead[0], num_rounds + self.ahead[1]

    @property
    def rounds_left(self) -> int:
        """Rounds until the first member ends, `in_window` growing by as much in each; there must be a member.

        A window that is full after r rounds has grown in each of them, and not in the next: r + 1 rounds are alike.
        """
        left = self.ends[0] - self.round
        if not self.num_growing:
            return left
        while self._fills[0] not in self._num_filling:  # who was to fill it has left
            heappop(self._fills)
        return min(left, self._fills[0] - self.round + 1)

    def blocks_for(self, num_rounds: int) -> int:
        """KV blocks that the members need over the next rounds."""
        needing, block_size = self._needing, self.block_size
        first = self.round % block_size
        if first + num_rounds <= block_size:
            return sum(needing[first : first + num_rounds])
        last = first + num_rounds % block_size
        num_blocks = num_rounds // block_size * self.size + sum(needing[first:last])
        return num_blocks + sum(needing[: last - block_size]) if last > block_size else num_blocks

    def rounds_within(self, num_rounds: int, num_blocks: int) -> int:
        """How many rounds, `num_rounds` at most, can be had for `num_blocks` blocks."""
        if (num_rounds // self.block_size + 1) * self.size <= num_blocks:  # nobody needs more than that
            return num_rounds
        low, high = 0, num_rounds  # blocks_for(low) always fits
        while low < high:
            middle = (low + high + 1) // 2
            if self.blocks_for(middle) <= num_blocks:
                low = middle
            else:
                high = middle - 1
        return low

    def _take_out(self, request: Request) -> None:
        computed = self._catch_up(request)
        self.size -= 1
        self.context -= computed
        self._needing[(self.round - computed) % self.block_size] -= 1
        if self.window:
            self._close_window(computed)

    def _open_window(self, computed: int) -> None:
        """Of a new member."""
        if computed >= self.window:
            self.in_window += self.window
            return
        self.in_window += computed
        self.num_growing += 1
        fills = self.round + self.window - computed
        if fills not in self._num_filling:
            self._num_filling[fills] = 0
            heappush(self._fills, fills)
        self._num_filling[fills] += 1

    def _fill_windows(self, num_rounds: int) -> None:
        """The last rounds' tokens, but for those that came after a window was full."""
        self.in_window += num_rounds * self.num_growing
        fills = self._fills
        while fills and fills[0] <= self.round:
            filled = heappop(fills)
            num_filled = self._num_filling.pop(filled, 0)
            self.in_window -= num_filled * (self.round - filled)
            self.num_growing -= num_filled

    def _close_window(self, computed: int) -> None:
        """Of a member that goes."""
        if computed >= self.window:
            self.in_window -= self.window
            return
        self.in_window -= computed
        self.num_growing -= 1
        fills = self.round + self.window - computed
        self._num_filling[fills] -= 1
        if not self._num_filling[fills]:
            del self._num_filling[fills]

    def _catch_up(self, request: Request) -> int:
        num_rounds = self.round - request.joined_round
        request.num_computed_tokens = computed = request.num_computed_tokens + num_rounds
        request.num_tokens += num_rounds
        request.joined_round = OUTSIDE
        return computed


def by_seat(request: Request) -> int:
    """Requests sorted by this are in order of admission."""
    return request.seat
