r"""The scheduler class that writes down every step of a live vLLM server, and changes none of its decisions.

    SIMBATCH_RECORD=steps.jsonl vllm serve MODEL --scheduler-cls simbatch.vllm_recorder.RecordingScheduler

What it writes stands in `simbatch.serving.recording`; `simbatch.profiler.fit.recorder.moments` reads it. vLLM's
inside is no public interface: importing this raises UserError on a version that it was not written for.
"""

from __future__ import annotations

from simbatch.profiler.server.start import require_vllm

require_vllm()

from simbatch.serving.recorder import RecordingScheduler  # noqa: E402

__all__ = ["RecordingScheduler"]
