"""README and docs say what the code does: snippets, commands, recorded outputs, and every name in the reference."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import pytest
import yaml

from simbatch import Result, Scenario, simulate
from simbatch.cli import cli, main
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.engine import leap
from simbatch.sim.metrics.columns import SESSION_COLUMNS
from simbatch.sim.metrics.registry import REGISTRY, SESSIONS
from simbatch.sim.results.files import run_facts
from simbatch.sim.scenario.engine import EngineSettings
from simbatch.sim.scenario.reading.document import parse_document
from simbatch.sim.scenario.reading.syntax import parse_plain
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.tuning import recommend_cases
from simbatch.sim.tuning.recommend_cases import USE_CASES
from simbatch.sim.workload.model import Prefix, Workload
from simbatch.sim.workload.trace_model import TRACE_FORMATS, Trace

ROOT = Path(__file__).parents[1]
README, REFERENCE = "README.md", "docs/reference.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OWN_FILE = re.compile(r"Put this into `([\w.]+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").iterdir())
OWN_POLICY = "from simbatch import Policy\n\n\nclass MyPolicy(Policy):\n    pass\n"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[tuple[str, str, str | None]]:
    """Language, text, and the ```text block right below, of each block."""
    found = list(BLOCK.finditer(read(page)))
    following: list[re.Match[str] | None] = [*found[1:], None]
    for block, after in zip(found, following, strict=True):
        is_output = after is not None and after[1] == "text" and after.start() == block.end() + 1
        yield block[1], block[2], after[2] if after is not None and is_output else None


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


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the repository's root, in which nothing that is written stays."""
    shutil.copytree(ROOT / "scenarios", tmp_path / "scenarios")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    (tmp_path / "mine.py").write_text(OWN_POLICY)
    for file, text in re.findall(
        r"Put this into `([\w.]+)`:\n\n```\w+\n(.*?)^```$", read(README), re.DOTALL | re.MULTILINE
    ):
        (tmp_path / file).write_text(text)
    requests = "".join(f"2024-05-10 00:00:{i:02}.000000+00:00,{100 + i},{10 + i}\n" for i in range(20))
    (tmp_path / "MODEL").mkdir()
    shutil.copy(ROOT / "parity" / "model" / "config.json", tmp_path / "MODEL")
    (tmp_path / "TRACE.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + requests)
    return tmp_path


@pytest.fixture(scope="module")
def result() -> Result:
    """A run in which every figure of ours is there: a rejected request, classes, SLOs."""
    changes: dict[str, Any] = {"workload.num_prompts": 60, "engine.max_model_len": 2000}
    changes |= {"workload.tenants": {"a": 0.5, "b": 0.5}}
    return simulate(Scenario.load(ROOT / "scenarios" / "bursty.yaml").override(changes), steps=True)


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("page", [README, "docs/python.md"])
def test_snippets_print_what_is_recorded(page: str) -> None:
    namespace = {"__name__": "__main__"}
    snippets = [(text, output) for language, text, output in blocks(page) if language == "python"]
    assert snippets
    for text, output in snippets:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(text, page, "exec"), namespace)
        assert output is None or printed.getvalue() == output


def commands(page: str) -> list[str]:
    found = [line for language, text, _ in blocks(page) if language == "" for line in text.splitlines()]
    return [line.partition(" #")[0].strip() for line in found if line.startswith("simbatch ")]


def test_the_readme_links_every_page() -> None:
    pages = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb")
    }
    assert pages - set(re.findall(r"\]\((docs/[\w.-]+)", read(README))) == set()


def test_the_engine_page_has_the_table_and_every_invariant_its_test() -> None:
    page = read("docs/engine.md")
    table = [line for line in (leap.__doc__ or "").splitlines() if line.startswith("|")]
    assert "\n".join(table) in page
    rows = re.findall(r"^\| (I\d+) \| .+? \| (.+?) \| (?:.* )?\|$", page, re.MULTILINE)
    assert [name for name, _ in rows] == [f"I{i}" for i in range(1, len(rows) + 1)]
    assert len(rows) >= 20
    tests = {
        name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    for name, cell in rows:
        assert tests >= set(re.findall(r"`(test_\w+)`", cell)) != set(), name
    files = {*re.findall(r"`(\w+\.py)`", page.split("## The life")[0])}
    assert files == {path.name for path in (ROOT / "sim" / "engine").glob("*.py")} - {"shown.py", "step.py"}


@pytest.mark.parametrize("page", [README, *(page for page in PAGES if page.endswith(".md"))])
def test_links_lead_to_a_page_and_its_heading(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", read(page)):
        there = (ROOT / page).parent / target if target else ROOT / page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in headings}, anchor


def test_the_readme_is_followed_in_order() -> None:
    """From `make demo` on nothing but what the page itself makes is needed: files are read after they are written."""
    made = {file for file, _ in OWN_FILE.findall(read(README))}
    assert made == {"mine.yaml", "mine.py"}
    for command in commands(README):
        files = set(re.findall(r"[\w.]+\.(?:yaml|py|csv|json)(?=[ :]|$)", command))
        made |= files if "generate" in command else set(re.findall(r" -o ([\w.]+)", command))
        assert files <= made, command
    assert not any(word in command for command in commands(README) for word in ("FILE", "MODEL", "TRACE", "scenarios/"))


def test_make_alone_and_the_demo_say_what_comes_next() -> None:
    """What is printed can be typed: targets that are there, and commands that are."""
    make = ["make", "--no-print-directory", "-C", str(ROOT)]
    said = subprocess.run(make, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^make ([a-z -]+?)  ", said, re.MULTILINE)
    assert targets[:2] == ["demo", "test"]
    text = read("Makefile")
    assert all(re.search(rf"^{name}:", text, re.MULTILINE) for target in targets for name in target.split())
    following = text.split("define NEXT")[1].split("endef")[0]
    named = [line.split() for line in following.splitlines() if line.startswith("  ")]
    assert named[0] == [".", "$(VENV)/bin/activate"]
    assert len(named) >= 4
    assert all(words[0] == "simbatch" and words[1] in cli.list_commands(click.Context(cli)) for words in named[1:])


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert citation["license"] == project["license"]
    assert citation["abstract"] == f"{project['description']}."
    assert citation["keywords"] == project["keywords"]


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("page", [README, REFERENCE])
def test_commands_do_what_the_page_says(
    page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(commands(page)) >= 3
    short = {name: replace(case, num_prompts=60) for name, case in USE_CASES.items()}
    monkeypatch.setattr(recommend_cases, "USE_CASES", short)
    for command in commands(page):
        words = [word.replace("FILE", "scenarios/bursty.yaml") for word in shlex.split(command)[1:]]
        few = {"run", "compare", "explain", "sweep", "tune"}
        fewer = ["--set", "workload.num_prompts=50"] if words[0] in few else []
        fewer += ["--seconds", "10", "--no-bands", "--gpus", "h100"] if words[0] == "plan" else []
        fewer += ["--jobs", "1"] if words[0] == "recommend" else []
        with pytest.raises(SystemExit) as ended:
            main([*words, *fewer])
        assert (ended.value.code, capsys.readouterr().err.startswith("error")) == (0, False), command


@pytest.mark.usefixtures("checkout")
def test_the_comparison_in_the_readme_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    [table] = (text for _, text, _ in blocks(README) if "Preemptions" in text)
    [command] = re.findall(r"\$\(BIN\)/(simbatch compare .*)", read("Makefile"))
    assert f"`{command}`" in read(README)
    with pytest.raises(SystemExit):
        main(shlex.split(command)[1:])
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert len(table.splitlines()) > 5
    assert [line for line in table.splitlines() if line.strip() not in printed] == []


@pytest.mark.parametrize("page", [README, REFERENCE])
def test_yaml_blocks_are_scenarios(page: str) -> None:
    for language, text, _ in blocks(page):
        if language == "yaml":
            assert Scenario.from_dict(parse_document(text, name=page).data).build_policy()


@pytest.mark.parametrize("page", [README, "CONTRIBUTING.md", "docs/design.md", REFERENCE, "docs/python.md"])
def test_folders_and_files_that_a_page_names_are_there(page: str) -> None:
    roots = "sim|simbatch|policies|profiler|profiles|parity|scenarios|tests|docs|benchmarks"
    named = re.findall(rf"`((?:{roots})/[\w./-]*)`", read(page))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_contributing_lists_every_room_of_the_simulator() -> None:
    rooms = {f"sim/{path.parent.name}/" for path in (ROOT / "sim").glob("*/__init__.py")}
    assert rooms - names(read("CONTRIBUTING.md")) == set()


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


@pytest.mark.parametrize("page", [README, *(page for page in PAGES if page.endswith(".md"))])
def test_commands_on_a_page_are_there_with_their_flags(page: str) -> None:
    """Those of blocks and those in a sentence, run or not."""
    flags = {
        path: {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        for path, command in walk(cli, ())
    }
    text = read(page).replace("\\\n", " ")
    lines = [line for block in BLOCK.finditer(text) for line in block[2].splitlines() if line.startswith("simbatch ")]
    for line in [*lines, *re.findall(r"`(simbatch [^`\n]+)`", BLOCK.sub("", text))]:
        assert " scenarios/" not in line, "a wheel has them by name"
        command = re.sub(r"\"[^\"]*\"|'[^']*'", "TEXT", line.partition(" #")[0].partition(" -- ")[0])
        words = command.split()[1:]
        path = next((path for path in (tuple(words[:2]), tuple(words[:1])) if path in flags), None)
        assert path is not None or words[0] in cli.list_commands(click.Context(cli)) or words[0][0] == "-", line
        shown = set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", command))
        assert path is None or shown <= flags[path] | {"--help"}, line


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
