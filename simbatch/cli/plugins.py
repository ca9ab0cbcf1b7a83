"""`simbatch policies` and `simbatch routers`: what there is to choose from, and whether one keeps to the rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli import GroupOfNames
from simbatch.cli._options import Asked, Count, Option, kept, quiet_option, set_option, together, with_asked
from simbatch.cli._output import progress_of, show_page
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.plugins import Plugins
    from simbatch.sim.plugins.testing import Checked
    from simbatch.sim.scenario import Scenario


@click.group(cls=GroupOfNames, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print a page of them in Markdown.")
@click.pass_context
def policies(context: click.Context, as_json: bool, as_markdown: bool) -> None:
    """List the batching policies: what each does, and where it comes from. `policies show NAME` has the parameters.

    In a scenario: policy: {name: adaptive, target_tpot_ms: 40}. Name yours file.py:Class or package.module:Class.
    """
    if context.invoked_subcommand is None:
        from simbatch.sim.plugins.policy import POLICIES

        _list(POLICIES, as_json=as_json, as_markdown=as_markdown)


@click.group(cls=GroupOfNames, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def routers(context: click.Context, as_json: bool) -> None:
    """List the routers of clusters: what each does, and where it comes from. `routers show NAME` has the parameters.

    In a scenario: cluster: {replicas: 4, router: {name: least_requests}}. Name yours file.py:Class or
    package.module:Class.
    """
    if context.invoked_subcommand is None:
        from simbatch.sim.plugins.router import ROUTERS

        _list(ROUTERS, as_json=as_json)


def _list(plugins: Plugins[Any], *, as_json: bool, as_markdown: bool = False) -> None:
    from simbatch.sim.plugins.described import facts_of, overview, page

    facts = [facts_of(plugins, name) for name in plugins.names()]
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    elif as_markdown:
        click.echo(page(facts), nl=False)
    else:
        click.echo("\n".join(overview(facts)))


@policies.command("show")
@click.argument("name")
def show_policy(name: str) -> None:
    """Say what the policy NAME does, its source, its parameters with defaults, and the disciplines it supports."""
    from simbatch.sim.plugins.policy import POLICIES

    _show(POLICIES, name)


@routers.command("show")
@click.argument("name")
def show_router(name: str) -> None:
    """Say what the router NAME does, its source, and its parameters with defaults."""
    from simbatch.sim.plugins.router import ROUTERS

    _show(ROUTERS, name)


def _show(plugins: Plugins[Any], name: str) -> None:
    """All of it; where the name is nobody's, that it is."""
    from simbatch.sim.plugins.described import facts_of, lines_of

    show_page("\n".join(lines_of(facts_of(plugins, name))))


def _checking(default_cases: int) -> Option:
    """The argument and the options of both `check`s."""
    cases = f"Random cases to try ({default_cases})."
    return together(
        click.argument("name"),
        set_option("Set a parameter. Can be repeated."),
        click.option("--cases", type=Count, default=default_cases, metavar="N", help=cases),
        kept("seed", type=click.IntRange(min=0), default=0, metavar="N", help="Number of the first case (0)."),
        quiet_option,
    )


@policies.command("check")
@_checking(200)
@with_asked
def check_one_policy(asked: Asked, name: str, cases: int) -> None:
    """Try the policy NAME on random engines and requests, and see that it breaks none of the rules.

    NAME is one that ships, or yours: file.py:Class or package.module:Class. Ends with 2 at the first broken rule.
    """
    from simbatch.policies.testing import check_policy

    policy = _scenario(asked, {"policy": {"name": name}}, "policy").build_policy()
    checked = _check(asked, check_policy, policy, f"policy {name}", cases)
    _say(asked, name, "cases", f"{checked.num_requests:,} requests, {checked.num_steps:,} steps", checked)


@routers.command("check")
@_checking(100)
@with_asked
def check_one_router(asked: Asked, name: str, cases: int) -> None:
    """Try the router NAME on random clusters and requests, and see that it breaks none of the rules.

    NAME is one that ships, or yours: file.py:Class or package.module:Class. Ends with 2 at the first broken rule.
    """
    from simbatch.routers.testing import check_router

    cluster = {"cluster": {"replicas": 2, "router": {"name": name}}}
    router = _scenario(asked, cluster, "cluster.router").build_router()
    checked = _check(asked, check_router, router, f"router {name}", cases)
    _say(asked, name, "clusters", f"{checked.num_replicas:,} replicas, {checked.num_requests:,} requests", checked)


def _check(asked: Asked, test: Callable[..., Checked], made: object, place: str, cases: int) -> Checked:
    from simbatch.sim.plugins.testing import BrokenRuleError

    try:
        with progress_of("cases", cases, quiet=asked.quiet) as progress:
            return test(made, num_cases=cases, seed=asked.seed, progress=progress)
    except BrokenRuleError as error:
        again = "the case is the same every time: --seed N --cases 1 runs it alone"
        raise UserError(Problem(place, str(error), mend=again)) from None


def _say(asked: Asked, name: str, cases: str, counts: str, checked: Checked) -> None:
    if asked.quiet:
        return
    rules = ", ".join(checked.rules)
    show_page(f"{name} keeps to the rules in {checked.num_cases} random {cases} ({counts}): {rules}")
    for rule, reason in checked.skipped.items():
        show_page(f"not checked: {rule}, since {reason}")


_ONE = {"distribution": "fixed", "mean": 1}


def _scenario(asked: Asked, chosen: Mapping[str, Any], key: str) -> Scenario:
    """A scenario with the chosen one and its parameters, whose mistakes are told as those of a file are."""
    from simbatch.sim.scenario import Scenario, parse_overrides

    parameters = {f"{key}.{name}": value for name, value in parse_overrides(asked.assignments).items()}
    data = {
        "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}},
        "workload": {"num_prompts": 1, "request_rate": 1, "prompt_len": _ONE, "output_len": _ONE},
        **chosen,
    }
    return Scenario.from_dict(data).override(parameters, origin="--set")
