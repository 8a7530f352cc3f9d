"""What the tests of several modules share.

Small odd sizes, models of `transformers` to compare with, short runs, files, and random sentences.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import torch
import transformers
from safetensors.torch import load_file, save_file

import train
from mini_undivided.data import IGNORE_INDEX
from mini_undivided.model import BertConfig
from mini_undivided.support import options
from mini_undivided.support.run_directory import read_log

ROOT = Path(__file__).parent.parent

# Odd and mutually distinct, so that a transposed axis or a mistaken size cannot pass.
B, T, C, H, L, V, LABELS = 5, 13, 36, 3, 4, 99, 7
SIZES = {
    "vocab_size": V, "hidden_size": C, "num_hidden_layers": L, "num_attention_heads": H,
    "intermediate_size": 41, "max_position_embeddings": 37, "type_vocab_size": 6}
LENGTHS = torch.tensor([13, 1, 8, 12, 9])
# The sizes of a run that takes a second.
SMALL = {"vocab_size": 120, "layers": 2, "hidden_size": 24, "heads": 3, "ffn_size": 41,
         "device": "cpu"}


def config(**changes):
    return BertConfig(**{**SIZES, **changes})


def scatter(module):
    """Make weights so large that every part of the model shows in its output.

    Biases and norms are moved too.
    """
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def theirs(class_name, **changes):
    return scatter(
        getattr(transformers, class_name)(transformers.BertConfig(**{**SIZES, **changes})))


def saved_by_them(tmp_path, class_name, **changes):
    """A model of `transformers` and the folder where it was saved."""
    model = theirs(class_name, **changes)
    model.save_pretrained(tmp_path)
    return model, tmp_path


def change_tensors(folder, change):
    """Apply `change` to the dictionary of tensors in a saved checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def assert_close(ours, reference, real=None):
    """Equal to 1e-5 in float32; with `real` (B, T), at the real tokens only."""
    assert ours.shape == reference.shape and ours.dtype == torch.float32
    if real is not None:
        ours, reference = ours[real.bool()], reference[real.bool()]
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=0)


def series(values):
    """{measure: {kind: one number per run}} as the Series that report.results.compared makes."""
    rows = {(measure, kind, f"{kind}-seed{seed}"): number for measure, kinds in values.items()
            for kind, numbers in kinds.items() for seed, number in enumerate(numbers)}
    return pandas.Series(rows).rename_axis(["measure", "kind", "run"])


def small_run(text, out, *more):
    """The arguments of a run of train.py that takes a second."""
    return ["--corpus", text, "--out", out, "--layers", 2, "--hidden-size", 24, "--heads", 3,
            "--vocab-size", 200, "--seq-len", 21, "--batch-tokens", 210, "--steps", 11,
            "--device", "cpu", *more]


def losses(out):
    """step → loss, of the log of a run."""
    return {row["step"]: row["loss"] for row in read_log(out) if "loss" in row}


def unmasked(batch):
    """The sequences of a batch as they were before masking."""
    shown = batch.input_ids.gather(1, batch.positions)
    original = torch.where(batch.labels == IGNORE_INDEX, shown, batch.labels)
    return batch.input_ids.scatter(1, batch.positions, original)


def torchrun(*arguments):
    """Run a script in two processes, to its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True,
                          env=environment, cwd=ROOT)


def run_script(script, *arguments, cwd=ROOT):
    """Run train.py, finetune.py or analyze.py → the finished process, with its output as text."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def help_of(script):
    """What a script's --help prints → its words, and which of torch and numpy it has imported."""
    code = (
        "import atexit, runpy, sys; sys.argv[1:] = ['--help']; "
        "atexit.register(lambda: print(*{'torch', 'numpy'} & {*sys.modules}, file=sys.stderr)); "
        f"runpy.run_path({script!r}, run_name='__main__')")
    wide = {**os.environ, "COLUMNS": "999"}  # so that no word is broken at its hyphen
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=wide)
    assert done.returncode == 0, done.stderr
    return re.findall(r"[\w-]+", done.stdout), done.stderr.split()


def train_options(*arguments):
    """The options that train.py makes of its arguments, without running it."""
    typed = train.parser().parse_args([str(argument) for argument in arguments])
    return options.train_options(vars(typed))


# Files.

def names(folder):
    """The names of what is in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def write_corpus(folder, name, texts):
    """Write documents as a .jsonl file → its path as text."""
    path = Path(folder) / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def write_lines(folder, name, *lines, head="", end="\n"):
    """Write a file of a task; the last line ends with `end`."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((head + "\n".join(lines) + end).encode())
    return path


class Trap:
    """A pickle that creates a file when it is opened carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


# Random words, sentences of them, and treebanks.

NOUNS = "fox hen owl cat dog bee ant cow pig elk".split()
COLOURS, BEASTS = "red blue pink grey gold".split(), "ant bee cat dog eel fox gnu".split()
WORDS = "ant bee cat dog eel fox gnu hen ibis jay kiwi lynx mole newt owl pig".split()
GREEK = ("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho "
         "sigma tau").split()


def sentences(count, seed=0, least=4, most=17):
    """Different sentences of random words."""
    rng = np.random.default_rng(seed)
    return [f"{i} " + " ".join(rng.choice(WORDS, rng.integers(least, most))) for i in range(count)]


def coloured_sentences(count, seed=0):
    """Sentences with their label: whether the beast is red or blue."""
    rng = np.random.default_rng(seed)
    pairs = [(COLOURS[rng.integers(5)], BEASTS[rng.integers(7)]) for _ in range(count)]
    return [
        (f"the {beast} is {hue} ." + " ." * int(rng.integers(9)), int(hue in COLOURS[:2]))
        for hue, beast in pairs]


def treebank_row(number, word, tag):
    return "\t".join([number, word, word, tag, *"______"])


def write_treebank(folder, sentences=41):
    """Write three small files with a multi-word token, an empty node and comments.

    The tag depends on the word.
    """
    rng = np.random.default_rng(0)
    for part in ("train", "dev", "test"):
        lines = []
        for i in range(sentences):
            words = rng.choice(WORDS, 5)
            lines += [
                f"# sent_id = {part}-{i}",
                treebank_row("1", words[0], tag_of(words[0])),
                treebank_row("2-3", "dont", "_")]
            for n, word in enumerate(words[1:], 2):
                lines.append(treebank_row(str(n), word, tag_of(word)))
            lines += [treebank_row("5.1", "ghost", "VERB"), ""]
        (folder / f"xx-ud-{part}.conllu").write_text("\n".join(lines))


def tag_of(word):
    return "NOUN" if word in WORDS[:5] else "VERB" if word in WORDS[5:8] else "ADJ"
