"""README, docs and schema say what the code does: snippets, commands, recorded outputs, names of what there is."""

import io
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from simbatch import Scenario
from simbatch.cli import cli
from simbatch.sim.engine import leap
from simbatch.sim.scenario.document import parse_document
from simbatch.sim.scenario.problems import Hints
from simbatch.sim.tuning import recommend_cases
from simbatch.sim.tuning.recommend_cases import USE_CASES
from tests import run_command
from tests.test_docs_reference import REFERENCE, ROOT, names, read, walk

README = "README.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OWN_FILE = re.compile(r"Put this into `([\w.]+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").iterdir())
TEXTS = [README, *(page for page in PAGES if page.endswith(".md"))]
FEWER = {  # the last of an option given twice counts; all of it in this process, where it is shortened
    r"^simbatch (run|compare|explain|sweep|tune) ": "--set workload.num_prompts=50",
    r"^simbatch (compare|sweep|tune|recommend|plan) ": "--jobs 1",
    r" --replications ": "--replications 2",
    r"^simbatch plan ": "--seconds 10 --no-bands --gpus h100",
    r"^simbatch policies check ": "--cases 10",
}


def blocks(page: str) -> Iterator[tuple[str, str, str | None]]:
    """Language, text, and the ```text block right below, of each block."""
    found = list(BLOCK.finditer(read(page)))
    following: list[re.Match[str] | None] = [*found[1:], None]
    for block, after in zip(found, following, strict=True):
        is_output = after is not None and after[1] == "text" and after.start() == block.end() + 1
        yield block[1], block[2], after[2] if after is not None and is_output else None


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the repository's root, in which nothing that is written stays."""
    shutil.copytree(ROOT / "scenarios", tmp_path / "scenarios")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    for file, text in OWN_FILE.findall(read(README)):
        (tmp_path / file).write_text(text)
    return tmp_path


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
    pages = {page for page in PAGES if page.endswith((".md", ".ipynb"))}
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
    assert files == {path.name for path in (ROOT / "sim" / "engine").glob("*.py")}


@pytest.mark.parametrize("page", TEXTS)
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
        fewer = " ".join(words for pattern, words in FEWER.items() if re.search(pattern, command))
        done = run_command(capsys, *shlex.split(f"{command} {fewer}")[1:])
        assert (done.code, done.err.startswith("error")) == (0, False), command


@pytest.mark.usefixtures("checkout")
def test_the_comparison_in_the_readme_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    [table] = (text for _, text, _ in blocks(README) if "Preemptions" in text)
    [command] = re.findall(r"\$\(BIN\)/(simbatch compare .*)", read("Makefile"))
    assert f"`{command}`" in read(README)
    printed = [line.strip() for line in run_command(capsys, *shlex.split(command)[1:]).out.splitlines()]
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


@pytest.mark.parametrize("page", TEXTS)
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


@pytest.fixture
def schema(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `simbatch schema` prints."""
    printed: dict[str, Any] = json.loads(run_command(capsys, "schema").out)
    return printed


def test_the_schema_in_the_repository_is_the_one_printed(schema: dict[str, Any]) -> None:
    """But for policies that are newer than it: a policy is one file and its test; `make docs` is for releases."""
    kept = json.loads(read("scenarios/schema.json"))
    known, there = (content["properties"]["policy"].pop("anyOf") for content in (kept, schema))
    assert kept == schema, "make docs"
    assert [policy for policy in known if policy not in there] == [], "make docs"


def test_the_schema_describes_every_engine_setting(schema: dict[str, Any]) -> None:
    settings, workload = (schema["$defs"][name]["properties"] for name in ("EngineSettings", "Workload"))
    assert {"max_num_seqs", "max_num_batched_tokens", "kv_cache_dtype", "batching"} <= settings.keys()
    assert all(setting.get("description") for setting in (*settings.values(), *workload.values()))


def test_the_schema_knows_every_key_of_the_scenarios(schema: dict[str, Any]) -> None:
    hints, checked = Hints(schema), 0

    def check(path: tuple[str | int, ...], value: object, data: object) -> None:
        nonlocal checked
        if isinstance(value, dict) and path[-1:] not in (("priorities",), ("sweep",)):
            known = hints.known_keys(path, data)
            for key, child in value.items():
                assert key in known, (path, key)
                checked += 1
                check((*path, key), child, data)

    for file in (ROOT / "scenarios").glob("*.yaml"):
        data = yaml.safe_load(file.read_text())
        check((), data, data)
    assert checked > 50


def test_the_page_of_policies_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_command(capsys, "policies", "--markdown").out.split("\n## ")
    kept = read("docs/policies.md").split("\n## ")
    assert [section for section in kept if section.strip() not in map(str.strip, printed)] == [], "make docs"
    assert len(kept) > 14
