"""Traffic as users send it: streams at several rates, from which the front end is told (`simbatch fit` reads them).

One at a time, then Poisson arrivals at two rates that are five times apart, then cohorts that come at once. Rates are
shares of what the batch table says the server does. Each run is kept as `vllm bench serve --save-detailed` would.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.profiler.profile.design import WaveLimits
from simbatch.profiler.profile.session import GREEDY, MeasuringSession, Spans
from simbatch.profiler.records.requests import Requests
from simbatch.profiler.server.client import Client, ServerGoneError
from simbatch.profiler.server.http import now
from simbatch.profiler.server.result import ServedRun
from simbatch.profiler.server.server import Server
from simbatch.sim.clock import to_ps
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import write_all, write_json
from simbatch.sim.workload.chunk import RequestChunk

MEAN_PROMPT, MEAN_OUTPUT = 400, 64
SPREAD = 0.8  # of lengths round their mean, either way
SHARES = {"alone": 0.0, "light": 0.1, "heavy": 0.4, "cohorts": 0.3}  # of the server's tokens per second
COHORT = 8
MOST_S, LEAST = 25.0, 8  # seconds a run, requests in it


@dataclass(frozen=True)
class MeasuringTraffic:
    """Runs against one server; `path_of` names the file of each."""

    server: Server
    session: MeasuringSession
    spans: Spans
    path_of: Callable[[str], Path]

    def runs(
        self, rows: Sequence[dict[str, Any]], seconds: float
    ) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
        """What is still to be sent within `seconds`, by name; `rows` are the batch table's."""
        rate = max((row["output_throughput"] for row in rows), default=0.0)
        each_s = min(MOST_S, seconds / len(SHARES))
        for name, share in SHARES.items():
            if rate and not self.path_of(name).exists():
                lone_s = min(row["e2el_ms"] for row in rows) / 1e3 * MEAN_OUTPUT / rows[0]["output_len"]
                per_s = share * rate / MEAN_OUTPUT if share else 1 / lone_s
                number = max(LEAST, int(per_s * each_s))
                yield f"{name}, {number} requests", lambda n=name, m=number, r=per_s: self._send(n, m, r)  # type: ignore[misc]

    async def _send(self, name: str, number: int, per_s: float) -> None:
        begin_s = now()
        requests = self._requests(name, number, per_s)
        columns, limit = requests.all, self.session.limits.max_model_len
        bodies = [
            self.server.completion({"prompt": self.session.fresh(length), "max_tokens": most, **GREEDY})
            for length, most in zip(columns.num_prompt_tokens, columns.num_output_tokens, strict=True)
        ]
        client = Client(self.server.endpoint, requests, bodies, limit, lambda *_: None)
        try:
            await client.run()
        except ServerGoneError as error:
            mend = "look into its log; measured so far is kept, go on with --resume"
            raise UserError(
                Problem(f"the server at {self.server.endpoint.url}", f"is gone: {error}", mend=mend)
            ) from None
        served = ServedRun([client.rows[index] for index in sorted(client.rows)], {"cpu_share": client.cpu_share}, 0)
        write_all(
            self.path_of(name).parent,
            {
                self.path_of(name).name: lambda path: write_json(
                    path, served.detail(self.server.model, requests.max_concurrency)
                ),
            },
        )
        self.spans.add("traffic", 0, begin_s)

    def _requests(self, name: str, number: int, per_s: float) -> Requests:
        rng, limits = np.random.default_rng([list(SHARES).index(name), number]), self.session.limits
        prompts, outputs = lengths(limits, rng, number)
        if name == "cohorts":
            at_s = np.arange(number) // COHORT * COHORT / per_s
        else:
            at_s = np.cumsum(rng.exponential(1 / per_s, number)) if name != "alone" else np.zeros(number)
        chunk = RequestChunk([to_ps(float(moment_s)) for moment_s in at_s], prompts.tolist(), outputs.tolist())
        return Requests(chunk, max_concurrency=1 if name == "alone" else None)


def lengths(limits: WaveLimits, rng: np.random.Generator, number: int) -> tuple[Any, Any]:
    """Prompt and output tokens, uniform round their means, or round what the model's length allows."""
    most = limits.longest_prompt
    prompt = min(MEAN_PROMPT, most // 4)
    output = min(MEAN_OUTPUT, max(2, most // 8))
    drawn = rng.uniform(1 - SPREAD, 1 + SPREAD, (2, number))
    return np.maximum(1, drawn[0] * prompt).astype(int), np.maximum(2, drawn[1] * output).astype(int)
