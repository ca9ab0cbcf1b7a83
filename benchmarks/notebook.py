"""The notebook that ships, run anew and stored with what it shows: `python -m benchmarks.notebook`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat

PATH = Path(__file__).parents[1] / "docs" / "invent-a-policy.ipynb"


def executed(path: Path = PATH) -> nbformat.NotebookNode:
    """The notebook with the outputs of this Python, whatever kernels are installed; run in a folder of its own."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IPYTHONDIR"], os.environ["JUPYTER_DATA_DIR"] = folder, f"{folder}/share/jupyter"
        install = [sys.executable, "-m", "ipykernel", "install", "--prefix", folder]
        subprocess.run(install, check=True, capture_output=True)
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return notebook


def without_times(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """As it is stored: nothing of this machine or hour, so that the same notebook is the same file."""
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
        cell.metadata = {}
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


if __name__ == "__main__":
    nbformat.write(without_times(executed()), PATH)
