"""What the user must mend: every mistake in a file or on the command line ends up here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Nothing(Enum):
    """That there is no value to show; an enum stays what it is when an error comes from another process."""

    NOTHING = 0


NOTHING = Nothing.NOTHING
MAX_SHOWN = 80  # characters of a value


@dataclass(frozen=True)
class Problem:
    """One mistake of the user's.

    `place` is where it stands (`scenarios/x.yaml:14:5 engine.max_num_seq`), `rule` what it breaks, `value` what was
    found there, `mend` what to do about it.
    """

    place: str
    rule: str
    value: object = NOTHING
    mend: str = ""

    def __str__(self) -> str:
        found = "" if self.value is NOTHING else f" (got {shorten(self.value)})"
        mend = f"; {self.mend}" if self.mend else ""
        return f"{self.place}: {self.rule}{found}{mend}"


class UserError(Exception):
    """One or several problems that the user must mend; the command line prints them and exits with 2."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)  # so that a copy keeps them: SimPy and pickle make one from `args`
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def shorten(value: object) -> str:
    """`repr(value)`, cut in the middle when it is longer than 80 characters; true, false and null as in a file."""
    text = {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool | None) else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN // 2]} ... {text[-MAX_SHOWN // 4 :]}"
