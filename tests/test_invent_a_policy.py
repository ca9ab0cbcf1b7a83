"""docs/invent-a-policy.md and its notebook: everything on them is run, and what is recorded is what is printed."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from simbatch.cli import main
from tests.test_docs import ROOT, blocks, checkout

__all__ = ["checkout"]
PAGE = "docs/invent-a-policy.md"
MAX_LINES = 30


def policy_of_the_page() -> tuple[str, str]:
    """The name of the policy's file, and its text."""
    (text,) = (text for language, text, _ in blocks(PAGE) if language == "python")
    first, _, _ = text.partition("\n")
    return first.removeprefix("# "), text


def test_the_policy_fits_in_thirty_lines() -> None:
    _, text = policy_of_the_page()
    assert len(text.splitlines()) <= MAX_LINES


def test_the_page_from_idea_to_figure(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, text = policy_of_the_page()
    (checkout / name).write_text(text)
    done = []
    for language, script, recorded in blocks(PAGE):
        if language != "sh":
            continue
        for command in script.splitlines():
            with pytest.raises(SystemExit) as ended:
                main(shlex.split(command)[1:])
            printed = capsys.readouterr()
            assert ended.value.code == 0, printed.err
            done.append(command.split()[1])
        if recorded is not None:
            shown = printed.out.splitlines()
            assert [line for line in recorded.splitlines() if line not in shown] == [], command
    assert done == ["policies", "run", "compare", "tune"]
    assert (checkout / "results" / "long_prompts-loads" / "loads.pdf").read_bytes().startswith(b"%PDF")


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    kernel = tmp_path / "jupyter" / "kernels" / "python3"  # the Python of the tests, whatever else is installed
    subprocess.run(
        [sys.executable, "-m", "ipykernel", "install", "--prefix", str(tmp_path)], check=True, capture_output=True
    )
    kernel.parent.mkdir(parents=True)
    (tmp_path / "share" / "jupyter" / "kernels" / "python3").rename(kernel)
    notebook = nbformat.read(ROOT / "docs" / "invent-a-policy.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "docs")}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("<table>" in output.get("data", {}).get("text/html", "") for output in outputs)
    assert "requests within their SLO: +" in "".join(output.get("text", "") for output in outputs)
