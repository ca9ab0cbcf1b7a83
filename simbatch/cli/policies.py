"""`simbatch policies`: what there is to choose from, and whether a policy keeps to the rules."""

from __future__ import annotations

import json
from typing import Any

import click

from simbatch.cli._progress import progress_of
from simbatch.sim.errors import Problem, UserError


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print a page of them in Markdown.")
@click.pass_context
def policies(context: click.Context, as_json: bool, as_markdown: bool) -> None:
    """List the batching policies, their parameters with defaults, and the disciplines they support.

    In a scenario: policy: {name: adaptive, target_tpot_ms: 40}. Name yours file.py:Class or package.module:Class.
    """
    if context.invoked_subcommand is not None:
        return
    from simbatch.cli._policy_text import lines_of, page, policy_facts
    from simbatch.policies.registry import policy_names

    facts = [policy_facts(name) for name in policy_names()]
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    elif as_markdown:
        click.echo(page(facts), nl=False)
    else:
        for policy in facts:
            click.echo("\n".join(lines_of(policy)) + "\n")


@policies.command()
@click.argument("name")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a parameter. Can be repeated.")
@click.option("--cases", type=click.IntRange(min=1), default=200, metavar="N", help="Random cases to try (200).")
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Number of the first case (0).")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def check(name: str, assignments: tuple[str, ...], cases: int, seed: int, quiet: bool) -> None:
    """Try the policy NAME on random engines and requests, and see that it breaks none of the rules.

    NAME is one that ships, or yours: file.py:Class or package.module:Class. Ends with 2 at the first broken rule.
    """
    from simbatch.policies.testing import PolicyError, check_policy

    policy = _policy(name, assignments)
    try:
        with progress_of("cases", cases, quiet=quiet) as progress:
            checked = check_policy(policy, num_cases=cases, seed=seed, progress=progress)
    except PolicyError as error:
        again = "the case is the same every time: --seed N --cases 1 runs it alone"
        raise UserError(Problem(f"policy {name}", str(error), mend=again)) from None
    if quiet:
        return
    click.echo(
        f"{name} keeps to the rules in {checked.num_cases} random cases "
        f"({checked.num_requests:,} requests, {checked.num_steps:,} steps): {', '.join(checked.rules)}"
    )
    for rule, reason in checked.skipped.items():
        click.echo(f"not checked: {rule}, since {reason}")


_ONE = {"distribution": "fixed", "mean": 1}


def _policy(name: str, assignments: tuple[str, ...]) -> Any:
    """The policy with its parameters, whose mistakes are told as those of a scenario are."""
    from simbatch.sim.scenario import Scenario, parse_overrides

    parameters = {f"policy.{key}": value for key, value in parse_overrides(assignments).items()}
    scenario = Scenario.from_dict(
        {
            "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}},
            "policy": {"name": name},
            "workload": {"num_prompts": 1, "request_rate": 1, "prompt_len": _ONE, "output_len": _ONE},
        }
    )
    return scenario.override(parameters, origin="--set").build_policy()
