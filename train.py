"""Pretrain a BERT encoder on masked words, with or without its feed-forward layers. Try: python train.py --no-ffn"""

import argparse
import sys

# Layers, width and heads of tiny to base are those of Turc et al. 2019 (1908.08962). "laptop" and everything else is
# ours. laptop and mini were tried: at twice its learning rate (and 1,024 tokens a batch) mini with its FFNs did not leave
# the plateau where a model only knows how common words are. The settings of the others follow from these, untried.
NAMES = ("layers", "hidden_size", "heads", "vocab_size", "seq_len", "batch_tokens", "steps", "lr")
PRESETS = {
    "laptop": (4, 128, 4, 4096, 64, 1024, 5000, 2e-3),
    "tiny": (2, 128, 2, 8192, 128, 4096, 5000, 2e-3),
    "mini": (4, 256, 4, 8192, 128, 4096, 5000, 5e-4),
    "small": (4, 512, 8, 16384, 128, 8192, 20000, 5e-4),
    "medium": (8, 512, 8, 16384, 128, 16384, 50000, 4e-4),
    "base": (12, 768, 12, 30522, 128, 131072, 100000, 3e-4),
}
SIZES = ("layers", "hidden_size", "heads", "ffn_size", "vocab_size")
MACHINE = ("device", "dtype", "compile", "micro_batch", "resume", "out")  # may change when a run is resumed


def make_parser():
    """The command line. No option has a default here, so that what was typed can be told from what was not."""
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS, formatter_class=show)
    presets = "; ".join(f"{name} {row[0]}/{row[1]}" for name, row in PRESETS.items())

    model = parser.add_argument_group("model")
    which = model.add_mutually_exclusive_group()
    which.add_argument("--no-ffn", action="store_true", help="no feed-forward network (FFN) in any layer")
    which.add_argument("--ffn-every", type=positive, metavar="K", help="an FFN in every K-th layer, the last included")
    which.add_argument("--ffn-layers", type=layers, metavar="LIST", help="an FFN in these layers only, from 0: 3,7,11")
    add = model.add_argument
    add("--preset", choices=PRESETS, help=f"layers/width, and defaults below: {presets} (default: laptop)")
    add("--layers", type=positive, metavar="N", help="number of layers (default: the preset's)")
    add("--hidden-size", type=positive, metavar="N", help="width of a token's vector (default: the preset's)")
    add("--heads", type=positive, metavar="N", help="attention heads in a layer (default: the preset's)")
    add("--ffn-size", type=positive, metavar="N", help="inner width of an FFN (default: 4 × the width)")
    add("--init", metavar="RUN", help="start from a run or a Hugging Face BERT: its sizes, weights and tokenizer")

    add = parser.add_argument_group("text").add_argument
    add("--corpus", nargs="+", metavar="TEXT", help="docs (documentation on this machine; the default); files, folders "
        "or globs of .txt, .txt.gz (a document a file) and .jsonl (a document a line, field text); or "
        "hf:NAME[:CONFIG]")  # fmt: skip
    add("--tokenizer", metavar="PATH", help="vocab.txt, tokenizer.json or a folder with one (default: train one)")
    add("--vocab-size", type=positive, metavar="N", help="entries of a trained tokenizer (default: the preset's)")
    add("--cased", action="store_true", help="keep capital letters and accents (default: uncased)")

    training = parser.add_argument_group("training")
    add = training.add_argument
    add("--seq-len", type=positive, metavar="N", help="tokens in a sequence (default: the preset's)")
    add("--short-first", type=share, metavar="P", help="share of the run with 16 tokens a sequence, which are doubled "
        "after that; the model learns sooner (default: 0.5; 0: --seq-len from the start)")  # fmt: skip
    add("--batch-tokens", type=positive, metavar="N", help="tokens in a step of all processes (default: the preset's)")
    add("--micro-batch", type=positive, metavar="N", help="sequences at once in a process (default: what fits)")
    length = training.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive, metavar="N", help="length of the run (default: the preset's)")
    length.add_argument("--minutes", type=positive_float, metavar="M", help="length of the run, by the clock, instead")
    add("--lr", type=positive_float, metavar="X", help="peak of the learning rate (default: the preset's)")
    add("--dropout", type=share, metavar="P", help="dropout while pretraining, 0 to 1 (default: 0; BERT's is 0.1)")
    add("--seed", type=natural, metavar="N", help="of weights, order, masks and dropout (default: 0)")

    add = parser.add_argument_group("machine").add_argument
    add("--device", choices=("auto", "cpu", "cuda", "mps"), help="where to compute (default: auto)")
    add("--dtype", choices=("auto", "float32", "bfloat16"), help="of products (default: auto, bfloat16 on GPUs with it)")
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile the model (default: on CUDA only)")
    add("--out", metavar="DIR", help="run directory (default: runs/ and a name made of preset, FFNs and seed)")
    add("--resume", action="store_true", help="go on with the run in --out, with the options it was started with")
    return parser


