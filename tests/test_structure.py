"""The rules that the modules and their imports keep; `benchmarks/architecture.py` counts and draws.

What setuptools installs is what is there.

What is compiled must be of the sources beside it; that both give the same is for `make test-fast` to show.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from benchmarks.architecture import (
    FOLDERS,
    PAGE,
    ROOT,
    circles,
    classes_defined_twice,
    import_graph,
    longest_chain,
    page_with,
    picture,
    rooms,
)
from simbatch import UserError, sim
from simbatch.cli import cli
from simbatch.sim.engine import leap

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LEANS_ON_ANOTHER = re.compile(r"(The same|See |As `\w+`|Like )")


def test_no_import_goes_in_a_circle() -> None:
    """Neither one when a module is loaded, nor one in a function, nor one for the type checker."""
    assert circles(import_graph(when_loaded=False)) == []
    assert circles(rooms(import_graph(when_loaded=True))) == []


def test_an_import_leads_to_eleven_others_at_most() -> None:
    """A chain of imports is what a reader follows down to understand a file; imports in functions do not count."""
    assert len(longest_chain(import_graph(when_loaded=True))) <= 12


def test_a_public_class_has_a_name_of_its_own() -> None:
    assert classes_defined_twice() == {}


def sources() -> dict[str, str]:
    """Every file of Python that is written here, by its path."""
    folders = (*FOLDERS, "benchmarks", "parity", "tests")
    paths = {path for folder in folders for path in (ROOT / folder).rglob("*.py")}
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


def definitions(kinds: tuple[type[Definition], ...]) -> Iterator[tuple[str, Definition]]:
    """Every definition of these kinds, and where it is."""
    for path, text in sources().items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, kinds):
                yield f"{path}:{node.lineno} {node.name}", node


def test_a_docstring_stands_alone() -> None:
    """A reader who comes to a function by its name has not read the one above."""
    known = definitions((ast.ClassDef, *FUNCTIONS))
    assert [where for where, node in known if LEANS_ON_ANOTHER.match(ast.get_docstring(node) or "")] == []


def test_a_file_is_at_most_300_lines_and_a_function_60() -> None:
    """What a reader holds in mind at once; longer ones are divided by what they are about, not by their length."""
    assert [path for path, text in sources().items() if text.count("\n") > 300] == []
    assert [where for where, node in definitions(FUNCTIONS) if (node.end_lineno or 0) - node.lineno >= 60] == []


def test_the_picture_of_the_rooms_is_what_the_imports_say() -> None:
    """`python -m benchmarks.architecture` draws it anew."""
    page = PAGE.read_text(encoding="utf-8")
    assert page_with(picture(), page) == page


def test_every_page_answers_a_question_of_the_site() -> None:
    """mkdocs fails on a page that is not in `nav`, but only where somebody builds the site."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    answers = [answer for entry in nav for answer in entry.values()]
    pages = {page for answer in answers for page in ([answer] if isinstance(answer, str) else answer)}
    beside = {"index.md", "CHANGELOG.md", "CONTRIBUTING.md"}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == pages - beside


INSTALLED = ("sim", "policies", "routers", "profiler", "profiles", "scenarios", "simbatch")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def folder_of(package: str) -> Path:
    """Where a package's files are, as setuptools finds them: by the longest name in `package-dir`."""
    for name, folder in sorted(SETTINGS["package-dir"].items(), key=lambda item: -len(item[0])):
        if package == name or package.startswith(f"{name}."):
            return Path(folder, *package.removeprefix(name).split("."))
    return Path(*package.split("."))


def test_the_packages_are_the_folders() -> None:
    there = {path.parent.relative_to(ROOT) for folder in INSTALLED for path in (ROOT / folder).rglob("__init__.py")}
    packages = SETTINGS["packages"]
    assert sorted(map(folder_of, packages)) == sorted(there)
    assert len(set(packages)) == len(packages)


def test_every_module_lies_in_a_package() -> None:
    """A folder whose `__init__.py` was forgotten works in the checkout and is missing once it is installed."""
    folders = {path.parent.relative_to(ROOT) for folder in INSTALLED for path in (ROOT / folder).rglob("*.py")}
    assert folders <= set(map(folder_of, SETTINGS["packages"]))


def test_a_source_that_has_changed_since_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    source = tmp_path / "engine" / "leap.py"
    source.write_text("a = 1\n")
    sim.check_compiled(tmp_path)  # nothing is compiled here
    (tmp_path / sim.COMPILED).write_text(json.dumps({"engine/leap.py": sha256(b"a = 1\n").hexdigest()}))
    sim.check_compiled(tmp_path)
    source.write_text("a = 2\n")
    with pytest.raises(UserError, match=r"leap\.py: has changed since it was compiled.*make fast"):
        sim.check_compiled(tmp_path)


def test_the_version_says_what_runs() -> None:
    shown = CliRunner().invoke(cli, ["--version"]).output
    assert shown.rstrip().endswith("(compiled)" if sim.is_compiled() else "(interpreted)")
    assert sim.is_compiled() == (not str(leap.__file__).endswith(".py"))
