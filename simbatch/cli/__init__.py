"""The command line: `simbatch run`, `compare`, `explain`, `trace`, `scenarios`, `profiles`, `policies`, `routers`.

A subcommand's module is imported when it is used, and none to show the list of them. Here alone mistakes become lines
on stderr and an exit code.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

import click

from simbatch.sim import is_compiled
from simbatch.sim.errors import UserError
from simbatch.sim.files import issued_as
from simbatch.sim.interpreter import collect_for_a_command

# Large arrays in ordinary pages: where numpy asks for huge ones, which is its default, the kernel clears 2 MiB at a
# time for each of them, half a second for the figures of a million requests. numpy reads this when it is imported.
os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")

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
        _about_gpus(error).show()
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


def _about_gpus(error: click.ClickException) -> click.ClickException:
    """--gpu where a profile says the GPU: what does; click would guess at any option of like letters."""
    if not isinstance(error, click.NoSuchOption) or error.option_name != "--gpu" or error.ctx is None:
        return error
    known = {name for parameter in error.ctx.command.params for name in parameter.opts}
    words = {"--gpus": "", "--profile": "--profile NAME", "--set": "--set profile=NAME"}
    said = next((word for flag, word in words.items() if flag in known), "")
    hint = f"A GPU comes with its profile: {said} (`simbatch profiles list --gpu G` has their names)."
    return click.UsageError(f"{error.message} {hint}", error.ctx) if said else error


def _of_file(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def _say(line: str) -> None:
    """A line on stderr: broken to the page for a person, in one piece for a pipe, so that grep finds all of it."""
    from simbatch.sim.text import wrapped

    try:
        print("\n".join(wrapped([line])) if sys.stderr.isatty() else line, file=sys.stderr, flush=True)
    except BrokenPipeError:  # 2>&1 | head; what is left in the buffer would fail again at exit, with a code of its own
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


# name: (module and command in it, its line in `simbatch --help`)
_COMMANDS = {
    "init": ("simbatch.cli.init:init", "Write a scenario from a `vllm serve` command."),
    "run": ("simbatch.cli.run:run", "Simulate a scenario and show what its users feel."),
    "compare": ("simbatch.cli.compare:compare", "Put policies, profiles or routers side by side on the same arrivals."),
    "rank": ("simbatch.cli.sweep:rank", "Say which policy is best in which scenario."),
    "sweep": ("simbatch.cli.sweep:sweep", "Simulate a grid of settings, on all cores or a cluster."),
    "tune": ("simbatch.cli.tune:tune", "Search for the best settings under a goal and limits."),
    "recommend": ("simbatch.cli.plan:recommend", "Recommend settings for a use case, checked by simulation."),
    "plan": ("simbatch.cli.plan:plan", "Say how many GPUs of which type keep the limits, and at what cost."),
    "memory": ("simbatch.cli.memory:memory", "Say how large a batch fits into a GPU's memory."),
    "explain": ("simbatch.cli.run:explain", "Tell the life of one request: why it waited, who preempted it."),
    "trace": ("simbatch.cli.trace:trace", "Describe, convert or generate request traces."),
    "profile": ("simbatch.cli.profile:profile", "Measure a model on this machine's GPU through vLLM."),
    "estimate": ("simbatch.cli.memory:estimate", "Estimate a model on a GPU that nobody measured."),
    "fit": ("simbatch.cli.fit:fit", "Fit a profile from measured steps."),
    "serve": ("simbatch.cli.init:serve", "Serve a profile through real vLLM, without a GPU."),
    "validate": ("simbatch.cli.validate:validate", "Compare a real run with its simulation."),
    "scenarios": ("simbatch.cli.init:scenarios", "List and copy the scenarios that ship."),
    "profiles": ("simbatch.cli.profiles:profiles", "List, show and import GPU profiles."),
    "policies": ("simbatch.cli.plugins:policies", "List the batching policies and their parameters."),
    "routers": ("simbatch.cli.plugins:routers", "List the routers of clusters and their parameters."),
    "schema": ("simbatch.cli.init:schema", "Print the JSON Schema of scenario files."),
}


class HintingGroup(click.Group):
    """A group that says what may have been meant where it has no command of a name, unless click does."""

    def hint(self, ctx: click.Context, name: str) -> str | None:
        """A sentence about this name; None for none."""
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Click's, with the hint behind its message."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if "did you mean" not in error.message.lower() and (hint := self.hint(ctx, args[0])):
                raise click.UsageError(f"{error.message} {hint}", ctx) from None
            raise


class GroupOfNames(HintingGroup):
    """A group about things that have names: who gives one without `show` is told of it."""

    def hint(self, ctx: click.Context, name: str) -> str | None:
        """What to type for the thing of this name."""
        verb = next(verb for verb in ("show", "copy") if verb in self.commands)
        return f"One by its name: {ctx.command_path} {verb} {name}"


class LazyGroup(HintingGroup):
    """A group that imports a subcommand's module only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All of them, in the order of a day's work."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return it."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is not a command")
        return command

    def hint(self, ctx: click.Context, name: str) -> str | None:
        """The nearest command."""
        from difflib import get_close_matches

        near = get_close_matches(name, _COMMANDS, n=1)
        return f"Did you mean {near[0]!r}?" if near else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list, from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(
    package_name="simbatch", message=f"simbatch %(version)s ({'compiled' if is_compiled() else 'interpreted'})"
)
def cli() -> None:
    """Find the batch size, scheduler settings and policy for a model on a GPU, and see what users will feel.

    Start with: simbatch run bursty
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0, 2 for what the user must mend, 130 when interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    collect_for_a_command()
    if "_SIMBATCH_COMPLETE" in os.environ:  # a shell asks for completions
        cli.main(given, prog_name="simbatch")
    sys.exit(exit_code_of(lambda: _invoke(given)))


def _invoke(arguments: list[str]) -> None:
    # not cli.main(): it would answer a closed pipe itself, with exit code 1
    with issued_as(shlex.join(["simbatch", *arguments])), cli.make_context("simbatch", _joined(arguments)) as context:
        cli.invoke(context)


def _joined(arguments: list[str]) -> list[str]:
    """`--between START END` with its two moments as one value, as `--between START,END` has them."""
    found = list(arguments)
    if "--between" in found[:-2] and "," not in found[(at := found.index("--between") + 1)]:
        found[at : at + 2] = [",".join(found[at : at + 2])]
    return found
