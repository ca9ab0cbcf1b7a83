"""Fetching a version's sources, without a package index."""

import sys
import zipfile
from pathlib import Path

import pytest

from parity import sources
from parity.sources import NotToBeHadError, environment, site_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def wheel_in(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    wheel = folder / f"vllm-{version}-cp38-abi3-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("vllm/__init__.py", "")
        file.writestr("vllm/platforms/cpu.py", "torch._C._cpu._is_avx512_supported()")
        file.writestr("vllm/_C.abi3.so", "x" * 1000)
        file.writestr(f"vllm-{version}.dist-info/METADATA", "Version: 0")
    return wheel


def test_the_python_files_are_kept_and_say_that_they_are_a_cpu_build(cache, monkeypatch, capsys):
    monkeypatch.setattr(sources, "_download", lambda version, work, _: wheel_in(work, version))
    (site,) = site_of("0.27.1", "python")
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert files == {"vllm/__init__.py", "vllm/platforms/cpu.py", "vllm-0.27.1+cpu.dist-info/METADATA"}
    assert (site / "vllm/platforms/cpu.py").read_text() == "torch.cpu._is_avx512_supported()"
    assert [path.name for path in cache.iterdir()] == ["0.27.1"]  # the wheel is gone
    assert "taking the Python files" in capsys.readouterr().err
    monkeypatch.setattr(sources, "_download", None)  # there already
    assert site_of("0.27.1", "python") == [site]
    assert environment([site, cache])["PYTHONPATH"] == f"{site}:{cache}"


def test_what_cannot_be_fetched_is_said_and_leaves_nothing(cache, monkeypatch):
    monkeypatch.setattr(sources, "_failed", lambda command: f"no matching distribution for {command[-1]}")
    with pytest.raises(NotToBeHadError, match=r"vLLM 0\.99\.0 cannot be fetched: no matching .* vllm==0\.99\.0"):
        site_of("0.99.0", sys.executable)
    assert list(cache.iterdir()) == []
