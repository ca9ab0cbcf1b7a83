"""What rebuilt steps say: whether they can be believed, what is odd about the streams, and what each step computed.

Decodes and their context are known, and which step ends a prompt. What of a prompt does not fit into that step's token
budget was computed in the step before (running requests come first, then prompts in the order in which they end), and
where nobody decoded then, in steps that cannot be seen. A prompt that is begun fills what is left of its step's budget,
as vLLM does; so did one that had come in time for the step before, and is longer than the room that was left there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simbatch.sim.streams import Ints, RebuiltSteps, rebuild_steps

FEW_REQUESTS = 8
REGULAR = 0.8  # of the requests that have all their chunks: as many must keep step with the others
WHOLE = 0.25  # of the requests must have all their chunks, so that every step is told by somebody
MISSING_WARN, MISSING_REFUSE = 0.005, 0.02  # of the tokens: a client that reads two at once, or odd characters
SPECULATES = 1.1  # tokens a chunk: several come out of one step
BLURRED = 0.3  # of a gap: what the client takes to read one step's chunks
FAILED = 0.02
BUDGETS = tuple(2**k for k in range(8, 19))
SUMS = ("num_prefills", "prefill_tokens", "prefill_context", "prefill_attention")
QUICK = 0.1  # of the requests
CONTRADICTS, FULL = 0.001, 0.05  # shares of all prompt tokens
NEARLY, FULL_STEPS = 0.95, 20


@dataclass(frozen=True)
class Judgement:
    """Figures of streams, and what follows: `refusals` is empty where their steps can be believed."""

    num_requests: int
    num_failed: int
    num_steps: int
    tokens_per_chunk: float
    share_missing: float  # of the chunks, where fewer than tokens
    share_whole: float  # of the requests: as many chunks as tokens
    share_regular: float  # of these: they keep step with the others
    chunk_s: float  # between two chunks of one step, at the client
    share_of_gap: float  # what a step's chunks take of the time between two steps
    num_engines: int  # 2: those that do not keep step with the others do so among themselves
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def judge(steps: RebuiltSteps, num_failed: int = 0) -> Judgement:
    """Look at a run's streams; requests that failed are not among them."""
    streams = steps.streams
    num_tokens, num_chunks = int(streams.num_output_tokens.sum()), len(streams.time_s)
    is_whole = streams.number == streams.num_output_tokens
    gaps_s = streams.gaps_s
    chunk_s = _chunk_s(steps)
    median_s = float(np.median(gaps_s)) if len(gaps_s) else 0.0
    share_regular = float(steps.is_regular[is_whole].mean()) if is_whole.any() else 0.0
    found = Judgement(
        num_requests=len(streams),
        num_failed=num_failed,
        num_steps=len(steps),
        tokens_per_chunk=num_tokens / max(1, num_chunks),
        share_missing=max(0.0, 1 - num_chunks / max(1, num_tokens)),
        share_whole=float(is_whole.mean()) if len(streams) else 0.0,
        share_regular=share_regular,
        chunk_s=chunk_s,
        share_of_gap=chunk_s * float(np.median(steps.num_seen)) / median_s if median_s else 0.0,
        num_engines=2 if share_regular < REGULAR and _is_second_engine(steps, is_whole) else 1,
    )
    return Judgement(**{**vars(found), "refusals": tuple(_refusals(found)), "warnings": tuple(_warnings(found))})


def _chunk_s(steps: RebuiltSteps) -> float:
    several = steps.num_seen > 1
    if not several.any():
        return 0.0
    return float(np.median((steps.end_s - steps.begin_s)[several] / (steps.num_seen[several] - 1)))


def _is_second_engine(steps: RebuiltSteps, is_whole: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> bool:
    others = is_whole & ~steps.is_regular
    if others.sum() < FEW_REQUESTS:
        return False
    return float(rebuild_steps(steps.streams.take(others)).is_regular.mean()) >= REGULAR


def _refusals(found: Judgement) -> list[str]:
    if found.num_requests < FEW_REQUESTS:
        return [f"{found.num_requests} requests with tokens are too few: {FEW_REQUESTS} at least"]
    all_requests = found.num_requests + found.num_failed
    reasons = []
    if found.num_failed > FAILED * all_requests:
        reasons.append(f"{found.num_failed} of {all_requests} requests failed: what they took of the server is unknown")
    if found.tokens_per_chunk > SPECULATES:
        reasons.append(
            f"a chunk has {found.tokens_per_chunk:.2f} tokens on average, so that one step gives several "
            "(speculative decoding, or several steps a schedule): a chunk is no step's"
        )
    elif found.share_missing > MISSING_REFUSE:
        reasons.append(
            f"{found.share_missing:.1%} of the tokens have no chunk of their own: server or client fell behind and put "
            "several into one; give them more cores, or less concurrency"
        )
    elif found.share_whole < WHOLE:
        reasons.append(
            f"only {found.share_whole:.0%} of the requests have a chunk for each token: the client read several at "
            "once because it fell behind; run it on a faster machine, or with less concurrency"
        )
    elif found.share_regular < REGULAR:
        kept = f"only {found.share_regular:.0%} of the requests get a token in every step of the others"
        if found.num_engines > 1:
            reasons.append(f"{kept}, and the rest keep step among themselves: several engines behind one port")
        else:
            reasons.append(
                f"{kept}: several engines behind one port, chunks that were split or collected on their way, several "
                "steps a schedule, or preemptions"
            )
    return reasons


def _warnings(found: Judgement) -> list[str]:
    told = []
    if found.num_failed:
        told.append(f"{found.num_failed} requests failed, and are left out")
    if MISSING_WARN < found.share_missing <= MISSING_REFUSE:
        told.append(f"{found.share_missing:.1%} of the tokens have no chunk of their own")
    if found.share_of_gap > BLURRED:
        told.append(
            f"sending and reading a step's chunks ({1e6 * found.chunk_s:.0f} µs each) takes {found.share_of_gap:.0%} "
            "of the time between two steps: the streams, not the engine, may set the pace"
        )
    return told


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
