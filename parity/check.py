"""Compare simbatch's engine with recordings of vLLM's scheduler: `python -m parity.check [DIR ...]`.

A recording has decisions, or with a key `timing` in its case the times on host and device too. DIR holds cases
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

from parity.recording import CaseLines, engine_config
from simbatch.sim.scenario.rules import start_problems

RECORDINGS = Path(__file__).parent / "recordings"  # decisions alone: the host takes no time
TIMING = Path(__file__).parent / "timing"  # with the host's times
SESSIONS = Path(__file__).parent / "sessions"  # turns that a client sends when others have ended, both kinds
OTHERS = Path(__file__).parent / "other_versions"  # decisions of other versions than 0.32, where they differ from it


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
