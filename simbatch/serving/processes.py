"""The server as processes: started when its port is free, waited for, and ended with everything that it started.

They end with the process that started them, however that one ends. `python -m simbatch.serving.processes FLAGS` is
`vllm serve` in a process of its own; not by `vllm` itself, whose entry point asks for the version of a package called
vllm: the CPU build is another one.

Signals end a command within it all, also in an event loop that was half built.

A recorder's file in such a process does not grow without end. Full, it becomes FILE.1, FILE.1 becomes FILE.2, and the
oldest goes. Each part begins with the same line, the server's, so each can be read alone. Lines are handed to the
operating system one by one: a process that is killed loses none that were written.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.files import user_path

PR_SET_PDEATHSIG = 1
LAUNCH = "simbatch.serving.processes"
Returned = TypeVar("Returned")
POLL_S = 0.2
GRACE_S = 15.0  # vLLM ends within two; then it is killed
MESSAGE = re.compile(r"(?:\w*(?:Error|Exception)|error): (.+)$", re.MULTILINE)
NOT_THE_CAUSE = ("Engine core initialization failed", "Traceback")


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent has ended, killed or not; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def reserved(address: str, port: int) -> Iterator[None]:
    """Keep the port for the server that is being started; UserError when somebody has it.

    vLLM binds its port early and listens when the engine is up: until then a second server could bind it as well. So
    whoever is about to serve holds a name too, which Linux frees when the process ends.
    """
    with socket.socket(socket.AF_UNIX) as keeper:
        try:
            if sys.platform == "linux":
                keeper.bind(f"\0simbatch-serve-{port}")
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
        except OSError as error:
            mend = "name another with --port, or end the server that has it"
            raise UserError(Problem("--port", f"cannot be served on: {error.strerror}", port, mend)) from None
        yield


class ServerProcess:
    """`vllm serve` with its own session, so that a terminal's Ctrl-C reaches it through `stop` alone.

    `failed` makes the error of a server that did not start, or has ended, from how that is said and its last words.
    """

    def __init__(
        self,
        flags: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        failed: Callable[[str, str], UserError] | None = None,
    ) -> None:
        self._log, self._error = log, failed
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", LAUNCH, *flags],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self, address: str, port: int) -> None:
        """Wait until it takes requests; UserError with what it said when it does not start."""
        while not _listens(address or "127.0.0.1", port):
            if self._process.poll() is not None:
                raise self._failed("did not start")
            time.sleep(POLL_S)

    def wait(self) -> None:
        """Wait until it ends by itself, which is an error."""
        self._process.wait()
        raise self._failed("has ended")

    def stop(self) -> None:
        """End all of its processes."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # who is left of its session
        self._process.wait()

    def _failed(self, how: str) -> UserError:
        said = self._log.read_text(encoding="utf-8", errors="replace")[-50_000:]
        causes = [cause for cause in MESSAGE.findall(said) if not cause.startswith(NOT_THE_CAUSE)]
        cause = f": {' '.join(causes[-1].split())[:400]}" if causes else ""
        if self._error is not None:
            return self._error(f"{how}{cause}", said)
        return UserError(Problem("vllm serve", f"{how}{cause}", mend=f"its own messages are in {self._log}"))


def _listens(address: str, port: int) -> bool:
    """Whether somebody takes connections there; vLLM does when its engine is up, with TLS or without."""
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it SIGTERM is as Ctrl-C, and a terminal that is closed, unless `nohup` was asked to ignore that.

    So is SIGINT, which a script's background jobs ignore from their start.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    before: Mapping[signal.Signals, object] = {each: signal.signal(each, interrupt) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)  # type: ignore[arg-type]


def run_loop(main: Coroutine[Any, Any, Returned]) -> Returned:
    """`asyncio.run` for commands that Ctrl-C may end anywhere: nothing is printed of what the interruption met.

    The signal is raised in whichever task runs; nobody waits for that one any more, and asyncio would print it. It
    would also print a loop that was half built and a coroutine that never began.
    """
    try:
        with ExitStack() as stack:
            with _signals_wait():
                runner = stack.enter_context(asyncio.Runner())
                runner.get_loop().set_exception_handler(_tell)
            return runner.run(main)
    finally:
        main.close()


