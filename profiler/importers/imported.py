"""From a source of measurements to a whole profile: fit, held-out error, memory, range, provenance."""

from __future__ import annotations

from collections.abc import Callable

from simbatch.profiler.importers import aiconfigurator, core_package, llmservingsim
from simbatch.profiler.importers.memory import memory_of_plan, memory_of_run, read_run_facts
from simbatch.profiler.importers.source import ImportRequest, TableSource
from simbatch.profiler.model.assumed_host import assumed_sections
from simbatch.sim.cost.gpus import profile_name
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.errors import Problem, UserError

# Requests that share a prefix each read it, so contexts can add up to more than the cache holds. In a large cache
# nothing gets near that, and fitting for it costs accuracy where the batches are.
SHARED_CONTEXT = 2
MAX_SHARED_CONTEXT_TOKENS = 2**18
LINK_NOTE = (
    "all-reduce: computed, 2 a layer, for a PCIe link of {link}, with which a real server of two RTX PRO 6000 is met; "
    "boards with switches, or without peer-to-peer, differ by several times"
)
SOURCES: dict[str, Callable[[ImportRequest], TableSource]] = {
    "llmservingsim": llmservingsim.read_source,
    "aiconfigurator": aiconfigurator.read_source,
    "aiconfigurator-core": core_package.read_source,
}


def import_profile(request: ImportRequest) -> MeasuredProfile:
    """Fit a profile from measurements; a run's meta.json gives what its engine resolved at its start, no times.

    Raises UserError for missing or malformed files and for what cannot be imported.
    """
    degree = request.tensor_parallel_size
    if request.link is not None and degree == 1:
        raise UserError(Problem("--link-us", "one GPU needs no link", mend="leave it out"))
    facts = None if request.run_meta is None else read_run_facts(request.run_meta)
    source = SOURCES[request.source](request)
    notes = [] if source.link is None else [LINK_NOTE.format(link=source.link.text())]
    resolved = memory_of_plan(source, degree) if facts is None else memory_of_run(source, facts)
    step_time, error, measured = source.fit(context_tokens(resolved.kv_tokens))
    return MeasuredProfile(
        name=profile_name(source.gpu, source.model, source.quantisation, source.kv_cache_dtype, degree),
        model=source.model,
        gpu=source.gpu,
        quantisation=source.quantisation,
        kv_cache_dtype=source.kv_cache_dtype,
        tensor_parallel_size=degree,
        vllm_version=source.vllm_version,
        source=source.credit,
        licence=source.licence,
        command=request.command,
        max_model_len=resolved.max_model_len,
        notes=(*resolved.notes, *source.notes, *notes),
        memory=resolved.memory,
        link=source.link,
        step_time=step_time,
        error=error,
        range=measured,
        **assumed_sections(degree),
    )


def context_tokens(kv_tokens: int) -> int:
    """How many tokens of context a batch may have in all, for a cache of so many."""
    return max(kv_tokens, min(SHARED_CONTEXT * kv_tokens, MAX_SHARED_CONTEXT_TOKENS))
