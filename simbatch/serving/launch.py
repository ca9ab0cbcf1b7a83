"""`python -m simbatch.serving.launch FLAGS`: the subcommand `vllm serve` in a process of its own.

Not by `vllm` itself, whose entry point asks for the version of a package called vllm: the CPU build is another one.
"""

from __future__ import annotations

import sys


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
    from simbatch.serving.parent import die_with_parent

    die_with_parent()
    main(sys.argv[1:])
