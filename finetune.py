"""Fine-tune a run's encoder on GLUE or on a built-in task.

Try: python finetune.py runs/noffn --task docs-library
"""

from mini_undivided.support.errors import command_line
from mini_undivided.support.options import FinetuneOptions, make_parser


def parser():
    """The command line."""
    return make_parser(__doc__, FinetuneOptions)


def main():
    with command_line():
        options = FinetuneOptions(**vars(parser().parse_args()))
        # Imported late: --help need not wait for PyTorch.
        from mini_undivided.report.finetuning import finetune
        from mini_undivided.report.tables import finetuning_table

        results, out = finetune(options)
        files = ", ".join(sorted(path.name for path in out.iterdir()))
        print(f"\n{finetuning_table(results)}\nwritten to {out}: {files}")


if __name__ == "__main__":
    main()
