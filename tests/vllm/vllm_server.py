"""A real `vllm serve` of the small model, in processes of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

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
