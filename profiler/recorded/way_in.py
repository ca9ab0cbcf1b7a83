"""How long requests take from the API server's stamp to the engine's queue.

The engine's thread looks into its queue before every schedule(). So a request came between the look before and the one
that took it in; where the thread waited for requests, it came just then.
"""

from __future__ import annotations

import numpy as np

from simbatch.profiler.calibrating.way_in import Bounds, WayIn, fit_bounds
from simbatch.profiler.fitting.recorded_steps import RecordedRequest
from simbatch.profiler.recorded.moments import Moments

MOST_S = 60.0  # of a stamp before the engine: else the clocks were set, or a client sent its own


def fit_recorded_way_in(runs: list[tuple[Moments, list[RecordedRequest]]]) -> WayIn | None:
    """The front end's figures before the engine; None where no stamp is there."""
    bounds = [found for moments, requests in runs if (found := _bounds(moments, requests)) is not None]
    if not bounds:
        return None
    return fit_bounds(bounds, 0.0, 0.0)


def _bounds(run: Moments, requests: list[RecordedRequest]) -> Bounds | None:
    stamped = [each for each in requests if 0 <= each.begin_s - each.arrival_s <= MOST_S]  # NaN is neither
    stamped.sort(key=lambda each: each.arrival_s)
    if not stamped:
        return None
    sent_s = np.array([each.arrival_s for each in stamped])
    begin_s = np.array([each.begin_s for each in stamped])
    prompt = np.array([each.num_prompt_tokens for each in stamped], dtype=np.float64)
    step = np.searchsorted(run.schedule_s, begin_s)  # that was scheduled next
    inside = np.flatnonzero((step > 0) & (step < len(run)))
    k = step[inside]
    high = begin_s[inside] - sent_s[inside]
    looked = run.schedule_s[k - 1] - sent_s[inside]
    low = np.where(run.is_idle[k], high, np.minimum(looked, high))
    num_chunks = run.steps.num_decodes + run.steps.num_prefills
    return Bounds(sent_s, prompt, run.updated_s, num_chunks.astype(np.float64), inside, low, high)
