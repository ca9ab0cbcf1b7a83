"""One measurement on a running engine: warm-up, canaries, episodes; every step that was warm becomes a sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from simbatch.profiler.fitting.samples import Admission, StepSample
from simbatch.profiler.measuring.design import DENSE, MIN_CONTEXT, Episode, Injection, Limits, stream_tokens
from simbatch.profiler.measuring.vllm_engine import RecordedStep, VllmEngine

CANARY_REPEATS = 9
CANARY_BATCH, CANARY_CONTEXT, CANARY_PREFILL = 8, 256, 256
VISITS = 2  # of each batch size in the warm-up
# Every count is visited up to this one, or to where steps last so long that a first visit's few ms are a small share.
EVERY, LONG_S = 512, 0.05
IDLE_S = 0.05  # before a prompt that comes alone: in traffic nothing ran then, and a CPU's first step is slower


class Session:
    """Runs what a design says on `engine`; `on_admission` gets the cost of every request but the first ones."""

    def __init__(self, engine: VllmEngine, seed: int, on_admission: Callable[[Admission], None]) -> None:
        self.engine, self.seed, self.limits = engine, seed, Limits.of(engine.facts)
        self._on_admission = on_admission
        self._rng = np.random.default_rng(seed)
        self._vocab_size = engine.vocab_size
        self._steps: list[RecordedStep] = []
        self._cold: set[int] = set()  # indices in _steps
        self._visited: set[tuple[str, int]] = set()
        self._num_added = 0
        self._is_warm = self._has_stepped = False
        engine.on_step = self._saw

    def warm_up(self, tell: Callable[[int, int], None]) -> None:
        """Visit every token count and batch size that episodes use: a first visit is slow, on a CPU half as long again.

        Some counts show first how long steps last; those that are short are all visited, and become the `warm` ones.
        `tell` gets how many are done, and of how many at most.
        """
        some, short = self.limits.warm_tokens, [DENSE]
        self._limit(EVERY)
        for done, count in enumerate(some, 1):
            self._compute(count)
            if count <= EVERY and self._steps[-1].duration_s < LONG_S:
                short.append(count)
            tell(done, self._num_sizes)
        self._limit(max(short))
        for done, count in enumerate(sorted(set(self.limits.warm_tokens).difference(some)), len(some) + 1):
            self._compute(count)
            tell(done, self._num_sizes)
        self._visit_decodes(lambda done: tell(done, self._num_sizes))
        self._is_warm = True

    def _limit(self, dense: int) -> None:
        self.limits = replace(self.limits, dense=dense)

    @property
    def _num_sizes(self) -> int:
        return len(self.limits.warm_tokens) + len(self.limits.warm_decodes)

    def _visit_decodes(self, tell: Callable[[int], None]) -> None:
        """Every batch size, from the largest down; `tell` gets how many sizes are done, those of tokens with them."""
        decodes = self.limits.warm_decodes
        prompt_len = max(1, min(MIN_CONTEXT, self._longest - VISITS * len(decodes) - 8))
        ids = [self._add(self.fresh(prompt_len), self._longest - prompt_len) for _ in range(max(decodes))]
        self._build(ids, len(ids))
        for done, count in enumerate(reversed(decodes), len(self.limits.warm_tokens) + 1):
            self.engine.abort(ids[count:])
            for _ in range(VISITS):
                self.engine.step()
            tell(done)
        self._clear(ids)

    def canary(self) -> list[StepSample]:
        """The same decodes and the same prefill, several times each."""
        batch = min(CANARY_BATCH, self.limits.largest_batch)
        context = max(1, min(CANARY_CONTEXT, self._longest - CANARY_REPEATS - 2))
        self._forget()
        ids = [self._add(self._stream(i, context), CANARY_REPEATS + 4) for i in range(batch)]
        self._build(ids, batch)
        for _ in range(CANARY_REPEATS):
            self.engine.step()
        self._clear(ids)
        decodes = [step for step in self._steps if _is_decode(step) and len(step.entries) == batch]
        self._forget()
        chunk = max(n for n in self.limits.warm_tokens if n <= min(CANARY_PREFILL, self._longest))
        for _ in range(CANARY_REPEATS):
            self._compute(chunk)
        return [_sample(step, 0, is_canary=True) for step in decodes[-CANARY_REPEATS:] + self._steps]

    def run(self, episode: Episode) -> list[StepSample]:
        """Do an episode; returns its steps, those left out that came upon a token count or batch size first."""
        self._forget()
        ids = [self._add(self._stream(i, context), episode.num_steps) for i, context in enumerate(episode.contexts)]
        if self.engine.facts.enable_prefix_caching:
            histories = [part for part in episode.injections if part.history]
            ids += [self._add(self._stream(part.stream, part.history), 1) for part in histories]
        self._build(ids, episode.num_decodes)
        for _ in range(episode.num_decode_steps):
            self.engine.step()
        for _ in range(episode.num_repeats if episode.injections else 0):
            self._inject(episode)
        self._clear(ids)
        warm = [step for i, step in enumerate(self._steps) if i not in self._cold]
        return [_sample(step, episode.index, is_canary=False) for step in warm]

    @contextmanager
    def recorded(self) -> Iterator[list[RecordedStep]]:
        """The steps that the engine does inside the block."""
        self._forget()
        steps: list[RecordedStep] = []
        yield steps
        steps += self._steps

    @property
    def met_new(self) -> bool:
        """Whether one of the last steps had a token count or a batch size that had not been met before."""
        return bool(self._cold)

    def _inject(self, episode: Episode) -> None:
        engine, most = self.engine, self.limits.max_num_batched_tokens
        if not episode.contexts:
            time.sleep(IDLE_S)
        ids = []
        for part in episode.injections:
            ids.append(self._add(self._prompt(part), min(len(episode.budgets) + 4, self._room(part))))
            if part.history and not engine.facts.enable_prefix_caching:
                self._catch_up(ids[-1], part.history, episode.num_decodes)
        for budget in episode.budgets:
            engine.token_budget = budget
            engine.step()
        engine.token_budget = most
        engine.abort(ids)

    def _catch_up(self, request_id: str, history: int, num_decodes: int) -> None:
        """Compute the history where no cache gives it, to the token."""
        most, left = self.limits.max_num_batched_tokens, history
        while left > 0 and most > num_decodes:
            self.engine.token_budget = min(most, num_decodes + left)
            self.engine.step()
            left -= self.engine.token_budget - num_decodes

    def _compute(self, num_tokens: int) -> None:
        """One step of prompts with so many tokens."""
        parts = [self._longest] * (num_tokens // self._longest) + [num_tokens % self._longest]
        for part in filter(None, parts):
            self._add(self.fresh(part), 1)
        self.engine.drain()

    def _build(self, ids: Sequence[str], num_decodes: int) -> None:
        """Step until the batch is what it should be: its decodes, and nothing else."""
        capacity = self.limits.num_blocks * self.limits.block_size
        for _ in range(4 * (len(ids) + capacity // self.limits.max_num_batched_tokens)):  # memory may not suffice
            if not self.engine.has_unfinished():
                return
            self.engine.step()
            last = self._steps[-1].entries if self._steps else ()
            if num_decodes == len(last) and all(entry.is_decode for _, entry in last):
                return

    def _clear(self, ids: Sequence[str]) -> None:
        self.engine.abort(ids)
        self.engine.drain()

    def _forget(self) -> None:
        self._steps.clear()
        self._cold.clear()

    def _saw(self, step: RecordedStep) -> None:
        counts = {("tokens", sum(entry.num_tokens for _, entry in step.entries)), ("sequences", len(step.entries))}
        if not counts <= self._visited:
            self._cold.add(len(self._steps))
        self._visited |= counts
        self._has_stepped = True
        self._steps.append(step)

    def _add(self, prompt: list[int], max_tokens: int) -> str:
        request_id = f"r{self._num_added}"
        self._num_added += 1
        duration_s = self.engine.add_request(request_id, prompt, max(1, max_tokens))
        # the next one of a row finds all in the CPU's caches and takes a third of the time: arrivals come one by one
        if self._is_warm and self._has_stepped:
            self._on_admission(Admission(duration_s, len(prompt)))
        self._has_stepped = False
        return request_id

    @property
    def _longest(self) -> int:
        """A prompt that leaves room for one token, and fits into memory."""
        return min(self.limits.max_model_len, self.limits.num_blocks * self.limits.block_size) - 1

    def _room(self, part: Injection) -> int:
        return self.limits.max_model_len - part.history - part.num_tokens

    def _prompt(self, part: Injection) -> list[int]:
        return self._stream(part.stream, part.history) + self.fresh(part.num_tokens)

    def _stream(self, stream: int, length: int) -> list[int]:
        # one series of numbers for all; streams before zero give histories
        return stream_tokens(stream % 2**32, length, self._vocab_size, self.seed)

    def fresh(self, length: int) -> list[int]:
        """Tokens that no prompt before had."""
        return list(map(int, self._rng.integers(0, self._vocab_size, size=length)))


def _sample(step: RecordedStep, episode: int, *, is_canary: bool) -> StepSample:
    return StepSample(episode, is_canary, step.duration_s, tuple(entry for _, entry in step.entries))


def _is_decode(step: RecordedStep) -> bool:
    return all(entry.is_decode for _, entry in step.entries)
