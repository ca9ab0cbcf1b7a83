"""A recorded case as an engine takes it: settings, host, and requests at their times or steps, or after others."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from simbatch.sim.cost.host import HostTimes, LaunchTimes
from simbatch.sim.engine.door import Inbox
from simbatch.sim.engine.members import prefix_keys
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.resources import Host
from simbatch.sim.engine.sessions import traffic_of
from simbatch.sim.engine.traffic import FAR
from simbatch.sim.scheduler.config import EngineConfig, changes_in, default_of, lacks
from simbatch.sim.scheduler.names import as_ranges
from simbatch.sim.scheduler.request import Request
from simbatch.sim.workload.chunk import RequestChunk
from simbatch.sim.workload.turns import NO_ROW, Turns, turns_of

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
        """Names of the full blocks of the prompt's shared beginning, or of prompt and outputs, as ranges."""
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
        return as_ranges(keys)


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
        self.when = "arrival_step" if self.by_step else "arrival_ns"
        self._pending = sorted(case["requests"], key=lambda r: r[self.when])  # stable
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
        return int(self._pending[0][self.when]) * PS_PER_NS

    @property
    def inbox(self) -> Inbox:
        """What an engine asks."""
        return cast("Inbox", self)

    def left(self, request: Request, at_ps: int) -> None:
        """Nobody waits for it."""

    @property
    def next_step(self) -> int | None:
        """The step before which the next request arrives."""
        return int(self._pending[0][self.when]) if self._pending else None

    def take(self, now_ps: int, add: Callable[[Request, int], int]) -> int:
        """Hand over whoever has arrived."""
        while self.next_ps <= now_ps:
            case_request = self._pending.pop(0)
            arrival = case_request.get("arrival_time", case_request[self.when])
            request = Request(
                self._num_taken,
                case_request["id"],
                arrival * PS_PER_NS,
                case_request["prompt_len"],
                min(case_request["max_tokens"], self._max_model_len - case_request["prompt_len"]),
                case_request.get("priority", 0),
            )
            request.tenant, request.session_id = case_request.get("tenant"), case_request.get("session_id")
            request.turn, request.has_next_turn = case_request.get("turn", 0), case_request.get("has_next_turn", False)
            if self._keys:
                request.share(self._keys.of(case_request))
            self._num_taken += 1
            now_ps += add(request, now_ps)
        return now_ps


class CaseTurns:
    """The case's sessions by the engine's own client; of tokens it knows how many there are."""

    by_step, when = False, "arrival_ns"

    def __init__(self, case: dict[str, Any], config: EngineConfig, recorder: Recorder) -> None:
        source = source_of(case)
        keys = prefix_keys([config], source)
        self._traffic = traffic_of(source, recorder, config.max_model_len, keys, None)
        self.left = self._traffic.left

    @property
    def inbox(self) -> Inbox:
        """What an engine asks."""
        return self._traffic

    @property
    def next_step(self) -> int | None:
        """None where nobody will be sent before somebody else has ended."""
        return None if self._traffic.next_ps >= FAR else 0


@dataclass(frozen=True)
class CaseSource:
    """A case's turns as an engine reads them."""

    requests: list[Line]
    turns: Turns
    hash_block_tokens: int = 0
    max_concurrency: int | None = None
    num_requests: int | None = None
    skipped: int = 0

    def chunks(self) -> Iterator[RequestChunk]:
        """All in one."""
        yield RequestChunk(
            [r.get("arrival_ns", 0) * PS_PER_NS for r in self.requests],
            [r["prompt_len"] for r in self.requests],
            [r["max_tokens"] for r in self.requests],
            [r.get("priority", 0) for r in self.requests],
            request_id=[r["id"] for r in self.requests],
        )


def source_of(case: dict[str, Any]) -> CaseSource:
    """The case's turns: who waits for whom, and whose conversation is gone on with; of its tokens nothing."""
    requests = case["requests"]
    row_of = {r["id"]: row for row, r in enumerate(requests)}
    parents = [row_of[r["parent"]] if r.get("parent") else NO_ROW for r in requests]
    turns = turns_of(
        [[row_of[name] for name in r.get("after", ())] for r in requests],
        [r.get("delay_ns", 0) * PS_PER_NS for r in requests],
        parents,
        [r["session"] for r in requests],
    )
    systems, numbers = case["system_prompts"], dict[str, int]()
    for r in requests:
        numbers.setdefault(r["session"], systems["of"][r["session"]])
    turns = replace(
        turns,
        system=array("q", numbers.values()),
        num_system_tokens=systems["num_tokens"],
        max_sessions=case.get("users"),
    )
    return CaseSource(requests, turns)
