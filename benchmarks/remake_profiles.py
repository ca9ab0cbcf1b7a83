"""Make the profiles that ship again, by the command in each, and compare: `python -m benchmarks.remake_profiles`.

The measurements of others lie in ../shared/gpu and are no part of the project. --write puts new files in the place of
those that differ. What an older simbatch made, or `benchmarks.measured_profiles` makes, is passed over.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from simbatch.sim.cost.by_name import profile_json, shipped_names, shipped_text
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.json_values import json_object

ROOT = Path(__file__).parents[1]


def command_of(name: str) -> list[str]:
    """The words of the command that stands in a shipped profile."""
    return str(json_object(shipped_text(name), name)["command"]).split()


def is_remade(name: str) -> bool:
    """Whether that is a command of today's `simbatch`."""
    words = command_of(name)
    return words[0] == "simbatch" and words[-2:] == ["-o", f"{name}.json"]


def remake(name: str, folder: Path) -> Path:
    """Run that command, its output put into `folder`; raises CalledProcessError."""
    words = command_of(name)
    output = folder / words[-1]
    command = [sys.executable, "-m", "simbatch", *words[1:-1], str(output)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return output


def with_real_runs(name: str, made: Path) -> str:
    """The file's text with the shipped one's real runs: those were simulated from it, so no command makes them."""
    text = made.read_text(encoding="utf-8")
    runs = json_object(shipped_text(name), name).get("real_runs")
    if runs is None:
        return text
    return profile_json(MeasuredProfile.model_validate({**json_object(text, name), "real_runs": runs}))


def main() -> None:
    """Compare all, or those named; exit code 1 when one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="profiles; all that ship if none is named")
    parser.add_argument("--write", action="store_true", help="replace the files that differ")
    options = parser.parse_args()
    names = options.names or [name for name in shipped_names() if is_remade(name)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(lambda name: with_real_runs(name, remake(name, Path(folder))), names)
        different = [(name, text) for name, text in zip(names, made, strict=True) if text != shipped_text(name)]
    for name, text in different:
        print(f"{name}: differs")
        if options.write:
            (ROOT / "profiles" / f"{name}.json").write_text(text, encoding="utf-8")
    print(f"{len(names) - len(different)} of {len(names)} identical")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
