"""What commands write to and say meanwhile: results' folders, checked before any work, and progress on stderr."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING, Any

import click

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import is_dangling, shorten_path, stat_of, why_not_writable
from simbatch.sim.text import duration_words, wrapped

if TYPE_CHECKING:
    from simbatch.cli._options import Asked
    from simbatch.sim.report.result import Result
    from simbatch.sim.scenario import Resolved
    from simbatch.sim.search.bands import Bands

_MAX_NAME = 255  # of a file, on every system in use
_RUN_FILE = "run.json"
_OTHER = "name another folder"
NUM_LINES = 10  # of progress over cells, where there is no bar
LINE_S = 10.0  # between two lines of other progress
FIRST_S = 3.0  # before the first line of work that cannot be counted


class Output:
    """What was `asked` for (-o), else `results/<name>`: each mode of each command has a name of its own.

    `own` are the files that results of this kind consist of. Raises UserError when they cannot be written there.
    """

    def __init__(self, asked: Asked, name: str, own: Sequence[str]) -> None:
        self._asked, self.folder = asked, asked.folder or Path("results", name)
        files = [self.folder / name for name in (*own, _RUN_FILE)]
        _check(self.folder, files)
        self._earlier = _earlier(self.folder, files)

    def say_replaced(self) -> None:
        """A line on stderr about the results that stood there before, if any."""
        if self._earlier is not None:
            self._asked.say(self._earlier)

    def show(
        self,
        written: Sequence[Path],
        text: Callable[[], str],
        json_file: str,
        *,
        cells: int | None = None,
        last: str | None = None,
        unread: Sequence[str] = (),
    ) -> None:
        """What every command ends with: the JSON file if that is asked for, else the text and how many files there are.

        `unread`: how traces were read, where the text does not say it.
        """
        self.say_replaced()
        lines = [*wrapped(f"NOTE: {line}" for line in unread)]
        if self._asked.as_json:
            for line in lines:
                self._asked.say(line)
            click.echo((self.folder / json_file).read_text(encoding="utf-8"), nl=False)
        elif not self._asked.quiet:
            show_page("\n".join([text(), *lines]))
            kept = "" if cells is None else f" and {cells:,} cells"
            show_page(last or f"{len(written)} files{kept} in {self.folder}")


def show_page(text: str) -> None:
    """`text` on stdout, no line of it wider than the page."""
    click.echo("\n".join(wrapped(text.split("\n"))))


def show_either(as_json: bool, content: Callable[[], Any], text: Callable[[], str], *, ascii_only: bool = True) -> None:
    """The content as JSON on stdout, or the text for a person."""
    if as_json:
        click.echo(json.dumps(content(), indent=2, ensure_ascii=ascii_only))
    else:
        show_page(text())


@contextmanager
def replacing(file: Path | None) -> Iterator[None]:
    """Say on stderr, when all went well, that what is written meanwhile took the place of an earlier file."""
    there = None if file is None else stat_of(file)
    yield
    if there is not None:
        click.echo(f"replaced {file} of {datetime.fromtimestamp(there.st_mtime):%Y-%m-%d %H:%M}", err=True)


def check_folder(folder: Path, place: str) -> None:
    """UserError unless `folder` can be written to, or made where it would stand."""
    for existing in (folder, *folder.parents):
        if is_dangling(existing):
            raise UserError(Problem(place, f"{existing} is a link that leads nowhere", mend=_OTHER))
        if (there := stat_of(existing)) is not None:
            if not S_ISDIR(there.st_mode):
                raise UserError(Problem(place, f"{existing} is a file, not a folder", mend=_OTHER))
            if (reason := why_not_writable(existing)) is not None:
                raise UserError(Problem(place, f"{existing} cannot be written to: {reason}", mend=_OTHER))
            return


def _check(folder: Path, files: Sequence[Path]) -> None:
    place = f"-o {shorten_path(str(folder))}"
    if any(len(os.fsencode(part)) > _MAX_NAME for part in folder.parts):
        raise UserError(Problem(place, f"a name is longer than {_MAX_NAME} bytes", mend=_OTHER))
    check_folder(folder, place)
    if (blocked := next((file for file in files if file.is_dir()), None)) is not None:
        rule = "is a folder, and a file of the results has its name"
        raise UserError(Problem(str(blocked), rule, mend="move it away, or choose another folder with -o"))


def _earlier(folder: Path, files: Sequence[Path]) -> str | None:
    """What to say once the new results stand in `folder`; None where there were none."""
    there = [path for path in files if path.is_file()]
    if not there:
        return None
    command, date = _origin_of(folder / _RUN_FILE)
    results = [path for path in there if path.name != _RUN_FILE]
    if date is None:  # written before run.json had one
        date = datetime.fromtimestamp(max(path.stat().st_mtime for path in there))
    of = f"{date:%Y-%m-%d %H:%M}{f' ({command})' if command else ''}"
    if not results:
        return f"the results of {of} in {folder} stay; only {_RUN_FILE} is replaced"
    return f"replaced the results of {of}"


def _origin_of(path: Path) -> tuple[str | None, datetime | None]:
    """Command and date of earlier results, as far as they are known and fit for a terminal."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        date = datetime.fromisoformat(known["date"]).astimezone()
        command = known["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
    return (command if isinstance(command, str) and command.isprintable() else None), date


@contextmanager
def progress_of(name: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """What to tell the number of what has ended: a bar for a person, a line every ten seconds for a log.

    None where nobody wants to see it.
    """
    with _bar(name, total, quiet=quiet) as bar:
        yield bar if bar is not None or quiet else _log(name, total)


def _log(name: str, total: int | None) -> Callable[[int], None]:
    """Says now and then how far it is; of what is over in ten seconds nothing."""
    begin_s = last_s = time.monotonic()

    def tell(ended: int) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s < LINE_S:
            return
        last_s, past_s = now_s, now_s - begin_s
        rest = f" in {duration_words(past_s)} so far"
        if total is not None and 0 < ended <= total:
            rest = f" of {total:,}, {duration_words(past_s / ended * (total - ended))} left"
        print(f"{name}: {ended:,}{rest}", file=sys.stderr, flush=True)

    return tell


@contextmanager
def _bar(name: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """A bar on stderr, when a person is looking."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich import progress
    from rich.console import Console

    clock: tuple[progress.ProgressColumn, ...] = (progress.MofNCompleteColumn(), progress.TimeRemainingColumn())
    if total is None:
        clock = (progress.TextColumn("{task.completed:,}"), progress.TimeElapsedColumn())
    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), *clock)
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda ended: bar.update(task, completed=ended)


@contextmanager
def working(name: str, *, quiet: bool = False) -> Iterator[None]:
    """Says how long work goes on of which nobody counts the parts: for a person a clock, for a log lines."""
    if quiet:
        yield
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), SpinnerColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            bar.add_task(name, total=None)
            yield
    else:
        with _lines(name):
            yield


@contextmanager
def _lines(name: str) -> Iterator[None]:
    """A line after three seconds, then one every ten, from a thread beside the work."""
    begin_s, ended = time.monotonic(), threading.Event()

    def tell() -> None:
        wait_s = FIRST_S
        while not ended.wait(wait_s):
            print(f"{name}: {duration_words(time.monotonic() - begin_s)} so far", file=sys.stderr, flush=True)
            wait_s = LINE_S

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def cells_shown(name: str, total: int, *, quiet: bool) -> Iterator[Callable[..., None]]:
    """What to call at every finished cell: a bar for a person, ten lines for a log."""
    done, begin_s = 0, time.monotonic()
    with _bar(name, total, quiet=quiet) as bar:

        def tell(*_: object) -> None:
            nonlocal done
            done += 1
            if bar is not None:
                bar(done)
            elif not quiet and done * NUM_LINES // total > (done - 1) * NUM_LINES // total:
                past_s = time.monotonic() - begin_s
                left_s = past_s / done * (total - done)
                rest = f"{duration_words(left_s)} left" if done < total else f"{duration_words(past_s)} in all"
                print(f"{done:,} of {total:,} simulations, {rest}", file=sys.stderr, flush=True)

        yield tell


def simulate_shown(asked: Asked, resolved: Resolved, label: str, *, steps: bool = False) -> Result:
    """Simulate; `label` names the bar on stderr."""
    from simbatch.sim.search import run_resolved

    with progress_of(label, resolved.scenario.workload.num_prompts, quiet=asked.quiet) as progress:
        return run_resolved(resolved, steps=steps, progress=progress)


def bands_shown(asked: Asked, resolved: Resolved) -> Bands:
    """Simulate the draws of what its profiles are in doubt about."""
    from simbatch.sim.search.bands import all_settings, bands_from
    from simbatch.sim.search.cells import cells_of
    from simbatch.sim.search.run import run_cells

    cells = cells_of(resolved.scenario, all_settings(resolved), [resolved.scenario.seed])
    with cells_shown("bands", len({cell.key for cell in cells}), quiet=asked.quiet) as tell:
        found = run_cells(cells, jobs=asked.jobs, on_result=tell, say=asked.say)
    return bands_from(resolved, [found[cell.key] for cell in cells])
