"""Every shipped scenario's results as digests, to hold one build of the engine against another.

`python -m parity.shipped > FILE` writes them, with and without host times, with every step kept and without;
`python -m parity.shipped --same-as FILE` compares, and exits with 1 on a difference.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from simbatch import Scenario, simulate
from simbatch.sim import is_compiled
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.scenario.presets import shipped_scenarios

ROOT = Path(__file__).parents[1]
HOST = {"host.from": str(ROOT / "benchmarks" / "h100-host.json")}
TRACE = ROOT.parent / "shared" / "traces" / "azure" / "AzureLLMInferenceTrace_conv.csv"  # does not ship


def digest(scenario: Scenario, *, steps: bool) -> str:
    """SHA-256 of the summary and of every column of the record."""
    result = simulate(scenario, steps=steps)
    parts = [json.dumps(result.summary, sort_keys=True), *_columns(result.record), repr(result.record.steps)]
    return sha256("\n".join(parts).encode()).hexdigest()


def _columns(record: RunRecord) -> list[str]:
    arrays: list[Any] = [getattr(record.requests, field.name) for field in fields(record.requests)]
    arrays += [record.segments, record.tokens, record.gaps]
    return [str(x.tolist() if isinstance(x, np.ndarray) else x) for x in arrays if x is not None]  # a new one is None


def digests() -> dict[str, str]:
    """By scenario and variant."""
    found = {}
    for name in shipped_scenarios():
        plain = Scenario.load(ROOT / "scenarios" / f"{name}.yaml")
        if plain.workload.trace is not None:
            if not TRACE.is_file():
                continue
            plain = plain.override({"workload.trace.path": str(TRACE)})
        for variant, changes in {"": {}, " with host times": HOST}.items():
            scenario = plain.override(changes)
            found[name + variant] = digest(scenario, steps=False)
            if scenario.workload.trace is None:
                found[f"{name}{variant}, every step"] = digest(scenario, steps=True)
    return found


def main(arguments: list[str]) -> int:
    """Write the digests, or compare them."""
    found = digests()
    if arguments[:1] != ["--same-as"]:
        print(json.dumps(found, indent=1))
        return 0
    known = json.loads(Path(arguments[1]).read_text())
    names = sorted(found.keys() | known.keys())
    different = [name for name in names if found.get(name) != known.get(name)]
    for name in different:
        print(f"{name}: differs")
    build = "compiled" if is_compiled() else "interpreted"
    print(f"{len(names) - len(different)} of {len(names)} shipped runs identical, here {build}")
    return 1 if different or not names else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
