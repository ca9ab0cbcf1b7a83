"""report.html: one file, no network. What a command has to say is a `ReportPage`; template.html is how all look.

plotly.js (4.8 MB) stands in the file, and a content security policy forbids the browser to fetch anything beside it.
Every page says alike of a run: its settings, how far its profile can be trusted, its figures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import origin, yaml_text
from simbatch.sim.metrics.registry import LATENCIES, REGISTRY, STATISTIC_LABELS, Metric, metrics_of
from simbatch.sim.report.console import GROUP_HEADER, PRINTED, group_cells, setting_text
from simbatch.sim.report.engine_text import trust_of
from simbatch.sim.report.page.charts import PageChart, drawn
from simbatch.sim.text import number, percent, short_name

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
        warnings="".join(f"<p class=warning>{_prose(warning)}</p>" for warning in page.warnings),
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
    cells = ((label, text, label.startswith(("To ", "Command"))) for label, text in pairs)
    return "".join(
        f"<dt>{escape(label)}</dt><dd>{_code(escape(text)) if is_code else _prose(text)}</dd>"
        for label, text, is_code in cells
    )


def _code(text: str) -> str:
    """Of what is escaped; a flag stays on one line."""
    flags = re.sub(r"(?<![\w-])--[a-z][\w-]*", r"<span class=flag>\g<0></span>", text)
    return f"<code>{flags}</code>"


def _prose(text: str) -> str:
    """What stands in backticks, and flags, as code."""
    return re.sub(r"`([^`]+)`|(?<![\w`-])--[a-z][\w-]*", lambda found: _code(found[1] or found[0]), escape(text))


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
    broken = (re.sub(r"(?<=[a-z])[._](?=[a-z])", r"\g<0><wbr>", escape(cell)) for cell in cells)
    each = (f"<{tag}{' class=name' if i < num_left else ''}>{cell}</{tag}>" for i, cell in enumerate(broken))
    return f"<tr>{''.join(each)}</tr>"


def _origin(seeds: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Command, seeds, versions and date, as run.json has them."""
    known = origin()
    yield "Command", known["command"] or "from Python"
    yield ("Seed", f"{seeds[0]}") if len(seeds) == 1 else ("Seeds", ", ".join(map(str, seeds)))
    yield "Versions", ", ".join(f"{name} {version}" for name, version in known["versions"].items() if version)
    yield "Date", known["date"]


Summary = Mapping[str, Any]


def latency_table(summary: Summary) -> PageTable:
    """A row a latency, and how many keep its SLO."""
    ours, rows = summary["simbatch"], []
    for name in LATENCIES:
        limit, share = ours["slo"].get(f"{name}_ms"), ours["slo_share"].get(name)
        figures = (REGISTRY[f"{statistic}_{name}_ms"].of(summary) for statistic in PRINTED)
        slo = "-" if limit is None else f"{limit:g}"
        rows.append((name.upper(), *(number(value, 1) for value in figures), slo, percent(share)))
    labels = [STATISTIC_LABELS[statistic] for statistic in PRINTED]
    return PageTable("Latencies (ms)", ("", *labels, "SLO", "within it"), rows)


def groups_table(ours: Mapping[str, Any]) -> Iterator[PageTable]:
    """Classes of priority and tenants, a row each; `ours` as in summary.json."""
    for kind, name in (("classes", "class"), ("tenants", "tenant")):
        if rows := [(short_name(label), *group_cells(block)) for label, block in ours[kind].items()]:
            yield PageTable(f"{kind.capitalize()} (latencies in ms)", (name, *GROUP_HEADER), rows)


def figures_table(summary: Summary) -> PageTable:
    """Every other figure that runs are compared by."""
    metrics = (metric for metric in metrics_of([summary]) if metric.kind != "ms" or "." in metric.key)
    rows = [(metric.label, metric.text(value)) for metric in metrics if (value := metric.of(summary)) is not None]
    return PageTable("Service and engine", ("", ""), rows)


def settings_tables(ours: Mapping[str, Any]) -> Iterator[PageTable]:
    """Policy, engine and cluster of a run, each key with who set it; `ours` as in summary.json."""
    policy, engine = ours["policy"], ours["engine"]
    yield PageTable("Policy", ("", ""), [(key, setting_text(value)) for key, value in policy.items()])
    rows = [
        (key, setting_text(value), "default" if key in ours["engine_defaults"] else "scenario")
        for key, value in engine.items()
    ]
    yield PageTable("Engine", ("", "", "set by"), rows)
    if (cluster := ours.get("cluster")) is not None:
        router = [(f"router {key}", setting_text(value)) for key, value in cluster["router"].items()]
        yield PageTable("Cluster", ("", ""), [("replicas", f"{cluster['num_replicas']:,}"), *router])


