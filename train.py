"""Pretrain a BERT encoder on masked words, with or without its feed-forward layers.

Try: python train.py --no-ffn
"""

import sys

from mini_undivided.support.errors import command_line
from mini_undivided.support.options import (
    TRAIN_GROUPS,
    PretrainOptions,
    TrainShortcuts,
    make_parser,
    resume_options,
    train_options,
)


def parser():
    """The command line."""
    return make_parser(__doc__, TrainShortcuts, PretrainOptions, groups=TRAIN_GROUPS)


def main():
    with command_line():
        typed = vars(parser().parse_args())
        resume = "resume" in typed
        options = resume_options(typed) if resume else train_options(typed)
        from mini_undivided.report import training  # late: --help need not wait for PyTorch

        if "seeds" in typed:
            finished = training.train_seeds(typed)
        else:
            finished = training.train(options, resume)
        sys.exit(0 if finished else 130)


if __name__ == "__main__":
    main()
