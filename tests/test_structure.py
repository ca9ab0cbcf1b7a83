"""The rules that the modules and their imports keep; `benchmarks/architecture.py` counts and draws."""

from __future__ import annotations

import ast
import re

import yaml

from benchmarks.architecture import (
    PAGE,
    ROOT,
    circles,
    classes_defined_twice,
    import_graph,
    modules,
    page_with,
    picture,
)

LEANS_ON_ANOTHER = re.compile(r"(The same|See |As `|Like )")


def test_no_import_goes_in_a_circle() -> None:
    """Neither one when a module is loaded, nor one in a function, nor one for the type checker."""
    assert circles(import_graph(when_loaded=False)) == []


def test_a_public_class_has_a_name_of_its_own() -> None:
    assert classes_defined_twice() == {}


def test_a_docstring_stands_alone() -> None:
    """A reader who comes to a function by its name has not read the one above."""
    leaning = [
        f"{module}.{node.name}"
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        if LEANS_ON_ANOTHER.match(ast.get_docstring(node) or "")
    ]
    assert leaning == []


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