def number(kind, least, most, name):
    """An argparse type: a number of a kind within bounds."""

    def parse(text):
        if not least <= kind(text) <= most:
            raise ValueError
        return kind(text)

    parse.__name__ = name  # argparse says: invalid NAME value
    return parse


positive = number(int, 1, 2**40, "positive whole number")
natural = number(int, 0, 2**31, "natural number")
positive_float = number(float, 1e-12, 1e12, "positive number")
share = number(float, 0.0, 0.99, "share from 0 to 1")


def layers(text):
    """An argparse type: layer numbers, 3,7,11."""
    return [int(part) for part in text.split(",")]


def make_options(typed):
    """What was typed, filled up from the preset or from --init → pretrain.Options."""
    from mini_undivided import runs
    from mini_undivided.model import BertConfig, every_kth
    from mini_undivided.pretrain import Options
    from mini_undivided.runtime import UserError

    typed = dict(typed)
    typed.pop("resume", None)
    found = {}
    if "init" in typed:
        clash = [name for name in (*SIZES, "tokenizer", "cased") if name in typed]
        if clash:
            raise UserError(f"--{clash[0].replace('_', '-')} cannot go with --init, which brings its own")
        config = BertConfig.from_hugging_face(runs.resolve(typed["init"]))
        found = dict(zip(SIZES, (config.num_hidden_layers, config.hidden_size, config.num_attention_heads,
                                 config.intermediate_size, config.vocab_size), strict=True))  # fmt: skip
        alike = [name for name, row in PRESETS.items() if row[1] == config.hidden_size]
        typed.setdefault("preset", alike[0] if alike else "base")
    preset = typed.pop("preset", "laptop")
    options = {**dict(zip(NAMES, PRESETS[preset], strict=True)), **found, **typed}
    options.setdefault("ffn_size", 4 * options["hidden_size"])
    if "minutes" in typed:
        options["steps"] = None

    ffns = "as saved" if "init" in typed else None
    if options.pop("no_ffn", False):
        ffns = []
    if "ffn_every" in options:
        ffns = every_kth(options["layers"], options.pop("ffn_every"))
    ffns = options.setdefault("ffn_layers", ffns)
    if "out" not in options:
        kept = "full" if ffns in (None, "as saved") else "-".join(["ffn", *map(str, ffns)]) if ffns else "noffn"
        parts = [preset if preset != "laptop" else "", kept, f"seed{typed['seed']}" if typed.get("seed") else ""]
        options["out"] = "runs/" + "-".join(filter(None, parts))
    return Options(**options)


def resume_options(typed):
    """The options that a run was started with → pretrain.Options. Raises UserError where others were typed."""
    from pathlib import Path

    from mini_undivided import runs
    from mini_undivided.pretrain import Options
    from mini_undivided.runtime import UserError

    out = typed.get("out") or make_options(typed).out
    if not (Path(out) / "train.json").exists():
        raise UserError(f"there is no run to resume in {out}; name it with --out")
    record = runs.read_json(Path(out) / "train.json")
    if record["status"] == "finished":
        raise UserError(f"the run in {out} is finished; to train it further, start a new one with --init {out}")
    options = Options(**{**record["options"], **{name: typed[name] for name in MACHINE[:-2] if name in typed}})
    options.out = out
    kept = make_options({"out": out, **typed})
    for name in typed:
        name = "ffn_layers" if name in ("no_ffn", "ffn_every") else name
        if name not in (*MACHINE, "preset") and getattr(kept, name) != getattr(options, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {getattr(kept, name)} is not the {getattr(options, name)} that the run in {out} was "
                            "started with; a resumed run keeps its options")  # fmt: skip
    return options


def main():
    typed = vars(make_parser().parse_args())
    from mini_undivided.runtime import command_line  # after the parser: --help need not wait for PyTorch

    with command_line():
        from mini_undivided.pretrain import pretrain
        from mini_undivided.show import report

        resume = "resume" in typed
        options = resume_options(typed) if resume else make_options(typed)
        record = pretrain(options, resume)
        report(record)
        sys.exit(0 if record["status"] == "finished" else 130)


if __name__ == "__main__":
    main()
