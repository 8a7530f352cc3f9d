"""Options: what the command lines take. Each is defined once, with its type, default, bounds and help.

The parsers of train.py, finetune.py and analyze.py are built from the classes below, and a notebook uses them as they
are: `pretrain(PretrainOptions.preset("mini", out="runs/a", ffn_layers=[]))`. Nothing here imports PyTorch, so that
--help answers at once.
"""

import argparse
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

from mini_undivided.support.config import BertConfig
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json
from mini_undivided.support.run_directory import resolve

# Layers, width and heads of tiny to base are those of Turc et al. 2019 (1908.08962). "laptop" and everything else is
# ours. laptop and mini were tried: at twice its learning rate (and 1,024 tokens a batch) mini with its FFNs did not
# leave the plateau where a model only knows how common words are. The others follow from these, untried.
PRESETS = {
    "laptop": {"layers": 4, "hidden_size": 128, "heads": 4, "ffn_size": 512, "vocab_size": 4096,
               "seq_len": 64, "batch_tokens": 1024, "steps": 5000, "lr": 2e-3},
    "tiny": {"layers": 2, "hidden_size": 128, "heads": 2, "ffn_size": 512, "vocab_size": 8192,
             "seq_len": 128, "batch_tokens": 4096, "steps": 5000, "lr": 2e-3},
    "mini": {"layers": 4, "hidden_size": 256, "heads": 4, "ffn_size": 1024, "vocab_size": 8192,
             "seq_len": 128, "batch_tokens": 4096, "steps": 5000, "lr": 5e-4},
    "small": {"layers": 4, "hidden_size": 512, "heads": 8, "ffn_size": 2048, "vocab_size": 16384,
              "seq_len": 128, "batch_tokens": 8192, "steps": 20000, "lr": 5e-4},
    "medium": {"layers": 8, "hidden_size": 512, "heads": 8, "ffn_size": 2048, "vocab_size": 16384,
               "seq_len": 128, "batch_tokens": 16384, "steps": 50000, "lr": 4e-4},
    "base": {"layers": 12, "hidden_size": 768, "heads": 12, "ffn_size": 3072, "vocab_size": 30522,
             "seq_len": 128, "batch_tokens": 131072, "steps": 100000, "lr": 3e-4},
}  # fmt: skip
GLUE_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
DOCS_TASKS = ("docs-library", "docs-next")


# Defining an option.


@dataclass(frozen=True)
class Option:
    """What an option means: its help, type and bounds, and how the command line shows it.

    unset: what the default is, in words, where the field's own default does not say it. many: a list of values.
    commands: the commands of analyze.py that take it (None: all).
    """

    help: str
    type: type = str
    least: float | None = None
    most: float | None = None
    choices: tuple | None = None
    metavar: str | None = None
    unset: str | None = None
    many: bool = False
    positional: bool = False
    group: str | None = None
    commands: tuple | None = None

    def wanted(self):
        """What a value has to be, in words."""
        kind = "a whole number" if self.type is int else "a number"
        return f"{kind} from {self.least:,} to {self.most:,}"

    def parse(self, text):
        """The value of a text typed. Raises argparse's error, which says what it has to be."""
        try:
            value = self.type(text)
            if self.type in (int, float) and not self.least <= value <= self.most:
                raise ValueError
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text} is not {self.wanted()}") from None
        return value


def option(help, default=None, **kwargs):
    """A dataclass field that is an option."""
    details = {"metadata": {"option": Option(help, **kwargs)}}
    if isinstance(default, list):
        return field(default_factory=default.copy, **details)
    return field(default=default, **details)


def whole(help, default=None, least=1, most=2**31, **kwargs):
    """An option that is a whole number."""
    return option(help, default, type=int, least=least, most=most, metavar="N", **kwargs)


def number(help, default=None, least=0.0, most=1.0, **kwargs):
    """An option that is a number."""
    return option(help, default, type=float, least=least, most=most, metavar="X", **kwargs)


def flag(help, default=False, **kwargs):
    """An option that is on or off; with the default None also --no-….'"""
    return option(help, default, type=bool, **kwargs)


class Checked:
    """Base of the options: what is out of bounds is an error in a notebook, too."""

    def __post_init__(self):
        for f in fields(self):
            spec, value = f.metadata["option"], getattr(self, f.name)
            if (
                value is not None
                and spec.least is not None
                and not spec.least <= value <= spec.most
            ):
                raise UserError(f"{f.name} is {value}, but should be {spec.wanted()}")


