"""Run a recorded case of vLLM's scheduler in simbatch's engine and write its decisions in the recording's own form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import simpy

from simbatch.policies.base import Policy
from simbatch.policies.vllm import VLLM
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine.arrivals import FAR
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.replica import Replica
from simbatch.sim.engine.step import Step
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.request import Request

PS_PER_NS = 1000
Line = dict[str, Any]


def engine_config(case: dict[str, Any]) -> EngineConfig:
    """The case's settings; `policy` is the recordings' word for `scheduling_policy`."""
    settings = dict(case["config"])
    settings["scheduling_policy"] = settings.pop("policy", "fcfs")
    settings.setdefault("enable_prefix_caching", False)
    return EngineConfig(**settings)


class ContentKeys:
    """Names of a request's full blocks: equal names for equal tokens from the start.

    As in the engine's own traces, blocks that nobody else can have stay nameless; only a case whose prompts replay
    another request's answer (`r:<id>` streams) names them all.
    """

    def __init__(self, case: dict[str, Any], block_size: int) -> None:
        self._block_size = block_size
        self._known: dict[tuple[Any, ...], int] = {}
        self._replayed = {
            stream
            for r in case["requests"]
            for stream, *_ in prompt_parts(r)
            if stream.startswith("r:") and stream != own(r)
        }

    def of(self, case_request: dict[str, Any]) -> list[int]:
        """One name per full block of the prompt's shared beginning, or of prompt and outputs."""
        mine, n = own(case_request), case_request["prompt_len"]
        tokens = [(s, start + i) for s, start, length in prompt_parts(case_request) for i in range(length)]
        tokens += [(mine, position) for position in range(n, n + case_request["max_tokens"])]
        if mine not in self._replayed:
            while tokens and tokens[-1][0] == mine:
                tokens.pop()
        keys, link = [], 0
        for end in range(self._block_size, len(tokens) + 1, self._block_size):
            block = (link, *tokens[end - self._block_size : end])
            link = self._known.setdefault(block, len(self._known) + 1)
            keys.append(link)
        return keys


def own(case_request: dict[str, Any]) -> str:
    """The stream of tokens that only this request has, unless another replays it."""
    return f"r:{case_request['id']}"


def prompt_parts(case_request: dict[str, Any]) -> list[tuple[str, int, int]]:
    """The prompt as (stream, start, length)."""
    if "segments" in case_request:
        return [tuple(part) for part in case_request["segments"]]
    n = case_request["prompt_len"]
    stream, k = case_request.get("prefix") or (own(case_request), 0)
    return [(stream, 0, min(k, n)), (own(case_request), min(k, n), n - min(k, n))]


class CaseArrivals:
    """The case's requests, by time or by step number, in the engine's `Arrivals` form."""

    def __init__(self, case: dict[str, Any], config: EngineConfig, step_number: Callable[[], int]) -> None:
        self.by_step = any("arrival_step" in r for r in case["requests"])
        self._when = "arrival_step" if self.by_step else "arrival_ns"
        self._pending = sorted(case["requests"], key=lambda r: r[self._when])  # stable
        self._keys = ContentKeys(case, config.block_size) if config.enable_prefix_caching else None
        self._max_model_len = config.max_model_len
        self._step_number = step_number
        self._num_taken = 0
        self.is_limited = False
        self.load_cpu_s = 0.0

    @property
    def next_ps(self) -> int:
        """When the next request arrives; by step number any moment will do."""
        if not self._pending:
            return FAR
        return 0 if self.by_step else int(self._pending[0][self._when]) * PS_PER_NS

    @property
    def next_step(self) -> int:
        """The step before which the next request arrives."""
        return int(self._pending[0][self._when])

    def take(self, now_ps: int, add: Callable[[Request], None]) -> int:
        """Hand over whoever has arrived."""
        before = self._num_taken
        while self._pending and (self.next_step <= self._step_number() if self.by_step else self.next_ps <= now_ps):
            case_request = self._pending.pop(0)
            arrival = case_request.get("arrival_time", case_request[self._when])
            request = Request(
                self._num_taken,
                case_request["id"],
                arrival * PS_PER_NS,
                case_request["prompt_len"],
                min(case_request["max_tokens"], self._max_model_len - case_request["prompt_len"]),
                case_request.get("priority", 0),
            )
            request.tenant = case_request.get("tenant")
            if self._keys:
                request.keys = self._keys.of(case_request)
            self._num_taken += 1
            add(request)
        return self._num_taken - before


class CaseRecorder(Recorder):
    """Keeps no columns: the lines are the record."""

    def left(self, request: Request) -> None:
        """Not needed."""

    def finished(self, request: Request) -> None:
        """Not needed."""

    def rejected(self, request: Request, reason: str) -> None:
        """Not needed."""


