"""Compare what runs learned. Try: python analyze.py runs/full runs/noffn

With runs alone it makes the whole report: CKA of the first run with each other one, linear probes, tables, figures.
"cka", "probe" or "fill" before the runs does one of these alone: python analyze.py fill runs/noffn "the [MASK] function".
"""

import argparse
import sys

COMMANDS = {
    "report": "CKA and probes of two or more runs, tables, figures and report.md",
    "cka": "how alike the layers of two or more runs are, and whether their tokens collapse",
    "probe": "what a linear classifier can read off each layer of one or more runs",
    "fill": "the likeliest words for each [MASK] of a sentence",
}


def make_parser():
    """The command line; "report" may be left out."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="analyze.py [report | cka | probe] RUN [RUN ...] [options]\n       analyze.py fill RUN SENTENCE",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands (each has a --help)")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, argument_default=argparse.SUPPRESS)
        if name == "fill":
            command.add_argument("run", metavar="RUN", help="a run directory, a Hugging Face BERT, or its id on the hub")
            command.add_argument("sentence", metavar="SENTENCE", help="with a [MASK] for each word to be filled in")
            continue
        add_shared(command.add_argument)
        if name != "probe":
            add_cka(command.add_argument)
        if name != "cka":
            add_probe(command.add_argument)
    return parser


def add_shared(add):
    """The options of report, cka and probe."""
    add("runs", nargs="+", metavar="RUN", help="run directories, Hugging Face BERTs, or their ids on the hub")
    add("--out", metavar="DIR", help="where to write (default: runs/ and the runs' names with -vs- between)")
    add("--corpus", nargs="+", metavar="TEXT", help="text whose held-out part is looked at, as for train.py (default: "
        "what the first run was trained on)")  # fmt: skip
    add("--examples", type=whole, metavar="N", help="at most so many sentences, and words with tags (default: 5000)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), help="where to compute (default: auto)")


def add_cka(add):
    """The options of CKA."""
    add("--ceiling", metavar="RUN", help="another seed of the first run: the CKA that one may hope for")
    add("--per-sentence", action="store_true", help="compare the means of sentences, not single tokens")


def add_probe(add):
    """The options of the probes."""
    add("--seeds", type=whole, metavar="N", help="repetitions, for mean and spread (default: 3)")
    add("--cls", action="store_true", help="a sentence is its [CLS] vector, not the mean of its tokens")
    add("--conllu", metavar="DIR", help="folder of a treebank, *train*.conllu and so on: probe for parts of speech")
    add("--task", nargs="+", metavar="NAME", help="probe for these tasks of finetune.py too")
    add("--data-dir", metavar="DIR", help="folder of the official GLUE files (default: the hub)")


def whole(text):
    """An argparse type: a whole number from 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def fill(run, sentence):
    """Print the likeliest words for each [MASK]."""
    from mini_undivided import show
    from mini_undivided import tokenizer as wordpiece
    from mini_undivided.model import MaskedLM

    for number, words in enumerate(show.fill(MaskedLM.from_pretrained(run), wordpiece.load(run), sentence), 1):
        print(f"[MASK] {number}: " + ", ".join(f"{word} {p:.1%}" for word, p in words))


def analyse(command, typed):
    """Do one of report, cka and probe, print its tables, and say where the rest is."""
    from mini_undivided import report
    from mini_undivided.runtime import UserError

    options = report.Options(**typed)
    if command != "probe" and len(options.runs) < 2:
        raise UserError(f"{command} compares two runs or more, but only {options.runs[0]} was given")
    analysis = report.Analysis(options)
    if command == "report":
        print(analysis.report())
    elif command == "cka":
        found = analysis.cka()
        print("\n\n".join((report.cka_text(found), report.cka_table(found), report.collapse_table(found))))
    else:
        print("\n\n".join((report.probe_text(options.seeds), report.probe_table(analysis.probe()))))
    print(f"\nwritten to {analysis.out}: " + ", ".join(sorted(path.name for path in analysis.out.iterdir())))


def main():
    arguments = sys.argv[1:]
    if arguments and arguments[0] not in (*COMMANDS, "-h", "--help"):
        arguments = ["report", *arguments]
    parser = make_parser()
    typed = vars(parser.parse_args(arguments))
    command = typed.pop("command")
    if command is None:
        parser.error("give two runs to compare, or a command: " + ", ".join(COMMANDS))
    from mini_undivided.runtime import command_line  # after the parser: --help need not wait for PyTorch

    with command_line():
        if command == "fill":
            fill(**typed)
        else:
            analyse(command, typed)


if __name__ == "__main__":
    main()
