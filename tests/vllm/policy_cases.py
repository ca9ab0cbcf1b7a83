"""Cases for a policy in vLLM's own scheduler and in the simulation, and both of them played."""

import random
from collections import deque

from parity.case import prompt_parts
from parity.check import CaseLines
from parity.fuzz import random_case
from simbatch.profiler.server.start import installed_version
from simbatch.sim.clock import PS_PER_S

EXTRA = ("tenant", "session_id", "turn", "has_next_turn")  # that vLLM does not know of a request


class CaseClock:
    """The virtual clock of an oracle, which counts ns and stamps requests with them."""

    def __init__(self, oracle):
        self.oracle = oracle

    def now_ps(self):
        return self.oracle.clock * 1000

    def arrival_ps(self, arrival_time):
        return int(arrival_time) * 1000


def case_of(seed):
    """A random case whose order is the policy's, with tenants and sessions; half of them are short of memory."""
    case = random_case(f"policy{seed}", seed)
    case["config"]["policy"] = "fcfs"
    case |= {"max_steps": 4_000, "vllm_version": installed_version()}
    for i, request in enumerate(case["requests"]):
        request["tenant"] = f"t{(7 * i + seed) % 11 // 4}"
        request |= {"session_id": f"s{(5 * i + seed) % 13}", "turn": i // 13, "has_next_turn": i % 3 > 0}
    return case


def profile_of(case):
    """The case's step times as a profile says them."""
    return {"num_gpu_blocks": 1000, "step_time": {f"{name}_s": ns / 1e9 for name, ns in case["step_time_ns"].items()}}


def oracle_of(case, policy, **given):
    """vLLM's scheduler under `policy`, ready to run the case; `given` is what additional_config says besides."""
    from parity import vllm_oracle
    from simbatch.serving.scheduler import PolicyScheduler

    config = {"simbatch": {"policy": {"name": "vllm"}, **given}}
    extra = {r["id"]: {name: r[name] for name in EXTRA if name in r} for r in case["requests"]}

    class Oracle(vllm_oracle.Oracle):
        def __init__(self):
            super().__init__(case, scheduler_cls=PolicyScheduler, additional_config=config)
            self.refused = {}
            add, turn_away = self.sched.add_request, self.sched.turn_away

            def add_with_tenant(request):
                request.sampling_params.extra_args = extra[request.request_id]
                add(request)

            def noted(request, reason):
                self.refused[request.request_id] = reason
                turn_away(request, reason)

            self.sched.add_request, self.sched.turn_away = add_with_tenant, noted
            self.sched.guide(policy, CaseClock(self))

        def update(self, output, result, line, when):
            self.clock = when
            super().update(output, result, line, when)

    return Oracle()


def played_by_vllm(case, policy, **given):
    oracle = oracle_of(case, policy, **given)
    loop = oracle.run_async if case["config"]["async_scheduling"] else oracle.run_sync
    loop()
    end = {"steps": oracle.step_no, "clock": oracle.clock, "stalled": oracle.stalled}
    for line in oracle.lines:
        line["fin"] = [name for name in line.get("fin", ()) if name not in oracle.refused]
    return _lines(oracle.lines, oracle.info, oracle.refused, end)


class Lines(CaseLines):
    def __init__(self, case, policy):
        self.refused = {}
        super().__init__(case, policy)

    def turned_away(self, request, reason, now_ps):
        super().turned_away(request, reason, now_ps)
        if not self.requests[request.request_id]["st"].startswith("rejected"):
            self.refused[request.request_id] = reason


def played_by_simbatch(case, policy):
    lines = Lines(case, policy)
    *_, end = lines.play()
    return _lines(lines.lines, lines.requests, lines.refused, end["end"])


def _lines(steps, requests, refused, end):
    rows = [{"req": name, "why": refused[name]} if name in refused else row for name, row in requests.items()]
    return [*({key: value for key, value in line.items() if value != []} for line in steps), *rows, end]


class StepClock:
    """Seconds are steps that computed something."""

    def __init__(self):
        self.now_s = 0

    def now_ps(self):
        return self.now_s * PS_PER_S

    def arrival_ps(self, arrival_time):
        return int(arrival_time) * PS_PER_S


class Watch:
    """Writes down what a real engine's scheduler decides, step by step, and lets the clock go on with it."""

    def __init__(self, engine, clock):
        self.lines, self._names = [], engine.names
        scheduler = engine.scheduler
        before = scheduler.schedule

        def schedule(*args, **kwargs):
            output = before(*args, **kwargs)
            if output.num_scheduled_tokens or output.preempted_req_ids:
                self._write(output, clock.now_s)
            clock.now_s += bool(output.num_scheduled_tokens)
            return output

        scheduler.schedule = schedule
        self._scheduler = scheduler

    def _write(self, output, now_s):
        cached = output.scheduled_cached_reqs
        computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        entries = [[self._names[i], n, computed[i]] for i, n in output.num_scheduled_tokens.items()]
        preempted = sorted(self._names[i] for i in output.preempted_req_ids or ())
        self.lines.append({"t": now_s, "s": entries, "pre": preempted, "fin": []})

    def ends(self):
        del self._scheduler.schedule


def served(engine, case, policy):
    """The case's requests through a real engine under `policy`; `arrival_step` is when each comes."""
    clock = StepClock()
    engine.reset_prefix_cache()
    engine.guide(policy, clock)
    watch = Watch(engine, clock)
    lines, pending = watch.lines, deque(sorted(case["requests"], key=lambda r: r["arrival_step"]))
    refused = {}
    while pending or engine.has_unfinished():
        if not engine.has_unfinished():
            clock.now_s = max(clock.now_s, pending[0]["arrival_step"])
        while pending and pending[0]["arrival_step"] <= clock.now_s:
            r = pending.popleft()
            known = {key: r[key] for key in ("tenant",) if key in r}
            engine.add_request(
                r["id"], prompt_of(r, engine.vocab_size), r["max_tokens"],
                priority=r["priority"], arrival_time=r["arrival_step"], known=known,
            )  # fmt: skip
        for output in engine.step():
            if output.refusal is not None:
                refused[output.request_id] = output.refusal
            elif output.finished:
                lines[-1]["fin"].append(output.request_id)
    watch.ends()
    engine.guide(None)
    return lines, refused


def prompt_of(case_request, vocab_size):
    """Token ids: equal streams begin with equal tokens."""
    tokens = []
    for stream, start, length in prompt_parts(case_request):
        rng = random.Random(stream)
        tokens += [rng.randrange(3, vocab_size) for _ in range(start + length)][start:]
    return tokens


def simulated(case, policy):
    """A case in simulation, where a step lasts a second; the steps, and why requests were turned away."""
    requests = [{**r, "arrival_ns": r["arrival_step"] * 10**9} for r in case["requests"]]
    for request in requests:
        del request["arrival_step"]
    step_time = {"base": 10**9, "per_prefill_token": 0, "per_decode_seq": 0, "per_context_token": 0}
    played = Lines({**case, "requests": requests, "step_time_ns": step_time}, policy)
    played.play()
    steps = [
        {
            "t": line["t"] // 10**9,
            "s": [entry[:3] for entry in line.get("s", ())],
            "pre": sorted(line.get("pre", ())),
            "fin": line.get("fin", []),
        }
        for line in played.lines
        if "s" in line or "pre" in line
    ]
    return steps, played.refused
