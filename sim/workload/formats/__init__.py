"""The formats of traces: a file of this folder each, found by looking into it."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simbatch.sim.workload.columns import Format


OURS = ("jsonl", "csv", "parquet")


def _found() -> dict[str, Format]:
    modules = (importlib.import_module(f"{__name__}.{each.name}") for each in pkgutil.iter_modules(__path__))
    return {form.name: form for module in modules for form in module.FORMATS}


FORMATS = _found()
TABLES = {name: form for name, form in FORMATS.items() if form.written_as}
RESULTS = tuple(name for name, form in FORMATS.items() if not form.written_as)
