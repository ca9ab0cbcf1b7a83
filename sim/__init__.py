"""The simulation: scenario, workload, cost models, scheduler, engine, results, searches; no file here measures.

The engine's loops may run compiled: `make fast` compiles them in place, `SIMBATCH_COMPILE=1 pip install .` into an
installation (setup.py has the list). The same sources run interpreted where nobody did, with the same results.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from simbatch.sim.errors import Problem, UserError

FOLDER = Path(__file__).parent
COMPILED = "compiled.json"  # of each compiled module's source, by its path from here, the SHA-256


def is_compiled() -> bool:
    """Whether simulations run compiled."""
    return (FOLDER / COMPILED).is_file()


def check_compiled(folder: Path = FOLDER) -> None:
    """Raise UserError where what is compiled is of another source than the one beside it: it would run in its place."""
    if not (folder / COMPILED).is_file():
        return
    for name, known in json.loads((folder / COMPILED).read_text()).items():
        if known != sha256((folder / name).read_bytes()).hexdigest():
            rule = "has changed since it was compiled, and the compiled file would run in its place"
            mend = "make fast compiles it again, make slow removes what is compiled"
            raise UserError(Problem(str(folder / name), rule, mend=mend))
