"""Which column of a trace means what.

A column is known by its format, by what a user says, or by the field's usual names. A usual name is read by its words
(`num_prefill_tokens`, `promptTokens`, `usage.prompt_tokens`): all of them must be known ones, so that a total, a cached
part, a mean or a limit is never taken for a length:
1. prompt: one of prompt, input, context, prefill (or in, with tokens); output: completion, output, generated, ...
2. and a word that says that tokens are counted; `len`, `length` and `size` do so beside the words that no log of bytes
   has. `token_size` is Splitwise's output.
   What a row is wrapped in (`response.body.usage.prompt_tokens`) is left out where the whole name says nothing.
3. an arrival is made of words of beginning and of time; the earliest kind in `_ARRIVAL_RANKS` wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.text import cut_short
from simbatch.sim.workload.formats import REQUIRED, Columns, Format, Row, Said, Unit


@dataclass(frozen=True)
class Chosen:
    """The columns of a file, the units of its times where they are known, and which were told by usual names."""

    columns: Columns
    unit: Unit | None
    guessed: Mapping[str, str] = field(default_factory=dict)
    delay_unit: Unit = "s"


_PROMPT = {"prompt", "input", "context", "prefill"}
_OUTPUT = {"completion", "output", "generated", "generation", "response", "decode", "decoded"}
_COUNTS = {"token", "tokens", "tok", "toks", "usage"}
_SIZES = {"len", "length", "lengths", "lens", "size", "sequence", "seq"}
_BYTES = {"context", "response"}  # a length of these may be a model's limit, or bytes
_FILLERS = {"num", "number", "n", "count", "of", "llm", "gen", "ai", "request", "details"}
_WRAPPERS = {"response", "request", "body", "data", "result", "payload", "message", "event", "log", "attributes"}
_SUMS = {"num_model_requests", "n_requests", "num_requests", "request_count"}  # of a row that is many requests
_WHOLE_NAMES = {
    **{"isl": "prompt", "request_tokens": "prompt", "prompt_eval_count": "prompt"},
    **{"osl": "output", "token_size": "output", "eval_count": "output"},
}
_ARRIVAL_RANKS = (
    {"arrival", "arrived", "arrive"},
    {"launch", "launched", "submit", "submitted", "sent", "send", "enqueue", "enqueued"},
    {"start", "started", "begin", "received"},
    {"timestamp", "ts", "datetime"},
    {"created", "date", "time"},
)
_ARRIVAL_FILLERS = {"time", "timestamp", "ts", "at", "request", "unix", "epoch", "utc", "datetime", "date"}
_UNITS: dict[str, Unit] = {
    **dict.fromkeys(("s", "sec", "secs", "seconds"), "s"),
    **dict.fromkeys(("ms", "msec", "milli", "millis", "milliseconds"), "ms"),
    **dict.fromkeys(("us", "usec", "micro", "micros", "microseconds"), "us"),
    **dict.fromkeys(("ns", "nsec", "nano", "nanos", "nanoseconds"), "ns"),
}
_DURATION = "request_time"  # how long it took, in nginx's logs
_NEVER_PART = re.compile(r"total|sum|max|min|mean|avg|average|cached|cache|limit|cost|price|reason", re.IGNORECASE)


def words_of(name: str) -> tuple[str, ...]:
    """`usage.promptTokens`, `Prompt Tokens` and `usage_prompt_tokens`: usage, prompt, tokens."""
    parted = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return tuple(word for word in re.split(r"[^A-Za-z0-9]+", parted.lower()) if word)


def _unwrapped(name: str) -> str:
    """`response.body.usage.prompt_tokens` as `usage.prompt_tokens`."""
    outer, _, inner = name.partition(".")
    return _unwrapped(inner) if inner and outer.lower() in _WRAPPERS else name


def length_of(name: str) -> str | None:
    """`prompt` or `output` for a name that says so, and nothing more."""
    return _length_in(words_of(name)) or _length_in(words_of(_unwrapped(name)))


def _length_in(words: Sequence[str]) -> str | None:
    if found := _WHOLE_NAMES.get("_".join(words)):
        return found
    rest = set(words)
    counts = rest & _COUNTS
    for kind, own, short in (("prompt", _PROMPT, "in"), ("output", _OUTPUT, "out")):
        named = rest & (own | {short} if counts else own)
        sized = rest & _SIZES and not named & _BYTES
        if named and (counts or sized) and rest <= named | _COUNTS | _SIZES | _FILLERS:
            return kind
    return None


def arrival_of(name: str) -> tuple[int, Unit | None] | None:
    """How good a name is for the arrival (0 is best), and the unit that it says; None when it is none."""
    words = list(words_of(_unwrapped(name)))
    unit = _UNITS.get(words[-1]) if words else None
    words = words[:-1] if unit and len(words) > 1 else words
    if "_".join(words) == _DURATION:
        return None
    for rank, own in enumerate(_ARRIVAL_RANKS):
        if set(words) & own and set(words) <= own | _ARRIVAL_FILLERS:
            return rank, unit
    return None


def choose_columns(
    form: Format, row: Row, names: Sequence[str], place: str, said: Said, wanted: Iterable[str], *, usual: bool
) -> Chosen:
    """The columns of a file with these `names`: those that the user `said`, the format's, and `usual` ones.

    `row` is the first one; of several usual names that say the same in it the first is taken. UserError where one that
    is `wanted` is missing, can be several columns, or stands twice, or where a row is the sum of many requests.
    """
    stripped = [name.strip() for name in names]
    named = form.columns._asdict().items()  # what is optional may stand in later rows alone
    there = {kind: name for kind, name in named if name and (name in stripped or kind not in REQUIRED)}
    there |= {kind: name for kind, (name, _) in said.items() if kind in Columns._fields}
    unit = form.unit if "arrival" not in said else said["arrival"][1] or _said_unit(said["arrival"][0], form)
    guessed: dict[str, str] = {}
    missing = [kind for kind in REQUIRED if kind not in there]
    taken = set(there.values())
    for kind in missing if usual else ():
        found = _usual(kind, [name for name in dict.fromkeys(stripped) if name not in taken])
        if kind in wanted and len({str(row.get(name)) for name in found}) > 1:
            raise UserError(_several(kind, found, place))
        if found:
            guessed[kind] = found[0]
            taken.add(found[0])
    if guessed.keys() & {"prompt", "output"} and (sums := [name for name in stripped if name.lower() in _SUMS]):
        raise UserError(_summed(sums[0], row, place))
    if "arrival" in guessed:
        unit = (arrival_of(guessed["arrival"]) or (0, None))[1]
    columns = Columns(**{**there, **guessed})
    _check(columns, stripped, wanted, place, form)
    return Chosen(columns, unit, guessed, _delay_unit(form, said))


def _delay_unit(form: Format, said: Said) -> Unit:
    """As the user says, by name or unit; else that of the format's times."""
    name, unit = said.get("delay", (form.columns.delay, None))
    told = unit or (None if name == form.columns.delay or name is None else _UNITS.get(words_of(name)[-1]))
    return told or ("s" if form.unit in (None, "iso") else form.unit)


