"""How near a run's traffic is to what its engines can do at all: a mean-field estimate from the means of its requests.

In the steady state of a full batch of B requests with O output tokens each, B / O of them end in a step and as many
come in, so the step holds B decodes and the prompts of B / O requests. The capacity is B / O over how long that step
lasts. Long outputs are in the batch for longer: a decode has E[O^2] / 2 E[O] tokens of output behind it on average.
With fewer than one prompt a step, that share of the steps has one, and the others decode alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.model import step_ps_alike
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.scenario import Resolved

HIGH = 0.8
SENTENCE = (
    "The load is about {share:.0%} of what the engines can do: steps a few per cent slower than the profile's are then "
    "tens of per cent of a latency. --bands says how many."
)


def load_lines(resolved: Resolved, record: RunRecord) -> Iterator[str]:
    """What to know where the load is high."""
    share = load_share(resolved, record)
    if share is not None and share > HIGH:
        yield SENTENCE.format(share=share)


def load_share(resolved: Resolved, record: RunRecord) -> float | None:
    """Requests that were sent over those that can be served, per second; None where nothing says how fast they come."""
    requests = record.requests
    served = requests.num_output_tokens > 0
    span_s = float(requests.arrival_ps.max() - requests.arrival_ps.min()) / PS_PER_S if len(requests) > 1 else 0.0
    workload = resolved.scenario.workload
    users = workload.sessions.concurrency if workload.sessions else workload.max_concurrency
    if span_s == 0 or not served.any() or users is not None:
        return None
    prompt, outputs = float(requests.num_prompt_tokens[served].mean()), requests.num_output_tokens[served].astype(float)
    output = float(outputs.mean())
    context = prompt + float((outputs**2).mean()) / output / 2
    computed = prompt - float(requests.num_cached_tokens[served].mean())
    groups = [(resolved, 1)] if resolved.fleet is None else [(g.resolved, g.replicas) for g in resolved.fleet.groups]
    capacity = sum(count * capacity_of(one, context, max(computed, 1.0), output) for one, count in groups)
    return (len(requests) - 1) / span_s / capacity


def capacity_of(resolved: Resolved, context: float, computed: float, output: float) -> float:
    """Requests per second of one engine whose batch is full: a decode's mean context, a prompt's tokens not cached."""
    engine, cost = resolved.engine, resolved.cost_model()
    batch = max(1, min(engine.max_num_seqs, int((engine.num_gpu_blocks - 1) * engine.block_size / context)))
    contexts, prompts = round(batch * context), batch / output
    decode_ps = step_ps_alike(cost, batch, contexts)
    room = max(1, min(round(max(1.0, prompts) * computed), engine.max_num_batched_tokens - batch))
    mixed_ps = step_ps_alike(cost, batch, contexts, room, room, room * room)
    mixed = prompts * computed / room  # steps with prompts for each step of decodes; above 1 prompts hold decodes up
    step_ps = mixed * mixed_ps + max(0.0, 1 - mixed) * decode_ps
    return prompts / (step_ps / PS_PER_S)
