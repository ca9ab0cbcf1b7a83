"""The rules that the modules and their imports keep; `benchmarks/architecture.py` counts and draws."""

from __future__ import annotations

import yaml

from benchmarks.architecture import ROOT, circles, import_graph


def test_loading_a_module_goes_in_no_circle() -> None:
    assert circles(import_graph(when_loaded=True)) == []


def test_every_page_answers_a_question_of_the_site() -> None:
    """mkdocs fails on a page that is not in `nav`, but only where somebody builds the site."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    answers = [answer for entry in nav for answer in entry.values()]
    pages = {page for answer in answers for page in ([answer] if isinstance(answer, str) else answer)}
    beside = {"index.md", "CHANGELOG.md", "CONTRIBUTING.md"}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == pages - beside
