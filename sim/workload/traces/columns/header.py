"""Whether a file has the columns of its format."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.workload.traces.rows import Columns


def check_header(header: Sequence[str], columns: Columns, place: str) -> dict[str, int]:
    """Where each of the format's columns stands; UserError when a required one is missing or one stands twice."""
    names = [name.strip() for name in header]
    problems = [
        Problem(f"{place} {name}", "the column stands twice", mend="remove or rename one of them")
        for name in dict.fromkeys(names)
        if name in columns and names.count(name) > 1
    ]
    for name in columns.required:
        if name not in names:
            free = {other.lower(): other for other in names if other not in columns}
            near = get_close_matches(name.lower(), free, n=1)
            found = ", ".join(names) or "nothing"
            mend = f"is it {free[near[0]]!r}? Rename it" if near else "check the format, or name another one"
            problems.append(Problem(f"{place} {name}", f"the column is missing; the file has {found}", mend=mend))
    if problems:
        raise UserError(*problems)
    return {name: names.index(name) for name in columns if name in names}
