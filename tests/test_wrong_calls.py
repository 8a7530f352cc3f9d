"""Wrong command lines: status 2, a sentence that names the thing, and nothing written.

A row for each sentence; what is the same for every option stands in REFUSED.
"""

import shlex
import shutil
import sys
from dataclasses import fields

import pytest
from helpers import change_tensors, help_of, run_script

import analyze
import finetune
import train
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json, write_json
from mini_undivided.support.options import PretrainOptions, TrainShortcuts, dashed
from mini_undivided.support.tasks import TASKS

# RUN and NOFFN are finished runs, HALF is one that is not, BROKEN one with half a train.json, ONE
# one without a second segment vector, WORDY one with a word too many, OTHER one with another
# word, BARE one without weights, EMPTY an empty folder, FILE a file, TALE a corpus, HOME the home.
TRAIN = [
    ("--no-ffn --ffn-every 2", "--no-ffn and --ffn-every exclude each other: give one of them"),
    ("--ffn-every 2 --ffn-layers 1", "--ffn-every and --ffn-layers exclude each other"),
    ("--steps 3 --flops 1e12", "--steps and --flops exclude each other"),
    ("--lr -1", "argument --lr: -1 is not a number from 1e-12 to 100"),
    ("--lr", "argument --lr: expected one argument"),
    ("--layers 0", "argument --layers: 0 is not a whole number from 1 to 1,000"),
    ("--heads 5", "5 heads do not divide the hidden size 128; choose a number of heads that does"),
    ("--ffn-layers 1,x", "1,x is not a list of layer numbers, such as 3,7,11"),
    ("--ffn-layers 9", "FFN layer 9 is out of range: the 4 layers are numbered from 0 to 3"),
    ("--seq-len 513 --corpus TALE", "--seq-len 513 is longer than the model's 512 positions"),
    ("--mlm-probability 0.02 --corpus TALE --seq-len 16",
     "--mlm-probability 0.02 masks no token of a sequence of 16"),
    ("--optimizer adamw --muon-lr 1", "--muon-lr does nothing with --optimizer adamw"),
    ("--batch-tokens 63 --corpus TALE", "--batch-tokens 63 is less than one sequence of 64 tokens"),
    ("--micro-batch 3 --corpus TALE", "--micro-batch 3 does not divide the 16 sequences"),
    ("--seed 1 --seeds 3", "--seed and --seeds exclude each other"),
    ("--resume --seeds 3", "the run in --out: leave out --seeds"),
    ("--device cuda --corpus TALE",
     "--device cuda: this PyTorch sees no CUDA GPU; use --device cpu, or install a CUDA build"),
    ("--device mps --corpus TALE",
     "--device mps: this PyTorch sees no Apple GPU, or torchrun has started several processes, "
     "which cannot share one; use --device cpu"),
    ("--no-fnn", "unrecognized arguments: --no-fnn"),
    ("--corpus", "argument --corpus: expected at least one argument"),
    ("--corpus nowhere.txt", "nothing to read at nowhere.txt: no such file or folder"),
    ("--corpus EMPTY", "it holds none of .txt or .jsonl, which may be packed: .gz, .xz"),
    ("--corpus image.png", "image.png is no corpus file: its name should end in .txt"),
    ("--corpus empty.txt", "the corpus empty.txt is empty: every file has a length of 0"),
    ("--corpus empty.txt FILE.txt", "the corpus empty.txt FILE.txt is empty"),
    ("--corpus TALE gone.txt", "nothing to read at gone.txt"),
    ("--corpus 'gone/*.txt'", "nothing to read at gone/*.txt"),
    ("--corpus docs TALE", "--corpus docs stands alone"),
    ("--corpus latin.txt", "latin.txt is not UTF-8 in line 1; convert it, for example with iconv"),
    ("--corpus bad.jsonl", 'bad.jsonl, line 2 has no "text"'),
    ("--corpus half.jsonl", "half.jsonl, line 1 cannot be read as JSON: 'utf-8' codec can't"),
    ("--corpus short.txt", "the corpus is too small for its"),
    ("--corpus TALE hf:some/set", "--corpus takes one dataset from the hub, or paths, not both"),
    ("--corpus ~nouser/x.txt", "nothing to read at ~nouser/x.txt"),
    ("--corpus ~/x.txt", "HOME/x.txt: no such file or folder"),
    ("--corpus a\udcff.txt", "argument --corpus: a\ufffd.txt is not UTF-8: choose another name"),
    ("--out=~/FILE/x --corpus TALE", "HOME/FILE/x: "),
    ("--out b\udcff", "argument --out: b\ufffd is not UTF-8: choose another name"),
    ("--corpus ''", "argument --corpus: it is empty"),
    ("--out FILE --corpus TALE", "cannot write to FILE: FILE is a file"),
    ("--out RUN --corpus TALE", "RUN already holds a run: resume it with --resume"),
    ("--tokenizer nowhere/at/all --corpus TALE", "nowhere/at/all is not a folder"),
    ("--tokenizer EMPTY --corpus TALE", "holds no tokenizer: neither tokenizer.json nor vocab.txt"),
    ("--tokenizer twice.txt --corpus TALE", 'twice.txt, line 7: "the" stands there twice'),
    ("--tokenizer few.txt --corpus TALE", "the vocabulary of few.txt has no [MASK]; BERT needs"),
    ("--tokenizer RUN --cased --corpus TALE", "--cased is for a vocab.txt"),
    ("--tokenizer RUN --vocab-size 99", "--tokenizer and --vocab-size exclude each other"),
    ("--init nowhere/at/all", "nowhere/at/all is not a folder: give a run directory"),
    ("--init EMPTY", "config.json does not exist: is EMPTY a run or a Hugging Face checkpoint?"),
    ("--init HALF --corpus TALE", "HALF has not finished its training: wait for it, or resume it"),
    ("--init ONE --next-sentence --corpus TALE", "ONE has type_vocab_size 1: it takes single"),
    ("--init RUN --layers 3", "--init and --layers exclude each other: give one"),
    ("--init RUN --tokenizer RUN", "--init and --tokenizer exclude each other"),
    ("--init NOFFN --ffn-layers 0 --corpus TALE", "has no FFN in layer 0: only FFNs that it has"),
    ("--resume", "--resume needs the run directory: name it with --out"),
    ("--resume --out HALF --lr 0.5", "takes the options of the run in --out: leave out --lr"),
    ("--resume --out HALF --no-ffn", "the run in --out: leave out --no-ffn"),
    ("--resume --out BROKEN", "train.json cannot be read"),
]
FINETUNE = [
    ("", "the following arguments are required: RUN, --task"),
    ("RUN", "the following arguments are required: --task"),
    ("RUN --task cloa", 'there is no task "cloa"; did you mean "cola"?'),
    ("RUN --task STS-B", 'there is no task "STS-B"; did you mean "stsb"?'),
    ("RUN --task docs-libary", 'no task "docs-libary"; did you mean "docs-library"?'),
    ("RUN --task xyzzy", 'there is no task "xyzzy" (tasks: cola, sst2'),
    ("RUN --task rte --data-dir nowhere", "RTE is not in nowhere: looked for nowhere/RTE/train"),
    ("ONE --task rte --data-dir nowhere", "ONE has type_vocab_size 1: it takes single texts"),
    ("RUN --task all --data-dir EMPTY", "none of the nine tasks is in EMPTY: looked for CoLA"),
    ("runs/nothing --task cola", "runs/nothing is not a folder: give a run directory"),
    ("HALF --task cola", "HALF has not finished its training"),
    ("BARE --task cola", "BARE holds no weights"),
    ("WORDY --task cola", "WORDY: its tokenizer has 121 entries but its model has 120 embeddings"),
    ("RUN --task cola --max-length 999", "--max-length 999 is more than the 512 positions of RUN"),
    ("RUN EMPTY --task cola", "unrecognized arguments: EMPTY"),
]
ANALYZE = [
    ("", "give two runs to compare, or a command: report, cka, probe, attention, fill"),
    ("RUN", "report compares two runs or more, but only RUN was given"),
    ("cka RUN", "cka compares two runs or more, but only RUN was given"),
    ("cka RUN NOFFN --examples 3", "needs 256 tokens at least, but there are"),
    ("probe RUN --examples 30", "100 different sentences at least, but the text has 30"),
    ("RUN OTHER", "RUN and OTHER have different tokenizers; to be compared, runs need the same"),
    ("RUN RUN", "a run is given twice: RUN RUN"),
    ("cka RUN OTHER --seeds 2", "unrecognized arguments: --seeds 2"),
    ("RUN EMPTY", "config.json does not exist"),
    ("RUN HALF", "HALF has not finished its training"),
    ("runs/nothing runs/more", "runs/nothing is not a folder"),
    ("RUN NOFFN --data-dir EMPTY", "--data-dir does nothing without --task"),
    ("RUN NOFFN --task sst3", 'there is no task "sst3"; did you mean "sst2"?'),
    ("probe RUN ONE --task rte --data-dir EMPTY", "ONE has type_vocab_size 1: it takes single"),
    ("RUN NOFFN --out FILE", "cannot write to FILE: FILE is a file"),
    ("probe RUN --conllu EMPTY", "EMPTY holds no file *train*.conllu with a tagged sentence"),
    (f"attention RUN '{20 * 'the fox '}'", "no more than 33 were seen in training"),
    ("fill RUN", "the following arguments are required: SENTENCE"),
    ("fill RUN 'no mask here'", 'there is no [MASK] in "no mask here"; write one for each word'),
    ("fill WORDY 'a [MASK]'", "WORDY: its tokenizer has 121 entries but its model has 120 embeddi"),
    ("fill RUN 'a\udcff [MASK]'", "argument SENTENCE: a\ufffd [MASK] is not UTF-8"),
]
# Values that an option refuses by itself, before anything is read.
REFUSED = [
    (train, "lr=0 lr=1e30 layers=1000000 hidden-size=0 hidden-size=1000000000000 heads=-4 "
            "ffn-size=1000000000000 ffn-every=0 vocab-size=0 vocab-size=1000000000000 "
            "mlm-probability=1 batch-tokens=2000000000 micro-batch=0 steps=0 steps=-5 minutes=0 "
            "minutes=soon dropout=1.5 seed=1.0 seed=-1 preset=huge device=tpu dtype=float16 "
            "lr=nan lr=fast layers=2.5 seq-len=7 optimizer=sgd"),
    (finetune, "epochs=0 lr=nan seeds=0 batch-size=-3 max-length=3 train-examples=0 device=tpu"),
    (analyze, "examples=0 seeds=0")]