def device():
    return option(
        "where to compute", "auto", choices=("auto", "cpu", "cuda", "mps"), group="machine"
    )


def dtype():
    return option("of matrix multiplications; auto: bfloat16 on GPUs that support it", "auto",
                  choices=("auto", "float32", "bfloat16"), group="machine")  # fmt: skip


# The options.

PRESET = {"unset": "the preset's"}


@dataclass
class PretrainOptions(Checked):
    """The options of train.py that a run keeps, in train.json. One of `steps` and `minutes` is None."""

    ffn_layers: list[int] | None = option("an FFN in these layers only, from 0: 3,7,11", type=list, metavar="LIST",
                                          unset="all; with --init those it has", group="model")  # fmt: skip
    layers: int = whole("number of layers", 4, most=1000, **PRESET, group="model")
    hidden_size: int = whole("width of a token's vector", 128, most=2**16, **PRESET, group="model")
    heads: int = whole("attention heads in a layer", 4, most=2**16, **PRESET, group="model")
    ffn_size: int = whole(
        "inner width of an FFN", 512, most=2**18, unset="4 × the width", group="model"
    )
    init: str | None = option("start from a run or a Hugging Face BERT: its sizes, weights and tokenizer",
                              metavar="RUN", group="model")  # fmt: skip
    corpus: list[str] = option(
        "docs (documentation on this machine); files, folders or globs of .txt, .txt.gz (a document a file) and "
        ".jsonl (a document a line, field text); or hf:NAME[:CONFIG]",
        ["docs"], many=True, metavar="TEXT", group="text")  # fmt: skip
    tokenizer: str | None = option("vocab.txt, tokenizer.json or a folder with one of them", metavar="PATH",
                                   unset="train one", group="text")  # fmt: skip
    vocab_size: int = whole(
        "entries of a trained tokenizer", 4096, most=2**20, **PRESET, group="text"
    )
    cased: bool = flag("keep capital letters and accents", group="text")
    seq_len: int = whole("tokens in a sequence", 64, most=2**16, **PRESET, group="training")
    short_first: float = number("share of the run with 16 tokens a sequence, which are doubled after that; the model "
                                "learns sooner; 0: --seq-len from the start", 0.5, most=0.99, group="training")  # fmt: skip
    batch_tokens: int = whole(
        "tokens in a step of all processes", 1024, most=2**26, **PRESET, group="training"
    )
    micro_batch: int | None = whole(
        "sequences at once in a process", unset="what fits", group="training"
    )
    steps: int | None = whole("length of the run", 5000, **PRESET, group="training")
    minutes: float | None = number(
        "length of the run by the clock instead", least=1e-3, most=1e6, group="training"
    )
    lr: float = number(
        "peak of the learning rate", 2e-3, least=1e-12, most=100, **PRESET, group="training"
    )
    dropout: float = number(
        "dropout while pretraining; BERT's is 0.1", 0.0, most=0.99, group="training"
    )
    seed: int = whole("of weights, order, masks and dropout", 0, least=0, group="training")
    device: str = device()
    dtype: str = dtype()
    compile: bool | None = flag(
        "torch.compile the model", None, unset="on CUDA only", group="machine"
    )
    out: str = option("run directory", metavar="DIR", unset="runs/ and a name made of preset, FFNs and seed",
                      group="machine")  # fmt: skip

    @classmethod
    def preset(cls, name, **changes):
        """The options of a preset, with changes.

        Unless the changes say otherwise, an FFN is four times as wide as the model, and the run directory is runs/ and
        a name made of preset, FFNs and seed.
        """
        if "hidden_size" in changes:
            changes = {"ffn_size": 4 * changes["hidden_size"], **changes}
        if changes.get("minutes") is not None:
            changes = {"steps": None, **changes}
        options = cls(**{**PRESETS[name], **changes})
        if options.out is None:
            ffns = (
                "full"
                if options.ffn_layers is None
                else "-".join(["ffn", *map(str, options.ffn_layers)])
            )
            parts = [name * (name != "laptop"), ffns if options.ffn_layers != [] else "noffn",
                     f"seed{options.seed}" * (options.seed > 0)]  # fmt: skip
            options.out = "runs/" + "-".join(filter(None, parts))
        return options


