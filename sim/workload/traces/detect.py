"""Which format a file has, by its first bytes, its columns and its first row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import JsonValue, json_value, json_values
from simbatch.sim.text import cut_short
from simbatch.sim.workload.bench import aiperf, guidellm, inference_perf, is_result
from simbatch.sim.workload.bench.run import keys_of, read_text
from simbatch.sim.workload.files import open_text, text_errors
from simbatch.sim.workload.formats import FORMATS, OURS, REQUIRED, RESULTS, TABLES, Format, Said
from simbatch.sim.workload.traces.columns import length_of
from simbatch.sim.workload.traces.lines import flattened, head_of_lines, listed_in, rows_of
from simbatch.sim.workload.traces.rows import Head
from simbatch.sim.workload.traces.tables import head_of_parquet, head_of_table
from simbatch.sim.workload.traces.texts import TEXT_KEYS, Texts

_HEAD = 1 << 16  # characters of a first line that is longer than any row, as a JSON document's may be
_LISTS = ("start_times", "input_lens", "output_lens")
_MOST_ROWS = 10_000  # that are looked at where the first ones fit several formats


def detect(
    path: Path, name: str | None = None, said: Said | None = None, texts: Texts | None = None
) -> tuple[Format, Head | None]:
    """The format of `path`, or the one of this `name`, and how the file begins; no head for a benchmark's result.

    `said`: columns that the user named. A file of `texts` comes to rows of Mooncake's columns.
    UserError that says what was found when no format fits or several do.
    """
    if name in RESULTS:
        return FORMATS[name or ""], None
    if texts is not None:
        return FORMATS[name or "mooncake"], _head_of_texts(path, texts)
    kind = name if name in OURS else None
    head = _head(path, kind)
    if isinstance(head, Format):
        return head, None
    if name is not None:
        return FORMATS[name], head
    return _of_columns(path, head, said or {}), head


def _head(path: Path, kind: str | None) -> Head | Format:
    if kind == "parquet" or (kind is None and _magic(path) == b"PAR1"):
        return head_of_parquet(path)
    if kind is None:
        with text_errors(path), open_text(path) as file:
            first = next((line for line in iter(lambda: file.readline(_HEAD), "") if line.strip()), "").strip()
        if first.startswith("{"):
            found = _of_object(path, first)
            if isinstance(found, Format):
                return found
            kind = found
        elif first.startswith("["):
            if (result := _of_document(path)) is not None:
                return result
            kind = "list"
        elif first.startswith("version https://git-lfs"):
            raise _unknown(path, "Git LFS's pointer to it", "get the file itself by git lfs pull")
    head = head_of_table(path) if kind in (None, "csv") else head_of_lines(path, kind)
    if head is None:
        rule = "the trace has no requests" + (": the file is empty" if kind in (None, "csv") else "")
        raise UserError(Problem(str(path), rule, mend="name another file"))
    return head


def _head_of_texts(path: Path, texts: Texts) -> Head:
    with text_errors(path), open_text(path) as file:
        first = next((line for line in iter(lambda: file.readline(_HEAD), "") if line.strip()), "").strip()
    if first and first[0] not in "[{":
        mend = "name a file of JSON, or leave out chars_per_token and tokenizer"
        raise UserError(Problem(str(path), "texts are read from JSON alone", first[:40], mend))
    head = head_of_lines(path, "list" if first.startswith("[") else "jsonl", texts)
    if head is None:
        raise UserError(Problem(str(path), "the trace has no requests", mend="name another file"))
    return head


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _of_object(path: Path, first: str) -> Format | str:
    """What begins with a JSON object: a client's result, or the kind of a trace (an object a line, or a list in one).

    UserError for a document that no known client wrote, and for one that is cut off.
    """
    try:
        row = json_value(first, path, line=1, allow_nan=True)
    except UserError:
        keys = [*TEXT_KEYS, *(column for form in TABLES.values() for column in form.columns[:2])]
        if any(f'"{key}"' in first for key in keys):
            return "jsonl"  # a row that is cut off, or longer than what was looked at: its reader says where
        return _of_document(path) or "list"
    if not isinstance(row, dict):
        return "jsonl"
    return _of_values([JsonValue(str(path), row)]) or ("list" if _has_rows(row) else "jsonl")


def _of_document(path: Path) -> Format | None:
    read = list(json_values(path, read_text(path)))
    found = _of_values(read)
    if found is not None or not read:
        return found
    if len(read) == 1 and (_has_rows(read[0].value) or _is_list(read[0].value)):
        return None
    if isinstance(read[0].value, dict) and read[0].value.get("filetype") == "generate_conversations":
        mend = "write workload.sessions: docs/sessions.md says what its figures are called there"
        raise _unknown(path, "the settings of vLLM's multi-turn benchmark, and no requests", mend)
    if all(isinstance(document.value, dict) and _has_lengths(document.value) for document in read):
        raise _unknown(path, "rows of JSON that spread over several lines", "write one JSON object a line (jq -c .)")
    raise _unknown(path, f"no known format has {keys_of(read[0].value)}")


def _has_lengths(row: dict[str, object]) -> bool:
    return {"prompt", "output"} <= {length_of(name) for name in flattened(row)}


def _is_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _has_rows(value: object) -> bool:
    """Whether an object holds one list, whose first row has lengths."""
    listed = listed_in(value) if isinstance(value, dict) and not _has_lengths(value) else None
    return listed is not None and _has_lengths(listed[0])


def _of_values(read: Sequence[JsonValue]) -> Format | None:
    first = read[0].value if read else None
    if guidellm.is_report(first):
        return FORMATS["guidellm"]
    if aiperf.is_record(first) or aiperf.is_summary(first):
        return FORMATS["aiperf"]
    if inference_perf.is_stage(first) or inference_perf.are_requests(first):
        return FORMATS["inference_perf"]
    is_bench = bool(read) and is_result(read)
    is_bench = is_bench or (isinstance(first, dict) and any(isinstance(first.get(name), list) for name in _LISTS))
    return FORMATS["vllm_bench"] if is_bench else None


def _of_columns(path: Path, head: Head, said: Said) -> Format:
    """The format whose columns the file has, the user's names in their place; ours for usual names."""
    own = FORMATS["jsonl" if head.kind == "list" else head.kind]
    others = [form for name, form in TABLES.items() if name not in OURS]
    full = [form for form in others if _num_there(form, head, said) == len(REQUIRED)]
    fitting = _fitting(path, head, full)
    if not full or _num_there(own, head, said) == len(REQUIRED):
        return _nearest(own, others, head)
    named = fitting if len(fitting) == 1 else [form for form in full if form.name in path.name.lower()]
    if len(named) == 1:
        return named[0]
    about = " and ".join(f"{form.name} ({form.unit}, {form.hash_block_tokens} tokens a hash)" for form in full)
    rule = f"{about} have the same keys, and these rows fit {'both' if fitting else 'neither'}"
    mend = f"say which: format: {full[0].name} or {full[-1].name} (--format)"
    raise UserError(Problem(head.place, rule, mend=mend))


