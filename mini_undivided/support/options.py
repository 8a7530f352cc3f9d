"""Options: what the command lines take, each defined once with type, default, bounds and help.

The parsers of train.py, finetune.py and analyze.py are built from the classes below, and a notebook
uses them as they are: `pretrain(PretrainOptions.preset("mini", out="runs/a", ffn_layers=[]))`.
Nothing here imports PyTorch, so that --help answers at once.
"""

import argparse
import dataclasses
import textwrap
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

from mini_undivided.support.config import BertConfig
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import from_user, reading
from mini_undivided.support.run_directory import check_version, read_record, resolve

# Layers, width and heads of tiny to base are those of Turc et al. 2019 (1908.08962). "laptop" and
# everything else is ours. laptop and mini were tuned: small batches learn more from as many tokens.
# The others follow from them, untried.
PRESETS = {
    "laptop": dict(layers=4, hidden_size=128, heads=4, vocab_size=4096, seq_len=64,
                   batch_tokens=1024, steps=3000, lr=2e-3),
    "tiny": dict(layers=2, hidden_size=128, heads=2, vocab_size=8192, seq_len=128,
                 batch_tokens=4096, steps=5000, lr=2e-3),
    "mini": dict(layers=4, hidden_size=256, heads=4, vocab_size=8192, seq_len=128,
                 batch_tokens=1024, steps=10000, lr=2e-3),
    "small": dict(layers=4, hidden_size=512, heads=8, vocab_size=16384, seq_len=128,
                  batch_tokens=8192, steps=20000, lr=5e-4),
    "medium": dict(layers=8, hidden_size=512, heads=8, vocab_size=16384, seq_len=128,
                   batch_tokens=16384, steps=50000, lr=4e-4),
    "base": dict(layers=12, hidden_size=768, heads=12, vocab_size=30528, seq_len=128,
                 batch_tokens=131072, steps=100000, lr=3e-4)}  # BERT's 30,522 to a multiple of 8
GLUE_TASKS = "cola sst2 mrpc stsb qqp mnli qnli rte wnli"
DOCS_TASK = "docs-library"
DEVICES, DTYPES = ("auto", "cpu", "cuda", "mps"), ("auto", "float32", "bfloat16")
RUN_HELP = "a run directory, a Hugging Face BERT, or its id on the hub"
PRESET = "the preset's"  # what --help says of a default
PRECISION = ("of matrix multiplications; auto: bfloat16 where the device has instructions for it "
             "(on a CPU from a width of 128 on)")


# How an option is defined.

@dataclass(frozen=True)
class Option:
    """What an option means, for the parser and for those who read its help.

    least, most: the bounds of a number. unset: what the default is, in words, where the field's own
    default does not say it. commands: the commands of analyze.py that take it (None: all).
    """

    help: str
    metavar: str | None = None
    least: float = 1
    most: float = 2**31
    choices: tuple | None = None
    unset: str = ""
    commands: tuple | None = None


def option(default, help, metavar=None, **details):
    """A dataclass field that is an option. With the default MISSING it has to be given."""
    start = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return dataclasses.field(**start, metadata={"option": Option(help, metavar, **details)})


def kind(field):
    """The type of an option's value, and whether it is a list of them."""
    type = get_args(field.type)[0] if get_origin(field.type) is UnionType else field.type
    return (get_args(type)[0], True) if get_origin(type) is list else (type, False)


def check(field, value):
    """Raise ValueError, with what is wanted, if a value is not what an option takes."""
    type, many = kind(field)
    spec = field.metadata["option"]
    if value is None and get_origin(field.type) is UnionType:
        return
    if many and not isinstance(value, list):
        raise ValueError("a list of layer numbers, such as 3,7,11" if type is int else "a list")
    if spec.choices and value not in spec.choices:
        raise ValueError("one of " + ", ".join(spec.choices))
    if type not in (int, float) or many:
        return
    if not isinstance(value, int | float) or not spec.least <= value <= spec.most:
        wanted = "a whole number" if type is int else "a number"
        raise ValueError(f"{wanted} from {spec.least:,} to {spec.most:,}")


