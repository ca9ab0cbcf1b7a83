"""What is compiled must be of the sources beside it; that both give the same is for `make test-fast` to show."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner

from simbatch import UserError
from simbatch.cli import cli
from simbatch.sim import compiled
from simbatch.sim.engine import leap


def test_a_source_that_has_changed_since_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    source = tmp_path / "engine" / "leap.py"
    source.write_text("a = 1\n")
    compiled.check(tmp_path)  # nothing is compiled here
    (tmp_path / compiled.SOURCES).write_text(json.dumps({"engine/leap.py": sha256(b"a = 1\n").hexdigest()}))
    compiled.check(tmp_path)
    source.write_text("a = 2\n")
    with pytest.raises(UserError, match=r"leap\.py: has changed since it was compiled.*make fast"):
        compiled.check(tmp_path)


def test_the_version_says_what_runs() -> None:
    shown = CliRunner().invoke(cli, ["--version"]).output
    assert shown.rstrip().endswith("(compiled)" if compiled.is_compiled() else "(interpreted)")
    assert compiled.is_compiled() == (not str(leap.__file__).endswith(".py"))
