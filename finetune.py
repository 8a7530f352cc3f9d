"""Fine-tune a run's encoder on GLUE or on a built-in task. Try: python finetune.py runs/noffn --task docs-library"""

import argparse

GLUE = "cola sst2 mrpc stsb qqp mnli qnli rte wnli"
BUILT_IN = "docs-library docs-next"


def make_parser():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    add = parser.add_argument
    add("run", metavar="RUN", help="a run directory, a Hugging Face BERT, or its id on the hub")
    add("--task", required=True, metavar="NAME", help=f"one of GLUE's nine ({GLUE}), all of them (all), or a task made "
        f"from this machine's documentation, which is not GLUE ({BUILT_IN})")  # fmt: skip
    add("--data-dir", metavar="DIR", help="folder of the official GLUE files, with CoLA/train.tsv (default: the hub)")
    add("--seeds", type=whole, metavar="N", help="independent runs, with the seeds 0 to N - 1 (default: 1)")
    add("--epochs", type=whole, metavar="N", help="passes over the examples (default: 3; 5 for the small tasks)")
    add("--lr", type=positive, metavar="X", help="peak of the learning rate (default: 3e-4 up to a width of 256, 1e-4 "
        "up to 512, 3e-5 above)")  # fmt: skip
    add("--batch-size", type=whole, metavar="N", help="examples in a step (default: 32)")
    add("--max-length", type=whole, metavar="N", help="tokens of an example, the longer text is cut (default: 128)")
    add("--train-examples", type=whole, metavar="N", help="train on the first N examples only (default: all)")
    add("--from-scratch", action="store_true", help="the control: the same model with fresh weights, not pretrained")
    add("--predict", action="store_true", help="write the test predictions of seed 0 as the GLUE server takes them")
    add("--save", action="store_true", help="keep each fine-tuned model")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), help="where to compute (default: auto)")
    add("--dtype", choices=("auto", "float32", "bfloat16"), help="of products (default: auto, bfloat16 on GPUs with it)")
    return parser


def whole(text):
    """An argparse type: a whole number from 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def positive(text):
    """An argparse type: a number above 0."""
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def main():
    typed = vars(make_parser().parse_args())
    from mini_undivided.runtime import command_line  # after the parser: --help need not wait for PyTorch

    with command_line():
        from mini_undivided.glue import Options, finetune, table

        name = typed.pop("task")
        results, out = finetune(Options(**typed), name)
        print(f"\n{table(results)}\nwritten to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


if __name__ == "__main__":
    main()
