"""docs/versions.md, made of the table of changes and of the certificates: `python -m parity.versions_page`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simbatch.sim.scheduler.config import CHANGES, NEWEST, OLDEST, short

ROOT = Path(__file__).parents[1]
CERTIFICATES = Path(__file__).parent / "certificates"
OUTPUT = Path(__file__).parent / "upgrade-example.txt"
PAGE = ROOT / "docs" / "versions.md"
SHOWN = ("SchedulerConfig.", "CacheConfig.")  # of these new settings are named too
EXAMPLE = """\
Long prompts and little memory:

```yaml
profile: {num_gpu_blocks: 1300, max_model_len: 20000, step_time: {base_s: 0.012, per_prefill_token_s: 0.00004,
          per_decode_seq_s: 0.00008, per_context_token_s: 2.0e-8}}
engine: {max_num_seqs: 64, max_num_batched_tokens: 2048, async_scheduling: true}
workload: {num_prompts: 300, request_rate: 0.7,
           prompt_len: {distribution: lognormal, mean: 4000, cv: 0.8, max: 16000},
           output_len: {distribution: lognormal, mean: 300, cv: 0.6}}
```

`simbatch compare tight.yaml --vllm-version 0.18 --vllm-version 0.33` ends with

```
{output}
```
"""
HEAD = f"""\
# vLLM, version by version

A scenario runs with the rules and defaults of one vLLM: `engine.vllm_version`, or `--vllm-version` on the command line,
from {short(OLDEST)} on. Without it that is the newest that was tested, {NEWEST}, whatever the profile was measured on.
`simbatch compare FILE --vllm-version 0.27 --vllm-version 0.33` says what an upgrade changes for its traffic. A setting
that a version does not have is an error; a version newer than the newest tested is simulated by the rules of that one,
with a warning.

This page is made by `make conform VLLM={NEWEST}`, which holds one version against the simulator, in two minutes and
without a GPU: it fetches that version's wheel, runs its Python files on the CPU build of another version, lets its own
scheduler record all cases of `parity/recordings`, `parity/timing` and `parity/sessions` anew, with fresh random ones,
and plays them here.

## What an upgrade changes

OUR_EXAMPLE
Each change is switched alone, on top of the old version. Figures of the two whole versions stand in the first and in
the last row; `compare.json` has every change's share of every figure. That 0.19 admits a prompt only when all of it
fits (`scheduler_reserve_full_isl`) makes preemptions fewer: in none of 42 random scenarios with long prompts and tight
memory did 0.33 preempt more often than 0.18, since a prompt that is let in with its first chunk alone is soon in the
way. Where the figures are the same it says "Nothing changes for this traffic".

## What changed

| from | what | change |
|---|---|---|
"""
CERTIFIED = """
Not in the simulation: `vllm bench serve` samples with the server's own temperature since 0.15 (lengths are given here),
and prefix caching was off by default for hybrid models in 0.26 and 0.27 (models have full attention alone here).

Measuring, recording and policies at work in vLLM's own scheduler touch its inside, and go from 0.31 to 0.33:
`make test-versions` runs their tests on 0.31.0 and 0.33.0, `make test-vllm` on 0.32.0. All pass on each (0.33.0: 70
tests, 2026-11-28).

## Certificates

Identical: the same steps, request by request and token by token, as that version's own scheduler decides. Recordings
are of decisions and, from 0.24 on, of times on a virtual clock through its own engine loop (before, that loop had
another form). In those of sessions a client sends each turn when others have ended. Settings that a version does not
have are left out of a case. The last columns compare with the certificate of the version before.

| version | date | recordings | fresh | sessions | result | defaults that changed | used of its inside, and not there |
|---|---|---|---|---|---|---|---|
"""


def known_versions() -> list[str]:
    """All that have a certificate, rising."""
    return sorted((path.stem for path in CERTIFICATES.glob("*.json")), key=_rank)


def page() -> str:
    """The whole of it."""
    changes = sorted(CHANGES.items(), key=lambda item: item[1].since)
    rows = [f"| {short(c.since)} | {_what(name, c.kind)} | {c.text} |" for name, c in changes]
    example = EXAMPLE.replace("{output}", OUTPUT.read_text(encoding="utf-8").rstrip())
    return HEAD.replace("OUR_EXAMPLE", example) + "\n".join(rows) + "\n" + CERTIFIED + "\n".join(_rows()) + "\n"


def write_page() -> None:
    """Make it anew."""
    PAGE.write_text(page(), encoding="utf-8")


def _what(name: str, kind: str) -> str:
    return f"rule `{name}`" if kind == "rule" else f"{'default' if kind == 'default' else 'setting'} `{name}`"


def _rank(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _rows() -> list[str]:
    """One a version, the newest first."""
    found = [json.loads((CERTIFICATES / f"{version}.json").read_text()) for version in known_versions()]
    pairs = zip([None, *found], found, strict=False)
    return [_row(certificate, before) for before, certificate in reversed(list(pairs))]


def _row(certificate: dict[str, Any], before: dict[str, Any] | None) -> str:
    changed = [] if before is None else [*_changed(before["defaults"], certificate["defaults"])]
    gone = [f"`{name.rpartition(':')[2]}`" for name in certificate["missing_names"]]
    times = "" if certificate["with_times"] else " (decisions)"
    cells = (
        certificate["version"], certificate["date"], f"{certificate['num_recordings']}{times}",
        str(certificate["num_fresh"]), str(certificate.get("num_sessions", 0)), _result(certificate),
        ", ".join(changed) or "none", ", ".join(gone) or "none",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _result(certificate: dict[str, Any]) -> str:
    differences, wrong = certificate["differences"], certificate["wrong_defaults"]
    said = [f"default {text}" for text in wrong]
    if differences:
        name, text = next(iter(differences.items()))
        said.insert(0, f"{len(differences)} differ, the first `{name}` at {text.splitlines()[0]}")
    return "; ".join(said) or "identical"


def _changed(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Defaults that are others now, each once, and the scheduler's and the cache's new settings."""
    told = set()
    for key, value in sorted(after.items(), key=lambda item: not item[0].startswith(SHOWN)):
        name = key.rpartition(".")[2]
        if name in told or name.startswith("_"):
            continue
        if key in before and before[key] != value:
            yield f"`{name}` {_plain(before[key])} → {_plain(value)}"
            told.add(name)
        elif key not in before and key.startswith(SHOWN):
            yield f"`{name}` is new ({_plain(value)})"
            told.add(name)


def _plain(value: object) -> str:
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "none"}[value]
    return f'"{value}"' if isinstance(value, str) else str(value)


def write_example() -> None:
    """Simulate the example's scenario under both versions, and keep what is said of the upgrade."""
    from simbatch import Scenario
    from simbatch.sim.scenario import resolve
    from simbatch.sim.scenario.document import parse_document
    from simbatch.sim.search import run_resolved
    from simbatch.sim.search.upgrade import upgrade

    text = EXAMPLE.partition("```yaml\n")[2].partition("```")[0]
    scenario = Scenario.from_dict(parse_document(text, name="example").data)
    of = [scenario.override({"engine.vllm_version": version}) for version in ("0.18", "0.33")]
    old, new = (run_resolved(resolve(each)) for each in of)
    said = upgrade(of[0], old, new, lambda resolved, _: run_resolved(resolved))
    OUTPUT.write_text("\n".join(said.lines()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_example()
    write_page()
