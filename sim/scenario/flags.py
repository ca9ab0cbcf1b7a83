"""Flags of `vllm serve` by the table `vllm_flags.tsv`: what each is to a simulation, its words read and written.

A row is one flag of vLLM's parser, 0.25 to 0.33 (`python -m parity.serve_flags` holds the table against the parsers),
or of an older vLLM: `takes` says how many words follow, `also` how else it is spelled, `versions` where it is not in
all, `off` the values at which it changes nothing.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple

from simbatch.sim.errors import Problem, UserError

Status = Literal["used", "no_effect", "not_simulated"]
PASSED_OVER = "false in a --config file"
BENCH_KEYS = {  # flags of `vllm bench serve` that say what is sent, and where it stands in a scenario
    **dict.fromkeys(("num-prompts", "max-concurrency", "burstiness", "request-rate"), "workload"),
    **dict.fromkeys(("dataset-name", "dataset-path", "input-len", "output-len"), "workload"),
    **{f"random-{name}": "workload" for name in ("input-len", "output-len", "range-ratio", "prefix-len")},
    **{f"prefix-repetition-{name}": "workload" for name in ("prefix-len", "suffix-len", "num-prefixes", "output-len")},
    **{f"ramp-up-{name}": "workload.arrival" for name in ("strategy", "start-rps", "end-rps")},
    "goodput": "slo",
    "seed": "seed",
    "model": "profile",
}
_INTEGER = re.compile(r"(-?\d+(?:\.\d+)?)([kKmMgGtT]?)")
FACTORS = {
    "": 1,
    **{unit: 1000**i for i, unit in enumerate("kmgt", 1)},
    **{u: 1024**i for i, u in enumerate("KMGT", 1)},
}


class FlagRow(NamedTuple):
    """A row of the table."""

    flag: str
    takes: str  # value, list, optional, flag (on and off) or true (on alone)
    also: str
    versions: str
    status: Status
    key: str
    off: str
    reason: str

    @property
    def spellings(self) -> dict[str, bool]:
        """Every way to write it, and whether that switches it on.

        `enable_x` is also written `--no-enable-x` and `--disable-x`; `disable_x` `--enable-x`, which switches it off.
        """
        name = self.flag.replace("_", "-")
        found = {f"--{name}": True, **dict.fromkeys(self.also.split(), True)}
        if self.takes == "flag":
            found[f"--no-{name}"] = False
            for prefix, other in (("enable-", "disable-"), ("disable-", "enable-")):
                if name.startswith(prefix):
                    found[f"--{other}{name.removeprefix(prefix)}"] = False
        return found


@dataclass(frozen=True)
class Given:
    """A flag as somebody wrote it, and what it is to the simulation."""

    flag: str  # as it was spelled
    value: str | bool | list[str]
    row: FlagRow | None  # None: vLLM has no such flag
    status: Status = "not_simulated"
    key: str = ""
    reason: str = ""
    words: tuple[str, ...] = ()  # as they stood in the line

    @property
    def name(self) -> str:
        """As vLLM calls the argument."""
        return self.flag.lstrip("-").replace("-", "_") if self.row is None else self.row.flag

    def answered(self, status: Status, reason: str, key: str = "") -> Given:
        """A copy of the flag with another answer."""
        return replace(self, status=status, reason=reason, key=key)

    @property
    def text(self) -> str:
        """Its value as a person writes it; nothing for a switch."""
        if isinstance(self.value, bool):
            return ""
        return " ".join(self.value) if isinstance(self.value, list) else self.value

    def as_json(self) -> dict[str, Any]:
        """As CONTRACT has it."""
        answer = {"status": self.status, "key": self.key or None, "reason": self.reason}
        return {"flag": self.flag, "value": self.value, **answer}


@cache
def table() -> tuple[FlagRow, ...]:
    """All rows."""
    text = (files("simbatch.sim.scenario") / "vllm_flags.tsv").read_text(encoding="utf-8")
    rows = csv.reader(text.splitlines()[1:], delimiter="\t", quoting=csv.QUOTE_NONE)
    return tuple(FlagRow(*row) for row in rows)  # type: ignore[arg-type]  # a status is one of three: a test says so


@cache
def spellings() -> Mapping[str, tuple[FlagRow, bool]]:
    """Rows by everything that they are written as."""
    return {text: (row, is_on) for row in reversed(table()) for text, is_on in row.spellings.items()}


def parse(words: Sequence[str]) -> tuple[list[Given], list[str]]:
    """The flags among the words of a command line, and the words that belong to none: the model."""
    given: list[Given] = []
    alone: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word in ("-", "--"):
            alone.append(word)
            continue
        name, equals, value = _normal(word).partition("=")
        begin = len(words) - len(rest) - 1
        one = _one(name, value if equals else None, rest)
        given.append(replace(one, words=tuple(words[begin : len(words) - len(rest)])))
    return _last_of_each(given), alone


def _normal(word: str) -> str:
    """A flag with dashes up to its value or its first dot, as vLLM's parser makes it; `-O3` is a level."""
    if match := re.fullmatch(r"-O=?(\d)", word):
        return f"--optimization-level={match[1]}"
    if not word.startswith("--"):
        return "--optimization-level" if word == "-O" else word
    head = re.match(r"--[^.=]*", word)
    assert head is not None
    return head[0].replace("_", "-") + word[head.end() :]


