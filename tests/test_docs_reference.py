"""docs/reference.md names every key, column, command and flag, and no other."""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import pytest

from simbatch import Result, Scenario, simulate
from simbatch.cli import cli
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.metrics.columns import SESSION_COLUMNS
from simbatch.sim.metrics.registry import REGISTRY, SESSIONS
from simbatch.sim.results.files import run_facts
from simbatch.sim.scenario.document import parse_plain
from simbatch.sim.scenario.engine import EngineSettings
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.workload.model import Prefix, Workload
from simbatch.sim.workload.trace_model import TRACE_FORMATS, Trace

ROOT = Path(__file__).parents[1]
REFERENCE = "docs/reference.md"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def section(title: str) -> str:
    """The reference below a heading, up to the next one of its level or above."""
    head = re.search(rf"^(#+) {re.escape(title)}$", read(REFERENCE), re.MULTILINE)
    assert head, f"no heading {title}"
    rest = read(REFERENCE)[head.end() :]
    return re.split(rf"^#{{1,{len(head[1])}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def names(text: str) -> set[str]:
    """Everything in backticks; `{mean,p99}_ttft_ms` is two names."""
    return {name for code in re.findall(r"`([^`\n]+)`", text) for name in expand(code)}


def expand(name: str) -> Iterator[str]:
    parts = [part.split(",") if i % 2 else [part] for i, part in enumerate(re.split(r"\{([\w,]+)\}", name))]
    return map("".join, product(*parts))


def rows(title: str, column: int = 0) -> list[str]:
    """One column of the tables below a heading."""
    lines = [line for line in section(title).splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [re.split(r"(?<!\\)\|", line)[1 + column].strip() for line in lines]


@pytest.fixture(scope="module")
def result() -> Result:
    """A run in which every figure of ours is there: a rejected request, classes, SLOs."""
    changes: dict[str, Any] = {"workload.num_prompts": 60, "engine.max_model_len": 2000}
    changes |= {"workload.tenants": {"a": 0.5, "b": 0.5}}
    return simulate(Scenario.load(ROOT / "scenarios" / "bursty.yaml").override(changes), steps=True)


def test_the_reference_has_the_engine_s_keys_and_defaults() -> None:
    documented = dict(zip(rows("engine"), rows("engine", 1), strict=True))
    assert documented.keys() - {"key"} == {f"`{name}`" for name in EngineSettings.model_fields}
    others = {"num_gpu_blocks", "seed", "host", "max_capture_size", "changes"}  # of profile, scenario, other settings
    assert EngineConfig.__dataclass_fields__.keys() - others <= EngineSettings.model_fields.keys()
    for name, setting in EngineSettings.model_fields.items():
        if setting.default is not None:
            assert parse_plain(documented[f"`{name}`"].strip("`")) == setting.default, name


def test_the_reference_has_the_workload_s_keys() -> None:
    first_cells = names(" ".join(rows("workload")))
    schema = Workload.model_json_schema()["$defs"]
    assert first_cells >= Workload.model_fields.keys() | Trace.model_fields.keys()
    for model in ("Gamma", "Poisson", "Constant", "AllAtOnce", "OnOff", "Ramp", "Daily", "ClosedLoop"):
        check_variant(schema[model], "process")
    for model in ("FixedLength", "Uniform", "Lognormal", "Geometric", "Empirical"):
        check_variant(schema[model], "distribution")
    assert set(re.findall(r"\w+", " ".join(rows("workload", 2)))) >= Prefix.model_fields.keys()


def check_variant(schema: dict[str, Any], kind: str) -> None:
    """The row of an arrival process or a distribution names exactly its keys."""
    variant = schema["properties"][kind]["const"]
    keys = dict(zip(rows("workload"), rows("workload", 1), strict=True))[f"`{variant}`"]
    assert names(keys) - {"linear", "exponential"} == schema["properties"].keys() - {kind}, variant


def test_the_reference_has_every_trace_format() -> None:
    assert names(" ".join(rows("Trace formats"))) == set(TRACE_FORMATS)


def test_the_reference_has_every_key_of_the_summary_and_no_other(result: Result) -> None:
    few = {"workload.num_prompts": 20, "cluster.replicas": 2}
    cluster = simulate(Scenario.load("bursty").override(few)).summary["simbatch"]["cluster"]
    sessions = {key.removeprefix(SESSIONS): 0 for key in REGISTRY if key.startswith(SESSIONS)}
    sessions |= {"turns": [], "slo.duration_ms": 0, "slo.without_thinking_ms": 0}
    ours = {**result.summary["simbatch"], "cluster": cluster, "sessions": sessions}
    documented, engine = (names(section(title)) for title in ("summary.json", "engine"))
    policy = names(read("docs/policies.md")) | {"name"}
    assert ours["engine"].keys() - engine == {"num_gpu_blocks"}
    assert ours["policy"].keys() - policy == set()
    assert ours["rejected_reasons"][0].keys() - documented == set()
    assert cluster["replicas"][0].keys() | cluster["groups"][0].keys() <= documented
    for block in (*ours["classes"].values(), *ours["tenants"].values()):
        assert block.keys() - documented == set()
    keys = {
        *result.summary,
        *leaves(
            {
                **ours,
                "engine": 0,
                "policy": 0,
                "classes": {"<class>": 0},
                "tenants": {"<tenant>": 0},
                "other_tenants": 0,
                "cluster": {**cluster, "router": 0},
                "unread": 0,  # of a trace
            }
        ),
    } - {"simbatch"}
    assert names(" ".join(rows("summary.json"))) - {"simbatch"} == keys


def leaves(content: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The dotted names of all values."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def test_the_reference_has_every_column_and_key_of_the_files(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path)
    for file in ("requests.parquet", "steps.parquet"):
        schema = pq.read_schema(tmp_path / file)
        assert set(schema.names) == names(" ".join(rows(file))) - {"column", *SESSION_COLUMNS}  # there are no sessions
    scheduled = pq.read_schema(tmp_path / "steps.parquet").field("scheduled").type.value_type
    assert {field.name for field in scheduled} - names(section("steps.parquet")) == set()
    assert run_facts(result.record, 0.0).keys() - names(section("Other files")) == set()
    described = names(section("Other files")) | {"summary.json", "requests.parquet", "steps.parquet"}
    assert {path.name for path in tmp_path.iterdir()} - described == set()


def test_the_reference_has_every_key_of_a_profile() -> None:
    words = set(re.findall(r"\w+", " ".join(names(section("Profiles")) | names(section("Scenario files")))))
    schema = MeasuredProfile.model_json_schema()
    models: list[dict[str, Any]] = [schema, *schema["$defs"].values()]
    assert {key for model in models for key in model.get("properties", {})} - words == set()


def test_the_reference_has_every_command_and_flag() -> None:
    text = section("Commands")
    for path, command in walk(cli, ()):
        assert " ".join(("simbatch", *path)) in text
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        assert all(set(option.opts) & set(re.findall(r"--?[a-z][a-z-]*", text)) for option in options), path


def walk(group: click.Group, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with its names."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from walk(command, (*above, name))
        elif command is not None:
            yield (*above, name), command
