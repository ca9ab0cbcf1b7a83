"""The one place where mistakes become lines on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

import click

from simbatch.sim.errors import UserError

OK = 0
USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
BROKEN_PIPE = 141  # 128 + SIGPIPE


def exit_code_of(command: Callable[[], object]) -> int:
    """Run `command`; what the user must mend is printed, without a traceback."""
    try:
        command()
        sys.stdout.flush()
    except UserError as error:
        for problem in error.problems:
            _say(f"error: {problem}")
        return USER_ERROR
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich's answer to a reader who left: stdout leads nowhere now
            return BROKEN_PIPE
        # a policy's file may say sys.exit()
        _say(f"error: the policy ended the program by sys.exit({end.code!r}); remove that call from its file")
        return USER_ERROR
    except click.exceptions.Exit as end:  # after --help and --version
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return USER_ERROR
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted: files that stand already are whole, nothing else was written")
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read stdout has left; Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        _say(f"error: {_of_file(error)}")
        return USER_ERROR
    except MemoryError:
        _say("error: not enough memory for this run; simulate fewer requests, or leave out --steps")
        return USER_ERROR
    return OK


def _of_file(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:  # 2>&1 | head; what is left in the buffer would fail again at exit, with a code of its own
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
