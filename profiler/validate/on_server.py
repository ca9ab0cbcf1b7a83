"""Real runs on a running server beside their simulation.

How far the replays are, on stderr; a line now and then, since anything livelier would take time from the engine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from simbatch.profiler.records import LivePrompts, PromptTokens, Requests
from simbatch.profiler.records.lines import stream
from simbatch.profiler.records.real_run import Lines, RealRun, name_of, simulated_run
from simbatch.profiler.server import VOCAB_SIZE, Server, Tail, look
from simbatch.profiler.server.client import Client, ServerGoneError
from simbatch.profiler.server.http import Endpoint
from simbatch.profiler.server.result import CUT_FILE, RESULT_FILE, STEPS_FILE, KeptRuns, ServedRun
from simbatch.profiler.validate import Bounds, Validation
from simbatch.profiler.validate.matching import agreed, requests_of, simulate_requests
from simbatch.serving.processes import run_loop
from simbatch.sim.clock import PS_PER_MS, to_s
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import json_object
from simbatch.sim.metrics.latencies import duration_ps
from simbatch.sim.scenario import Resolved, Scenario, resolve
from simbatch.sim.scheduler.request import Request

LATE_MS, BUSY = 10.0, 0.7  # a client that is later (p99) or busier tells of itself, not of the server
MERGED = 0.02  # share of tokens without an event of their own that is told
Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class ServerOptions:
    """Which server, which of its models (None: the only one), how tokens are sampled, how often, going on or anew."""

    url: str
    model: str | None = None
    temperature: float = 0.0
    repeats: int = 1
    resume: bool = False


@dataclass(frozen=True)
class Told:
    """Who is told what happens: `say` gets a line; `progress` makes what is told of each run.

    It is given the number of runs, of requests, and how long a run should last (s); what it makes is told a run's
    number, its ended requests and its time (s).
    """

    say: Callable[[str], None]
    progress: Callable[[int, int, float], Callable[[int, int, float], None]]


def validate_server(
    scenario: Scenario, options: ServerOptions, folder: Path, *, bounds: Bounds | None, told: Told
) -> Validation:
    """Look who is there, simulate, send the workload `repeats` times; whole runs stay in `folder`.

    Raises UserError, one sentence, when the server is not there or not the scenario's, or dies; what it had answered by
    then is kept.
    """
    server = run_loop(look(Endpoint.of(options.url), options.model))
    version = f" with vLLM {server.version}" if server.version else ""
    told.say(f"{server.endpoint.url} serves {server.model}{version}")
    resolved = resolve(agreed(scenario, server.engine, "--server"))
    told_of_server = {"model": server.model, "version": server.version, **server.engine}
    source = {"mode": "server", **told_of_server, "temperature": options.temperature}
    setting = {"scenario": resolved.dump(), "server": told_of_server, "temperature": options.temperature}
    return ServerRuns(server, resolved, requests_of(scenario), options, KeptRuns(folder), told).validation(
        setting, source, bounds
    )


@dataclass(frozen=True)
class ServerRuns:
    """Real runs of one scenario on one server; `tail` follows its recorder, where it is one of our own."""

    server: Server
    resolved: Resolved
    requests: Requests
    options: ServerOptions
    kept: KeptRuns
    told: Told
    tail: Tail | None = None

    def validation(
        self, setting: Mapping[str, Any], source: Mapping[str, Any], bounds: Bounds | None, notes: Sequence[str] = ()
    ) -> Validation:
        """Simulate, send what is still to be sent, put both side by side; `setting` is what all runs share."""
        simulated = simulated_run(simulate_requests(self.resolved, self.requests))
        repeats = self.options.repeats
        num_kept = min(self.kept.begin(setting, resume=self.options.resume), repeats)
        served = [_again(self.kept.of(number)) for number in range(1, num_kept + 1)]
        if num_kept:
            self.told.say(f"{num_kept} runs are there already")
        tell = self.told.progress(repeats, len(self.requests), to_s(duration_ps(simulated.record)))
        numbers = range(num_kept + 1, repeats + 1)
        served += [self._sent(number, simulated, partial(tell, number)) for number in numbers]
        real = [run.run(self.resolved.engine, simulated.facts, self.requests.turns) for run in served]
        found = (*notes, *_notes(served, self.server))
        return Validation(
            real,
            simulated,
            self.resolved.cost_model(),
            {**source, **_client(served)},
            found,
            bounds,
            _admission_ms(real, self.resolved),
        )

    def _sent(self, number: int, simulated: RealRun, tell: Progress) -> ServedRun:
        """One run, written when it has ended, or when it is cut off."""
        if self.tail is not None:
            run_loop(self.tail.settled())
            self.tail.cut()
        sender = Sender(self.server, self.resolved, self.requests, self.options.temperature, tell)

        def keep(name: str) -> ServedRun:
            lines: Lines = ()
            raw = b""
            if self.tail is not None:
                lines, raw = tuple(run_loop(self.tail.settled())), self.tail.cut()
            served = sender.served(lines)
            run = served.run(self.resolved.engine, simulated.facts, self.requests.turns)
            self.kept.keep(number, name, served.bench_result(run, self.resolved, self.server.model), raw)
            return served

        place = f"--server {self.server.endpoint.url}"
        try:
            run_loop(sender.client.run())
        except (ServerGoneError, KeyboardInterrupt) as error:
            ended = sum(not row.error for row in sender.client.rows.values())
            where = f"run {number} was cut off after {ended:,} of {len(sender.client.late_s):,} requests sent"
            if ended:
                keep(CUT_FILE)
                where += f" (they are in {self.kept.of(number) / CUT_FILE})"
            if isinstance(error, KeyboardInterrupt):
                self.told.say(f"\n{where}; go on with --resume")
                raise
            rule = f"is gone: {error}; {where}"
            mend = "look into its log, start it again, and go on with --resume"
            raise UserError(Problem(place, rule, mend=mend)) from None
        rows = sender.client.rows.values()
        if all(row.error for row in rows):
            rule = f"answered none of {len(rows):,} requests: {next(iter(rows)).error}"
            raise UserError(Problem(place, rule))
        return keep(RESULT_FILE)


class Sender:
    """One run: its prompts, which no server has seen before, and the client that sends them."""

    def __init__(
        self, server: Server, resolved: Resolved, requests: Requests, temperature: float, tell: Progress
    ) -> None:
        self.resolved, self.server = resolved, server
        # or the cache of a server that has met them would answer for the engine
        self.prompt_seed = time.time_ns()
        self._requests, self._temperature = requests, temperature
        tokens, limit = PromptTokens(requests, VOCAB_SIZE, self.prompt_seed), resolved.engine.max_model_len
        self.live = None if requests.turns is None else LivePrompts(tokens, requests.turns)
        if self.live is None:  # made before, so that nothing but sending is done in time
            bodies = [self._body(i, i, tokens.of(i)) for i in range(len(requests))]
            self.client = Client(server.endpoint, requests, lambda sent: bodies[sent.index], limit, tell)
        else:
            self.client = Client(server.endpoint, requests, self._turn, limit, tell, self._heard)

    def served(self, lines: Lines = ()) -> ServedRun:
        """What has come back so far, and what was recorded meanwhile."""
        late_ms = 1000 * np.array(self.client.late_s or [0.0])
        kept_up = {"late_ms_p99": float(np.percentile(late_ms, 99)), "late_ms_max": float(late_ms.max())}
        client = {**kept_up, "cpu_share": self.client.cpu_share}
        if self.live is not None:
            client["made_up_tokens"] = self.live.num_made_up
        return ServedRun(self.client.sent, client, self.prompt_seed, self.client.origin_s, lines)

    def _turn(self, request: Request) -> bytes:
        """A turn as it is sent."""
        assert self.live is not None
        known = {"session_id": request.session_id, "turn": request.turn, "has_next_turn": int(request.has_next_turn)}
        return self._body(request.index, request.row, self.live.of(request.row), known)

    def _heard(self, request: Request, answer: list[int]) -> None:
        assert self.live is not None
        self.live.ended(request.row, answer, request.max_tokens)

    def _body(self, index: int, row: int, prompt: list[int], known: Mapping[str, Any] | None = None) -> bytes:
        """A request as it is sent; `known` is what a policy may know of its session."""
        columns, scenario = self._requests.all, self.resolved.scenario
        has_policy = scenario.policy.name != "vllm"
        most = max(1, min(columns.num_output_tokens[row], self.resolved.engine.max_model_len - len(prompt)))
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": most, "temperature": self._temperature}
        if (has_policy or self.resolved.engine.scheduling_policy == "priority") and columns.priority:
            body["priority"] = columns.priority[row]
        if known is not None:
            body["return_token_ids"] = True  # for the prompts that go on with the answer
        extra = dict(known or {})
        if columns.tenant and columns.tenant[row] is not None:
            extra["tenant"] = columns.tenant[row]
        if has_policy and extra:
            body["vllm_xargs"] = extra
        return self.server.completion(body, name_of(index))


def _again(folder: Path) -> ServedRun:
    """A run that was kept."""
    steps = folder / STEPS_FILE
    lines = [line for line in stream(steps) if not isinstance(line, dict)] if steps.exists() else []
    result = folder / RESULT_FILE
    return ServedRun.read(json_object(result.read_text(encoding="utf-8"), result), lines)


def _admission_ms(real: Sequence[RealRun], resolved: Resolved) -> dict[str, float] | None:
    """What taking a request in took on the engine's thread, and what the profile says of it."""
    took_s = [took_s for run in real for took_s in run.admission_s]
    host = resolved.engine.host
    return (
        {"real": 1000 * fmean(took_s), "profile": (host.admit_base_ps if host else 0) / PS_PER_MS} if took_s else None
    )


