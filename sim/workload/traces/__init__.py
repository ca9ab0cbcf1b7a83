"""Traces: requests from files of several formats, read as streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import user_path
from simbatch.sim.workload.files import check_file
from simbatch.sim.workload.formats import OURS, OWN, REQUIRED, RESULTS, Columns, Format, Said
from simbatch.sim.workload.model import Workload
from simbatch.sim.workload.trace_model import Trace, settings_mistakes
from simbatch.sim.workload.traces.columns import Chosen, choose_columns
from simbatch.sim.workload.traces.detect import detect, has_prompt, is_strange, unknown
from simbatch.sim.workload.traces.lines import BenchReader, LinesReader, mentions
from simbatch.sim.workload.traces.rows import Head, Reader, Reading
from simbatch.sim.workload.traces.source import TraceSource
from simbatch.sim.workload.traces.tables import CsvReader, ParquetReader
from simbatch.sim.workload.traces.texts import COUNT_THEM, TEXT_HASH_TOKENS, Texts, has_texts
from simbatch.sim.workload.traces.times import PS_PER_UNIT, Clock

__all__ = ["TraceSource", "foretells", "open_trace"]

_READERS: dict[str, Callable[[Path, Reading], Reader]] = {
    "csv": CsvReader,
    "jsonl": LinesReader,
    "list": LinesReader,
    "parquet": ParquetReader,
}
_OF_SESSIONS = ("session", "parent", "delay", "system_prompt", "num_system_tokens")


def open_trace(
    trace: Trace,
    *,
    folder: Path = Path(),
    workload: Workload | None = None,
    seed: int = 0,
    place: str = "workload.trace",
    run: int | None = None,
    wanted: tuple[str, ...] = REQUIRED,
) -> TraceSource:
    """A trace's requests; a relative path starts at `folder`.

    `workload` adds its `priorities`, `tenants` and `max_concurrency`; `place` names the settings in messages; `run` is
    the number of a run in a benchmark's file of several; `wanted` are the columns that the file must have (lengths
    alone for `distribution: empirical`). UserError at once for settings, missing files and headers, while reading for
    malformed rows.
    """
    path = user_path(folder, trace.path)
    check_file(path, f"{place}.path" if place else str(path))
    said = trace.columns.said() if trace.columns else {}
    texts = _texts_of(trace, folder, place)
    form, head = detect(path, trace.format, said, texts)
    mistakes = settings_mistakes(trace, form.name)
    if mistakes:
        raise UserError(*(Problem(_named(place, key), rule, getattr(trace, key), mend) for key, rule, mend in mistakes))
    reader: Reader
    notes: tuple[str, ...] = ()
    has_turns = False
    if head is None:
        clock = Clock(trace.time_unit or form.unit)
        reader = BenchReader(path, form.columns, clock, run, lengths_only="arrival" not in wanted)
    else:
        reader, notes, has_turns = _rows_of(path, head, form, trace, place, wanted, texts)
    if trace.prompt_is == "new" and not has_turns:
        rule, mend = "there are no sessions in the file", "name their column: --columns session=NAME, or leave it out"
        raise UserError(Problem(_named(place, "prompt_is"), rule, trace.prompt_is, mend))
    return TraceSource(
        path,
        form.name,
        reader,
        trace,
        max_concurrency=(workload.max_concurrency if workload else None) or getattr(reader, "max_concurrency", None),
        priorities=workload.priority_shares() if workload else None,
        tenants=workload.tenant_shares() if workload else None,
        seed=seed,
        notes=notes,
        has_order="arrival" in wanted,
        has_turns=has_turns,
    )


def _rows_of(
    path: Path, head: Head, form: Format, trace: Trace, place: str, wanted: tuple[str, ...], texts: Texts | None
) -> tuple[Reader, tuple[str, ...], bool]:
    """What reads a file that has rows, notes on how, and whether its rows are turns of sessions."""
    said = trace.columns.said() if trace.columns else {}
    _check_said(head, said, form, place)
    if texts is None and "prompt" in wanted and "prompt" not in said and has_texts(head.row) and not has_prompt(head):
        raise UserError(Problem(head.place, "the prompts are texts, whose tokens are not counted", mend=COUNT_THEM))
    if trace.format is None and is_strange(head) and not said:
        raise unknown(path, head)
    has_turns = "arrival" in wanted and _has_turns(path, head, form, said)
    needed = [kind for kind in wanted if kind != "arrival" or not has_turns]
    chosen = choose_columns(form, head.row, head.names, head.place, said, needed, usual=form.name in OURS)
    chosen = replace(chosen, columns=_of_turns(chosen.columns, head, form, has_turns=has_turns))
    if trace.time_unit is not None and chosen.columns.arrival == OWN.arrival:
        rule = f"format {form.name} has {OWN.arrival}, in seconds, and no other unit"
        raise UserError(Problem(_named(place, "time_unit"), rule, trace.time_unit, "leave it out"))
    reading = _reading(head, chosen, form, trace, texts, has_turns=has_turns)
    if (first := head.row.get(chosen.columns.arrival or "")) not in (None, ""):
        reading.clock.tell_unit(first)
    reader = _READERS[head.kind](path, reading)
    return reader, _notes(reader, chosen), has_turns


def foretells(trace: Trace, folder: Path) -> bool:
    """Whether the file says what was predicted of the output lengths; its first row is read, and no more."""
    path = user_path(folder, trace.path)
    check_file(path, "workload.trace.path")
    said = trace.columns.said() if trace.columns else {}
    has_counts = trace.chars_per_token is None and trace.tokenizer is None
    if not has_counts or detect(path, trace.format, said)[0].name in RESULTS:
        return False  # they have none, and would be loaded whole
    return open_trace(trace, folder=folder).foretells


def _has_turns(path: Path, head: Head, form: Format, said: Said) -> bool:
    """Whether rows wait for others: by columns that the user names, or the format's own where the file has them."""
    if "session" in said or "parent" in said:
        return True
    names = [name for name in (form.columns.session, form.columns.parent) if name]
    if any(name in head.names for name in names):
        return True
    return bool(names) and head.kind in ("jsonl", "list") and mentions(path, names)


