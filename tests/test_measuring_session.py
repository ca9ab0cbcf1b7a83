"""The warm-up, on a stand-in whose steps are as long as a test says: the real ones are tried in tests/vllm."""

import pytest

from simbatch.profiler.fitting.samples import Entry
from simbatch.profiler.measuring.design import DENSE, Limits, draw
from simbatch.profiler.measuring.session import EVERY, LONG_S, Session
from simbatch.profiler.measuring.step_clock import RecordedStep
from tests.test_measuring import facts

FACTS = facts(max_num_seqs=40, max_num_batched_tokens=2048, num_gpu_blocks=10_000)


class StandIn:
    """Computes what fits into a step of `max_num_batched_tokens`, in so many seconds a token."""

    def __init__(self, token_s):
        self.facts, self.vocab_size, self.on_step = FACTS, 100, None
        self.token_s, self.requests = token_s, {}

    def add_request(self, request_id, prompt, max_tokens):
        self.requests[request_id] = [len(prompt), 0, max_tokens]  # prompt, computed, output tokens left
        return 1e-4

    def step(self):
        entries, budget = [], self.facts.max_num_batched_tokens
        for request_id, request in self.requests.items():
            prompt_len, computed, _ = request
            num_tokens = min(budget, max(1, prompt_len - computed))
            if num_tokens:
                entries.append((request_id, Entry(computed, num_tokens, computed >= prompt_len)))
                budget -= num_tokens
                request[1] += num_tokens
                request[2] -= request[1] >= prompt_len
        self.requests = {key: request for key, request in self.requests.items() if request[2] > 0}
        tokens = sum(entry.num_tokens for _, entry in entries)
        self.on_step(RecordedStep(0.0, tokens * self.token_s, tuple(entries), 0, len(self.requests), 0))
        return []

    def abort(self, request_ids):
        for request_id in request_ids:
            self.requests.pop(request_id, None)

    def has_unfinished(self):
        return bool(self.requests)

    def drain(self):
        while self.requests:
            self.step()


def warmed_up(token_s):
    told = []
    session = Session(StandIn(token_s), 0, lambda _: None)
    session.warm_up(lambda *progress: told.append(progress))
    return session, told


@pytest.mark.parametrize("longest", [EVERY, 223, DENSE])
def test_every_count_whose_step_is_short_becomes_warm(longest):
    session, told = warmed_up(token_s=0.99 * LONG_S / longest)
    limits = session.limits
    assert limits.warm_tokens[:longest] == tuple(range(1, longest + 1))
    assert limits.dense == longest
    assert set(Limits.of(FACTS).warm_tokens) <= set(limits.warm_tokens)
    assert limits.warm_tokens[-1] == 2048
    assert told[-1] == (len(limits.warm_tokens) + len(limits.warm_decodes),) * 2
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    totals = [total for _, total in told]
    assert totals == sorted(totals, reverse=True)  # at most, at first


def test_no_step_of_an_episode_is_new_after_the_warm_up():
    session, _ = warmed_up(token_s=1e-4)
    sizes = set()
    for index in range(40):
        episode = draw(session.limits, 0, index)
        assert session.run(episode)
        assert set(episode.budgets) <= set(session.limits.warm_tokens)
        sizes |= set(episode.budgets)
    assert len(sizes) > 60
