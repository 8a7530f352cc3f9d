"""Compare what runs learned. Try: python analyze.py runs/full runs/noffn

With runs alone it makes the whole report: CKA of the first run with each other one, what tokens
attend to, linear probes, tables, figures. Runs that differ in nothing but their seed are compared
as a group. A command before the runs does one thing alone:
python analyze.py fill runs/noffn "the [MASK] function".
"""

import argparse
import sys
from dataclasses import fields

from mini_undivided.support.errors import command_line
from mini_undivided.support.options import AnalyzeOptions, SentenceOptions, add_option, make_parser

COMMANDS = {
    "report": "CKA, attention and probes of two or more runs, tables, figures and report.md",
    "cka": "how alike the layers of two or more runs are, and whether their tokens collapse",
    "probe": "what a linear classifier can read off each layer of one or more runs",
    "attention": "a figure of who attends to whom in a sentence, heads by layers",
    "fill": "the likeliest words for each [MASK] of a sentence"}
SENTENCE = ("attention", "fill")  # commands that take one
USAGE = """analyze.py [report | cka | probe] RUN [RUN ...] [options]
       analyze.py {attention | fill} RUN SENTENCE"""


def parser():
    """The command line; "report" may be left out."""
    parser = make_parser(__doc__, usage=USAGE)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", prog="analyze.py", title="commands (each has a --help)")
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=text, argument_default=argparse.SUPPRESS)
        for field in fields(SentenceOptions if name in SENTENCE else AnalyzeOptions):
            if name in (field.metadata["option"].commands or COMMANDS):
                add_option(command, field)
    return parser


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
            from mini_undivided.report.training import fill_text  # late, for --help

            print(fill_text(**typed))
        elif command == "attention":
            from mini_undivided.report.analysis import draw_attention

            print(f"written to {draw_attention(**typed)}")
        else:
            from mini_undivided.report.analysis import analyse

            print(analyse(command, AnalyzeOptions(**typed)))


if __name__ == "__main__":
    main()
