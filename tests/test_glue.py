"""GLUE: metrics against the libraries, and a loop that learns what it should and no more."""

import json
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import transformers
from helpers import BEASTS, COLOURS
from tqdm import tqdm

from mini_undivided import glue
from mini_undivided.model import BertConfig, MaskedLM, SequenceClassifier
from mini_undivided.optim import adamw
from mini_undivided.report import finetuning
from mini_undivided.support import glue_files
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json, write_json
from mini_undivided.support.machine import Machine
from mini_undivided.support.options import FinetuneOptions
from mini_undivided.support.tasks import BUILT_IN, GLUE, Split, find_task
from mini_undivided.tokenizer import (
    encode,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

CPU = Machine(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """An encoder with two layers, an FFN in the first only, and its tokenizer.

    The tokenizer knows the words of these tests.
    """
    folder = tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer([" ".join([*COLOURS, *BEASTS, "the a is not , . \" '"])] * 5, 150)
    torch.manual_seed(1)
    config = BertConfig(tokenizer.get_vocab_size(), 24, 2, 3, 41, 64, ffn_layers=[0])
    lively(MaskedLM(config)).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def lively(model):
    """Make a model's weights larger than fresh ones → the model.

    What it says then depends on what it reads.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
    return model


# Metrics.


@pytest.mark.parametrize("seed", range(7))
def test_metrics_equal_the_libraries(seed):
    """Accuracy, F1 and Matthews are scikit-learn's, Pearson and Spearman scipy's.

    That includes ties in the ranks.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 57))
    a, b = rng.integers(0, 2, count), rng.integers(0, 2, count)
    assert glue.accuracy(a, b) == pytest.approx(sklearn.metrics.accuracy_score(b, a))
    assert glue.f1(a, b) == pytest.approx(sklearn.metrics.f1_score(b, a, zero_division=0))
    assert glue.matthews(a, b) == pytest.approx(sklearn.metrics.matthews_corrcoef(b, a))
    x, y = rng.normal(size=count), rng.integers(0, 6, count) / 5  # y has ties
    assert glue.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    assert glue.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert glue.ranks(y) == pytest.approx(scipy.stats.rankdata(y))


@pytest.mark.parametrize("answer", [0, 1])
def test_metrics_of_one_answer_for_all(answer):
    """If one answer is given for all examples, the metrics are never nan.

    They are what the libraries say if these say something, and else 0.
    """
    labels = np.array([1, 0, 1, 1, 0])
    same = np.full(5, answer)
    assert glue.f1(same, labels) == pytest.approx(
        sklearn.metrics.f1_score(labels, same, zero_division=0)
    )
    assert glue.matthews(same, labels) == sklearn.metrics.matthews_corrcoef(labels, same) == 0
    assert glue.pearson(same * 0.1, labels) == glue.spearman(same * 0.1, labels) == 0
    assert glue.f1(np.zeros(3, int), np.zeros(3, int)) == 0


# Built-in tasks.


@pytest.fixture
def held_out(monkeypatch):
    """23 documents of three libraries in place of this machine's own.

    Every sentence names its document.
    """
    documents = [
        (
            BUILT_IN["docs-library"].labels[i % 3],
            " ".join(f"Text {i} has a sentence number {j} ." for j in range(6)),
        )
        for i in range(23)
    ]
    monkeypatch.setattr(glue, "held_out_docs", lambda: documents)
    monkeypatch.setattr(
        glue, "sentences", lambda text: [s.strip() + " ." for s in text.split(".")[:-1]]
    )
    return documents


def test_built_in_tasks_keep_documents_apart(held_out):
    """Labels are right and the same each time, and no document is in both parts."""
    for key in BUILT_IN:
        splits, again = glue.read_task(key), glue.read_task(key)
        assert all(splits[part].texts == again[part].texts for part in splits)
        of = {
            part: {texts[0].split()[1] for texts in split.texts} for part, split in splits.items()
        }
        assert of["train"] & of["dev"] == set() and len(of["train"]) + len(of["dev"]) == 23
    for split in glue.read_task("docs-library").values():
        assert all(
            int(text.split()[1]) % 3 == label
            for (text,), label in zip(split.texts, split.labels, strict=True)
        )


