"""Compare simbatch's engine with recordings of vLLM's scheduler: `python -m parity.check [DIR ...]`.

A recording has decisions, or with a key `timing` in its case the times on host and device too. A case is run here and
its decisions written in the recording's own form (`CaseLines`). DIR holds cases
(`*.json`), each with what vLLM decided (`*.jsonl.gz`) beside it or in `../expected`. Prints `N of N identical`; exits
with 1 on any difference, or where there is nothing to compare.
"""

from __future__ import annotations

import gzip
import json
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import simpy

from parity.case import PS_PER_NS, CaseTraffic, CaseTurns, Line, engine_config, host_of
from simbatch.policies.vllm import VLLM
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine.listener import Listener
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.replica import Replica
from simbatch.sim.engine.resources import Step
from simbatch.sim.engine.stepwise import Stepwise
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.scenario.rules import start_problems
from simbatch.sim.scheduler.request import Request
from simbatch.sim.workload.chunk import RequestChunk

RECORDINGS = Path(__file__).parent / "recordings"  # decisions alone: the host takes no time
TIMING = Path(__file__).parent / "timing"  # with the host's times
SESSIONS = Path(__file__).parent / "sessions"  # turns that a client sends when others have ended, both kinds
OTHERS = Path(__file__).parent / "other_versions"  # decisions of other versions than 0.32, where they differ from it


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
        self._has_sessions = any("session" in r for r in case["requests"])
        if self._has_sessions:
            self.traffic = CaseTurns(case, config, recorder)
        else:
            self.traffic, none = CaseTraffic(case, config, lambda: self.step_number), [0] * len(case["requests"])
            recorder.expect(RequestChunk(none, none, none))  # nobody reads it: the lines are the record
        self.lines: list[Line] = []
        self.requests: dict[str, Line] = {
            r["id"]: {
                "req": r["id"], "arr": None if self._has_sessions else r[self.traffic.when], "fs": None, "ft": None,
                "end": None, "npre": 0, "nout": 0, "hit": None, "st": "unfinished",
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
        end = {"steps": self.step_number, "clock": self.replica.now_ps // PS_PER_NS, "stalled": is_stalled}
        return [*self.lines, *self.requests.values(), {"end": end}]

    def arrived(self, request: Request, now_ps: int) -> None:
        """Note when a turn was sent; of others the case says it."""
        if self._has_sessions:
            self.requests[request.request_id]["arr"] = request.arrival_ps // PS_PER_NS

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


def kind(is_decode: bool, samples: bool) -> str:
    """The recordings' letter for an entry: decode, prefill that ends in a token, chunk that does not."""
    return "d" if is_decode else "p" if samples else "c"


def recordings(folder: Path) -> list[tuple[Path, Path]]:
    """Cases of a folder and their recordings."""
    pairs = []
    for case in sorted(folder.glob("*.json")):
        name = f"{case.stem}.jsonl.gz"
        found = [path for path in (folder / name, folder.parent / "expected" / name) if path.is_file()]
        if found:
            pairs.append((case, found[0]))
    return pairs


def load(path: Path) -> list[dict[str, Any]]:
    """The lines of a recording."""
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


class Difference(NamedTuple):
    """The first line of a recording that differs, from vLLM and from simbatch; None: that side has ended."""

    vllm: dict[str, Any] | None
    simbatch: dict[str, Any] | None

    def __str__(self) -> str:
        return f"  vLLM     {json.dumps(self.vllm)}\n  simbatch {json.dumps(self.simbatch)}"

    @property
    def where(self) -> str:
        """Step and request: `step 41, request r7`."""
        sides = self.vllm or {}, self.simbatch or {}
        if name := sides[0].get("req") or sides[1].get("req"):
            return f"the line of request {name}"
        number = next((side["i"] for side in sides if "i" in side), None)
        if number is None:
            return "the end" if "end" in sides[0] or "end" in sides[1] else "the start"
        for key in ("s", "pre", "adm", "res", "fin"):
            for entries in zip_longest(*(side.get(key, ()) for side in sides)):
                if entries[0] != entries[1]:
                    entry = entries[0] or entries[1]
                    return f"step {number}, request {entry if isinstance(entry, str) else entry[0]}"
        keys = [key for key in sides[0] | sides[1] if sides[0].get(key) != sides[1].get(key)]
        return f"step {number}, {keys[0]}"


def first_difference(case: dict[str, Any], recorded: list[dict[str, Any]]) -> Difference | None:
    """The first line that differs, or None.

    Where vLLM refused the configuration, its start rules must refuse it here too.
    """
    if "config_error" in recorded[0]:
        refused = next(start_problems(engine_config(case)), None)
        return None if refused else Difference(recorded[0], {"starts": True})
    played = CaseLines(case).play()
    played[-1]["end"]["vllm"] = recorded[-1].get("end", {}).get("vllm")
    for ours, vllms in zip_longest(played, recorded[1:]):
        if as_compared(ours) != as_compared(vllms):
            return Difference(vllms, ours)
    return None


def as_compared(line: dict[str, Any] | None) -> dict[str, Any]:
    """A line without what is no decision.

    That is names of physical blocks (`blk`), which mean nothing outside the engine that gave them out, and the name of
    the exception by which a request is rejected, which vLLM has changed.
    """
    kept = {key: value for key, value in (line or {}).items() if key != "blk"}
    if str(kept.get("st")).startswith("rejected:"):
        kept["st"] = "rejected"
    return kept


def main(arguments: list[str]) -> int:
    """Compare every recording of the folder."""
    folders = [Path(argument) for argument in arguments] or [RECORDINGS, TIMING, SESSIONS, OTHERS]
    pairs = [pair for folder in folders for pair in recordings(folder)]
    if not pairs:
        print(f"{folders[0]}: no case (*.json) with a recording (*.jsonl.gz beside it or in ../expected)")
        return 1
    num_same = 0
    for case_path, recording_path in pairs:
        difference: Difference | str | None
        try:
            difference = first_difference(json.loads(case_path.read_text()), load(recording_path))
        except Exception as error:
            difference = f"  simbatch cannot play it: {type(error).__name__}: {error}"
        num_same += difference is None
        if difference is not None:
            print(f"{case_path.stem}: the first line that differs\n{difference}")
    print(f"{num_same} of {len(pairs)} identical")
    return 0 if num_same == len(pairs) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
