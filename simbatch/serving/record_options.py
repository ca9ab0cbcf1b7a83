"""Where a recorder writes: what the environment or `vllm serve --additional-config` says, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from simbatch.sim.errors import NOTHING, Problem, UserError

RECORD = "record"  # the key of --additional-config '{"simbatch": {"record": FILE}}'
VARIABLE = "SIMBATCH_RECORD"


def record_file(additional_config: object, data_parallel_rank: int = 0) -> Path:
    """The file of this engine; UserError where none is named.

    --additional-config goes before the environment. A further engine of data parallelism has its rank in the name.
    """
    ours = additional_config.get("simbatch") if isinstance(additional_config, Mapping) else None
    given = ours.get(RECORD) if isinstance(ours, Mapping) else None
    place = f"--additional-config simbatch.{RECORD}" if given is not None else VARIABLE
    name = os.environ.get(VARIABLE) if given is None else given
    if not isinstance(name, str) or not name:
        rule = "must name the file that the steps are written to"
        raise UserError(Problem(place, rule, NOTHING if name is None else name, f"set {VARIABLE}=steps.jsonl"))
    path = Path(name).expanduser().absolute()
    return path.with_name(f"{path.stem}.dp{data_parallel_rank}{path.suffix}") if data_parallel_rank else path
