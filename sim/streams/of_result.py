"""A benchmark's run as described streams, or why it has none."""

from __future__ import annotations

import numpy as np

from simbatch.sim.errors import UserError
from simbatch.sim.streams.described import Described
from simbatch.sim.streams.streams import Streams
from simbatch.sim.workload.bench import BenchRun, BenchTotals
from simbatch.sim.workload.bench.sending import sending_of


def described_result(run: BenchRun | BenchTotals) -> Described | str:
    """Its streams' figures, or in a sentence what the file lacks for them."""
    if isinstance(run, BenchTotals):
        return "the file has a run's totals alone"
    if run.gaps_s is None or run.ttft_s is None:
        return str(run.untold.get("itl") or run.untold.get("ttft"))
    try:
        sending = sending_of(run)
    except UserError as error:
        return error.problems[0].rule
    got = np.flatnonzero((run.error == "") & (run.num_output_tokens > 0))
    if not len(got):
        return "no request of it got a token"
    columns = (run.num_prompt_tokens[got], run.num_output_tokens[got])
    streams = Streams.of(sending.sent_s[got], run.ttft_s[got], run.gaps_s[got], *columns, sending.max_concurrency)
    return Described.of(streams, len(run) - len(got))