class Checked:
    """Base of the options: "~" is expanded and bounds are checked, in a notebook, too."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str):
                setattr(self, field.name, from_user(value))
            elif kind(field) == (str, True) and isinstance(value, list):
                setattr(self, field.name, [from_user(text) for text in value])
            try:
                check(field, value)
            except ValueError as wanted:
                raise UserError(f"{field.name} is {value}, but should be {wanted}") from None


# The options.

@dataclass
class PretrainOptions(Checked):
    """The options of train.py that a run keeps. Of steps, flops and minutes one is not None."""

    ffn_layers: list[int] | None = option(
        None, "an FFN in these layers only, from 0: 3,7,11", "LIST",
        unset="all; with --init those it has")
    layers: int = option(4, "number of layers", "N", most=1000, unset=PRESET)
    hidden_size: int = option(128, "width of a token's vector", "N", most=2**16, unset=PRESET)
    heads: int = option(4, "attention heads in a layer", "N", most=2**16, unset=PRESET)
    ffn_size: int = option(512, "inner width of an FFN", "N", most=2**18, unset="4 × the width")
    init: str | None = option(
        None, "start from a run or a Hugging Face BERT: its sizes, weights and tokenizer", "RUN")
    corpus: list[str] = option(
        ["docs"], "docs (documentation on this machine); files, folders or globs of .txt (a "
        "document a file) and .jsonl (a document a line, field text), which may be packed as .gz "
        "or .xz; or hf:NAME[:CONFIG]",
        "TEXT")
    tokenizer: str | None = option(
        None, "vocab.txt, tokenizer.json or a folder with one of them", "PATH", unset="train one")
    vocab_size: int = option(4096, "entries of a trained tokenizer", "N", most=2**20, unset=PRESET)
    cased: bool = option(False, "keep capital letters and accents")
    seq_len: int = option(64, "tokens in a sequence", "N", least=8, most=2**16, unset=PRESET)
    mlm_probability: float = option(
        0.4, "how many of the tokens training masks; BERT's is 0.15, and validation's always",
        "P", least=0.01, most=0.9)
    next_sentence: bool = option(
        False, "also learn whether the second part of a sequence follows the first, as BERT did: "
        "for tasks on pairs of sentences")
    batch_tokens: int = option(
        1024, "tokens in a step of all processes", "N", most=2**26, unset=PRESET)
    micro_batch: int | None = option(None, "sequences at once in a process", "N", unset="what fits")
    steps: int | None = option(3000, "length of the run", "N", unset=PRESET)
    flops: float | None = option(
        None, "length of the run in FLOPs of training instead: the same on every machine", "X",
        least=1, most=1e30)
    minutes: float | None = option(
        None, "length of the run by the clock instead", "M", least=1e-3, most=1e6)
    optimizer: str = option(
        "muon", "muon: for the hidden weight matrices, and AdamW for the rest; adamw: for all",
        choices=("muon", "adamw"))
    muon_lr: float = option(0.01, "peak of Muon's learning rate", "X", least=1e-12, most=100)
    lr: float = option(2e-3, "peak of AdamW's learning rate", "X", least=1e-12, most=100,
                       unset=PRESET)
    dropout: float = option(
        0.0, "dropout while pretraining; BERT's is 0.1", "P", least=0, most=0.99)
    seed: int = option(0, "of weights, order, masks and dropout", "N", least=0)
    device: str = option("auto", "where to compute", choices=DEVICES)
    dtype: str = option("auto", PRECISION, choices=DTYPES)
    compile: bool | None = option(
        None, "torch.compile the model", unset="on CUDA only, if Triton is there")
    out: str | None = option(
        None, "run directory", "DIR", unset="runs/ and a name made of preset, FFNs and seed")

    @classmethod
    def preset(cls, name, **changes):
        """The options of a preset, with changes.

        Unless the changes say otherwise, an FFN is four times as wide as the model, and the run
        directory is runs/ and a name made of preset, FFNs and seed.
        """
        sizes = {**PRESETS[name], **changes}
        sizes.setdefault("ffn_size", 4 * sizes["hidden_size"])
        if changes.get("minutes") is not None or changes.get("flops") is not None:
            sizes["steps"] = None
        options = cls(**sizes)
        if options.out is None:
            kept = options.ffn_layers
            ffns = "full" if kept is None else "noffn"
            ffns = "-".join(["ffn", *map(str, kept)]) if kept else ffns
            seed = f"-seed{options.seed}" if options.seed else ""
            options.out = f"runs/{ffns}{seed}" if name == "laptop" else f"runs/{name}-{ffns}{seed}"
        return options


@dataclass
class TrainShortcuts:
    """What train.py takes besides: other ways to say some of PretrainOptions."""

    preset: str = option(
        "laptop", "layers/width, and defaults below: "
        + "; ".join(f"{name} {p['layers']}/{p['hidden_size']}" for name, p in PRESETS.items()),
        choices=tuple(PRESETS), unset="laptop; with --init the one of its width, or base")
    no_ffn: bool = option(False, "no feed-forward network (FFN) in any layer")
    ffn_every: int | None = option(
        None, "an FFN in every K-th layer, the last included", "K", most=1000)
    resume: bool = option(False, "resume the run in --out, with the options it was started with")
    seeds: int | None = option(
        None, "train replicates with the seeds 0 to N - 1, each in a folder of its own; called "
        "again, it skips those that are finished and resumes the one that is not", "N", most=1000)


TRAIN_GROUPS = {
    "model": "preset no_ffn ffn_every ffn_layers layers hidden_size heads ffn_size init",
    "text": "corpus tokenizer vocab_size cased",
    "training": "seq_len mlm_probability next_sentence batch_tokens micro_batch steps flops "
                "minutes optimizer muon_lr lr dropout seed seeds resume",
    "machine": "device dtype compile out"}


@dataclass
class FinetuneOptions(Checked):
    """The options of finetune.py."""

    run: str = option(MISSING, RUN_HELP, "RUN")
    task: str = option(
        MISSING, f"one of GLUE's nine ({GLUE_TASKS}), all of them (all), or a task made from this "
        f"machine's documentation, which is not GLUE ({DOCS_TASK})", "NAME")
    data_dir: str | None = option(
        None, "folder of the official GLUE files, with CoLA/train.tsv", "DIR", unset="the hub")
    seeds: int = option(1, "independent runs, with the seeds 0 to N - 1", "N", most=1000)
    epochs: int | None = option(
        None, "passes over the examples", "N", most=1000, unset="3; 5 for the small tasks")
    lr: float | None = option(
        None, "peak of the learning rate", "X", least=1e-12, most=100,
        unset="3e-4 up to a width of 256, 1e-4 up to 512, 3e-5 above")
    batch_size: int = option(32, "examples in a step", "N", most=2**16)
    max_length: int | None = option(
        None, "tokens of an example, the longer text is cut", "N", least=8, most=2**16,
        unset="128, or what the run was trained on if that is less")
    train_examples: int | None = option(
        None, "train on the first N examples only", "N", unset="all")
    from_scratch: bool = option(
        False, "the control: the same model with fresh weights, not pretrained")
    predict: bool = option(
        False, "write the test predictions of seed 0 as the GLUE server takes them")
    save: bool = option(False, "keep each fine-tuned model")
    device: str = option("auto", "where to compute", choices=DEVICES)
    dtype: str = option("auto", PRECISION, choices=DTYPES)


PROBE_ONLY = {"commands": ("report", "probe")}


@dataclass
class AnalyzeOptions(Checked):
    """The options of analyze.py's commands report, cka and probe."""

    runs: list[str] = option(
        MISSING, "run directories, Hugging Face BERTs, or their ids on the hub", "RUN")
    out: str | None = option(
        None, "where to write", "DIR", unset="runs/report- and the names with -vs- between")
    corpus: list[str] | None = option(
        None, "text whose held-out part is analysed, as for train.py", "TEXT",
        unset="what the first run was trained on")
    examples: int = option(5000, "at most this many sentences, and words with tags", "N")
    device: str = option("auto", "where to compute", choices=DEVICES)
    seeds: int = option(3, "repetitions, for mean and spread", "N", most=1000, **PROBE_ONLY)
    conllu: str | None = option(
        None, "folder of a treebank, *train*.conllu and so on: probe for parts of speech", "DIR",
        **PROBE_ONLY)
    task: list[str] = option([], "probe for these tasks of finetune.py too", "NAME", **PROBE_ONLY)
    data_dir: str | None = option(
        None, "folder of the official GLUE files", "DIR", unset="the hub", **PROBE_ONLY)


