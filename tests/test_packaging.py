"""What setuptools installs is what is there."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
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
