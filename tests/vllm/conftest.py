"""Tests that need real vLLM: `.venv-vllm/bin/python -m pytest tests/vllm`; elsewhere they are skipped."""

import os
import signal
from importlib.util import find_spec

import pytest

LIMIT_S = 1200  # an engine starts in a minute, and some fixtures measure a whole profile
HAS_VLLM = find_spec("vllm") is not None
if HAS_VLLM:
    # see accuracy.STEADY; what malloc reads at a program's start comes too late here
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # what a shell starts in the background ignores Ctrl-C, and so would the commands that are interrupted here
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/vllm/" not in item.nodeid:
            continue
        item.add_marker(pytest.mark.filterwarnings("ignore"))  # vLLM's and torch's own
        item.add_marker(pytest.mark.timeout(LIMIT_S))
        if not HAS_VLLM:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed here (CONTRIBUTING.md says how)"))


@pytest.fixture(scope="module", autouse=True)
def own_environment():
    """What an engine in this process has set for vLLM is not handed on to the next module's."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
