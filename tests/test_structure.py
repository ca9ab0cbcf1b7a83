"""The rules that the modules and their imports keep; `benchmarks/architecture.py` counts and draws."""

from __future__ import annotations

from benchmarks.architecture import circles, import_graph


def test_loading_a_module_goes_in_no_circle() -> None:
    assert circles(import_graph(when_loaded=True)) == []