@dataclass
class TrainShortcuts:
    """What train.py takes besides: other ways to say some of PretrainOptions."""

    preset: str = option("layers/width, and defaults below: "
                         + "; ".join(f"{name} {p['layers']}/{p['hidden_size']}" for name, p in PRESETS.items()),
                         "laptop", choices=tuple(PRESETS), group="model")  # fmt: skip
    no_ffn: bool = flag("no feed-forward network (FFN) in any layer", group="model")
    ffn_every: int | None = whole(
        "an FFN in every N-th layer, the last included", most=1000, group="model"
    )
    resume: bool = flag(
        "resume the run in --out, with the options it was started with", group="training"
    )


@dataclass
class FinetuneOptions(Checked):
    """The options of finetune.py."""

    run: str = option("a run directory, a Hugging Face BERT, or its id on the hub", MISSING, metavar="RUN",
                      positional=True)  # fmt: skip
    task: str = option(f"one of GLUE's nine ({' '.join(GLUE_TASKS)}), all of them (all), or a task made from this "
                       f"machine's documentation, which is not GLUE ({' '.join(DOCS_TASKS)})",
                       MISSING, metavar="NAME")  # fmt: skip
    data_dir: str | None = option("folder of the official GLUE files, with CoLA/train.tsv", metavar="DIR",
                                  unset="the hub")  # fmt: skip
    seeds: int = whole("independent runs, with the seeds 0 to N - 1", 1, most=1000)
    epochs: int | None = whole(
        "passes over the examples", most=1000, unset="3; 5 for the small tasks"
    )
    lr: float | None = number("peak of the learning rate", least=1e-12, most=100,
                              unset="3e-4 up to a width of 256, 1e-4 up to 512, 3e-5 above")  # fmt: skip
    batch_size: int = whole("examples in a step", 32, most=2**16)
    max_length: int = whole("tokens of an example, the longer text is cut", 128, most=2**16)
    train_examples: int | None = whole("train on the first N examples only", unset="all")
    from_scratch: bool = flag("the control: the same model with fresh weights, not pretrained")
    predict: bool = flag("write the test predictions of seed 0 as the GLUE server takes them")
    save: bool = flag("keep each fine-tuned model")
    device: str = device()
    dtype: str = dtype()


@dataclass
class AnalyzeOptions(Checked):
    """The options of analyze.py's commands report, cka and probe."""

    runs: list[str] = option("run directories, Hugging Face BERTs, or their ids on the hub", MISSING, metavar="RUN",
                             many=True, positional=True)  # fmt: skip
    out: str | None = option(
        "where to write", metavar="DIR", unset="runs/ and the runs' names with -vs- between"
    )
    corpus: list[str] | None = option("text whose held-out part is looked at, as for train.py", metavar="TEXT",
                                      many=True, unset="what the first run was trained on")  # fmt: skip
    examples: int = whole("at most this many sentences, and words with tags", 5000)
    device: str = device()
    ceiling: str | None = option("another seed of the first run: the CKA that one may hope for", metavar="RUN",
                                 commands=("report", "cka"))  # fmt: skip
    per_sentence: bool = flag(
        "compare the means of sentences, not single tokens", commands=("report", "cka")
    )
    seeds: int = whole(
        "repetitions, for mean and spread", 3, most=1000, commands=("report", "probe")
    )
    cls: bool = flag(
        "a sentence is its [CLS] vector, not the mean of its tokens", commands=("report", "probe")
    )
    conllu: str | None = option("folder of a treebank, *train*.conllu and so on: probe for parts of speech",
                                metavar="DIR", commands=("report", "probe"))  # fmt: skip
    task: list[str] = option("probe for these tasks of finetune.py too", [], metavar="NAME", many=True,
                             commands=("report", "probe"))  # fmt: skip
    data_dir: str | None = option("folder of the official GLUE files", metavar="DIR", unset="the hub",
                                  commands=("report", "probe"))  # fmt: skip


@dataclass
class FillOptions:
    """The options of analyze.py's command fill."""

    run: str = option("a run directory, a Hugging Face BERT, or its id on the hub", MISSING, metavar="RUN",
                      positional=True)  # fmt: skip
    sentence: str = option("with a [MASK] for each word to be filled in", MISSING, metavar="SENTENCE",
                           positional=True)  # fmt: skip


# From options to a parser and back.


def make_parser(description, *classes, **kwargs):
    """A command line of all the options of some classes."""
    parser = argparse.ArgumentParser(
        description=description, argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)  # fmt: skip
    add_options(parser, *classes)
    return parser