def _of_turns(columns: Columns, head: Head, form: Format, *, has_turns: bool) -> Columns:
    """Columns of sessions only where there are any; later rows alone may have the times."""
    if not has_turns:
        return columns._replace(**dict.fromkeys(_OF_SESSIONS))
    is_later = columns.arrival is None and head.kind in ("jsonl", "list")
    return columns._replace(arrival=form.columns.arrival) if is_later else columns


def _texts_of(trace: Trace, folder: Path, place: str) -> Texts | None:
    """What counts the texts of the file, where the settings say that it has some."""
    if trace.chars_per_token is None and trace.tokenizer is None:
        return None
    tokenizer = None if trace.tokenizer is None else user_path(folder, trace.tokenizer)
    if tokenizer is not None:
        check_file(tokenizer, _named(place, "tokenizer"))
    size = trace.hash_block_tokens or TEXT_HASH_TOKENS
    return Texts(trace.chars_per_token, tokenizer, size, is_new=trace.prompt_is == "new")


def _reading(
    head: Head, chosen: Chosen, form: Format, trace: Trace, texts: Texts | None, *, has_turns: bool
) -> Reading:
    given = trace.columns.arrival if trace.columns else None
    unit = chosen.unit
    if trace.time_unit is not None and (given is None or isinstance(given, str) or given.unit is None):
        unit = trace.time_unit
    known = form.hash_block_tokens if texts is None else TEXT_HASH_TOKENS
    size = trace.hash_block_tokens or known or (16 if chosen.columns.hash_ids else 0)
    delay_ps = PS_PER_UNIT[chosen.delay_unit] if has_turns else 0
    return Reading(head, chosen.columns, Clock(unit), size, delay_ps, texts)


def _notes(reader: Reader, chosen: Chosen) -> tuple[str, ...]:
    """What a user should know of how the file is read."""
    names = [f"{kind} is {name}" for kind, name in chosen.guessed.items() if kind in REQUIRED]
    notes = [f"columns by their usual names: {', '.join(names)} (others: --columns, columns:)"] if names else []
    column = chosen.columns.arrival
    if column is not None and chosen.unit is None:
        unit = reader.clock.unit or "s"
        why = "assumed: --columns arrival=NAME:UNIT" if reader.clock.assumed else "told by its first value"
        notes.append(f"{column} is in {'timestamps' if unit == 'iso' else unit} ({why})")
    return tuple(notes)


def _check_said(head: Head, said: Said, form: Format, place: str) -> None:
    """UserError when the file lacks a column that the settings name."""
    problems = []
    for kind, (name, _) in said.items():
        may_come_later = head.kind in ("jsonl", "list") and kind not in (*REQUIRED, "predicted_output")
        if name not in head.names and not may_come_later:
            free = set(head.names) - {other for other, _ in said.values()} - set(form.columns)
            others = ", ".join(sorted(free)[:8])
            mend = f"other columns in it: {others or 'none'}"
            problems.append(Problem(_named(place, f"columns.{kind}"), "the file has no such column", name, mend))
    if problems:
        raise UserError(*problems)


def _named(place: str, key: str) -> str:
    return f"{place}.{key}" if place else f"--{key.partition('.')[0].replace('_', '-')}"