# Encoding and batches.


def test_encoding_equals_transformers(run_dir):
    """Texts and pairs are encoded as by the tokenizer of transformers.

    That is [CLS] A [SEP] B [SEP] with segments, cut to 13 tokens from the longer text.
    """
    tokenizer = load_tokenizer(run_dir)
    theirs = transformers.BertTokenizerFast(tokenizer_object=tokenizer)
    texts = [
        ("the red fox", "is not a bee"),
        ("red " * 19, "the fox"),
        ("a", "grey gnu " * 11),
        ("a " * 9, "the " * 8),
    ]
    ours = encode(texts, tokenizer, 13)
    for (a, b), (ids, segments) in zip(texts, ours, strict=True):
        wanted = theirs(a, b, truncation="longest_first", max_length=13)
        assert (ids, segments) == (wanted["input_ids"], wanted["token_type_ids"])
    single = encode([("the red fox",)], tokenizer, 4)
    assert single == [(theirs("the red fox", truncation=True, max_length=4)["input_ids"], [0] * 4)]


def test_batches_hold_every_example_once_and_pad_little():
    """Each example is in one batch, and the lengths in a batch are similar.

    No batch is too large, and the next epoch has another order.
    """
    rng = np.random.default_rng(0)
    rows = [([7] * int(n), [0] * int(n)) for n in rng.integers(3, 60, 517)]
    first, second = glue.length_batches(rows, 13, rng), glue.length_batches(rows, 13, rng)
    assert sorted(np.concatenate(first).tolist()) == list(range(517))
    assert max(map(len, first)) == 13
    assert [b.tolist() for b in first] != [b.tolist() for b in second]
    shuffled = np.array_split(rng.permutation(517), 40)
    assert glue.padding_share(rows, first) < 0.05 < 0.3 < glue.padding_share(rows, shuffled)
    assert glue.padding_share([([1] * 3, [])], [[0]]) == 0


def test_collate_pads_and_masks():
    """Ids and segments are padded with 0, and the mask is True on real tokens.

    It is None if nothing was padded.
    """
    ids, mask, segments = glue.collate([([2, 5, 3], [0, 0, 1]), ([2, 3], [0, 0])], CPU)
    assert ids.tolist() == [[2, 5, 3], [2, 3, 0]] and segments.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert mask.tolist() == [[True] * 3, [True, True, False]]
    assert glue.collate([([2, 5], [0, 0]), ([2, 3], [0, 0])], CPU)[1] is None


def test_predictions_come_in_the_order_of_the_examples(run_dir):
    """Sorting by length for speed does not show in the predictions.

    Each example gets the answer that it gets alone.
    """
    model = SequenceClassifier.from_pretrained(run_dir, num_labels=3)
    lively(model.classifier)
    rng = np.random.default_rng(0)
    rows = [
        ([2, *rng.integers(5, 30, n).tolist(), 3], [0] * (n + 2)) for n in rng.integers(1, 30, 150)
    ]
    model.train()  # predict switches dropout off itself
    together = glue.predict(model, rows, CPU)
    assert together.tolist() == [int(glue.predict(model, [row], CPU)[0]) for row in rows]
    assert len(set(together.tolist())) > 1


# The loop.


def options(run_dir, glue_dir, **changed):
    """The options of a fine-tuning that takes a second."""
    base = FinetuneOptions(
        str(run_dir),
        "sst2",
        data_dir=str(glue_dir),
        epochs=3,
        lr=3e-3,
        batch_size=16,
        max_length=29,
        device="cpu",
    )
    return replace(base, **changed)


