"""The loop of docs/accuracy.md on this machine: profile a small model on real vLLM, then validate on three workloads.

    .venv-vllm/bin/python -m tests.vllm.accuracy -o build/accuracy

On a machine that does nothing else it takes about ten minutes. The rates are shares of the capacity that the profile
says: 0.3 (light), 0.8 (heavy), 0.5 in bursts. Each replay is simulated from the profile measured before it; another one
after it tells whether the machine was still the same. Prints a table in Markdown; ends with 1 when a figure is outside.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from simbatch import Scenario, simulate
from simbatch.sim.cost.profile import load_profile

HERE = Path(__file__).parent
MODEL = HERE / "models" / "tiny-llama"
# One thread, since two wait for each other whenever something else wants a core; not bound to a core, which it would
# share with every other thread of the process; and memory that is kept, since handing it back and forth with the
# system takes as long as a small model's step. Without these the same step took 3.3 or 4.8 ms, by chance.
STEADY = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**28),
}
EAGER = ("--engine-arg", "enforce_eager=true")
ENGINE = ("--max-num-seqs", "32", "--max-num-batched-tokens", "512", "--max-model-len", "1024")
SHARES = {"light": 0.3, "heavy": 0.8, "bursty": 0.5}
MOVED = 0.05
BOUNDS = "mean=5,mean_ttft=10,p90=10"
SHOWN = (
    "output_throughput",
    "mean_ttft_ms",
    "p90_ttft_ms",
    "mean_tpot_ms",
    "p90_tpot_ms",
    "mean_e2el_ms",
    "p90_e2el_ms",
)


def profile(target, budget_minutes, engine=ENGINE):
    """Measure MODEL into `target`."""
    flags = (*engine, *EAGER, "--budget-minutes", str(budget_minutes), "-o", str(target))
    simbatch("profile", str(MODEL), *flags).check_returncode()


def rate_of(name, target, settings):
    """The scenario's share of the requests per second that the engine does when all are there from the start."""
    scenario = Scenario.load(HERE / "scenarios" / f"{name}.yaml")
    content = scenario.override({"profile": str(target.absolute()), **settings}).dump()
    workload = {**content["workload"], "arrival": {"process": "all_at_once"}, "num_prompts": 2000}
    for key in ("request_rate", "burstiness"):
        workload.pop(key, None)
    saturated = simulate(Scenario.from_dict({**content, "workload": workload}))
    return round(SHARES[name] * saturated.summary["request_throughput"], 3)


def validate(name, target, folder, repeat, bounds, **settings):
    """Replay a scenario, with some of its keys set (`__` for the dots); returns how it ended."""
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    given = {"workload.request_rate": rate_of(name, target, dotted), "profile": target.absolute(), **dotted}
    flags = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
    program = ("validate", str(HERE / "scenarios" / f"{name}.yaml"), "--engine", str(MODEL), *EAGER, *flags)
    return simbatch(*program, "--repeat", str(repeat), "-o", str(folder), "--bounds", bounds)


def simbatch(*arguments):
    """Run a command, its output shown as it comes."""
    environment = {**STEADY, **os.environ}
    return subprocess.run([sys.executable, "-m", "simbatch", *arguments], env=environment, check=False)


def markdown(folder, names):
    """The table: real median, spread, simulated, error."""
    yield "| workload | figure | real, median | spread | simulated | error |"
    yield "|---|---|---|---|---|---|"
    for name in names:
        content = json.loads((folder / name / "validation.json").read_text())
        figures = {f["key"]: f for f in content["figures"] if f["clock"] == "client"}
        for key in SHOWN:
            figure = figures[key]
            spread = "-" if figure["spread"] is None else f"±{figure['spread']:.1%}"
            values = f"{figure['median']:,.1f} | {spread} | {figure['simulated']:,.1f} | {figure['error']:+.1%}"
            yield f"| {name} | {figure['label']} | {values} |"


def moved(before, after):
    """How far the machine's speed moved between two profiles, as a share: of a usual decode step or of a mixed one."""
    costs = [load_profile(str(target.absolute()), folder=HERE).cost_model() for target in (before, after)]
    steps = [
        (cost.decode_ps(8) + 1600 * cost.decode_context_ps, cost.mixed_ps(8, 1600, 128, 128, 128**2)) for cost in costs
    ]
    return max(abs(new / old - 1) for old, new in zip(*steps, strict=True))


def attempt(given, name, before):
    """Validate until the machine keeps its speed meanwhile, or tries are over: exit code, newest profile, what to say.

    The simulation knows the profile from before a replay alone. The one from after it says whether the machine was the
    same: where it moved by more than MOVED the attempt is void, whatever it found, and that one is the next `before`.
    """
    said = []
    for number in range(1, given.tries + 1):
        folder = given.output / name
        shutil.rmtree(folder, ignore_errors=True)
        code = validate(name, before, folder, given.repeat, BOUNDS).returncode
        after = given.output / f"after-{name}-{number}.json"
        profile(after, given.budget_minutes)
        share, before = moved(before, after), after
        said.append(f"{name}: the machine's speed moved by {share:.1%}{', void' if share > MOVED else ''}")
        if share <= MOVED:
            break
    return code, before, said


def main():
    """The whole loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("build", "accuracy"))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tries", type=int, default=3, help="attempts at a workload while the machine's speed moves")
    parser.add_argument("--budget-minutes", type=float, default=1)
    given = parser.parse_args()
    shutil.rmtree(given.output, ignore_errors=True)
    given.output.mkdir(parents=True)
    latest = given.output / "before.json"
    profile(latest, given.budget_minutes)
    codes, lines = [], []
    for name in SHARES:
        code, latest, said = attempt(given, name, latest)
        codes.append(code)
        lines += said
    print("\n".join([*markdown(given.output, SHARES), "", *lines]))
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
