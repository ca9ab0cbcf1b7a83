"""The result of one simulation: numbers, columns, text, files."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

from simbatch.sim.files import check_target, write_all, write_json, write_yaml
from simbatch.sim.metrics.registry import STATISTIC_LABELS
from simbatch.sim.report import console
from simbatch.sim.results import files
from simbatch.sim.results.runs import MeasuredRun
from simbatch.sim.text import number, percent


class Result(MeasuredRun):
    """What a simulation gives: `summary` (the content of summary.json), `requests` (columns), `save(folder)`."""

    def text(self, *, verbose: bool = False) -> str:
        """What the console shows; `verbose`: with every resolved setting, and why nothing is said of a steady state."""
        return console.report(self.summary, self.facts, verbose=verbose)

    def save(self, folder: Path | str, *, html: bool = False) -> list[Path]:
        """Write every file of the result to `folder`, in place of an earlier one; returns their paths.

        `html`: report.html too, for whoever has no simbatch; UserError without plotly, which draws its charts.
        """
        from simbatch.sim.report import run_pictures
        from simbatch.sim.report.page.page import page_writer
        from simbatch.sim.report.page.run import run_page

        writers: dict[str, Callable[[Path], None]] = {
            "summary.json": lambda path: write_json(path, self.summary),
            "requests.parquet": lambda path: files.write_requests(path, self.record),
            "scenario.yaml": lambda path: write_yaml(path, self.facts.scenario),
            "latency.png": lambda path: run_pictures.write_latency(path, self),
            "timeline.png": lambda path: run_pictures.write_timeline(path, self),
        }
        if self.record.turns is not None:
            writers["sessions.png"] = lambda path: run_pictures.write_sessions(path, self)
        if self.record.replicas:
            writers["replicas.png"] = lambda path: run_pictures.write_replicas(path, self)
        if self.record.steps is not None:
            writers["steps.parquet"] = lambda path: files.write_steps(path, self.record)
        writers |= page_writer(lambda: run_page(self), html=html)
        facts, versions = files.run_facts(self.record, self.wall_s), [self.facts.engine["vllm_version"]]
        aside = [] if "summary" in vars(self) else ["requests.parquet"]  # beside the figures, not beside pictures
        return files.write_result(Path(folder), writers, files.OWN_FILES, versions, facts, aside)

    def write_perfetto(self, path: Path | str) -> Path:
        """Write the run's timeline for ui.perfetto.dev, gzip-compressed where the name ends in `.gz`; returns the path.

        Requests, and of a run with `steps=True` host, device, queue, batch and KV use, replica by replica. Raises
        UserError where the file cannot be written.
        """
        from simbatch.sim.report import perfetto

        target = Path(path)
        check_target(target)
        compressed = target.suffix == ".gz"
        write_all(target.parent, {target.name: lambda t: perfetto.write(t, self.record, compressed=compressed)})
        return target

    def __repr__(self) -> str:
        s = self.summary
        return f"Result({self.facts.scenario_name}, {self.facts.policy}: {s['completed']:,} of {len(self.requests):,})"

    def _repr_html_(self) -> str:
        """A small table for notebooks."""
        rows = "".join(
            "<tr><th style='text-align:left'>"
            + name.upper()
            + " (ms)</th>"
            + "".join(f"<td>{number(self.summary[f'{key}_{name}_ms'], 1)}</td>" for key in console.PRINTED)
            + "</tr>"
            for name in console.LATENCY_HEADERS
        )
        head = "".join(f"<th>{STATISTIC_LABELS[key]}</th>" for key in console.PRINTED)
        share = self.summary["simbatch"]["slo_share"].get("all")
        facts = [
            f"{self.summary['completed']:,} of {len(self.requests):,} requests",
            f"{number(self.summary['request_throughput'])} req/s",
            f"{number(self.summary['output_throughput'])} output tok/s",
            *([f"{percent(share)} within SLO"] if share is not None else []),
        ]
        caption = escape(f"{self.facts.scenario_name}, {self.facts.policy}: {', '.join(facts)}")
        return f"<table><caption>{caption}</caption><tr><th></th>{head}</tr>{rows}</table>"