CALLS = [(program, *call) for program, calls in
         ((train, TRAIN), (finetune, FINETUNE), (analyze, ANALYZE)) for call in calls]


@pytest.fixture(scope="module")
def folder(three, tale, tmp_path_factory):
    """A folder with what the calls name."""
    folder = tmp_path_factory.mktemp("calls")
    for name in ("RUN", "NOFFN", "HALF", "BROKEN", "ONE", "WORDY", "OTHER", "BARE"):
        shutil.copytree(three / ("noffn" if name == "NOFFN" else "full"), folder / name)
    (folder / "BARE" / "model.safetensors").unlink()
    config = read_json(folder / "ONE" / "config.json")
    write_json(folder / "ONE" / "config.json", {**config, "type_vocab_size": 1})
    segments = "bert.embeddings.token_type_embeddings.weight"
    change_tensors(folder / "ONE", lambda t: t.update({segments: t[segments][:1].clone()}))
    settings = read_json(folder / "WORDY" / "tokenizer_config.json")
    write_json(folder / "WORDY" / "tokenizer_config.json", {**settings, "bos_token": "[E1]"})
    tokenizer = read_json(folder / "OTHER" / "tokenizer.json")
    words = tokenizer["model"]["vocab"]
    words["another"] = words.pop(max(words, key=words.get))
    write_json(folder / "OTHER" / "tokenizer.json", tokenizer)
    record = read_json(folder / "HALF" / "train.json")
    write_json(folder / "HALF" / "train.json", {**record, "status": "interrupted"})
    (folder / "BROKEN" / "train.json").write_text('{"status": "running", ')
    (folder / "EMPTY").mkdir()
    (folder / "FILE").write_text("")
    (folder / "TALE").mkdir()
    shutil.copy(tale, folder / "TALE" / "tale.jsonl")
    special = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n"
    texts = {"image.png": b"", "empty.txt": b"", "FILE.txt": b"", "latin.txt": b"caf\xe9 " * 99,
             "short.txt": b"word", "bad.jsonl": b'{"text": "a"}\n{"words": "b"}\n',
             "half.jsonl": b'{"text": "\\ud800"}\n',
             "few.txt": special.encode() + b"the\n",
             "twice.txt": f"{special}[MASK]\nthe\nthe\n".encode()}
    for name, content in texts.items():
        (folder / name).write_bytes(content)
    return folder