def test_a_planted_task_is_learned_and_written(run_dir, glue_dir, capsys):
    """Whether the beast is red or blue is learned and written.

    The JSON holds every seed, their mean and deviation, and the majority.
    """
    (result,), out = finetuning.finetune(
        options(run_dir, glue_dir, seeds=2, epochs=6, lr=1e-2, task="sst2")
    )
    accuracy = result["scores"]["accuracy"]
    assert accuracy["mean"] > 0.95 and len(accuracy["values"]) == 2
    assert accuracy["mean"] == pytest.approx(np.mean(accuracy["values"]))
    assert accuracy["std"] == pytest.approx(np.std(accuracy["values"], ddof=1))
    labels = glue_files.read_folder(GLUE["sst2"], glue_dir, ("dev",))["dev"].labels
    assert result["majority"]["accuracy"] == pytest.approx(max(labels.mean(), 1 - labels.mean()))
    assert read_json(out / "sst2.json") == json.loads(json.dumps(result))
    printed = capsys.readouterr().out
    assert "sst2: 211 examples, 6 epochs of 14 batches of 16" in printed and "% padding" in printed
    assert "sst2, seed 0: accuracy" in printed and "sst2, seed 1: accuracy" in printed


def test_a_regression_is_learned_and_scored_by_correlation(run_dir, glue_dir):
    """STS-B is learned, and scored by Pearson and Spearman.

    The majority baseline has no correlation.
    """
    (result,), _ = finetuning.finetune(options(run_dir, glue_dir, lr=1e-2, epochs=5, task="stsb"))
    assert result["scores"]["pearson"]["mean"] > 0.8 and result["scores"]["spearman"]["mean"] > 0.5
    assert result["majority"] == {"pearson": 0, "spearman": 0}


def test_a_regression_is_trained_on_the_squared_error(run_dir, glue_dir):
    """The loss of a step of STS-B is the mean squared error of the answers."""
    model = finetuning.Finetuner(options(run_dir, glue_dir)).make_model(find_task("stsb"))
    rows, labels = [([2, 7, 3], [0] * 3), ([2, 8, 9, 3], [0] * 4)], np.array([4.5, 0.5])
    optimizer, bar = adamw(model.parameters(), 0.0), tqdm(disable=True)
    torch.manual_seed(3)
    loss = glue.train_epoch(model, optimizer, iter([0.0]), [[0, 1]], rows, labels, CPU, bar)
    torch.manual_seed(3)  # the same dropout
    answers = model(*glue.collate(rows, CPU))[:, 0]
    assert loss == pytest.approx((answers - torch.tensor(labels)).square().mean().item())


def test_a_seed_gives_the_same_model_bit_for_bit(run_dir, glue_dir):
    """Seed 1 trains the same weights alone and after seed 0; another seed trains others."""
    tuner = finetuning.Finetuner(options(run_dir, glue_dir, epochs=1))
    splits = glue.read_task("sst2", str(glue_dir), False)
    rows = {part: encode(split.texts, tuner.tokenizer, 29) for part, split in splits.items()}
    models = [tuner.train("sst2", rows, splits, seed)[0].state_dict() for seed in (1, 0, 1)]
    same = [
        all(torch.equal(models[2][name], model[name]) for name in model) for model in models[:2]
    ]
    assert same == [True, False]


def test_every_option_changes_the_result(run_dir, glue_dir):
    """No two of these options give the same weights.

    Epochs, learning rate, batch size, length, training examples, from scratch and dtype.
    """
    seen = {}
    changes = [
        {},
        {"epochs": 2},
        {"lr": 1e-3},
        {"batch_size": 17},
        {"max_length": 8},
        {"train_examples": 97},
        {"from_scratch": True},
        {"dtype": "bfloat16"},
    ]
    for change in changes:
        tuner = finetuning.Finetuner(options(run_dir, glue_dir, **{"epochs": 1, **change}))
        splits = glue.read_task("sst2", str(glue_dir), False)
        splits["train"] = splits["train"].first(tuner.options.train_examples)
        rows = {part: tuner.encode(split) for part, split in splits.items()}
        model, *_ = tuner.train("sst2", rows, splits, 0)
        key = model.classifier.weight[0].sum().item()
        assert key not in seen, f"{change} gave the same model as {seen[key]}"
        seen[key] = change


