"""What each rebuilt step computed: decodes and their context, and the chunks of prompts that the token budget allows.

The step that ends a prompt is known. What does not fit into it was computed in the step before (running requests come
first, then prompts in the order in which they end), and where nobody decoded then, in steps that cannot be seen. A
prompt that is begun fills what is left of its step's budget, as vLLM does; so did one that had come in time for the
step before, and is longer than the room that was left there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simbatch.sim.streams import Ints, RebuiltSteps

BUDGETS = tuple(2**k for k in range(8, 19))
SUMS = ("num_prefills", "prefill_tokens", "prefill_context", "prefill_attention")
QUICK = 0.1  # of the requests
CONTRADICTS, FULL = 0.001, 0.05  # shares of all prompt tokens
NEARLY, FULL_STEPS = 0.95, 20


@dataclass(frozen=True)
class StepBatches:
    """One entry a step, in tokens; a prefill schedules q tokens after h computed ones."""

    max_num_batched_tokens: int
    num_decodes: Ints
    decode_context: Ints
    num_prefills: Ints
    prefill_tokens: Ints  # sum of q
    prefill_context: Ints  # sum of h + q
    prefill_attention: Ints  # sum of q * (2h + q)
    num_hidden: Ints  # steps before this one that nobody saw; their tokens are counted here
    begun: Ints  # by request: the step of its first chunk
    unplaced_tokens: int  # of prompts that were sent too late to be computed within the budget

    def __len__(self) -> int:
        return len(self.num_decodes)


def batches_of(steps: RebuiltSteps, max_num_batched_tokens: int) -> StepBatches:
    """Lay the prompts into the steps under a token budget."""
    return _Placing(steps, max_num_batched_tokens).batches()


def infer_budget(runs: Sequence[RebuiltSteps]) -> tuple[int, bool]:
    """The smallest token budget that no run contradicts, and whether steps were seen to be full under it.

    Against a budget speak tokens that do not fit where they must. It was full if steps held nearly as much, and twice
    as much would have left room beside prompts that waited.
    """
    total = sum(int(steps.streams.num_prompt_tokens.sum()) for steps in runs)
    for budget in BUDGETS:
        if all(steps.num_decodes.max(initial=0) < budget for steps in runs):
            unplaced = sum(batches_of(steps, budget).unplaced_tokens for steps in runs)
            if unplaced <= CONTRADICTS * total:
                break
    room = sum(_room_left(steps, batches_of(steps, 2 * budget)) for steps in runs)
    return budget, room > FULL * total and _num_full(runs, budget) >= FULL_STEPS


def _num_full(runs: Sequence[RebuiltSteps], budget: int) -> int:
    laid = [batches_of(steps, budget) for steps in runs]
    return sum(int((each.prefill_tokens + each.num_decodes >= NEARLY * budget).sum()) for each in laid)


def _room_left(steps: RebuiltSteps, batches: StepBatches) -> int:
    """Tokens that full steps would have had more, in all steps that were followed by one whose prompts waited."""
    streams = steps.streams
    quickest_s = float((streams.first_s - streams.sent_s).min())
    sent_s = np.full(len(steps), np.inf)  # of the first sent of the prompts that are begun in each step
    np.minimum.at(sent_s, batches.begun, streams.sent_s)
    schedule_s = np.concatenate([[-np.inf, -np.inf], steps.begin_s[:-2]]) - quickest_s
    waited = np.append(sent_s[1:] < schedule_s[:-1], False) & (batches.prefill_tokens > 0)
    room = batches.max_num_batched_tokens * (1 + batches.num_hidden) - batches.prefill_tokens - batches.num_decodes
    return int(np.maximum(0, room)[waited].sum())


class _Placing:
    """Prompts on their way into steps."""

    def __init__(self, steps: RebuiltSteps, budget: int) -> None:
        self.steps, self.budget = steps, budget
        self.capacity = np.maximum(1, budget - steps.num_decodes)
        self.sums = np.zeros((len(SUMS), len(steps)), dtype=np.int64)
        self.num_hidden = np.zeros(len(steps), dtype=np.int64)
        self.begun = steps.first.copy()
        self.unplaced = 0

    def batches(self) -> StepBatches:
        steps = self.steps
        ending: dict[int, list[int]] = {}
        for i in np.lexsort((steps.streams.sent_s, steps.first)).tolist():
            ending.setdefault(int(steps.first[i]), []).append(i)
        before, arrives_s = self._to_do_before(ending), steps.streams.sent_s + self._quick_s()
        done = dict.fromkeys(range(len(steps.streams)), 0)
        for step in sorted(set(ending) | {step - 1 for step in before}):
            room = int(self.capacity[step])
            for i in ending.get(step, []):
                room -= self._compute(i, step, done, None)
            at = step + 1
            while before.get(at, 0) > 0 and room > 0:
                for i in ending.get(at, []):
                    room -= self._compute(i, step, done, room) if room > 0 else 0
                at += 1
            if at == step + 1 and room > 0 and step in ending and at in ending:
                i = ending[at][0]
                if arrives_s[i] <= steps.begin_s[max(0, step - 2)] and steps.streams.num_prompt_tokens[i] > room:
                    self._compute(i, step, done, room)
        return StepBatches(
            max_num_batched_tokens=self.budget,
            num_decodes=steps.num_decodes,
            decode_context=steps.decode_context,
            **dict(zip(SUMS, self.sums, strict=True)),
            num_hidden=self.num_hidden,
            begun=self.begun,
            unplaced_tokens=self.unplaced,
        )

    def _quick_s(self) -> float:
        """The way into a step of a quick request: from its sending until the step that ends its prompt was planned."""
        steps = self.steps
        late = steps.first >= 2
        if not late.any():
            return 0.0
        return float(np.quantile(steps.begin_s[steps.first[late] - 2] - steps.streams.sent_s[late], QUICK))

    def _to_do_before(self, ending: dict[int, list[int]]) -> dict[int, int]:
        """By step: tokens of prompts that end in it or later and must be computed before it.

        Only the first of the prompts that end in a step can have been begun before: another one would have ended there.
        """
        prompts, at = self.steps.streams.num_prompt_tokens, sorted(ending)
        before: dict[int, int] = {}
        while at:
            step, over = at.pop(), 0
            while True:
                requests = ending.get(step, [])
                over += int(prompts[requests].sum()) - int(self.capacity[step])
                if requests:
                    over = self._fitting(over, int(prompts[requests].max()) - 1)
                if over > 0 and self.steps.num_decodes[step] == 0:
                    self.num_hidden[step], over = -(-over // self.budget), 0
                elif over > 0 and requests and not self._was_sent(requests, step):
                    over = self._fitting(over, 0)
                if over <= 0:
                    break
                before[step] = over
                step -= 1
                if at and at[-1] == step:
                    at.pop()
        return before

    def _fitting(self, over: int, most: int) -> int:
        self.unplaced += max(0, over - most)
        return min(over, most)

    def _was_sent(self, requests: list[int], step: int) -> bool:
        """Whether any of the prompts had been sent when the step before was under way."""
        streams = self.steps.streams
        return step > 0 and float(streams.sent_s[requests].min()) < float(self.steps.begin_s[step - 1])

    def _compute(self, i: int, step: int, done: dict[int, int], most: int | None) -> int:
        """Schedule what is left of a prompt, at most so much; returns how many tokens that takes."""
        computed = done[i]
        num_tokens = int(self.steps.streams.num_prompt_tokens[i]) - computed
        if most is not None:
            num_tokens = min(num_tokens, most)
        if num_tokens <= 0:
            return 0
        self.begun[i] = min(self.begun[i], step)
        end = computed + num_tokens
        self.sums[:, step] += (1, num_tokens, end, num_tokens * (computed + end))
        done[i] = end
        return num_tokens