def add_options(parser, *classes, command=None):
    """Add options to a parser. What is not typed is not set, so that it can be told from a default that is typed."""
    groups = {None: parser}
    for f in (f for options in classes for f in fields(options)):
        spec = f.metadata["option"]
        if command and spec.commands and command not in spec.commands:
            continue
        if spec.group not in groups:
            groups[spec.group] = parser.add_argument_group(spec.group)
        default = f.default if f.default_factory is MISSING else " ".join(f.default_factory())
        silent = spec.type is bool or default in (None, MISSING, "")
        shown = spec.unset or ("" if silent else f"{default:g}" if spec.type is float else default)
        details = {"help": spec.help + (f" (default: {shown})" if shown != "" else "")}
        if spec.type is bool:
            details["action"] = "store_true" if default is False else argparse.BooleanOptionalAction
        else:
            details |= {"metavar": spec.metavar, "choices": spec.choices}
            details["type"] = layer_list if spec.type is list else spec.parse
            details["nargs"] = "+" if spec.many else None
            details["required"] = f.default is MISSING and not spec.positional and not spec.many
        name = f.name if spec.positional else "--" + f.name.replace("_", "-")
        details = {key: value for key, value in details.items() if value}
        groups[spec.group].add_argument(name, **details)


def layer_list(text):
    """An argparse type: layer numbers, 3,7,11."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text} is not a list of layer numbers, such as 3,7,11"
        ) from None


# train.py's options, which depend on one another.

SIZES = {"layers": "num_hidden_layers", "hidden_size": "hidden_size", "heads": "num_attention_heads",
         "ffn_size": "intermediate_size", "vocab_size": "vocab_size"}  # fmt: skip
EXCLUSIVE = (("no_ffn", "ffn_every", "ffn_layers"), ("steps", "minutes"))
MAY_CHANGE = ("device", "dtype", "compile", "micro_batch")  # when a run is resumed


def dashed(name):
    """The name of an option as it is typed."""
    return "--" + name.replace("_", "-")


def train_options(typed):
    """What was typed, completed from the preset or from --init → PretrainOptions. Raises UserError."""
    for names in EXCLUSIVE:
        given = [dashed(name) for name in names if name in typed]
        if len(given) > 1:
            raise UserError(f"{given[0]} and {given[1]} exclude each other: give one of them")
    shortcuts = {f.name for f in fields(TrainShortcuts)}
    changes = {name: value for name, value in typed.items() if name not in shortcuts}
    preset = typed.get("preset", "laptop")
    if "init" in typed:
        clash = [dashed(name) for name in (*SIZES, "tokenizer", "cased") if name in typed]
        if clash:
            raise UserError(f"{clash[0]} cannot go with --init, which brings its own")
        config = BertConfig.from_hugging_face(resolve(typed["init"]))
        changes |= {name: getattr(config, theirs) for name, theirs in SIZES.items()}
        alike = [
            name for name, sizes in PRESETS.items() if sizes["hidden_size"] == config.hidden_size
        ]
        preset = typed.get("preset", alike[0] if alike else "base")
    if "no_ffn" in typed:
        changes["ffn_layers"] = []
    if "ffn_every" in typed:
        changes["ffn_layers"] = every_kth(
            changes.get("layers", PRESETS[preset]["layers"]), typed["ffn_every"]
        )
    return PretrainOptions.preset(preset, **changes)


def every_kth(layers, k):
    """The layers with an FFN for --ffn-every K: every K-th, counted so that the last is one. 12, 4 → 3, 7, 11."""
    return list(range(layers - 1, -1, -k))[::-1]


def resume_options(typed):
    """The options that a run was started with → PretrainOptions. Raises UserError if others were typed."""
    out = typed.get("out") or train_options(typed).out
    if not (Path(out) / "train.json").exists():
        raise UserError(f"there is no run to resume in {out}; name it with --out")
    record = read_json(Path(out) / "train.json")
    if record["status"] == "finished":
        raise UserError(
            f"the run in {out} is finished; to train it further, start a new one with --init {out}"
        )
    saved = dict(record["options"])
    if saved["ffn_layers"] == "as saved":  # as version 0.1.0 wrote it
        saved["ffn_layers"] = None
    options = PretrainOptions(
        **{**saved, **{name: typed[name] for name in MAY_CHANGE if name in typed}, "out": out}
    )
    given = asdict(train_options({"out": out, **typed}))
    for name in typed:
        name = "ffn_layers" if name in ("no_ffn", "ffn_every") else name
        if name in given and name not in MAY_CHANGE and given[name] != getattr(options, name):
            raise UserError(
                f"{dashed(name)} {given[name]} is not the {getattr(options, name)} that the run in {out} was started "
                "with; a resumed run keeps its options"
            )
    return options
