"""Scripts that measure; no test times anything."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable


def parser_of(text: str | None) -> ArgumentParser:
    """A parser for a script's options; its docstring is the help."""
    return ArgumentParser(description=text, formatter_class=RawDescriptionHelpFormatter)


def run_one_of(first: Callable[[], object], **others: Callable[[], object]) -> None:
    """`python -m benchmarks.MODULE [NAME]`: one of the module's measurements, the first where none is named."""
    name = sys.argv.pop(1) if sys.argv[1:] and sys.argv[1] in others else ""
    others.get(name, first)()