def _one(name: str, value: str | None, rest: list[str]) -> Given:
    """One flag, with the words that it takes gone from `rest`."""
    base, dot, path = name.partition(".")
    row, is_on = spellings().get(base, (None, True))
    takes = "value" if dot else row.takes if row is not None else "optional"
    if value == PASSED_OVER:
        return Given(name, False, row).answered("no_effect", f"vLLM passes over {PASSED_OVER}; `no-...: true` is off")
    if takes in ("flag", "true"):
        is_old = value is None and bool(rest) and rest[0].lower() in ("true", "false")  # as vLLM once took it
        text = rest.pop(0) if is_old else value
        return _answered(Given(name, is_on if text is None else (text.lower() == "true") == is_on, row))
    words = [] if value is None else [value]
    while rest and value is None and (not _is_flag(rest[0])) and (takes == "list" or not words):
        words.append(rest.pop(0))
    if not words and takes != "optional":
        raise UserError(Problem(name, "a value must follow", mend="write it behind the flag"))
    if dot and row is not None:
        return _answered(Given(base, json.dumps(_nested(path.split("."), words[0])), row))
    found: str | bool | list[str] = words if takes == "list" else words[0] if words else True
    return _answered(Given(name, found, row))


def parse_bench(words: Sequence[str]) -> tuple[list[Given], list[str]]:
    """Flags of `vllm bench serve`: those that say what is sent are used, the others are the client's own."""
    given: list[Given] = []
    alone: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            alone.append(word)
            continue
        name, equals, value = _normal(word).partition("=")
        found = [value] if equals else []
        while rest and not equals and not _is_flag(rest[0]):
            found.append(rest.pop(0))
        key = BENCH_KEYS.get(name.removeprefix("--"), "")
        one = Given(name, found if name == "--goodput" else found[0] if found else True, None)
        given.append(one.answered("used", "", key) if key else one.answered("no_effect", "the client's own affair"))
    return given, alone


def _is_flag(word: str) -> bool:
    return word.startswith("-") and re.fullmatch(r"-\d+(\.\d+)?", word) is None


def _nested(path: Sequence[str], text: str) -> dict[str, Any]:
    """`--compilation-config.cudagraph_mode NONE` as the JSON that it stands for."""
    try:
        value: Any = json.loads(text)
    except ValueError:
        value = text
    for key in reversed(path):
        value = {key: value}
    return dict(value)


def _answered(given: Given) -> Given:
    """What the table says of it."""
    row = given.row
    if row is None:
        near = get_close_matches(given.flag, spellings(), n=1, cutoff=0.8)
        guess = f"; did you mean {near[0]}?" if near else ""
        return given.answered("not_simulated", f"vLLM 0.12 to 0.33 has no such flag{guess}")
    if row.status == "not_simulated" and (given.value is False or given.text.lower() in row.off.split()):
        return given.answered("no_effect", "is what vLLM does by itself")
    return given.answered(row.status, row.reason, row.key)


def _last_of_each(given: list[Given]) -> list[Given]:
    """As vLLM's parser has it: of a flag that stands twice the last counts; JSON settings of one flag go together."""
    found: list[Given] = []
    for i, one in enumerate(given):
        later = [other for other in given[i + 1 :] if one.row is not None and other.row == one.row]
        is_json = one.row is not None and one.row.flag.endswith("config") and one.text.startswith("{")
        again = one.answered("no_effect", f"{later[-1].flag} stands once more, and the last counts") if later else one
        found.append(one if is_json else again)
    return found


def whole_number(given: Given) -> int:
    """`32k` as 32,000 and `32K` as 32,768, as vLLM reads them."""
    match = _INTEGER.fullmatch(given.text.strip())
    if match is None:
        raise UserError(Problem(given.flag, "must be a whole number", given.text, "write it as 32768, 32k or 32K"))
    return int(float(match[1]) * FACTORS[match[2]])


def number(given: Given) -> float:
    """A number with a point."""
    try:
        return float(given.text)
    except ValueError:
        raise UserError(Problem(given.flag, "must be a number", given.text, "write it as 0.9")) from None


def json_value(given: Given) -> dict[str, Any]:
    """A JSON object; UserError with what is wrong in it."""
    try:
        value = json.loads(given.text)
    except ValueError as error:
        mend = "a shell takes the quotes away unless the whole stands in single quotes: '{\"key\": 1}'"
        raise UserError(Problem(given.flag, f"must be JSON: {error}", given.text, mend)) from None
    return value if isinstance(value, dict) else {}


def entries(given: Given) -> Iterator[tuple[str, Any]]:
    """The settings of a JSON flag, one by one."""
    yield from json_value(given).items()


def flag_words(settings: Mapping[str, Any]) -> Iterator[str]:
    """Settings as `vllm serve` takes them, word by word; a name's parts are joined by _ or -.

    A switch that is off is `--no-NAME`, the values of a list follow each other, and a dict is JSON.
    """
    for name, value in settings.items():
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{dashed}" if value else f"--no-{dashed}"
        elif isinstance(value, list | tuple):
            yield from (f"--{dashed}", *map(str, value))
        else:
            yield from (f"--{dashed}", json.dumps(value) if isinstance(value, dict) else str(value))


def serve_line(model: str, settings: Mapping[str, Any]) -> str:
    """`vllm serve MODEL --flag value ...`, to be pasted into a shell."""
    return shlex.join(["vllm", "serve", model, *flag_words(settings)])
