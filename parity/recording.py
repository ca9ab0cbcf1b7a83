"""Run a recorded case of vLLM's scheduler in simbatch's engine and write its decisions in the recording's own form."""

from __future__ import annotations

from typing import Any

import simpy

from parity.case_traffic import PS_PER_NS, CaseTraffic, CaseTurns, Line
from simbatch.policies.vllm import VLLM
from simbatch.sim.cost.host import HostTimes, LaunchTimes
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine.listener import Listener
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.replica import Replica
from simbatch.sim.engine.resources import Host, Step
from simbatch.sim.engine.stepwise import Stepwise
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.scheduler.config import EngineConfig, changes_in, default_of, lacks
from simbatch.sim.scheduler.request import Request
from simbatch.sim.workload.chunk import RequestChunk


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


class CaseLines(Listener):
    """Writes a line per step, as the recordings do (`vllm_oracle.py`, `timing_oracle.py`)."""

    def __init__(self, case: dict[str, Any], policy: Policy | None = None) -> None:
        self.config = config = engine_config(case)
        self.is_timed = "timing" in case
        ps = {name: value * PS_PER_NS for name, value in case["step_time_ns"].items()}
        cost = LinearCost(*(ps[k] for k in ("base", "per_prefill_token", "per_decode_seq", "per_context_token")))
        self.step_number = 0
        self.is_stuck = False
        self._max_steps = case.get("max_steps", 1_000_000)
        self._line_of: dict[int, Line] = {}
        self._seat_of: dict[Request, int] = {}
        self._newest: Line | None = None
        self._num_empty = 0  # in a row: the decision recordings stop at the third, whoever came meanwhile
        host = host_of(case["timing"]) if self.is_timed else None
        recorder = Recorder(is_timed=self.is_timed)
        self.traffic: CaseTraffic | CaseTurns
        if any("session" in r for r in case["requests"]):
            self.traffic = CaseTurns(case, config, recorder)
        else:
            self.traffic, none = CaseTraffic(case, config, lambda: self.step_number), [0] * len(case["requests"])
            recorder.expect(RequestChunk(none, none, none))  # nobody reads it: the lines are the record
        self.lines: list[Line] = []
        self.requests: dict[str, Line] = {
            r["id"]: {
                "req": r["id"], "arr": self.traffic.known_ns(r), "fs": None, "ft": None, "end": None, "npre": 0,
                "nout": 0, "hit": None, "st": "unfinished",
            } for r in case["requests"]
        }  # fmt: skip
        self.replica = Replica(
            simpy.Environment(0), config, cost, policy or VLLM(), self.traffic.inbox, recorder, self.traffic.left,
            listener=self, host=host,
        )  # fmt: skip

    def play(self) -> list[Line]:
        """All lines but the head: steps, requests, end."""
        stepwise, env = Stepwise(self.replica, reports_ends=self.is_timed), self.replica.env
        env.process(stepwise.run())
        env.run()
        is_stalled = self.is_stuck or self.replica.has_work
        for name, arrival_ns in self.traffic.sent_ns():
            self.requests[name]["arr"] = arrival_ns
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