def listing(folder):
    """All that is in a folder, files with their size."""
    return {str(path): path.is_file() and path.stat().st_size for path in folder.rglob("*")}


@pytest.mark.parametrize(("program", "call", "sentence"), CALLS, ids=[call for _, call, _ in CALLS])
def test_a_wrong_call_ends_in_a_sentence(program, call, sentence, folder, monkeypatch, capsys):
    """Status 2, the sentence at the end of stderr, no traceback, no file or folder more or less."""
    if "cuda" in call:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    before = listing(folder)
    monkeypatch.setattr(sys, "argv", [f"{program.__name__}.py", *shlex.split(call)])
    with pytest.raises(SystemExit) as ended:
        program.main()
    stderr = capsys.readouterr().err
    last = stderr.strip().splitlines()[-1]
    assert ended.value.code == 2 and sentence.replace("HOME", str(folder)) in last, stderr
    assert "error: " in last and "Traceback" not in stderr
    assert listing(folder) == before


@pytest.mark.parametrize(("program", "values"), REFUSED, ids=lambda value: "")
def test_a_refused_value_is_named_with_its_option(program, values, monkeypatch, capsys):
    """Numbers out of bounds, what is no number, and unknown choices: status 2 and both names."""
    for option, value in (pair.split("=") for pair in values.split()):
        arguments = ["RUN", "RUN"] if program is analyze else []
        monkeypatch.setattr(
            sys, "argv", [f"{program.__name__}.py", *arguments, f"--{option}={value}"])
        with pytest.raises(SystemExit) as ended:
            program.main()
        stderr = capsys.readouterr().err
        assert ended.value.code == 2
        assert f"error: argument --{option}: {value} is not " in stderr, stderr


