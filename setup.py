"""Compiles the engine's loops with mypyc where SIMBATCH_COMPILE=1 asks for it; all else stands in pyproject.toml.

Nothing outside may inherit from a class of these modules, nor put something else in the place of their functions.
"""

import json
import os
import shutil
import tomllib
from hashlib import sha256
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext

MODULES = {
    "cost": ["host", "model"],
    "engine": [
        "cluster", "decode_group", "door", "front_end", "gateway", "gathered", "leap",
        "recorder", "replica", "resources", "sessions", "stepwise", "timed", "traffic", "untimed",
    ],
    "scheduler": ["kv_cache", "names", "planned", "request", "scheduler", "views", "waiting"],
}  # fmt: skip
SOURCES = [f"{package}/{name}.py" for package, names in MODULES.items() for name in names]
ROOT = Path(__file__).parent
TREE = ROOT / "build" / "mypyc"  # a copy of the packages under the names that they are imported by
COMMON = "simbatch.sim.compiled"  # what all modules share lies beside them, as compiled__mypyc
IS_WANTED = os.environ.get("SIMBATCH_COMPILE", "0") not in ("", "0")


def extensions() -> list[Extension]:
    """The modules, translated to C."""
    from mypyc.build import mypycify

    shutil.rmtree(TREE, ignore_errors=True)
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    for name, folder in {"simbatch": "simbatch", **folders}.items():
        shutil.copytree(ROOT / folder, TREE.joinpath(*name.split(".")))
    os.chdir(TREE)  # mypy finds a module's name by its path
    # the rest is only looked at for its types, and what it imports is not there while pip builds
    flags = ["--follow-imports=silent", "--ignore-missing-imports"]
    files = [f"simbatch/sim/{source}" for source in SOURCES]
    found: list[Extension] = mypycify([*flags, *files], group_name=COMMON, opt_level="2", debug_level="0")
    os.chdir(ROOT)
    for extension in found:
        for paths in (extension.sources, extension.include_dirs, extension.depends):
            paths[:] = [os.path.relpath(TREE / path, ROOT) for path in paths]
    return found


class Compiled(Distribution):
    """A wheel for this platform; what is compiled is known when it is built and not while pip asks what that needs."""

    def has_ext_modules(self) -> bool:
        """There will be."""
        return True


class Build(build_ext):
    """Compiles, and writes down beside the compiled modules which sources they are of."""

    def run(self) -> None:
        """Make `build_lib` whole: modules and `simbatch/sim/compiled.json`."""
        self.distribution.ext_modules = extensions()
        self.initialize_options()
        self.finalize_options()  # once more, now that there is something to build
        super().run()
        digests = {source: sha256((ROOT / "sim" / source).read_bytes()).hexdigest() for source in SOURCES}
        (Path(self.build_lib) / "simbatch" / "sim" / "compiled.json").write_text(json.dumps(digests, indent=1) + "\n")


if IS_WANTED:
    setup(setup_requires=["mypy>=1.11"], distclass=Compiled, cmdclass={"build_ext": Build})
else:
    setup()
