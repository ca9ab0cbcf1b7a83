"""When steps may be leapt over: one table.

| what | then | because |
|---|---|---|
| somebody listens (`explain`, parity) | every step is done | each is told |
| the policy plans every step | every step is done | it sees every step |
| host or front end take time, beside other processes | every step is done | what those see must be of its time |
| no chunked prefill, a policy asked on changes | every step is done | an end lets a longer prompt in before its seat |
| blocks run out, the victim is not the last admitted | that step is done | the loop over running requests decides |
| several prefills under way, and not all fit the budget | that step is done | who gets how much hangs on the order |
| noise of the device, or launches of decodes that are drawn | spans of one step | each has a time of its own |
| last tokens in flight, and somebody waits, or sends at an end | a span of one step | a seat is free after it |
| an arrival | the span ends with the first step that may see it | it may be admitted |
| a decode's last token, blocks running out | the span ends there | the batch changes |
| the front end is not done with the chunks of the step before | steps are done one by one | they leave in a line |
| another term (device, host, lag) sets the pace | the leap goes on under it | a closed form holds under one term |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simbatch.sim.engine.gathered import Gathered
    from simbatch.sim.engine.replica import Replica


def may_leap(replica: Replica) -> bool:
    """Whether anything may ever be leapt over in this run."""
    decisions = replica.decisions
    refuses_chunks = not replica.config.enable_chunked_prefill
    return replica.listener is None and not (decisions.plans or (refuses_chunks and decisions.asked_on_change))


def needs_stepping(gathered: Gathered) -> bool:
    """Whether the next step needs a loop over the running requests; if not, there is room for it now."""
    replica, group, partials = gathered.replica, gathered.group, gathered.partials
    kv, config, decides_budget = replica.kv, replica.config, replica.decisions.decides_budget
    if not partials:
        return group.blocks_next > kv.free and not gathered.make_room(0)
    is_in_mid = len(partials) > 1 or replica.scheduler.running[-1] is not partials[0]
    if decides_budget and is_in_mid:
        return True
    budget = config.max_num_batched_tokens - group.size
    if config.long_prefill_token_threshold or budget < 0:
        return True
    wanted = sum(request.num_tokens - request.num_computed_tokens for request in partials)
    if wanted > budget and is_in_mid:
        return True
    num_blocks = 0
    for request in partials:
        total = request.num_computed_tokens + min(request.num_tokens - request.num_computed_tokens, budget)
        num_blocks += kv.blocks(total) - kv.blocks(request.num_computed_tokens)
    is_short = group.blocks_next + num_blocks > kv.free  # at most: the policy's budget is not asked for yet
    return is_short and (decides_budget or not gathered.make_room(num_blocks))
