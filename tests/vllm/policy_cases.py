"""Cases for a policy in vLLM's own scheduler and in the simulation, and both of them played."""

from parity.fuzz import random_case
from parity.recording import CaseReplica


class CaseClock:
    """The virtual clock of an oracle, which counts ns and stamps requests with them."""

    def __init__(self, oracle):
        self.oracle = oracle

    def now_ps(self):
        return self.oracle.clock * 1000

    def arrival_ps(self, arrival_time):
        return int(arrival_time) * 1000


def case_of(seed, **config):
    """A random case whose order is the policy's."""
    case = random_case(f"policy{seed}", seed)
    case["config"] |= {"policy": "fcfs", **config}
    case["max_steps"] = 4_000
    return case


def oracle_of(case, policy):
    """vLLM's scheduler under `policy`, ready to run the case."""
    from parity import vllm_oracle
    from simbatch.vllm_scheduler import PolicyScheduler

    class Oracle(vllm_oracle.Oracle):
        def __init__(self):
            given = vllm_oracle.EngineArgs
            chosen = {"scheduler_cls": PolicyScheduler, "additional_config": {"simbatch": {"policy": {"name": "vllm"}}}}
            vllm_oracle.EngineArgs = lambda **settings: given(**settings, **chosen)
            try:
                super().__init__(case)
            finally:
                vllm_oracle.EngineArgs = given
            self.sched.guide(policy, CaseClock(self))

        def update(self, output, result, line, when):
            self.clock = when
            super().update(output, result, line, when)

    return Oracle()


def played_by_vllm(case, policy):
    oracle = oracle_of(case, policy)
    loop = oracle.run_async if case["config"]["async_scheduling"] else oracle.run_sync
    loop()
    end = {"steps": oracle.step_no, "clock": oracle.clock, "stalled": oracle.stalled}
    return [*oracle.lines, *oracle.info.values(), {"end": end}]


def played_by_simbatch(case, policy):
    return CaseReplica(case, policy).play()
