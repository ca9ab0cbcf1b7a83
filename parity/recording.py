"""Run a recorded case of vLLM's scheduler in simbatch's engine and write its decisions in the recording's own form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import simpy

from simbatch.policies.vllm import VLLM
from simbatch.sim.cost.host import HostTimes, LaunchTimes
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine.door import Inbox
from simbatch.sim.engine.listener import Listener
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.replica import Replica
from simbatch.sim.engine.resources import Host, Step
from simbatch.sim.engine.stepwise import Stepwise
from simbatch.sim.engine.traffic import FAR
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.request import Request
from simbatch.sim.scheduler.versions import changes_in, default_of, lacks
from simbatch.sim.workload.chunk import RequestChunk

PS_PER_NS = 1000
Line = dict[str, Any]


def engine_config(case: dict[str, Any]) -> EngineConfig:
    """The case's settings under its version of vLLM; `policy` is the recordings' word for `scheduling_policy`.

    Settings that the version lacks are left out, as the oracle does. `planted` are changes that are switched, to see
    whether anybody notices.
    """
    version = str(case.get("vllm_version", "0.32"))
    changes = changes_in(version) ^ set(case.get("planted", ()))
    settings = {key: value for key, value in case["config"].items() if not lacks(key, changes)}
    settings.setdefault("scheduler_reserve_full_isl", default_of("scheduler_reserve_full_isl", changes))
    settings["scheduling_policy"] = settings.pop("policy", "fcfs")
    settings.setdefault("enable_prefix_caching", False)
    return EngineConfig(**settings, vllm_version=version, changes=changes)


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


class CaseTraffic:
    """The case's requests, by time or by step number, as an engine's inbox."""

    is_limited = False

    def __init__(self, case: dict[str, Any], config: EngineConfig, step_number: Callable[[], int]) -> None:
        self.by_step = any("arrival_step" in r for r in case["requests"])
        self._when = "arrival_step" if self.by_step else "arrival_ns"
        self._pending = sorted(case["requests"], key=lambda r: r[self._when])  # stable
        self._keys = ContentKeys(case, config.block_size) if config.enable_prefix_caching else None
        self._max_model_len = config.max_model_len
        self._step_number = step_number
        self._num_taken = 0

    @property
    def next_ps(self) -> int:
        """When the next request arrives; by step number any moment will do, once it is its turn."""
        if not self._pending:
            return FAR
        if self.by_step:
            return 0 if self.next_step <= self._step_number() else FAR - 1
        return int(self._pending[0][self._when]) * PS_PER_NS

    @property
    def next_step(self) -> int | None:
        """The step before which the next request arrives."""
        return int(self._pending[0][self._when]) if self._pending else None

    def take(self, now_ps: int, add: Callable[[Request, int], int]) -> int:
        """Hand over whoever has arrived."""
        while self.next_ps <= now_ps:
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
            now_ps += add(request, now_ps)
        return now_ps


class CaseLines(Listener):
    """Writes a line per step, as the recordings do (`vllm_oracle.py`, `timing_oracle.py`)."""

    def __init__(self, case: dict[str, Any], policy: Policy | None = None) -> None:
        self.config = config = engine_config(case)
        self.is_timed = "timing" in case
        ps = {name: value * PS_PER_NS for name, value in case["step_time_ns"].items()}
        cost = LinearCost(*(ps[k] for k in ("base", "per_prefill_token", "per_decode_seq", "per_context_token")))
        self.traffic = CaseTraffic(case, config, lambda: self.step_number)
        self.lines: list[Line] = []
        self.requests: dict[str, Line] = {
            r["id"]: {
                "req": r["id"], "arr": r.get("arrival_step", r.get("arrival_ns")), "fs": None, "ft": None, "end": None,
                "npre": 0, "nout": 0, "hit": None, "st": "unfinished",
            } for r in case["requests"]
        }  # fmt: skip
        self.step_number = 0
        self.is_stuck = False
        self._max_steps = case.get("max_steps", 1_000_000)
        self._line_of: dict[int, Line] = {}
        self._seat_of: dict[Request, int] = {}
        self._newest: Line | None = None
        self._num_empty = 0  # in a row: the decision recordings stop at the third, whoever came meanwhile
        host = host_of(case["timing"]) if self.is_timed else None
        recorder, none = Recorder(is_timed=self.is_timed), [0] * len(case["requests"])
        recorder.expect(RequestChunk(none, none, none))  # nobody reads it: the lines are the record
        env, inbox = simpy.Environment(0), cast("Inbox", self.traffic)
        self.replica = Replica(
            env, config, cost, policy or VLLM(), inbox, recorder, lambda *_: None, listener=self, host=host
        )

    def play(self) -> list[Line]:
        """All lines but the head: steps, requests, end."""
        stepwise, env = Stepwise(self.replica, reports_ends=self.is_timed), self.replica.env
        env.process(stepwise.run())
        env.run()
        is_stalled = self.is_stuck or self.replica.has_work
        end = {"steps": self.step_number, "clock": self.replica.now_ps // PS_PER_NS, "stalled": is_stalled}
        return [*self.lines, *self.requests.values(), {"end": end}]

    def turned_away(self, request: Request, reason: str, now_ps: int) -> None:
        """Note who is too long."""
        if request.num_prompt_tokens >= self.config.max_model_len:
            self.requests[request.request_id]["st"] = "rejected:VLLMValidationError"

    def planned(self, step: Step) -> None:
        """Write the step's line."""
        self._num_empty = 0 if step.batch.entries or step.batch.preempted else self._num_empty + 1
        line: Line = {"i": self.step_number, "t": step.schedule_ps // PS_PER_NS, "d": 0}
        if step.batch.entries:
            line["d"] = self.replica.device.work_ps(step.features) // PS_PER_NS
            line["s"] = [
                [e.request.request_id, e.num_tokens, e.num_computed_tokens, kind(e.is_decode, e.samples)]
                for e in step.batch.entries
            ]
        self._write_admissions(line, step)
        if step.batch.preempted:
            line["pre"] = [request.request_id for request in step.batch.preempted]
            for request in step.batch.preempted:
                self.requests[request.request_id]["npre"] += 1
        line["fbs"] = self.replica.kv.free
        if self.is_timed:
            line["S"] = step.schedule_ps // PS_PER_NS
            if step.batch.entries:
                line["L"], line["D"] = step.launched_ps // PS_PER_NS, step.end_ps // PS_PER_NS
        self._line_of[id(step.batch)] = line
        self._newest = line
        self.lines.append(line)
        self.step_number += 1

    def updated(self, step: Step, finished: list[Request]) -> None:
        """Complete a line: the step's own when synchronous, else the one scheduled meanwhile."""
        line = own = self._line_of.pop(id(step.batch))
        if self.config.async_scheduling:
            line = self._newest or self._drain_line()
        if self.config.async_scheduling or self.is_timed:
            line["u"] = own["i"]
        if self.is_timed:
            line["U"] = self.replica.now_ps // PS_PER_NS
        self._newest = None
        for entry in step.batch.entries:
            if entry.samples:
                self._note_token(entry.request, line)
        line["fb"] = self.replica.kv.free
        line["nr"], line["nw"] = len(self.replica.scheduler.running), self.replica.num_waiting

    def is_idle(self, now_ps: int) -> None:
        """By step number, an engine with nothing to do jumps to the next arrival's."""
        if self.traffic.by_step and self.traffic.next_step is not None:
            self.step_number = max(self.step_number, self.traffic.next_step)

    def wants_end(self) -> bool:
        """Requests that rotate for ever are cut at the case's `max_steps`, as the recording is."""
        is_stalled = not self.is_timed and self._num_empty >= 3 and self.traffic.next_step is None
        self.is_stuck = self.is_stuck or is_stalled or self.step_number >= self._max_steps
        return self.is_stuck

    def _write_admissions(self, line: Line, step: Step) -> None:
        first, again = [], []
        for entry in step.batch.entries:
            request, row = entry.request, self.requests[entry.request.request_id]
            if not self._was_admitted_now(entry.request):
                continue
            hit = [request.request_id, entry.num_computed_tokens]
            if row["fs"] is None:
                row["fs"], row["hit"] = step.schedule_ps // PS_PER_NS, entry.num_computed_tokens
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

    def _note_token(self, request: Request, line: Line) -> None:
        row, now_ns = self.requests[request.request_id], self.replica.now_ps // PS_PER_NS
        row["nout"] = request.num_output_tokens
        row["ft"] = now_ns if row["ft"] is None else row["ft"]
        if request.num_output_tokens >= request.max_tokens:
            row["end"], row["st"] = now_ns, "length"
            line.setdefault("fin", []).append(request.request_id)

    def _drain_line(self) -> Line:
        line: Line = {
            "i": self.step_number, "t": self.replica.now_ps // PS_PER_NS, "d": 0, "drain": 1,
            "fbs": self.replica.kv.free,
        }  # fmt: skip
        self.lines.append(line)
        return line


def host_of(timing: dict[str, Any]) -> Host:
    """A timing recording's host: `small_tokens` stands for the graph's size, and decodes are always of kind graph."""
    ps = {name: value * PS_PER_NS for name, value in timing["host"].items() if name != "small_tokens"}
    of_tokens = ps["per_seq"], ps["per_prefill"], ps["per_token"]
    times = HostTimes(
        graph=LaunchTimes(ps["decode"], ps["per_seq"]),
        piecewise=LaunchTimes(ps["small"], *of_tokens),
        none=LaunchTimes(ps["large"], *of_tokens),
        update_base_ps=timing["update"]["base"] * PS_PER_NS,
        update_per_seq_ps=timing["update"]["per_seq"] * PS_PER_NS,
        admit_base_ps=timing["admit"]["base"] * PS_PER_NS,
        admit_per_prompt_token_ps=timing["admit"]["per_prompt_token"] * PS_PER_NS,
        lag_ps=timing["lag"] * PS_PER_NS,
        tail_ps=timing["tail"] * PS_PER_NS,
    )
    host = Host(times, timing["host"]["small_tokens"])
    host.max_graph_requests = 1 << 60
    return host


def kind(is_decode: bool, samples: bool) -> str:
    """The recordings' letter for an entry: decode, prefill that ends in a token, chunk that does not."""
    return "d" if is_decode else "p" if samples else "c"