@contextmanager
def _signals_wait() -> Iterator[None]:
    """The first signal that comes within it is raised behind it, if a handler of Python's answers it."""
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}  # Python answers signals in the main thread alone
    came: list[int] = []
    answered = {each: handler for each, handler in handlers.items() if callable(handler)}
    for each in answered:
        signal.signal(each, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for each, handler in answered.items():
            signal.signal(each, handler)
        if came:
            signal.raise_signal(came[0])


def _tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), KeyboardInterrupt):
        loop.default_exception_handler(context)


def main(flags: list[str]) -> None:
    """Serve until told to end."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser, command = FlexibleArgumentParser(prog="vllm"), ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    arguments = parser.parse_args(["serve", *flags])
    command.validate(arguments)
    command.cmd(arguments)


if __name__ == "__main__":  # vLLM's processes import this module too
    die_with_parent()
    main(sys.argv[1:])


RECORD = "record"  # the key of --additional-config '{"simbatch": {"record": FILE}}'
VARIABLE = "SIMBATCH_RECORD"


def record_file(additional_config: object, data_parallel_rank: int = 0) -> Path:
    """The file of this engine; UserError where none is named.

    --additional-config goes before the environment. A further engine of data parallelism has its rank in the name.
    """
    ours = additional_config.get("simbatch") if isinstance(additional_config, Mapping) else None
    given = ours.get(RECORD) if isinstance(ours, Mapping) else None
    place = f"--additional-config simbatch.{RECORD}" if given is not None else VARIABLE
    name = os.environ.get(VARIABLE) if given is None else given
    if not isinstance(name, str) or not name:
        rule = "must name the file that the steps are written to"
        raise UserError(Problem(place, rule, NOTHING if name is None else name, f"set {VARIABLE}=steps.jsonl"))
    path = user_path(Path.cwd(), name)
    return path.with_name(f"{path.stem}.dp{data_parallel_rank}{path.suffix}") if data_parallel_rank else path


PART_BYTES = 64 * 2**20  # some 300,000 steps
NUM_PARTS = 16
FORMAT = 1


class RotatingFile:
    """Where lines go; what an earlier server left there becomes the first older part.

    `facts` is plain data for the first line of each part. Raises UserError when the file cannot be written.
    """

    def __init__(
        self, path: Path, facts: Mapping[str, Any], *, part_bytes: int = PART_BYTES, num_parts: int = NUM_PARTS
    ) -> None:
        self.path, self._part_bytes, self._num_parts = path, part_bytes, num_parts
        stamp = {"recorder": FORMAT, "pid": os.getpid(), "t": time.monotonic(), "wall": time.time()}
        self._first_line = json.dumps({**stamp, **facts}).encode() + b"\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size:
                self._shift()
            self._open()
        except OSError as error:
            rule = f"the steps cannot be written there: {error.strerror or error}"
            raise UserError(Problem(str(path), rule, mend="name another file")) from None

    def write(self, line: str) -> None:
        """Add a line; OSError where the disk is full."""
        data = line.encode() + b"\n"
        if self._num_bytes + len(data) > self._part_bytes:
            self._file.close()
            self._shift()
            self._open()
        self._num_bytes += self._file.write(data)

    def close(self) -> None:
        """No more lines come."""
        self._file.close()

    def _open(self) -> None:
        self._file = self.path.open("wb", buffering=0)
        self._num_bytes = self._file.write(self._first_line)

    def _shift(self) -> None:
        for number in range(self._num_parts - 1, 0, -1):
            older = self.path if number == 1 else part(self.path, number - 1)
            if older.exists():
                older.replace(part(self.path, number))


def part(path: Path, number: int) -> Path:
    """The `number`-th older part of a file."""
    return path.with_name(f"{path.name}.{number}")