@dataclass
class SentenceOptions:
    """The options of analyze.py's commands attention and fill."""

    run: str = option(MISSING, RUN_HELP, "RUN")
    sentence: str = option(
        MISSING, "a sentence; for fill, with a [MASK] for each word to be filled in", "SENTENCE")


# From options to a parser.

class HelpFormatter(argparse.HelpFormatter):
    """Help that fits the terminal, paragraph by paragraph, and breaks no word at a hyphen."""

    def _split_lines(self, text, width):
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text, width, indent):
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join("\n".join(self._split_lines(paragraph, width)) for paragraph in paragraphs)


class Parser(argparse.ArgumentParser):
    """A parser with such help, its own and that of its commands."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=HelpFormatter, **kwargs)


def make_parser(description, *classes, groups=(), **kwargs):
    """A command line of all the options of some classes; groups: {title of the help: names}."""
    parser = Parser(description=description, argument_default=argparse.SUPPRESS, **kwargs)
    titles = {title: parser.add_argument_group(title) for title in groups}
    for field in (field for options in classes for field in fields(options)):
        title = next((title for title in groups if field.name in groups[title].split()), None)
        add_option(titles.get(title, parser), field)
    return parser


def add_option(parser, field):
    """Add an option to a parser. What is not typed is not set: it can be told from a default."""
    spec, (type, many) = field.metadata["option"], kind(field)
    listed = field.default_factory is not MISSING
    default = " ".join(field.default_factory()) if listed else field.default
    shown = spec.unset
    if not shown and type is not bool and default not in (None, MISSING, ""):
        shown = f"{default:g}" if type is float else str(default)
    details = {"help": f"{spec.help} (default: {shown})" if shown else spec.help}
    if type is bool:
        details["action"] = "store_true" if default is False else argparse.BooleanOptionalAction
    else:
        details |= {"metavar": spec.metavar, "choices": spec.choices}
        details |= {"nargs": "+" if many and type is str else None}
        details["type"] = lambda text: parse(text, field)
    positional = default is MISSING and field.name != "task"
    if not positional and default is MISSING:
        details["required"] = True
    name = field.name if positional else dashed(field.name)
    parser.add_argument(name, **{key: value for key, value in details.items() if value})


def parse(text, field):
    """The value of what was typed. Raises argparse's error, which says what it has to be."""
    type, many = kind(field)
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    try:
        text = from_user(text)
        is_list = type is int and many  # 3,7,11; of texts, argparse makes the list
        value = [int(part) for part in text.split(",")] if is_list else type(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except ValueError:
        value = float("nan")  # within no bounds
    try:
        check(field, [value] if type is str and many else value)
    except ValueError as wanted:
        raise argparse.ArgumentTypeError(f"{text} is not {wanted}") from None
    return value


def dashed(name):
    """The name of an option as it is typed."""
    return "--" + name.replace("_", "-")


# train.py's options, which depend on one another.

SIZES = {
    "layers": "num_hidden_layers", "hidden_size": "hidden_size", "heads": "num_attention_heads",
    "ffn_size": "intermediate_size", "vocab_size": "vocab_size"}
EXCLUSIVE = (("no_ffn", "ffn_every", "ffn_layers"), ("steps", "flops", "minutes"),
             ("seed", "seeds"), ("tokenizer", "vocab_size"),
             *(("init", name) for name in (*SIZES, "tokenizer", "cased")))
MAY_CHANGE = ("out", "device", "dtype", "compile", "micro_batch")  # when a run is resumed


def train_options(typed):
    """What was typed, completed from preset or --init → PretrainOptions. Raises UserError."""
    for names in EXCLUSIVE:
        given = [dashed(name) for name in names if name in typed]
        if len(given) > 1:
            raise UserError(f"{given[0]} and {given[1]} exclude each other: give one of them")
    if "muon_lr" in typed and typed.get("optimizer") == "adamw":
        raise UserError("--muon-lr does nothing with --optimizer adamw: leave one of them out")
    shortcuts = {field.name for field in fields(TrainShortcuts)}
    changes = {name: value for name, value in typed.items() if name not in shortcuts}
    preset = typed.get("preset", "laptop")
    if "init" in typed:
        config = BertConfig.from_hugging_face(resolve(typed["init"]))
        changes |= {name: getattr(config, theirs) for name, theirs in SIZES.items()}
        as_wide = [name for name, p in PRESETS.items() if p["hidden_size"] == config.hidden_size]
        preset = typed.get("preset", as_wide[0] if as_wide else "base")
    if "no_ffn" in typed:
        changes["ffn_layers"] = []
    if "ffn_every" in typed:
        layers = changes.get("layers", PRESETS[preset]["layers"])
        last_first = range(layers - 1, -1, -typed["ffn_every"])  # 12 layers, 4: 11, 7, 3
        changes["ffn_layers"] = sorted(last_first)
    return PretrainOptions.preset(preset, **changes)


def resume_options(typed):
    """The options that the run in --out was started with → PretrainOptions.

    Those of MAY_CHANGE may be given anew. UserError for any other one, and if there is no run.
    """
    others = [dashed(name) for name in typed if name not in ("resume", *MAY_CHANGE)]
    if others:
        raise UserError(f"--resume takes the options of the run in --out: leave out {others[0]}")
    if "out" not in typed:
        raise UserError("--resume needs the run directory: name it with --out")
    path = Path(typed["out"]) / "train.json"
    if not path.exists():
        raise UserError(f"there is no run to resume in {path.parent}")
    record = read_record(path.parent)
    check_version(path.parent, record)
    changes = {name: value for name, value in typed.items() if name in MAY_CHANGE}
    with reading(path):
        return PretrainOptions(**record["options"] | changes)
