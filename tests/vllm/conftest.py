"""Tests that need real vLLM (`.venv-vllm/bin/python -m pytest tests/vllm`; skipped elsewhere), and their server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

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


MODEL = Path(__file__).parent / "models" / "tiny-llama"
WAIT_S = 300
# not by `vllm` itself, whose entry point asks for the version of a package called vllm: the CPU build is another one
SERVE = """
import sys
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser
if __name__ == "__main__":
    parser, command = FlexibleArgumentParser(prog="vllm"), ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    arguments = parser.parse_args(["serve", *sys.argv[1:]])
    command.validate(arguments)
    command.cmd(arguments)
"""
FLAGS = ("--load-format", "dummy", "--skip-tokenizer-init", "--served-model-name", "tiny", "--enforce-eager")


@contextmanager
def serving(folder, *flags, **environment):
    """Its address, once it is ready; its messages are in server.log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program, log = folder / "serve.py", folder / "server.log"
    program.write_text(SERVE)
    env = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        **os.environ,
        **environment,
    }
    command = [sys.executable, str(program), str(MODEL), "--port", str(port), *FLAGS, *flags]
    with log.open("wb") as messages:
        server = subprocess.Popen(command, stdout=messages, stderr=messages, env=env, start_new_session=True)
    try:
        _wait(server, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        for kind in (signal.SIGINT, signal.SIGKILL):  # the whole group that was started here
            try:
                os.killpg(server.pid, kind)
                server.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def _wait(server, url, log):
    for _ in range(2 * WAIT_S):
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2)
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"not ready in {WAIT_S} s: {log.read_text()[-3000:]}")