class CaseReplica(Replica):
    """A replica that writes a line per step, as the recordings do (`vllm_oracle.py` beside them)."""

    def __init__(self, case: dict[str, Any], policy: Policy | None = None) -> None:
        config = engine_config(case)
        ps = {name: value * PS_PER_NS for name, value in case["step_time_ns"].items()}
        cost = LinearCost(*(ps[k] for k in ("base", "per_prefill_token", "per_decode_seq", "per_context_token")))
        arrivals = CaseArrivals(case, config, lambda: self.step_number)
        self.lines: list[Line] = []
        self.requests: dict[str, Line] = {
            r["id"]: {
                "req": r["id"], "arr": r.get("arrival_step", r.get("arrival_ns")), "fs": None, "ft": None, "end": None,
                "npre": 0, "nout": 0, "hit": None, "st": "unfinished",
            } for r in case["requests"]
        }  # fmt: skip
        self.step_number = 0
        self.stalled = False
        self._max_steps = case.get("max_steps", 1_000_000)
        self._arrivals = arrivals
        self._line_of: dict[int, Line] = {}
        self._seat_of: dict[Request, int] = {}
        self._newest: Line | None = None
        env, recorder = simpy.Environment(0), CaseRecorder()
        super().__init__(env, config, cost, policy or VLLM(), arrivals, recorder)  # type: ignore[arg-type]

    def play(self) -> list[Line]:
        """All lines but the head: steps, requests, end."""
        self.env.process(self.run())
        self.env.run()
        end = {"steps": self.step_number, "clock": self.now_ps // PS_PER_NS, "stalled": self.stalled}
        return [*self.lines, *self.requests.values(), {"end": end}]

    def add(self, request: Request) -> None:
        """Note who is turned away."""
        if request.num_prompt_tokens >= self.config.max_model_len:
            self.requests[request.request_id]["st"] = "rejected:VLLMValidationError"
        super().add(request)

    def schedule(self, overhead_ps: int) -> Step:
        """Write the step's line."""
        step = super().schedule(overhead_ps)
        duration_ps = step.end_ps - step.start_ps
        line: Line = {"i": self.step_number, "t": self.now_ps // PS_PER_NS, "d": duration_ps // PS_PER_NS}
        if step.batch.entries:
            line["s"] = [
                [e.request.request_id, e.num_tokens, e.num_computed_tokens, kind(e.is_decode, e.samples)]
                for e in step.batch.entries
            ]
        self._write_admissions(line, step)
        if step.batch.preempted:
            line["pre"] = [request.request_id for request in step.batch.preempted]
            for request in step.batch.preempted:
                self.requests[request.request_id]["npre"] += 1
        line["fbs"] = self.scheduler.kv.free
        self._line_of[id(step.batch)] = line
        self._newest = line
        self.lines.append(line)
        self.step_number += 1
        return step

    def update(self, step: Step) -> None:
        """Complete a line: the step's own when synchronous, else the one scheduled meanwhile."""
        line = self._line_of.pop(id(step.batch))
        if self.config.async_scheduling:
            updated, line = line["i"], self._newest or self._drain_line()
            line["u"] = updated
            self._newest = None
        before = {e.request: e.request.num_output_tokens for e in step.batch.entries}
        super().update(step)
        for entry in step.batch.entries:
            self._note_token(entry.request, before[entry.request], line)
        line["fb"] = self.scheduler.kv.free
        line["nr"], line["nw"] = len(self.scheduler.running), self.num_waiting

    @property
    def goes_in_circles(self) -> bool:
        """Requests that rotate for ever are cut at the case's `max_steps`, as the recording is."""
        self.stalled = self.stalled or self.step_number >= self._max_steps
        return self.stalled

    def is_stuck(self, batch: Any) -> Any:
        """By step number, an idle engine jumps to the next arrival's."""
        if self.goes_in_circles:
            return True
        if not (batch.entries or batch.preempted) and self._arrivals.by_step and self._arrivals.next_ps < FAR:
            self.step_number = max(self.step_number, self._arrivals.next_step)
        stuck = yield from super().is_stuck(batch)
        self.stalled = self.stalled or stuck
        return stuck

    def wait_until(self, time_ps: int) -> Any:
        """An engine with nothing to do jumps to the next arrival's step."""
        if not self.has_work and self._arrivals.by_step and self._arrivals.next_ps < FAR:
            self.step_number = max(self.step_number, self._arrivals.next_step)
        yield from super().wait_until(time_ps)

    def _write_admissions(self, line: Line, step: Step) -> None:
        first, again = [], []
        for entry in step.batch.entries:
            request, row = entry.request, self.requests[entry.request.request_id]
            if not self._was_admitted_now(entry.request):
                continue
            hit = [request.request_id, entry.num_computed_tokens]
            if row["fs"] is None:
                row["fs"], row["hit"] = self.now_ps // PS_PER_NS, entry.num_computed_tokens
                first.append(hit)
            else:
                again.append(hit)
        if first:
            line["adm"] = first
        if again:
            line["res"] = again

    def _was_admitted_now(self, request: Request) -> bool:
        known = self._seat_of.get(request)
        self._seat_of[request] = request.seat
        return known != request.seat

    def _note_token(self, request: Request, num_before: int, line: Line) -> None:
        row, now_ns = self.requests[request.request_id], self.now_ps // PS_PER_NS
        if request.num_output_tokens == num_before:
            return
        row["nout"] = request.num_output_tokens
        row["ft"] = now_ns if row["ft"] is None else row["ft"]
        if request.num_output_tokens >= request.max_tokens:
            row["end"], row["st"] = now_ns, "length"
            line.setdefault("fin", []).append(request.request_id)

    def _drain_line(self) -> Line:
        line: Line = {
            "i": self.step_number, "t": self.now_ps // PS_PER_NS, "d": 0, "drain": 1, "fbs": self.scheduler.kv.free
        }  # fmt: skip
        self.lines.append(line)
        return line


def kind(is_decode: bool, samples: bool) -> str:
    """The recordings' letter for an entry: decode, prefill that ends in a token, chunk that does not."""
    return "d" if is_decode else "p" if samples else "c"
