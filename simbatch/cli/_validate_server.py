"""`simbatch validate --server`: its options, and the call that they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.profiler.validate.on_server import Told
    from simbatch.profiler.validate.validation import Bounds, Validation
    from simbatch.sim.scenario import Scenario


@dataclass(frozen=True)
class ServerFlags:
    """What was given of the options that belong to `--server`; false without it."""

    url: str | None
    model: str | None
    max_concurrency: int | None
    temperature: float | None

    def __bool__(self) -> bool:
        return self.url is not None

    @property
    def assignments(self) -> tuple[str, ...]:
        """What they change in the scenario: a limit holds on both sides."""
        limit = self.max_concurrency
        return () if limit is None else (f"workload.max_concurrency={limit}",)

    def refuse_without(self, *, has_server: bool) -> None:
        """UserError for an option that says nothing without a server, a running one or one of our own."""
        if self.model is not None and not self:
            raise UserError(Problem("--served-model", "goes with --server alone"))
        for name, value in (("--max-concurrency", self.max_concurrency), ("--temperature", self.temperature)):
            if value is not None and not self and not has_server:
                raise UserError(Problem(name, "goes with --server or --engine"))

    def told(self, *, quiet: bool) -> Told:
        """Who is told how the runs go on."""
        from simbatch.profiler.validate.on_server import Told, progress

        return Told(
            say=lambda line: None if quiet else click.echo(line, err=True),
            progress=lambda runs, requests, run_s: progress(runs, requests, run_s, quiet=quiet),
        )

    def validate(
        self, scenario: Scenario, folder: Path, bounds: Bounds | None, flags: dict[str, Any], *, quiet: bool
    ) -> Validation:
        """Real runs on the server beside the simulation."""
        from simbatch.profiler.validate.on_server import ServerOptions, validate_server
        from simbatch.sim.scenario import resolve

        resolve(scenario)  # its mistakes, before anybody is asked
        options = ServerOptions(
            str(self.url), self.model, self.temperature or 0.0, flags["repeat"], resume=flags["resume"]
        )
        return validate_server(scenario, options, folder, bounds=bounds, told=self.told(quiet=quiet))


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add them; the command gets them as one, `server`."""

    @click.option("--server", "server_url", metavar="URL", help="Send the requests to this server, in real time.")
    @click.option("--served-model", metavar="NAME", help="With --server: its name there; default: the only one.")
    @click.option(
        "--max-concurrency", type=click.IntRange(1), metavar="N", help="With --server or --engine: most at once."
    )
    @click.option("--temperature", type=click.FloatRange(0), metavar="T", help="Of sampling; default 0, greedy.")
    @wraps(command)
    def with_server(
        server_url: str | None,
        served_model: str | None,
        max_concurrency: int | None,
        temperature: float | None,
        **given: Any,
    ) -> None:
        command(server=ServerFlags(server_url, served_model, max_concurrency, temperature), **given)

    return with_server
