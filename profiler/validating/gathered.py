"""Recorded runs in files and folders: every run of every file, by a name of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from simbatch.profiler.validating import llmservingsim
from simbatch.profiler.validating.on_recorded import AnyRecorded
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.workload.bench.aiperf import SUMMARY_FILE
from simbatch.sim.workload.bench.document import documents, read_text
from simbatch.sim.workload.bench.read import results_of

ENDINGS = (".json", ".jsonl")
MAX_REASON = 200  # characters that are shown of why a file was passed over


class Named(NamedTuple):
    """A recorded run, what it is called, and its file's name."""

    name: str
    file: str
    run: AnyRecorded


@dataclass(frozen=True)
class Gathered:
    """The runs, and the files of the folders that were passed over with the reason."""

    runs: Sequence[Named]
    passed_over: Sequence[tuple[str, str]] = ()


def gather(paths: Sequence[Path]) -> Gathered:
    """Everything in these files and folders; UserError for a file that was named and cannot be read."""
    runs, passed_over = list[Named](), list[tuple[str, str]]()
    for path in paths:
        if not path.is_dir():
            runs += _named(path.stem if len(paths) > 1 else "", path)
            continue
        before = len(runs)
        for file, twice in _files(path):
            name = str(file.relative_to(path).with_suffix(""))
            try:
                runs += [] if twice else _named(name, file)
            except UserError as error:
                twice = error.problems[0].rule
            if twice:
                passed_over.append((str(file.relative_to(path)), twice[:MAX_REASON]))
        if len(runs) == before:
            found = "; ".join(f"{name}: {why}" for name, why in passed_over[:3]) or "no .json or .jsonl in it"
            raise UserError(Problem(f"--recorded {path}", f"has no benchmark's result ({found})"))
    return Gathered(runs, passed_over)


def read_runs(path: Path) -> list[AnyRecorded]:
    """The runs of a file; UserError with its place for what is malformed or no known result."""
    if not path.is_file():
        raise UserError(Problem(f"--recorded {path}", "cannot be read: there is no such file"))
    read = list(documents(path, read_text(path)))
    if read and all(llmservingsim.is_row(document.value) for document in read):
        return [llmservingsim.read(read)]
    return list(results_of(path, read))


def _named(name: str, path: Path) -> list[Named]:
    found = read_runs(path)
    numbers = [""] if len(found) == 1 else [f"run {i}" for i in range(1, len(found) + 1)]
    names = [" ".join(part for part in (name, number) if part) or path.stem for number in numbers]
    return [Named(each, path.name, run) for each, run in zip(names, found, strict=True)]


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """The files that may be results, and why one of them says what another one says better."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in ENDINGS and file.is_file())
    there = {(file.parent, file.name) for file in files}
    for file in files:
        beside = {name for parent, name in there if parent == file.parent}
        yield file, _twice(file.name, beside)


def _twice(name: str, beside: set[str]) -> str:
    if name == SUMMARY_FILE and "profile_export.jsonl" in beside:
        return "profile_export.jsonl has its requests"
    if name.endswith("_lifecycle_metrics.json") and not name.startswith("per_request"):
        if "per_request_lifecycle_metrics.json" in beside:
            return "per_request_lifecycle_metrics.json has its requests"
        if name.startswith("summary") and any(other.startswith("stage_") for other in beside):
            return "its stages are there one by one"
    return ""