def test_evaluation_leaves_training_untouched(run_dir, glue_dir, monkeypatch):
    """Each epoch trains with dropout and evaluates without.

    Evaluating more often changes no weight.
    """
    modes, predict = [], glue.predict
    forward = SequenceClassifier.forward

    def spy(self, *args, **kwargs):
        modes.append((self.training, torch.is_grad_enabled()))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SequenceClassifier, "forward", spy)
    tuner = finetuning.Finetuner(options(run_dir, glue_dir, epochs=2))
    splits = glue.read_task("sst2", str(glue_dir), False)
    rows = {part: encode(split.texts, tuner.tokenizer, 29) for part, split in splits.items()}
    one, *_ = tuner.train("sst2", rows, splits, 0)
    assert modes == ([(True, True)] * 14 + [(False, False)]) * 2
    monkeypatch.setattr(glue, "predict", lambda *args: [predict(*args) for _ in range(3)][0])
    two, *_ = tuner.train("sst2", rows, splits, 0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )


def test_predictions_are_laid_out_for_the_server(run_dir, glue_dir, tmp_path, monkeypatch):
    """The predictions are in one zip, laid out for the GLUE server.

    Each file has index and prediction, one row per example, labels by name and scores from 0 to 5;
    MNLI has AX too.
    """
    out = finetuning.Finetuner(options(run_dir, glue_dir)).out
    for key in ("sst2", "stsb", "mnli"):
        finetuning.finetune(options(run_dir, glue_dir, predict=True, epochs=2, lr=1e-2, task=key))
    with zipfile.ZipFile(out / "submission.zip") as archive:
        files = {name: archive.read(name).decode().splitlines() for name in archive.namelist()}
    assert {name: len(lines) - 1 for name, lines in files.items()} == {
        "AX.tsv": 1,
        "MNLI-m.tsv": 7,
        "MNLI-mm.tsv": 5,
        "SST-2.tsv": 31,
        "STS-B.tsv": 2,
    }
    for lines in files.values():
        assert lines[0] == "index\tprediction"
        assert [line.split("\t")[0] for line in lines[1:]] == [
            str(i) for i in range(len(lines) - 1)
        ]
    answers = {name: {line.split("\t")[1] for line in lines[1:]} for name, lines in files.items()}
    assert answers["SST-2.tsv"] == {"0", "1"} and answers["MNLI-m.tsv"] <= set(GLUE["mnli"].labels)
    assert all(0 <= float(answer) <= 5 for answer in answers["STS-B.tsv"])