def _said_unit(name: str, form: Format) -> Unit | None:
    """The format's unit when the user names the format's own column; else what the name says."""
    return form.unit if name == form.columns.arrival else (arrival_of(name) or (0, None))[1]


def _usual(kind: str, names: Sequence[str]) -> list[str]:
    if kind != "arrival":
        return [name for name in names if length_of(name) == kind]
    ranked = [(found[0], name) for name in names if (found := arrival_of(name))]
    return [name for rank, name in ranked if rank == min(ranked)[0]]


def _several(kind: str, found: Sequence[str], place: str) -> Problem:
    rule = f"several columns can be the {kind}: {cut_short(found)}"
    return Problem(place, rule, mend=f"say which: --columns {kind}={found[0]} (columns: in a scenario)")


def _summed(name: str, row: Row, place: str) -> Problem:
    rule = "the tokens of a row are the sum of so many requests, and a trace has a row a request"
    mend = "write traffic from totals: request_rate, and lengths with their mean or quantiles (docs/from-your-files.md)"
    return Problem(f"{place} {name}", rule, row.get(name), mend)


def _check(columns: Columns, names: Sequence[str], wanted: Iterable[str], place: str, form: Format) -> None:
    problems = [
        Problem(f"{place} {name}", "the column stands twice", mend="remove or rename one of them")
        for name in dict.fromkeys(names)
        if name in columns and names.count(name) > 1
    ]
    if missing := [kind for kind in wanted if getattr(columns, kind) is None]:
        problems.append(_missing(missing, columns, names, place, form))
    if problems:
        raise UserError(*problems)


def _missing(kinds: Sequence[str], columns: Columns, names: Sequence[str], place: str, form: Format) -> Problem:
    """One sentence for all that is not there, with what may be meant."""
    hints: dict[str, str] = {}
    for kind in kinds:
        free = [name for name in names if name not in columns and name not in hints.values()]
        if hint := _hint(kind, getattr(form.columns, kind), free):
            hints[kind] = hint
    theirs = ", ".join(getattr(form.columns, kind) for kind in kinds)
    what = "the column is missing" if len(kinds) == 1 else "the columns are missing"
    rule = f"{what}; the file has {cut_short(names) if names else 'nothing'}"
    named = ",".join(f"{kind}={hints.get(kind, 'NAME')}" for kind in kinds)
    say = f"--columns {named} (columns: in a scenario)"
    guess = f"is it {' and '.join(map(repr, hints.values()))}? " if hints else ""
    mend = f"{guess}{say}" if hints else f"name {'it' if len(kinds) == 1 else 'them'}: {say}"
    if "arrival" in kinds and columns.prompt and columns.output and "arrival" not in hints:
        mend += "; lengths alone: prompt_len: {distribution: empirical, path: ...}"
    return Problem(f"{place} {theirs}", rule, mend=mend)


def _hint(kind: str, theirs: str, names: Iterable[str]) -> str | None:
    """A free column that may be meant, nothing with a total, a mean or a limit in its name."""
    free = {name.lower(): name for name in names if not _NEVER_PART.search(name)}
    usual = _usual(kind, list(free.values()))
    near = get_close_matches(theirs.lower(), free, n=1, cutoff=0.75)
    return usual[0] if usual else free[near[0]] if near else None
