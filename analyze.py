"""Compare what runs learned. Try: python analyze.py runs/full runs/noffn

With runs alone it makes the whole report: CKA of the first run with each other one, linear probes, tables, figures.
"cka", "probe" or "fill" before the runs does one of these alone: python analyze.py fill runs/noffn "the [MASK] function".
"""

import argparse
import sys

from mini_undivided.support.errors import command_line
from mini_undivided.support.options import AnalyzeOptions, FillOptions, add_options, make_parser

COMMANDS = {
    "report": "CKA and probes of two or more runs, tables, figures and report.md",
    "cka": "how alike the layers of two or more runs are, and whether their tokens collapse",
    "probe": "what a linear classifier can read off each layer of one or more runs",
    "fill": "the likeliest words for each [MASK] of a sentence",
}
USAGE = (
    "analyze.py [report | cka | probe] RUN [RUN ...] [options]\n       analyze.py fill RUN SENTENCE"
)


def parser():
    """The command line; "report" may be left out."""
    whole = make_parser(__doc__, usage=USAGE)
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", title="commands (each has a --help)",
                                    prog="analyze.py")  # fmt: skip
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=text, argument_default=argparse.SUPPRESS
        )
        add_options(command, FillOptions if name == "fill" else AnalyzeOptions, command=name)
    return whole


def main():
    with command_line():
        arguments = sys.argv[1:]
        if arguments and arguments[0] not in (*COMMANDS, "-h", "--help"):
            arguments = ["report", *arguments]
        typed = vars(parser().parse_args(arguments))
        command = typed.pop("command", None)
        if command is None:
            parser().error("give two runs to compare, or a command: " + ", ".join(COMMANDS))
        if command == "fill":
            from mini_undivided.report.training import (
                fill_text,
            )  # late: --help need not wait for PyTorch

            print(fill_text(**typed))
        else:
            from mini_undivided.report.analysis import analyse

            print(analyse(command, AnalyzeOptions(**typed)))


if __name__ == "__main__":
    main()