def differing_settings(summaries: Mapping[str, Summary]) -> PageTable:
    """What tells the candidates apart: a row a setting, a column a candidate; the policy always."""
    columns = [dict(_flat(summary["simbatch"])) for summary in summaries.values()]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [
        (key, *(column.get(key, "-") for column in columns))
        for key in keys
        if key == "policy" or len({column.get(key) for column in columns}) > 1
    ]
    return PageTable("The candidates", ("", *summaries), rows)


def _flat(ours: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name, *params = ours["policy"].items()
    yield "policy", str(name[1])
    yield from ((f"policy.{key}", setting_text(value)) for key, value in params if value is not None)
    yield "profile", str(ours["profile"]["name"])
    yield from ((f"engine.{key}", setting_text(value)) for key, value in ours["engine"].items())
    if (cluster := ours.get("cluster")) is not None:
        yield "cluster.replicas", f"{cluster['num_replicas']:,}"
        yield from ((f"cluster.router.{key}", setting_text(value)) for key, value in cluster["router"].items())


def shared_warnings(summaries: Mapping[str, Summary]) -> Iterator[str]:
    """Those of all candidates once, the others with the name of whose they are."""
    warned = {label: summary["simbatch"]["warnings"] for label, summary in summaries.items()}
    of_all = [warning for warning in next(iter(warned.values()), []) if all(warning in w for w in warned.values())]
    for label, own in warned.items():
        yield from (f"{label}: {warning}" for warning in own if warning not in of_all)
    yield from of_all


def trust_line(summaries: Mapping[str, Summary]) -> Iterator[tuple[str, str]]:
    """For the answer: how far each profile can be trusted, in half a line."""
    lines = dict.fromkeys(trust_of(summary["simbatch"]["profile"]) for summary in summaries.values())
    profiles = {line.partition(";")[0]: None for line in lines}  # the share of steps differs from run to run
    yield "Trust", f"{'; '.join(profiles)}."


def trust_of_all(summaries: Mapping[str, Summary]) -> Iterator[tuple[str, str]]:
    """`trust_rows` of each profile and vLLM that some candidate runs on, once."""
    seen = set()
    for summary in summaries.values():
        rows = [row for row in trust_rows(summary["simbatch"]) if not row[0].startswith("Steps inside")]
        if tuple(rows) not in seen:
            seen.add(tuple(rows))
            yield from rows


def trust_rows(ours: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where the step times are from, how far they are off, and what nine in ten draws lie between."""
    profile, version = ours["profile"], ours["engine"].get("vllm_version")
    estimate = " (an estimate, which nobody measured)" if profile["is_estimate"] else ""
    yield "Profile", f"{profile['name']}{estimate}"
    yield "Source", profile["source"] or "step times as the scenario has them"
    yield "Error", profile["error"] or "not stated"
    if profile["share_of_steps_in_range"] is not None:
        yield "Steps inside the measured range", percent(profile["share_of_steps_in_range"])
    if profile["host"] is not None:
        yield "Host and front end", f"of {profile['host']}"
    if version is not None:
        measured = f"; steps measured with {profile['vllm_version']}" if profile["vllm_version"] else ""
        yield "vLLM", f"rules and defaults of {version}{measured}"
    if "bands" in ours:
        yield "Bands", "5 to 95 % of the draws of what the profile is in doubt about: see the table"
    else:
        yield "Bands", "not drawn: --bands says how far each figure may be off"


def bands_table(
    bands: Mapping[str, Mapping[str, float]] | None, value_of: Callable[[Metric], float | None], note: str = ""
) -> Iterator[PageTable]:
    """What nine in ten draws of the profile's doubts lie between, where they were drawn, beside the figure itself."""
    known = [(REGISTRY[key], band) for key, band in (bands or {}).items() if key in REGISTRY]
    rows = [
        (metric.label, metric.text(value_of(metric)), metric.text(band["low"]), metric.text(band["high"]))
        for metric, band in known
        if value_of(metric) is not None
    ]
    if rows:
        yield PageTable("Bands (5 to 95 %)", ("", "here", "low", "high"), rows, note)


def pairs(lines: Sequence[str]) -> list[tuple[str, str]]:
    """`SLO: 97 % keep it.` as label and sentence."""
    return [(label, text.strip()) for label, _, text in (line.partition(":") for line in lines)]
