"""All requests that decode, taken together: what a step needs to know of them is counted, never looped over."""

from __future__ import annotations

import heapq
from typing import Final

from simbatch.sim.scheduler.request import Request

NOBODY: list[Request] = []
OUTSIDE: Final = -1  # a request's `joined_round` when it is in no group


class DecodeGroup:
    """Requests that get one token in every step, or round.

    A member's own numbers stand still while it is in the group: it has `round - joined_round` more computed tokens than
    it says. `context` is the sum of computed tokens over all members.
    """

    def __init__(self, block_size: int) -> None:
        self.round = 0
        self.ahead = (0, 0)  # tokens computed, and known, by the step that is being planned
        self.size = 0
        self.context = 0
        self.blocks_next = 0  # KV blocks that the members need in the next round
        self.block_size = block_size
        self._needing = [0] * block_size  # how many members need a block in rounds r with r % block_size == index
        self._ends: list[tuple[int, int, Request]] = []  # heap of (round of the last token, seat, member)

    def join(self, request: Request) -> None:
        """Take in a request that wants one token a round from now on."""
        computed = request.num_computed_tokens
        request.joined_round = self.round
        self.size += 1
        self.context += computed
        if not computed % self.block_size:
            self.blocks_next += 1
        self._needing[(self.round - computed) % self.block_size] += 1
        last_round = self.round + request.max_tokens - request.num_tokens + request.num_prompt_tokens
        heapq.heappush(self._ends, (last_round, request.seat, request))

    def advance(self, num_rounds: int) -> list[Request]:
        """Every member gets that many tokens; returns those whose last one that was, in order of admission."""
        self.round += num_rounds
        self.context += num_rounds * self.size
        ends = self._ends
        if not ends or ends[0][0] > self.round:
            self.blocks_next = self._needing[self.round % self.block_size]
            return NOBODY
        ended = []
        while ends and ends[0][0] == self.round:
            request = heapq.heappop(ends)[2]
            self._take_out(request)
            ended.append(request)
            while ends and not is_member(ends[0]):
                heapq.heappop(ends)
        self.blocks_next = self._needing[self.round % self.block_size]
        return ended

    def leave(self, request: Request) -> None:
        """Let a member go before its end."""
        self._take_out(request)
        self.blocks_next = self._needing[self.round % self.block_size]
        while self._ends and not is_member(self._ends[0]):
            heapq.heappop(self._ends)

    def members(self) -> list[Request]:
        """All of them, in no order."""
        return [entry[2] for entry in self._ends if is_member(entry)]

    def disband(self) -> list[Request]:
        """Let every member go, with its own numbers up to date; in order of admission."""
        members = sorted(self.members(), key=lambda request: request.seat)
        for request in members:
            self._catch_up(request)
        self.size = self.context = self.blocks_next = 0
        self._needing = [0] * self.block_size
        self._ends.clear()
        return members

    def ahead_of(self, request: Request) -> tuple[int, int]:
        """Tokens computed, and tokens known, that a request's own numbers do not say yet."""
        if request.joined_round == OUTSIDE:
            return 0, 0
        num_rounds = self.round - request.joined_round
        return num_rounds + self.ahead[0], num_rounds + self.ahead[1]

    @property
    def rounds_left(self) -> int:
        """Rounds until the first member ends; the group must not be empty."""
        return self._ends[0][0] - self.round

    def blocks_for(self, num_rounds: int) -> int:
        """KV blocks that the members need over the next rounds."""
        needing, first = self._needing, self.round % self.block_size
        if first + num_rounds <= self.block_size:
            return sum(needing[first : first + num_rounds])
        whole, rest = divmod(num_rounds, self.block_size)
        num_blocks = whole * self.size + sum(needing[first : first + rest])
        over = first + rest - self.block_size
        return num_blocks + sum(needing[:over]) if over > 0 else num_blocks

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
        self._catch_up(request)
        self.size -= 1
        self.context -= request.num_computed_tokens
        self._needing[(self.round - request.num_computed_tokens) % self.block_size] -= 1

    def _catch_up(self, request: Request) -> None:
        num_rounds = self.round - request.joined_round
        request.num_computed_tokens += num_rounds
        request.num_tokens += num_rounds
        request.joined_round = OUTSIDE


def is_member(entry: tuple[int, int, Request]) -> bool:
    """Whether an entry of the heap still holds: its request may have left, and come back under another seat."""
    return entry[2].joined_round != OUTSIDE and entry[2].seat == entry[1]