def _client(served: Sequence[ServedRun]) -> dict[str, Any]:
    return {"client": {name: max(run.client[name] for run in served) for name in served[0].client}}


def _notes(served: Sequence[ServedRun], server: Server) -> Iterator[str]:
    if not server.engine.keys() - {"max_model_len"}:
        yield "the server does not tell its KV blocks (/metrics): the simulation's are the profile's or the scenario's"
    for number, run in enumerate(served, 1):
        if run.failed:
            yield (
                f"{len(run.failed):,} of {len(run.rows):,} requests failed in run {number} ({run.failed[0].error}): "
                "the real figures are of the others, the simulation serves all"
            )
    if any(run.client.get("made_up_tokens") for run in served):
        yield (
            "the server does not tell all token ids of its answers (return_token_ids): in the prompts that go on with "
            "them others stand, and it computes those parts again"
        )
    rows = [row for run in served for row in run.rows if not row.error]
    merged = 1 - sum(len(row.chunk_s) for row in rows) / sum(row.num_output_tokens for row in rows)
    if merged > MERGED:
        yield (
            f"{merged:.0%} of the tokens came together with the one before (a busy server merges them): real ITL "
            "counts what came, as in `vllm bench serve`, the simulated one tokens"
        )
    late_ms, busy = (max(run.client[name] for run in served) for name in ("late_ms_p99", "cpu_share"))
    if late_ms > LATE_MS or busy > BUSY:
        yield (
            f"the client did not keep up (p99 of its sends {late_ms:.1f} ms late, {busy:.0%} of a core): the "
            "real figures are partly its own; run it on another machine than the server, or at a lower load"
        )


EVERY_S = {True: 2.0, False: 15.0}  # a person looks; a file


def progress(num_runs: int, num_requests: int, run_s: float, *, quiet: bool) -> Callable[[int, int, float], None]:
    """What to tell the run's number, its ended requests and its time (s); `run_s` is how long a run should last."""
    is_person = sys.stderr.isatty()
    last_s = float("-inf")
    last_run = 0

    def tell(number: int, num_ended: int, elapsed_s: float) -> None:
        nonlocal last_s, last_run
        is_due = number != last_run or elapsed_s - last_s >= EVERY_S[is_person] or num_ended == num_requests
        if quiet or not is_due:
            return
        last_run, last_s = number, elapsed_s
        left_s = max(0.0, run_s - elapsed_s) + (num_runs - number) * run_s
        minutes, seconds = divmod(round(left_s), 60)
        run = f"run {number} of {num_runs}"
        text = f"{run}: {num_ended:,} of {num_requests:,} requests, about {minutes}:{seconds:02d} left"
        end = "\n" if not is_person or num_ended == num_requests else ""
        print(f"\r{text:<78}" if is_person else text, end=end, file=sys.stderr, flush=True)

    return tell
