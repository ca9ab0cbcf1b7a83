"""From a source of measurements to a whole profile: fit, held-out error, memory, range, provenance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simbatch.profiler.importers import aiconfigurator, core_package, llmservingsim
from simbatch.profiler.importers.memory import memory_of_plan, memory_of_run, read_run_facts
from simbatch.profiler.importers.source import ImportRequest, TableSource
from simbatch.sim.cost.gpus import profile_name
from simbatch.sim.cost.host_section import FrontEndSection, HostSection
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

# Host and front end, of which kernel tables say nothing. They rest on the published streams of vLLM on 8 x H100
# (Scicom-AI-Enterprise-Organization/llm-benchmaq, MIT), with which decodes that nothing else explains last 3.8 ms at
# least, and a request takes 10 to 15 ms to come in; and on stages of requests that others published (some 8 ms a
# request on H100, A100 and L40S; floors of a step that grow by 0.6 ms on four GPUs and by 1.1 ms on eight). They are
# rounded, and no launch is drawn. A virtual machine of 16 cores was twice as slow (docs/accuracy.md).
GRAPH_S = 0.0027  # to launch a whole step on one GPU
GRAPH_MORE_S = {1: 0.0, 2: 0.0003, 4: 0.0006, 8: 0.0011}  # GPUs; between them the next larger one's
NONE_S, PIECEWISE_S, PREFILL_S = 0.012, 0.008, 0.001
FRONT_END = {"per_request_s": 0.0002, "per_prompt_token_s": 1e-6, "per_chunk_s": 3e-5, "network_s": 0.014}
HOST_SOURCE = (
    "assumed, not measured with this model on this GPU: what published streams of vLLM on 8 x H100 in 2026 take "
    "(Scicom-AI-Enterprise-Organization/llm-benchmaq, MIT), rounded; floors of a step on several GPUs: published stages"
)
FRONT_END_SOURCE = (
    "assumed, not measured on this server: what requests take to come in at published servers of 8 x H100 in 2026 "
    "(Scicom-AI-Enterprise-Organization/llm-benchmaq, MIT), rounded; published stages say some 8 ms a request"
)


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


def assumed_sections(tensor_parallel_size: int) -> dict[str, Any]:
    """`host` and `front_end` for a server of so many GPUs."""
    more_s = next((value for size, value in GRAPH_MORE_S.items() if size >= tensor_parallel_size), GRAPH_MORE_S[8])
    launch = {
        "graph": {"base_s": round(GRAPH_S + more_s, 6)},
        "piecewise": {"base_s": PIECEWISE_S, "per_prefill_s": PREFILL_S},
        "none": {"base_s": NONE_S, "per_prefill_s": PREFILL_S},
    }
    return {
        "host": HostSection.model_validate({"source": HOST_SOURCE, "assumed": True, "launch": launch}),
        "front_end": FrontEndSection.model_validate({"source": FRONT_END_SOURCE, "assumed": True, **FRONT_END}),
    }
