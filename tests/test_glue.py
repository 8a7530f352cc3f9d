"""Fine-tuning: encoding and batches, a loop that learns what it should and no more, its files."""

import json
import shutil
import zipfile
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from helpers import BEASTS, COLOURS
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mini_undivided import glue
from mini_undivided.model import BertConfig, MaskedLM, SequenceClassifier
from mini_undivided.report import finetuning
from mini_undivided.support import glue_files, machine
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json, write_json
from mini_undivided.support.machine import Machine
from mini_undivided.support.options import FinetuneOptions
from mini_undivided.support.tasks import BUILT_IN, GLUE, find_task
from mini_undivided.tokenizer import encode, load_tokenizer, save_tokenizer, train_tokenizer

CPU = Machine(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """An encoder with two layers, an FFN in the first only, and a tokenizer of these tests' words.
    """
    folder = tmp_path_factory.mktemp("runs") / "not" / "there"
    tokenizer = train_tokenizer([" ".join([*COLOURS, *BEASTS, "the a is not , . \" '"])] * 5, 150)
    torch.manual_seed(1)
    config = BertConfig(tokenizer.get_vocab_size(), 24, 2, 3, 41, 64, ffn_layers=[0])
    lively(MaskedLM(config)).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def lively(model):
    """Make weights so large that what a model predicts depends on what it reads → the model.

    Positions, queries and keys are large from the start.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            large = any(part in name for part in (".position.", ".query.", ".key."))
            parameter.mul_(1 if large or parameter.dim() == 1 else 10)
    return model


def options(run_dir, glue_dir, **changed):
    """The options of a fine-tuning that takes a second."""
    base = FinetuneOptions(str(run_dir), "sst2", data_dir=str(glue_dir), epochs=3, lr=3e-3,
                           batch_size=16, max_length=29, device="cpu")
    return replace(base, **changed)


def tuner_and_data(run_dir, glue_dir, **changed):
    """A Finetuner, and the encoded examples and the splits of SST-2 that it works with."""
    tuner = finetuning.Finetuner(options(run_dir, glue_dir, **changed))
    splits = glue.read_task("sst2", str(glue_dir))
    splits["train"] = splits["train"].first(tuner.options.train_examples)
    return tuner, {name: tuner.encode(split) for name, split in splits.items()}, splits


def equal_weights(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


# Examples and batches.

def test_built_in_tasks_keep_documents_apart(monkeypatch):
    """Of 35 documents 28 are trained on and 7 scored on, the same each time; labels are right."""
    libraries = BUILT_IN["docs-library"].labels
    documents = [
        (libraries[i % 3], " ".join(f"Text {i} has a sentence, number {j}." for j in range(8)))
        for i in range(35)]
    monkeypatch.setattr(glue, "held_out_docs", lambda: documents)
    for key in BUILT_IN:
        splits, again = glue.read_task(key), glue.read_task(key)
        assert all(splits[name].texts == again[name].texts for name in splits)
        train, dev = ({texts[0].split()[1] for texts in splits[name].texts}
                      for name in ("train", "dev"))
        assert (len(train), len(dev)) == (28, 7) and not train & dev
    splits = glue.read_task("docs-library")
    assert {name: len(split) for name, split in splits.items()} == {"train": 28 * 8, "dev": 7 * 8}
    for split in splits.values():
        numbers = [int(text.split()[1]) % 3 for (text,) in split.texts]
        assert numbers == split.labels.tolist()


def test_encoding_equals_transformers(run_dir):
    """[CLS] A [SEP] B [SEP] with segments, cut to 13 tokens, the longer text first: as theirs."""
    tokenizer = load_tokenizer(run_dir)
    theirs = transformers.BertTokenizerFast(tokenizer_object=tokenizer)
    texts = [("the red fox", "is not a bee"), ("red " * 19, "the fox"), ("a", "grey gnu " * 11),
             ("a " * 9, "the " * 8)]
    for (a, b), ours in zip(texts, encode(texts, tokenizer, 13), strict=True):
        wanted = theirs(a, b, truncation="longest_first", max_length=13)
        assert ours == (wanted["input_ids"], wanted["token_type_ids"])
    single = encode([("the red fox",)], tokenizer, 4)
    assert single == [(theirs("the red fox", truncation=True, max_length=4)["input_ids"], [0] * 4)]


def test_batches_pad_little():
    """Lengths in a batch are similar, and no batch is too large."""
    rng = np.random.default_rng(0)
    examples = [([7] * int(n), [0] * int(n)) for n in rng.integers(3, 60, 517)]
    batches = glue.length_batches(examples, 13, rng)
    assert max(map(len, batches)) == 13 and len(batches) == 40
    shuffled = np.array_split(rng.permutation(517), 40)
    ratios = [glue.padding_ratio(examples, each) for each in (batches, shuffled)]
    assert ratios[0] < 0.05 < 0.3 < ratios[1]
    assert glue.padding_ratio([([1] * 3, []), ([1] * 4, [])], [[0, 1]]) == pytest.approx(1 / 8)


def test_collate_pads_and_masks():
    """Ids and segments are padded with 0; the mask is True on real tokens, None if all are real."""
    ids, mask, segments = glue.collate([([2, 5, 3], [0, 0, 1]), ([2, 3], [0, 0])], CPU)
    assert ids.tolist() == [[2, 5, 3], [2, 3, 0]] and segments.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert mask.tolist() == [[True] * 3, [True, True, False]]
    assert glue.collate([([2, 5], [0, 0]), ([2, 3], [0, 0])], CPU)[1] is None


def test_predictions_come_in_the_order_of_the_examples(run_dir):
    """Each example gets the answer that it gets alone, though sorted by length for speed.

    Dropout is switched off; and a prediction that is not a number is an error, not the first class.
    """
    model = SequenceClassifier.from_pretrained(run_dir, num_labels=1).train()
    lively(model.classifier)
    rng = np.random.default_rng(0)
    examples = [([2, *rng.integers(5, 30, n).tolist(), 3], [0] * (n + 2))
                for n in rng.integers(1, 30, 150)]
    together = glue.predict(model, examples, CPU)
    alone = [glue.predict(model, [example], CPU)[0] for example in examples]
    assert np.allclose(together, alone, atol=1e-4) and together.std() > 0.01
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    with pytest.raises(UserError, match="predictions are no longer numbers"):
        glue.predict(model, examples[:1], CPU)


# The loop.

@pytest.mark.parametrize("lr", [None, 0.0077])
def test_a_step_is_clipped_and_follows_the_schedule(run_dir, glue_dir, monkeypatch, lr):
    """The rate follows pretraining's schedule over all epochs, up to --lr or 3e-4 if small.

    Each gradient, here of 50 times the loss, is clipped to a norm of 1 before its step.
    """
    steps, task_loss = [], glue.task_loss
    monkeypatch.setattr(glue, "task_loss", lambda *each: 50 * task_loss(*each))

    def spy(optimizer, *_):
        gradients = [p.grad.flatten() for g in optimizer.param_groups for p in g["params"]]
        steps.append((torch.cat(gradients).norm(), *(g["lr"] for g in optimizer.param_groups)))

    with register_optimizer_step_pre_hook(spy):
        (result,), _ = finetuning.finetune(options(run_dir, glue_dir, lr=lr))
    middles, peak = [(step + 0.5) / 42 for step in range(42)], lr or 3e-4
    wanted = [peak * min(middle / 0.1, (1 - middle) / 0.9) for middle in middles]
    norms, decayed, others = map(list, zip(*steps, strict=True))
    assert norms == pytest.approx([1] * 42) and decayed == others == pytest.approx(wanted)
    assert result["options"]["lr"] == peak


def test_the_default_rate_falls_with_the_width():
    """As --help says: 3e-4 up to a width of 256, 1e-4 up to 512, 3e-5 above."""
    widths = {128: 3e-4, 256: 3e-4, 257: 1e-4, 512: 1e-4, 513: 3e-5, 768: 3e-5}
    assert {width: glue.default_lr(width) for width in widths} == widths
    (lr,) = (field for field in fields(FinetuneOptions) if field.name == "lr")
    assert lr.metadata["option"].unset == "3e-4 up to a width of 256, 1e-4 up to 512, 3e-5 above"


def test_examples_are_shuffled_in_each_epoch(run_dir, glue_dir, monkeypatch):
    """Every epoch has each example once, in other batches, which do not come by their lengths."""
    epochs, length_batches = [], glue.length_batches
    monkeypatch.setattr(
        glue, "length_batches", lambda *each: epochs.append(length_batches(*each)) or epochs[-1])
    tuner, encoded, splits = tuner_and_data(run_dir, glue_dir, epochs=7)
    tuner.train("sst2", encoded, splits, seed=1)
    assert len(epochs) == 7
    assert all(sorted(np.concatenate(batches)) == [*range(211)] for batches in epochs)
    for a, b in combinations(epochs, 2):
        assert {frozenset(batch) for batch in a} != {frozenset(batch) for batch in b}
    longest = [[max(len(encoded["train"][i][0]) for i in batch) for batch in batches]
               for batches in epochs]
    steps = np.concatenate([np.diff(each) for each in longest])
    assert min(np.mean(steps > 0), np.mean(steps < 0)) > 0.25


def test_the_result_is_that_of_the_last_epoch(run_dir, glue_dir, monkeypatch):
    """Scores and saved weights are those after the last epoch, though an earlier one was better.

    The dev split is what the scores are of: it chooses nothing.
    """
    labels, weights = glue.read_task("sst2", str(glue_dir))["dev"].labels, []

    def scripted(model, rows, machine):
        assert len(rows) == len(labels) == 53
        weights.append(model.classifier.weight.detach().clone())
        wrong = (7, 0, 5)[len(weights) - 1]  # in the three epochs
        return np.where(np.arange(len(labels)) < wrong, 1 - labels, labels)

    monkeypatch.setattr(glue, "predict", scripted)
    (result,), out = finetuning.finetune(options(run_dir, glue_dir, save=True))
    assert len(weights) == 3 and not torch.equal(weights[1], weights[2])
    assert result["scores"]["accuracy"]["values"] == [pytest.approx(48 / 53)]
    saved = SequenceClassifier.from_pretrained(out / "sst2-seed0", num_labels=2)
    assert torch.equal(saved.classifier.weight, weights[2])


def test_a_planted_task_is_learned_and_written(run_dir, glue_dir, capsys):
    """Whether the beast is red or blue is learned.

    The JSON holds every seed, their mean and deviation, and the majority. Without a terminal no
    progress bar is written.
    """
    (result,), out = finetuning.finetune(options(run_dir, glue_dir, seeds=2, epochs=6, lr=1e-2))
    accuracy = result["scores"]["accuracy"]
    assert accuracy["mean"] > 0.95 and len(accuracy["values"]) == 2
    assert accuracy["mean"] == pytest.approx(np.mean(accuracy["values"]))
    assert accuracy["std"] == pytest.approx(np.std(accuracy["values"], ddof=1))
    labels = glue_files.read_folder(GLUE["sst2"], glue_dir, ("dev",))["dev"].labels
    assert result["majority"]["accuracy"] == pytest.approx(max(labels.mean(), 1 - labels.mean()))
    assert read_json(out / "sst2.json") == json.loads(json.dumps(result))
    captured = capsys.readouterr()
    assert "% padding" in " ".join(captured.out.split()) and "epoch 6 of 6: " in captured.out
    assert captured.err == ""


def test_a_regression_is_learned_and_scored_by_correlation(run_dir, glue_dir):
    """STS-B is learned by the squared error, and scored by Pearson and Spearman.

    The majority baseline has no correlation.
    """
    (result,), _ = finetuning.finetune(options(run_dir, glue_dir, lr=1e-2, epochs=9, task="stsb"))
    assert result["scores"]["pearson"]["mean"] > 0.8 and result["scores"]["spearman"]["mean"] > 0.5
    assert result["majority"] == {"pearson": 0, "spearman": 0}
    loss = glue.task_loss(torch.tensor([[3.0], [1.5]]), torch.tensor([4.5, 0.5]))
    assert loss.item() == pytest.approx((1.5**2 + 1) / 2)


def test_the_first_step_goes_down_the_gradient_of_the_loss(run_dir, glue_dir, monkeypatch):
    """A task's loss is that of PyTorch for logits under dropout, which are its own examples'."""
    tuner, encoded, splits = tuner_and_data(run_dir, glue_dir, train_examples=11)
    model, seen, task_loss = tuner.make_model(find_task("sst2")), [], glue.task_loss

    def spy(logits, labels):
        seen.append((logits.detach(), labels, task_loss(logits, labels)))
        return seen[-1][2]

    monkeypatch.setattr(glue, "task_loss", spy)
    torch.manual_seed(3)
    start = SequenceClassifier(model.encoder.config, 2)
    assert start.dropout.p == start.encoder.layers[1].attention.attention_dropout.p == 0.1
    start.load_state_dict(model.state_dict())
    glue.fine_tune(model, find_task("sst2"), splits, encoded, CPU, 1, 11, 0.01, seed=5)
    (logits, labels, loss), = seen
    (order,) = glue.length_batches(encoded["train"], 11, np.random.default_rng(5))
    assert labels.tolist() == splits["train"].labels[order].tolist()
    torch.manual_seed(3)  # the same dropout
    SequenceClassifier(model.encoder.config, 2)
    expected = start.train()(*glue.collate([encoded["train"][i] for i in order], CPU))
    assert torch.allclose(logits, expected, atol=1e-6)
    assert loss.item() == pytest.approx(torch.nn.CrossEntropyLoss()(expected, labels).item())


def test_a_seed_gives_the_same_model_bit_for_bit(run_dir, glue_dir):
    """Seed 1 trains the same weights alone and after seed 0; another seed trains others."""
    tuner, encoded, splits = tuner_and_data(run_dir, glue_dir, epochs=1)
    one, zero, again = (tuner.train("sst2", encoded, splits, seed)[0] for seed in (1, 0, 1))
    assert equal_weights(one, again) and not equal_weights(one, zero)


def test_every_option_changes_the_result(run_dir, glue_dir):
    """Epochs, rate, batch size, length, examples, from scratch, dtype: no two give one result."""
    seen = {}
    for change in ({}, {"epochs": 2}, {"lr": 1e-3}, {"batch_size": 17}, {"max_length": 8},
                   {"train_examples": 97}, {"from_scratch": True}, {"dtype": "bfloat16"}):
        tuner, encoded, splits = tuner_and_data(run_dir, glue_dir, **{"epochs": 1, **change})
        model, *_ = tuner.train("sst2", encoded, splits, 0)
        weight = model.classifier.weight[0].sum().item()
        assert weight not in seen, f"{change} gave the same model as {seen[weight]}"
        seen[weight] = change


def test_precision_is_chosen_by_width_as_in_pretraining(run_dir, glue_dir, monkeypatch):
    """A model too narrow for bfloat16 to pay is fine-tuned in float32, a wider one is not."""
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda device: True)
    for quick_width, dtype in ((25, torch.float32), (24, torch.bfloat16)):
        monkeypatch.setattr(machine, "QUICK_WIDTH", quick_width)
        tuner = finetuning.Finetuner(options(run_dir, glue_dir))
        assert tuner.machine.dtype == dtype


def test_evaluation_leaves_training_untouched(run_dir, glue_dir, monkeypatch):
    """Each epoch trains with dropout and evaluates without; more evaluations change no weight."""
    modes, predict, forward = [], glue.predict, SequenceClassifier.forward

    def spy(self, *args, **kwargs):
        modes.append((self.training, torch.is_grad_enabled()))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SequenceClassifier, "forward", spy)
    tuner, encoded, splits = tuner_and_data(run_dir, glue_dir, epochs=2)
    one, *_ = tuner.train("sst2", encoded, splits, 0)
    assert modes == ([(True, True)] * 14 + [(False, False)]) * 2
    monkeypatch.setattr(glue, "predict", lambda *args: [predict(*args) for _ in range(3)][0])
    two, *_ = tuner.train("sst2", encoded, splits, 0)
    assert equal_weights(one, two)


# What is written, and what is refused.

def test_predictions_are_laid_out_for_the_server(run_dir, glue_dir, monkeypatch):
    """One zip; in each file index and prediction, a row for each example, labels by name.

    Scores of STS-B are cut to its range from 0 to 5; MNLI has AX too; those of a control lie apart.
    """
    for key in ("sst2", "mnli"):
        finetuning.finetune(options(run_dir, glue_dir, predict=True, epochs=4, lr=1e-2, task=key))
    monkeypatch.setattr(glue, "predict", lambda model, rows, _: np.linspace(-0.3, 5.2, len(rows)))
    few = dict(predict=True, epochs=1)
    _, out = finetuning.finetune(options(run_dir, glue_dir, task="stsb", **few))
    finetuning.finetune(options(run_dir, glue_dir, task="stsb", from_scratch=True, **few))
    assert (out / "from-scratch/submission.zip").exists()
    with zipfile.ZipFile(out / "submission.zip") as archive:
        files = {name: archive.read(name).decode().splitlines() for name in archive.namelist()}
    rows = {name: [line.split("\t") for line in lines] for name, lines in files.items()}
    counts = {"AX.tsv": 1, "MNLI-m.tsv": 7, "MNLI-mm.tsv": 5, "SST-2.tsv": 31, "STS-B.tsv": 2}
    assert {name: len(lines) - 1 for name, lines in rows.items()} == counts
    for header, *lines in rows.values():
        assert header == ["index", "prediction"]
        assert [index for index, _ in lines] == [str(i) for i in range(len(lines))]
    answers = {name: [answer for _, answer in lines[1:]] for name, lines in rows.items()}
    assert set(answers["SST-2.tsv"]) == {"0", "1"}
    assert set(answers["MNLI-m.tsv"]) <= set(GLUE["mnli"].labels)
    assert answers["STS-B.tsv"] == ["0.000", "5.000"]


def test_scores_of_a_model_of_the_hub_go_to_runs(run_dir, glue_dir, tmp_path, monkeypatch):
    """A model that has no folder here gets a new one, runs/NAME."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(run_dir))
    finetuning.finetune(options("somebody/a-model", glue_dir, epochs=1))
    assert [path.name for path in Path("runs/a-model/glue").iterdir()] == ["sst2.json"]


def test_a_saved_model_opens_in_transformers(run_dir, glue_dir, tmp_path):
    """With --save and all its FFNs: the same logits there, and the names of its labels."""
    tokenizer = load_tokenizer(run_dir)
    MaskedLM(BertConfig(tokenizer.get_vocab_size(), 24, 2, 3, 41, 64)).save_pretrained(tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    for key, labels in (("mnli", 3), ("stsb", 1)):
        _, out = finetuning.finetune(options(tmp_path, glue_dir, save=True, epochs=1, task=key))
        saved = out / f"{key}-seed0"
        ours = SequenceClassifier.from_pretrained(saved, num_labels=labels).eval()
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(saved).eval()
        batch = transformers.AutoTokenizer.from_pretrained(saved)(
            "the red fox", "a bee", return_tensors="pt")
        with torch.no_grad():
            logits = ours(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
            assert torch.allclose(logits, theirs(**batch).logits, atol=1e-5)
    assert theirs.config.problem_type == "regression"
    names = transformers.AutoConfig.from_pretrained(out / "mnli-seed0").id2label
    assert names == dict(enumerate(GLUE["mnli"].labels))


def test_a_loss_that_is_not_finite_is_refused(run_dir, glue_dir):
    """A loss of NaN or infinity is an error that names the learning rate."""
    tuner = finetuning.Finetuner(options(run_dir, glue_dir))
    tuner.lr = 1e30
    with pytest.raises(UserError, match="the loss became (nan|inf).*lower --lr than 1e"):
        tuner.run("sst2")


def test_a_trained_pooler_is_kept(run_dir, glue_dir, tmp_path):
    """A checkpoint's own pooler is where fine-tuning starts, if it has one; not from scratch."""
    trained = lively(SequenceClassifier(BertConfig.from_hugging_face(run_dir)))
    trained.save_pretrained(tmp_path)
    save_tokenizer(load_tokenizer(run_dir), tmp_path)
    for from_scratch in (False, True):
        tuner = finetuning.Finetuner(options(tmp_path, glue_dir, from_scratch=from_scratch))
        model = tuner.make_model(find_task("sst2"))
        assert torch.equal(model.pooler.weight, trained.pooler.weight) != from_scratch
    assert finetuning.Finetuner(options(run_dir, glue_dir)).pooler is None


def test_texts_are_cut_where_pretraining_ended(run_dir, glue_dir, tmp_path, capsys):
    """By default as many tokens as pretraining showed, 128 at most; a larger one is commented."""
    shutil.copytree(run_dir, tmp_path / "run")
    numbers = ("validation_loss", "validation_accuracy", "accuracy_at_mask", "tokens", "seconds",
               "tokens_per_second")
    record = {"status": "finished", "options": {"seq_len": 17},
              "corpus": {"fingerprint": "x", "documents": 1},
              "result": {**dict.fromkeys(numbers, 7), "peak_memory_bytes": None}}
    write_json(tmp_path / "run" / "train.json", record)

    def length(run, max_length=None):
        return finetuning.Finetuner(options(run, glue_dir, max_length=max_length)).max_length

    assert length(run_dir) == 64 and length(tmp_path / "run") == 17
    assert "random" not in capsys.readouterr().out
    assert length(tmp_path / "run", 19) == 19
    printed = " ".join(capsys.readouterr().out.split())
    assert "--max-length 19: pretraining showed 17 tokens" in printed
