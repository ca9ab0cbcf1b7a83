"""The scenario that `simbatch init` writes, with the comments that a person would give it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from simbatch.sim.commands.settings import Served
from simbatch.sim.commands.traffic import Offered
from simbatch.sim.scenario.flags import Given, Status

WIDTH, COLUMN = 118, 40  # of a line, and where the comments behind values stand


def scenario_text(profile: str, about: str, served: Served, offered: Offered, given: Sequence[Given]) -> str:
    """The YAML of a whole scenario."""
    lines = [
        *_comment(f"{served.model} as `vllm serve` runs it, written by `simbatch init`. Every flag is accounted for:"),
        *_comment("what is simulated stands at its key, the others at the end."),
        "",
        *_chosen_by(given),
        _line(f"profile: {_flow(profile)}", about),
        *_engine(served, given),
        *_cluster(served, given),
        "",
        *_workload(offered, given),
        *_slo(offered),
        f"seed: {offered.seed}",
        *_rest(given),
    ]
    return "\n".join(lines) + "\n"


def _chosen_by(given: Sequence[Given]) -> Iterator[str]:
    if said := _from_flags("profile", given):
        yield from _comment(f"Chosen by {said}.")


def _engine(served: Served, given: Sequence[Given]) -> Iterator[str]:
    if not served.engine:
        yield ""
        yield "# engine: the command sets none of its keys, so vLLM's defaults hold; `simbatch run` prints them"
        return
    yield ""
    yield "engine:"
    for key, value in served.engine.items():
        yield _line(f"  {key}: {_flow(value)}", _from_flags(f"engine.{key}", given) or "the model's own limit")


def _cluster(served: Served, given: Sequence[Given]) -> Iterator[str]:
    if served.replicas > 1:
        yield ""
        said = _from_flags("cluster.replicas", given)
        yield _line(f"cluster: {{replicas: {served.replicas}, router: {{name: least_requests}}}}", said)


def _from_flags(key: str, given: Iterable[Given]) -> str:
    """The flags that set a key, as they were written."""
    found = [one for one in given if one.status == "used" and one.key == key]
    return ", ".join(f"{one.flag} {one.text}".strip() for one in found)


def _workload(offered: Offered, given: Sequence[Given]) -> Iterator[str]:
    keys = ("workload", "workload.arrival", "slo", "seed")
    if said := ", ".join(filter(None, (_from_flags(key, given) for key in keys))):
        yield from _comment(f"As vllm bench serve sends it: {said}.")
    for word in offered.words:
        yield from _comment(word)
    yield "workload:"
    for key, value in offered.workload.items():
        if value is not None:
            yield f"  {key}: {_flow(value)}"


def _slo(offered: Offered) -> Iterator[str]:
    if offered.slo:
        yield ""
        yield _line(f"slo: {_flow(dict(offered.slo))}", "what a request must keep to, ms")


def _rest(given: Sequence[Given]) -> Iterator[str]:
    """What has no key: flags without effect on one line, what is not simulated with its reason."""
    quiet = [one.flag for one in given if one.status == "no_effect"]
    if quiet:
        yield ""
        yield from _comment(f"No effect on scheduling: {', '.join(dict.fromkeys(quiet))}.")
    reasons = by_reason(given, "not_simulated")
    if reasons:
        yield ""
        yield "# Not simulated:"
        for reason, flags in reasons.items():
            yield from _comment(f"- {flags}: {reason}", "  ")


def by_reason(given: Iterable[Given], status: Status) -> dict[str, str]:
    """Flags with this status, those with one reason together."""
    found: dict[str, list[str]] = {}
    for one in given:
        if one.status == status:
            found.setdefault(one.reason, []).append(f"{one.flag} {one.text}".strip())
    return {reason: ", ".join(flags) for reason, flags in found.items()}


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"# {indent}", subsequent_indent=f"# {indent}{indent}", break_on_hyphens=False
    )


def _line(text: str, comment: str) -> str:
    return f"{text:<{COLUMN}} # {comment}" if comment else text


def _flow(value: Any) -> str:
    """A value as YAML on one line; whole numbers without a point."""
    import yaml

    plain = _plain(value)
    text: str = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain(child) for child in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