def test_a_sentence_shows_what_would_not_show():
    """A name's invisible characters, which may steer a terminal, are escaped in a sentence."""
    shown = str(UserError("the label “né\u200b\x1b[2J\n\udc80\u202e” is not “中文”"))
    assert shown == r"the label “né\u200b\x1b[2J\n\udc80\u202e” is not “中文”"


@pytest.mark.parametrize(("script", "call", "sentence"), [
    ("train.py", "--heads 5", "5 heads do not divide the hidden size 128; choose a number of"),
    ("finetune.py", "runs/nothing --task cola", "runs/nothing is not a folder"),
    ("analyze.py", "fill runs/nothing 'a [MASK]'", "runs/nothing is not a folder")])
def test_a_person_sees_one_line(script, call, sentence, tmp_path):
    """In a process of its own a mistake ends with status 2, and one line on stderr."""
    done = run_script(script, *shlex.split(call), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {sentence}")
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("script", "names"), [
    ("train.py", [dashed(field.name) for kind in (PretrainOptions, TrainShortcuts)
                  for field in fields(kind)]),
    ("finetune.py", TASKS), ("analyze.py", analyze.COMMANDS)])
def test_help_answers_without_loading_pytorch(script, names):
    """--help names every option, task or command, and imports neither torch nor numpy."""
    words, imported = help_of(script)
    assert set(names) <= set(words) and imported == []