def _fitting(path: Path, head: Head, full: Sequence[Format]) -> list[Format]:
    """Those that the first row fits, and where these are several those that later rows fit too."""
    fitting = [form for form in full if form.fits(head.row)]
    if len(fitting) > 1 and head.kind in ("jsonl", "list"):
        for number, row in rows_of(path, head.kind):
            fitting = [form for form in fitting if form.fits(row)]
            if len(fitting) < 2 or number == _MOST_ROWS:
                break
    return fitting


def _num_there(form: Format, head: Head, said: Said) -> int:
    """How many of the required columns the file has; a turn of a session may be without a time of its own."""
    is_turn = form.columns.session in head.names
    return sum(
        kind in said or getattr(form.columns, kind) in head.names or (kind == "arrival" and is_turn)
        for kind in REQUIRED
    )


def _nearest(own: Format, others: Sequence[Format], head: Head) -> Format:
    """Ours, or the one format that has two of its columns there give or take some letters, with a mistake in it."""
    if {"prompt", "output"} <= {length_of(name) for name in head.names}:
        return own
    alike = {form.name: _num_alike(head.names, form) for form in (own, *others)}
    best = [form for form in (own, *others) if alike[form.name] == max(alike.values()) >= 2]
    return best[0] if len(best) == 1 else own


def _num_alike(names: Sequence[str], form: Format) -> int:
    lower = [name.lower() for name in names]
    return sum(bool(get_close_matches(str(name).lower(), lower, n=1, cutoff=0.7)) for name in form.columns[:3])


def has_prompt(head: Head) -> bool:
    """Whether a column's name says that it is the prompts' lengths."""
    known = {form.columns.prompt for form in TABLES.values()}
    return any(name in known or length_of(name) == "prompt" for name in head.names)


def is_strange(head: Head) -> bool:
    """Whether a file has nothing that looks like a length or like a format's column: it is no trace."""
    known = {name for form in TABLES.values() for name in form.columns[:3]}
    return not (known & set(head.names) or any(length_of(name) for name in head.names))


def unknown(path: Path, head: Head) -> UserError:
    """What to say of a file that is no trace of any known kind."""
    if head.kind == "csv" and all(re.fullmatch(r"[\d.:T+ Z-]+", name) for name in head.names):
        mend = "write a first line with the columns' names, such as arrival_s,num_prompt_tokens,num_output_tokens"
        return _unknown(path, "there is no line of names above the numbers", mend)
    if head.kind == "csv":
        return _unknown(path, f"no known format begins with {','.join(head.names)[:80]!r}")
    return _unknown(path, f"no known format has the keys {cut_short(head.names)}")


def _unknown(path: Path, found: str, mend: str = "") -> UserError:
    name = "arrival=NAME,prompt=NAME,output=NAME"
    mend = mend or f"name its columns (--columns {name}, or columns: in a scenario), if it is a trace"
    return UserError(Problem(f"{path}:1", f"the format cannot be told: {found}", mend=mend))