def test_a_saved_model_opens_in_transformers(run_dir, glue_dir, tmp_path):
    """With --save and all its FFNs, a fine-tuned model opens in transformers.

    It gives the same logits there, and knows its labels' names.
    """
    tokenizer = load_tokenizer(run_dir)
    MaskedLM(BertConfig(tokenizer.get_vocab_size(), 24, 2, 3, 41, 64)).save_pretrained(tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    for key, labels in (("mnli", 3), ("stsb", 1)):
        _, out = finetuning.finetune(options(tmp_path, glue_dir, save=True, epochs=1, task=key))
        saved = out / f"{key}-seed0"
        ours = SequenceClassifier.from_pretrained(saved, num_labels=labels).eval()
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(saved).eval()
        batch = transformers.AutoTokenizer.from_pretrained(saved)(
            "the red fox", "a bee", return_tensors="pt"
        )
        with torch.no_grad():
            logits = ours(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
            assert torch.allclose(logits, theirs(**batch).logits, atol=1e-5)
    assert theirs.config.problem_type == "regression"
    assert (
        transformers.AutoConfig.from_pretrained(out / "mnli-seed0").id2label[2] == "contradiction"
    )


def test_bad_runs_are_refused(run_dir, glue_dir, tmp_path):
    """What cannot be fine-tuned is refused in one sentence.

    No weights, a tokenizer of another vocabulary, a run that is still being written, too long a
    text, a folder without any task, and a loss that is not finite.
    """
    config = BertConfig(
        vocab_size=31,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=41,
    )
    save_tokenizer(load_tokenizer(run_dir), tmp_path)
    write_json(tmp_path / "config.json", config.to_hugging_face("BertModel"))
    with pytest.raises(UserError, match="no weights|model.safetensors"):
        finetuning.Finetuner(options(tmp_path, glue_dir))
    MaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has 31 embeddings"):
        finetuning.Finetuner(options(tmp_path, glue_dir))
    write_json(tmp_path / "train.json", {"status": "running"})
    with pytest.raises(UserError, match="not finished|still|running"):
        finetuning.Finetuner(options(tmp_path, glue_dir))
    with pytest.raises(UserError, match="--max-length 65 is more than the 64 positions"):
        finetuning.Finetuner(options(run_dir, glue_dir, max_length=65))
    with pytest.raises(UserError, match="none of the nine tasks is in"):
        finetuning.finetune(options(run_dir, tmp_path, task="all"))
    with pytest.raises(UserError, match="the loss became (nan|inf).*lower --lr"):
        tuner = finetuning.Finetuner(options(run_dir, glue_dir))
        tuner.lr = 1e30
        tuner.run("sst2")


def test_a_trained_pooler_is_kept(run_dir, glue_dir, tmp_path):
    """A checkpoint's own pooler is where fine-tuning starts, if it has one; not from scratch."""
    config = BertConfig.from_hugging_face(run_dir)
    trained = lively(SequenceClassifier(config))
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
    numbers = ("validation_loss", "validation_accuracy", "tokens", "seconds", "tokens_per_second")
    record = {"status": "finished", "options": {"seq_len": 17},
              "corpus": {"fingerprint": "x", "documents": 1},
              "result": {**dict.fromkeys(numbers, 7), "peak_memory_bytes": None}}
    write_json(tmp_path / "run" / "train.json", record)

    def length(run, asked=None):
        return finetuning.Finetuner(options(run, glue_dir, max_length=asked)).max_length

    assert length(run_dir) == 64 and length(tmp_path / "run") == 17
    assert "random" not in capsys.readouterr().out
    assert length(tmp_path / "run", 19) == 19
    assert "--max-length 19: pretraining showed 17 tokens" in capsys.readouterr().out


def test_answers_that_are_no_numbers_are_an_error(run_dir, glue_dir):
    """NaN is no answer: not 0, not the first class."""
    assert np.isnan(glue.pearson(np.array([0.1, np.nan, 0.3]), np.array([1.0, 2.0, 3.0])))
    tuner = finetuning.Finetuner(options(run_dir, glue_dir))
    model = tuner.make_model(find_task("sst2"))
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    with pytest.raises(UserError, match="predictions are no longer numbers"):
        glue.predict(model, [([2, 7, 3], [0, 0, 0])], tuner.machine)


def test_the_best_constant_is_the_best_of_all_single_answers():
    """Of the labels on dev, whichever training prefers; for F1 the positive class."""
    splits = {part: Split([1, 2, 3], np.array(labels))
              for part, labels in (("train", [0, 0, 0]), ("dev", [1, 1, 0]))}
    best = glue.best_constant(find_task("mrpc"), splits)
    assert best == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx(0.8)}
    splits["dev"].labels = np.array([0.5, 2.5, 3.0])
    assert glue.best_constant(find_task("stsb"), splits) == {"pearson": 0.0, "spearman": 0.0}
