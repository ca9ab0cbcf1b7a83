"""Host and front end of a profile that is imported or estimated: tables and datasheets say nothing of them.

They rest on the published streams of vLLM on 8 x H100
(Scicom-AI-Enterprise-Organization/llm-benchmaq, MIT), with which decodes that nothing else explains last 3.8 ms at
least, and a request takes 10 to 15 ms to come in; and on stages of requests that others published (some 8 ms a
request on H100, A100 and L40S; floors of a step that grow by 0.6 ms on four GPUs and by 1.1 ms on eight). They are
rounded, and no launch is drawn. A virtual machine of 16 cores was twice as slow (docs/accuracy.md).
"""

from __future__ import annotations

from typing import Any

from simbatch.sim.cost.host_section import FrontEndSection, HostSection

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
