"""report.html: one file, no network. What a command has to say is a `ReportPage`; template.html is how all look.

plotly.js (4.8 MB) stands in the file, and a content security policy forbids the browser to fetch anything beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import yaml_text
from simbatch.sim.origin import origin
from simbatch.sim.report.page.charts import PageChart, drawn

REPORT_FILE = "report.html"
MAX_ROWS = 200  # of a table
MAX_NARROW = 70  # characters of a table that fits into half a page


@dataclass(frozen=True)
class PageTable:
    """Figures in rows; the first `num_left` columns are names, all others stand to the right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    num_left: int = 1


@dataclass(frozen=True)
class ReportPage:
    """What a result says of itself.

    `answer`: label and sentence each, the verdict first. `trust`: the same, on the profile and its bands. `scenario`:
    as it goes to scenario.yaml. `text`: what the console says.
    """

    title: str
    about: str
    answer: Sequence[tuple[str, str]]
    charts: Sequence[PageChart]
    tables: Sequence[PageTable]
    settings: Sequence[PageTable]
    trust: Sequence[tuple[str, str]]
    scenario: Mapping[str, Any]
    seeds: Sequence[int]
    text: str
    warnings: Sequence[str] = field(default_factory=tuple)


def require_plotly() -> None:
    """UserError where plotly is missing; asked before anything long has run."""
    if find_spec("plotly") is None:
        rule = "needs plotly, which draws the charts of report.html and is not installed"
        raise UserError(Problem("--html", rule, mend="pip install 'simbatch[html]', or pip install plotly"))


def page_writer(make: Callable[[], ReportPage], *, html: bool) -> dict[str, Callable[[Path], None]]:
    """For `write_result`: report.html of the page that `make` gives, or nothing without `html`."""

    def write(path: Path) -> None:
        path.write_text(rendered(make()), encoding="utf-8")

    return {REPORT_FILE: write} if html else {}


def rendered(page: ReportPage) -> str:
    """The HTML; raises UserError where plotly is missing."""
    require_plotly()
    from plotly.offline import get_plotlyjs

    template = files("simbatch.sim.report.page").joinpath("template.html").read_text(encoding="utf-8")
    charts = [{"id": f"chart-{i}", **drawn(chart)} for i, chart in enumerate(page.charts)]
    return Template(template).substitute(
        title=escape(page.title),
        about=escape(page.about),
        answer=_pairs(page.answer),
        warnings="".join(f"<p class=warning>{escape(warning)}</p>" for warning in page.warnings),
        charts="".join(_figure(i, chart) for i, chart in enumerate(page.charts)),
        tables="".join(map(_table, page.tables)),
        settings="".join(map(_table, page.settings)),
        trust=_pairs(page.trust),
        origin=_pairs([*_origin(page.seeds)]),
        scenario=escape(yaml_text(page.scenario)),
        text=escape(page.text),
        data=json.dumps(charts, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/"),
        plotly=get_plotlyjs(),
    )


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """`To run it` and the like are followed by what is typed."""
    cells = ((label, escape(text), label.startswith(("To ", "Command"))) for label, text in pairs)
    return "".join(
        f"<dt>{escape(label)}</dt><dd>{_code(text) if is_code else text}</dd>" for label, text, is_code in cells
    )


def _code(text: str) -> str:
    return f"<code>{text}</code>"


def _figure(number: int, chart: PageChart) -> str:
    note = f"<figcaption>{escape(chart.note)}</figcaption>" if chart.note else ""
    drawing = f"<div id=chart-{number} class=chart></div>"
    return f"<figure class='{chart.size}'><h3>{escape(chart.question)}</h3>{drawing}{note}</figure>"


def _table(table: PageTable) -> str:
    left = len(table.rows) - MAX_ROWS
    notes = [table.note, f"... and {left:,} more rows" if left > 0 else ""]
    rows = [_row("th", table.header, table.num_left)]
    rows += [_row("td", row, table.num_left) for row in table.rows[:MAX_ROWS]]
    below = "".join(f"<p class=note>{escape(note)}</p>" for note in notes if note)
    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    widths = (max(map(len, column)) + 2 for column in zip(table.header, *table.rows[:MAX_ROWS], strict=True))
    wide = " class=wide" if sum(widths) > MAX_NARROW else ""
    return f"<section{wide}>{title}<div class=scroll><table>{''.join(rows)}</table></div>{below}</section>"


def _row(tag: str, cells: Sequence[str], num_left: int) -> str:
    each = (f"<{tag}{' class=name' if i < num_left else ''}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells))
    return f"<tr>{''.join(each)}</tr>"


def _origin(seeds: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Command, seeds, versions and date, as run.json has them."""
    known = origin()
    yield "Command", known["command"] or "from Python"
    yield ("Seed", f"{seeds[0]}") if len(seeds) == 1 else ("Seeds", ", ".join(map(str, seeds)))
    yield "Versions", ", ".join(f"{name} {version}" for name, version in known["versions"].items() if version)
    yield "Date", known["date"]
