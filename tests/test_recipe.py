"""The recipe of a training run: what is drawn, scaled, clipped, scheduled, split and scored."""

import json
from collections import Counter
from dataclasses import fields, replace
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
import transformers
from helpers import SIZES, WORDS, L, T, V, config, losses, unchanged, write_corpus, write_lines
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mini_undivided import data, glue, probe
from mini_undivided.corpus import open_corpus
from mini_undivided.model import BertConfig, MaskedLM, SequenceClassifier
from mini_undivided.pretrain import WithLoss, train_step
from mini_undivided.report import finetuning
from mini_undivided.run import check_sequences, pretrain
from mini_undivided.support import run_directory
from mini_undivided.support.files import read_json
from mini_undivided.support.machine import Machine
from mini_undivided.support.options import FinetuneOptions, PretrainOptions
from mini_undivided.tokenizer import load_tokenizer, save_tokenizer, special_ids, train_tokenizer
from mini_undivided.tokens import tokenize

RARE = "quail rook seal toad".split()  # in the second half of the held-out documents only
TASK_ROWS, TASK_BATCH, TASK_EPOCHS = 47, 5, 3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sizes are so small that a second thread would only be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """160 documents of random words, 61 to 151 each; of the eight held out, four say rare words."""
    rng, rows = np.random.default_rng(0), []
    for i in range(160):
        words = RARE if i % 20 == 10 and i > 80 else WORDS
        rows.append(" ".join(rng.choice(words, rng.integers(61, 152))))
    return write_corpus(tmp_path_factory.mktemp("text"), "zoo.jsonl", rows)


@pytest.fixture(scope="module")
def short_text(tmp_path_factory):
    """A corpus of 31 short documents, which a run of a few steps passes several times."""
    rng = np.random.default_rng(1)
    rows = [" ".join(rng.choice(WORDS, 23)) for _ in range(31)]
    return write_corpus(tmp_path_factory.mktemp("text"), "short.jsonl", rows)


def pretrain_options(text, out, **changes):
    """A run of a second: 3 layers, an FFN in the second only, 6 sequences of 19 tokens a step."""
    sizes = {"layers": 3, "hidden_size": 24, "heads": 2, "ffn_size": 41, "ffn_layers": [1]}
    batches = {"vocab_size": 120, "seq_len": 19, "batch_tokens": 19 * 6}
    steps = {"steps": 5, "lr": 1e-2, "optimizer": "adamw"}
    options = {**sizes, **batches, **steps, "device": "cpu", **changes}
    return PretrainOptions(out=str(out), corpus=[text], **options)


@pytest.fixture
def options(text, tmp_path):
    return pretrain_options(text, tmp_path / "run")


@pytest.fixture(scope="module")
def task_run(tmp_path_factory):
    """A run to fine-tune: fresh weights, 2 layers, an FFN in the first only."""
    folder = tmp_path_factory.mktemp("runs") / "fresh"
    tokenizer = train_tokenizer([" ".join([*WORDS, *"0123456789"])] * 5, 120)
    torch.manual_seed(1)
    sizes = BertConfig(tokenizer.get_vocab_size(), 24, 2, 3, 41, 37, ffn_layers=[0])
    MaskedLM(sizes).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """SST-2's files: different texts of 2 to 20 words, with random labels."""
    folder, rng = tmp_path_factory.mktemp("glue"), np.random.default_rng(2)
    for part, count in (("train", TASK_ROWS), ("dev", 13)):
        rows = [
            f"{i} {' '.join(rng.choice(WORDS, rng.integers(1, 20)))}\t{rng.integers(2)}"
            for i in range(count)]
        write_lines(folder, f"SST-2/{part}.tsv", "sentence\tlabel", *rows)
    return folder


def task_options(run, data_dir, **changes):
    """Options of a short fine-tuning: 3 epochs of 10 batches, 47 examples in batches of 5."""
    settings = {"epochs": TASK_EPOCHS, "batch_size": TASK_BATCH, "max_length": 29, **changes}
    return FinetuneOptions(str(run), "sst2", data_dir=str(data_dir), device="cpu", **settings)


def finetune(options):
    """Fine-tune on one task → its result."""
    (result,), _ = finetuning.finetune(options)
    return result


@pytest.fixture
def before_step():
    """Register a function that is called with every optimizer before each of its steps."""
    handles = []

    def register(function):
        hook = register_optimizer_step_pre_hook(lambda optimizer, *_: function(optimizer))
        handles.append(hook)

    yield register
    for handle in handles:
        handle.remove()


def gradients(optimizer):
    """{parameter: gradient} of all that an optimizer is about to move."""
    every = (p for group in optimizer.param_groups for p in group["params"])
    return {p: p.grad.clone() for p in every if p.grad is not None}


def norm(tensors):
    """The Euclidean norm of all numbers in some tensors together."""
    return torch.cat([tensor.flatten() for tensor in tensors]).norm().item()


def unmasked(batch):
    """The sequences of a batch as they were before masking."""
    counted = batch.labels != data.IGNORE_INDEX
    shown = batch.input_ids.gather(1, batch.positions)
    return batch.input_ids.scatter(1, batch.positions, torch.where(counted, batch.labels, shown))


def masked_positions(batch):
    """For each sequence of a batch the set of its masked positions."""
    rows = zip(batch.positions.tolist(), batch.labels.tolist(), strict=True)
    return [{position for position, label in zip(*row, strict=True) if label != data.IGNORE_INDEX}
            for row in rows]


# What a step sees.


@pytest.fixture(scope="module")
def visits(short_text, tmp_path_factory):
    """{seed: (sequences, masked positions)} of every visit of runs of several epochs, in order."""
    seen = {}
    for seed in (0, 1):
        sequences, positions = seen[seed] = [], []

        def spy(model, optimizers, batches, *rest, sequences=sequences, positions=positions):
            for batch in batches:
                sequences += map(tuple, unmasked(batch).tolist())
                positions += masked_positions(batch)
            return train_step(model, optimizers, batches, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mini_undivided.pretrain.train_step", spy)
            out = tmp_path_factory.mktemp("runs") / f"seed{seed}"
            pretrain(pretrain_options(short_text, out, steps=29, seed=seed))
    return seen


def test_each_epoch_has_an_order_of_its_own(visits):
    """Every epoch visits each sequence once, in an order that depends on epoch and seed.

    Two random orders of N sequences agree in one place on average, whatever N.
    """
    count = len(set(visits[0][0]))
    assert 35 < count < 50 and 29 * 6 // count >= 3
    orders = [
        sequences[epoch * count : (epoch + 1) * count]
        for sequences, _ in visits.values()
        for epoch in range(3)]
    assert all(len(set(order)) == count for order in orders)
    for a, b in combinations(orders, 2):
        assert sum(x == y for x, y in zip(a, b, strict=True)) < 8


def agreement(pairs):
    """The masked positions that the two of each pair share, relative to what chance gives."""
    width = 17  # the tokens between [CLS] and [SEP]
    shared = sum(len(a & b) for a, b in pairs)
    return shared / sum(len(a) * len(b) / width for a, b in pairs)


def test_masks_are_drawn_at_each_visit(visits):
    """Masks are drawn at each visit: no two visits have more positions in common than by chance.

    That holds for two visits of one sequence, for the same row of two batches, for neighbours in a
    batch, and for the same visit under another seed.
    """
    of_sequence = {}
    for sequence, masked in zip(*visits[0], strict=True):
        of_sequence.setdefault(sequence, []).append(masked)
    positions, others = visits[0][1], visits[1][1]
    kinds = {
        "sequence": [pair for each in of_sequence.values() for pair in pairwise(each)],
        "row": list(zip(positions, positions[6:], strict=False)),
        "batch": list(pairwise(positions)),
        "seed": list(zip(positions, others, strict=True))}
    for kind, pairs in kinds.items():
        assert len(pairs) > 100 and 0.6 < agreement(pairs) < 1.4, kind


# The gradient.


@pytest.mark.parametrize("micro_batch", [2, 6])
def test_the_gradient_is_that_of_the_mean_loss(
        options, monkeypatch, before_train_step, before_step, micro_batch):
    """Before clipping a step's gradient is d(mean loss)/dw over all its masked positions, to scale.

    So the loss that is logged is the mean, and one batch is three micro-batches, though these do
    not have equally many positions.
    """
    wanted, means, uneven, seen = [], [], [], []

    def reference(model, optimizers, batches, *_):
        batch = data.MaskedBatch(*map(torch.cat, zip(*batches, strict=True)))
        logits = model.model(batch.input_ids)  # (B, T, V), of which the masked ones are gathered
        gathered = logits[torch.arange(len(logits))[:, None], batch.positions].flatten(0, 1)
        counted = batch.labels.flatten() != data.IGNORE_INDEX
        mean = F.cross_entropy(gathered[counted], batch.labels.flatten()[counted])
        parameters = list(model.parameters())
        wanted.append(dict(zip(parameters, torch.autograd.grad(mean, parameters), strict=True)))
        means.append(mean.item())
        uneven.append(len({int((b.labels != data.IGNORE_INDEX).sum()) for b in batches}) > 1)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", unchanged)
    before_train_step(reference)
    before_step(lambda optimizer: seen.append(gradients(optimizer)))
    pretrain(replace(options, micro_batch=micro_batch))
    assert list(losses(options.out).values()) == pytest.approx(means, rel=1e-5)
    assert len(seen) == len(wanted) == 5 and any(uneven) == (micro_batch == 2)
    for ours, theirs in zip(seen, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for parameter, gradient in theirs.items():
            torch.testing.assert_close(ours[parameter], gradient, atol=1e-6, rtol=1e-3)


def test_processes_average_to_the_gradient_of_the_mean_loss(monkeypatch, before_step):
    """The mean over two processes' gradients, which DDP takes, is the gradient of one process."""
    seen = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", unchanged)
    before_step(lambda optimizer: seen.append(list(gradients(optimizer).values())))
    model = WithLoss(MaskedLM(config()).eval())
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.0)]
    labels = torch.tensor([[7, data.IGNORE_INDEX, data.IGNORE_INDEX], [8, 9, 11]])
    positions = torch.tensor([[1, 2, 4], [2, 5, 6]])
    whole = data.MaskedBatch(torch.randint(5, V, (2, T)), positions, labels)
    for rank, local in enumerate(data.split(whole, 1)):
        machine = Machine(torch.device("cpu"), rank=rank, world_size=2)
        train_step(model, optimizers, [local], 4, machine)
    train_step(model, optimizers, [whole], 4, Machine(torch.device("cpu")))
    for a, b, one in zip(*seen, strict=True):
        torch.testing.assert_close((a + b) / 2, one, atol=1e-6, rtol=1e-3)


@pytest.fixture
def events(monkeypatch, before_step):
    """What happens in a run: "backward", ("clip", its bound), and ("step", the gradient's norm).

    Losses are 50 times what they were, so that gradients are large; it is checked that they are.
    """
    events = []
    backward, clip = torch.Tensor.backward, torch.nn.utils.clip_grad_norm_

    def spy_backward(self, *args, **kwargs):
        events.append("backward")
        return backward(50 * self, *args, **kwargs)

    def spy_clip(parameters, max_norm, *args, **kwargs):
        parameters = list(parameters)
        events.append(("clip", max_norm))
        assert norm(p.grad for p in parameters if p.grad is not None) > 2
        return clip(parameters, max_norm, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", spy_backward)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy_clip)
    before_step(lambda o: events.append(("step", round(norm(gradients(o).values()), 4))))
    return events


def test_pretraining_clips_the_gradient_of_a_step(options, events):
    """A gradient is clipped to norm 1: once a step, after accumulation, before the optimizer."""
    pretrain(replace(options, micro_batch=2))
    assert events == [*["backward"] * 3, ("clip", 1.0), ("step", 1.0)] * 5


def test_finetuning_clips_the_gradient_of_a_step(task_run, data_dir, events):
    """So it is in fine-tuning."""
    finetune(task_options(task_run, data_dir))
    assert events == ["backward", ("clip", 1.0), ("step", 1.0)] * 30


# The learning rate.


def schedule(step, steps):
    """The factor on the peak in the middle of step 1, 2, …: up a tenth of the run, then down."""
    middle = (step - 0.5) / steps
    return middle / 0.1 if middle < 0.1 else (1 - middle) / 0.9


def test_berts_own_recipe_is_a_matter_of_options(options, before_train_step):
    """AdamW for all weights, 15 % masked and dropout 0.1, each by its option.

    With our defaults in their place the first step sees something else.
    """
    berts = replace(options, optimizer="adamw", mlm_probability=0.15, dropout=0.1,
                    seq_len=42, batch_tokens=42 * 5, steps=1)
    ours = replace(berts, optimizer="muon", mlm_probability=0.3, dropout=0.0,
                   out=f"{options.out}-ours")
    for each, masked, kinds in ((berts, 6, ["AdamW"]), (ours, 12, ["Muon", "AdamW"])):

        def check(model, optimizers, batches, *_, each=each, masked=masked, kinds=kinds):
            assert [type(optimizer).__name__ for optimizer in optimizers] == kinds
            assert {batch.labels.size(1) for batch in batches} == {masked}  # of 40
            assert model.model.encoder.embeddings.dropout.p == each.dropout

        before_train_step(check)
        pretrain(each)
    valid = check_sequences(
        SimpleNamespace(train=np.arange(80) + 5, valid=np.arange(80) + 5), 42,
        load_tokenizer(ours.out))
    assert valid.num_masked == 6  # whatever --mlm-probability is


def test_pretraining_follows_its_schedule(options, before_step):
    """The rate of each step is the schedule's in its middle: in the log, and in the optimizer."""
    used = []
    before_step(lambda optimizer: used.append({g["lr"] for g in optimizer.param_groups}))
    pretrain(replace(options, steps=23, lr=0.0123))
    wanted = [0.0123 * schedule(step, 23) for step in range(1, 24)]
    rows = [row for row in run_directory.read_log(options.out) if "lr" in row]
    assert [row["step"] for row in rows] == list(range(1, 24))
    assert [row["lr"] for row in rows] == pytest.approx(wanted)
    assert [rate for (rate,) in used] == pytest.approx(wanted)


@pytest.mark.parametrize("lr", [None, 0.0077])
def test_finetuning_follows_its_schedule(task_run, data_dir, before_step, lr):
    """The rate follows the same schedule over all epochs, up to --lr or 3e-4 for a small model."""
    used, peak = [], lr or 3e-4
    before_step(lambda optimizer: used.append({g["lr"] for g in optimizer.param_groups}))
    result = finetune(task_options(task_run, data_dir, lr=lr))
    wanted = [peak * schedule(step, 30) for step in range(1, 31)]
    assert [rate for (rate,) in used] == pytest.approx(wanted)
    assert result["options"]["lr"] == peak


def test_the_default_rate_of_finetuning_falls_with_the_width():
    """As --help says: 3e-4 up to a width of 256, 1e-4 up to 512, 3e-5 above."""
    widths = {128: 3e-4, 256: 3e-4, 257: 1e-4, 512: 1e-4, 513: 3e-5, 768: 3e-5}
    assert {width: glue.default_lr(width) for width in widths} == widths
    (lr,) = (field for field in fields(FinetuneOptions) if field.name == "lr")
    assert lr.metadata["option"].unset == "3e-4 up to a width of 256, 1e-4 up to 512, 3e-5 above"


# Validation.


def test_validation_is_without_dropout_and_training_with_it(options, monkeypatch):
    """Validation runs in evaluation mode without gradients, and training goes on in its own mode.

    So the result of a run with dropout is what its saved model says in evaluation mode.
    """
    modes, forward = [], MaskedLM.forward

    def spy(self, *args, **kwargs):
        modes.append((self.training, torch.is_grad_enabled()))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(MaskedLM, "forward", spy)
    result = pretrain(replace(options, dropout=0.5))["result"]
    assert modes.count((True, True)) == 5 and set(modes) == {(True, True), (False, False)}
    assert modes.index((False, False)) < 4  # some training comes after a validation

    model, tokenizer = MaskedLM.from_pretrained(options.out).eval(), load_tokenizer(options.out)
    tokens = tokenize(open_corpus(options.corpus), tokenizer)
    sequences = data.Sequences(tokens.valid, options.seq_len, tokenizer)
    loss = correct = positions = 0
    for batch in data.validation_batches(sequences, len(sequences)):
        with torch.no_grad():
            logits = model(batch.input_ids, positions=batch.positions)
        counted = batch.labels != data.IGNORE_INDEX
        logits, labels = logits[counted], batch.labels[counted]
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(-1) == labels).sum().item()
        positions += len(labels)
    assert result["validation_loss"] == pytest.approx(loss / positions, rel=1e-4)
    assert result["validation_accuracy"] == pytest.approx(correct / positions)


def test_the_unigram_entropy_is_that_of_the_validation_part(options):
    """The baseline of the validation loss comes from the validation part's own words."""
    baseline = pretrain(options)["result"]["baseline"]
    tokenizer = load_tokenizer(options.out)
    rows = Path(options.corpus[0]).read_text().splitlines()
    held_out = [json.loads(row)["text"] for i, row in enumerate(rows) if i % 20 == 10]
    ids = (tokenizer.encode(text, add_special_tokens=False).ids for text in held_out)
    counts = Counter(i for document in ids for i in document if i not in special_ids(tokenizer))
    assert baseline["unigram_entropy"] == pytest.approx(
        scipy.stats.entropy(list(counts.values())))
    assert len(counts) > len(WORDS) + len(RARE)  # rare words are cut into pieces


# Dropout.


@pytest.fixture
def dropouts(monkeypatch):
    """(shape, probability) of every dropout that acts, in order, whoever applies it."""
    seen, dropout, attention = [], F.dropout, F.scaled_dot_product_attention

    def spy_dropout(input, p=0.5, training=True, inplace=False):
        if training and p > 0:
            seen.append((tuple(input.shape), p))
        return dropout(input, p, training, inplace)

    def spy_attention(q, k, v, attn_mask=None, dropout_p=0.0, **kwargs):
        if dropout_p > 0:
            seen.append(((*q.shape[:-1], k.size(-2)), dropout_p))
        return attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, **kwargs)

    monkeypatch.setattr(F, "dropout", spy_dropout)
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy_attention)
    return seen


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(MaskedLM, "BertForMaskedLM"), (SequenceClassifier, "BertForSequenceClassification")])
def test_dropout_acts_where_transformers_has_it(inputs, dropouts, ours, theirs):
    """In training the same dropouts act in the same order, and none in evaluation.

    They follow the embeddings, the attention weights, the attention's output, the FFN, and in a
    classifier the pooler, each with the config's probability.
    """
    rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
    reference = transformers.BertConfig(**SIZES, **rates, attn_implementation="eager")
    input_ids, mask, segments = inputs
    getattr(transformers, theirs)(reference).train()(input_ids, mask, segments)
    wanted = dropouts.copy()
    assert len(wanted) == 1 + 3 * L + (ours is SequenceClassifier)
    for ffn_layers, count in ((None, len(wanted)), ([2], len(wanted) - (L - 1))):
        dropouts.clear()
        model = ours(config(**rates, ffn_layers=ffn_layers)).train()
        model(input_ids, mask, segments)
        assert len(dropouts) == count and (ffn_layers or dropouts == wanted)
    dropouts.clear()
    model.eval()(input_ids, mask, segments)
    assert dropouts == []


def test_pretraining_is_without_dropout_unless_it_is_asked_for(options, dropouts):
    """By default nothing is dropped; --dropout reaches every dropout, the attention's included.

    Whatever it is, the config that is saved has BERT's 0.1 for fine-tuning.
    """
    assert options.dropout == 0
    pretrain(options)
    assert dropouts == []
    further = replace(options, dropout=0.23, out=options.out + "-dropout")
    pretrain(further)
    sites = 1 + 3 * 2 + 1  # the embeddings, two in each attention sublayer, one in the only FFN
    assert [p for _, p in dropouts] == [0.23] * (5 * sites)
    for run in (options, further):
        saved = read_json(Path(run.out) / "config.json")
        assert saved["hidden_dropout_prob"] == saved["attention_probs_dropout_prob"] == 0.1


def test_finetuning_drops_with_the_probability_of_the_config(task_run, data_dir, dropouts):
    """Fine-tuning has BERT's dropout of 0.1 in every training step, and none while it predicts."""
    finetune(task_options(task_run, data_dir))
    sites = 1 + 2 * 2 + 1 + 1  # the embeddings, two in each attention, one FFN, the classifier
    assert [p for _, p in dropouts] == [0.1] * (30 * sites)


# Fine-tuning.


def task_batches(options, monkeypatch):
    """The training batches of a fine-tuning: for each epoch a list of lists of texts, as tuples."""
    batches, forward = [], SequenceClassifier.forward

    def spy(self, input_ids, *args, **kwargs):
        if self.training:
            batches.append([tuple(i for i in row if i) for row in input_ids.tolist()])
        return forward(self, input_ids, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SequenceClassifier, "forward", spy)
        finetune(options)
    assert len(batches) == 10 * options.epochs
    return [batches[i : i + 10] for i in range(0, len(batches), 10)]


def test_finetuning_shuffles_its_examples_in_each_epoch(task_run, data_dir, monkeypatch):
    """Every epoch has each example once, in other batches, which do not come by their lengths."""
    epochs = task_batches(task_options(task_run, data_dir, epochs=7), monkeypatch)
    examples = [sorted(row for batch in epoch for row in batch) for epoch in epochs]
    assert all(each == examples[0] for each in examples) and len(set(examples[0])) == TASK_ROWS
    for a, b in combinations(epochs, 2):
        assert a != b and set(map(frozenset, a)) != set(map(frozenset, b))
    rises = [
        max(map(len, after)) > max(map(len, before)) for epoch in epochs
        for before, after in pairwise(epoch)]
    assert 0.25 < np.mean(rises) < 0.75


def test_the_result_is_that_of_the_last_epoch(task_run, data_dir, monkeypatch):
    """Scores and saved weights are those after the last epoch, though an earlier one was better.

    The dev part is what the scores are of: it chooses nothing.
    """
    splits = glue.read_task("sst2", str(data_dir))
    labels, weights = splits["dev"].labels, []

    def scripted(model, rows, machine):
        assert len(rows) == len(labels) == 13
        weights.append(model.classifier.weight.detach().clone())
        wrong = (7, 0, 5)[len(weights) - 1]  # in the three epochs
        return np.where(np.arange(len(labels)) < wrong, 1 - labels, labels)

    monkeypatch.setattr(glue, "predict", scripted)
    results, out = finetuning.finetune(task_options(task_run, data_dir, save=True))
    assert len(weights) == TASK_EPOCHS and not torch.equal(weights[1], weights[2])
    assert results[0]["scores"]["accuracy"]["values"] == [pytest.approx(8 / 13)]
    saved = SequenceClassifier.from_pretrained(out / "sst2-seed0", num_labels=2)
    assert torch.equal(saved.classifier.weight, weights[2])


# Probes.


def test_a_probe_standardises_by_the_training_part():
    """The training part's mean and deviation standardise every part.

    So a validation or test part with one class alone is not moved to the middle between two, and a
    feature that varies more in them than in training is not made as small as there.
    """
    rng, counts = np.random.default_rng(0), {"train": 211, "valid": 83, "test": 97}
    labels = {part: rng.integers(0, 2, count) for part, count in counts.items()}
    labels |= {part: np.ones(counts[part], dtype=int) for part in ("valid", "test")}
    features = {}
    for part, each in labels.items():
        noise = 0.1 * rng.normal(size=(2, len(each), 5))
        noise[:, :, 1] += 3 * each - 1
        features[part] = torch.tensor(noise, dtype=torch.float32)
    scores = probe.probe(features, labels, 2)
    assert scores["valid"] == scores["test"] == [1.0, 1.0]

    features, values = {}, {}
    for part, count in counts.items():
        x = rng.normal(size=(count, 3)) * ([1, 1, 1] if part == "train" else [7, 1, 1])
        values[part] = x[:, 0] - 2 * x[:, 1]
        features[part] = torch.tensor(x[None], dtype=torch.float32)
    scores = probe.probe(features, values, 0, "pearson")
    assert min(scores["valid"] + scores["test"]) > 0.999


def test_control_tags_have_the_shares_of_the_training_tags():
    """The control task draws a tag for each kind of word with the training part's frequencies.

    What is tagged in the validation or test part plays no part in it.
    """
    counts, words = {"train": 2003, "valid": 301, "test": 401}, iter(range(10**6))
    texts = {part: [[f"w{next(words)}" for _ in range(n)]] for part, n in counts.items()}
    rng = np.random.default_rng(0)
    labels = {
        "train": rng.choice(4, counts["train"], p=[0.62, 0.27, 0.11, 0.0]),
        "valid": np.full(counts["valid"], 2),
        "test": np.full(counts["test"], 3)}
    wanted = np.bincount(labels["train"], minlength=4) / counts["train"]
    task = probe.ProbeTask("tags", texts, labels, per_word=True)
    for seed in (0, 1):
        tags = task.control(seed)
        assert {part: len(each) for part, each in tags.items()} == counts
        drawn = np.concatenate(list(tags.values()))
        shares = np.bincount(drawn, minlength=4) / len(drawn)
        assert abs(shares - wanted).max() < 0.04 and shares[3] == 0


# Defaults, files, vocabulary.


def test_the_default_config_is_transformers():
    """A BertConfig without arguments is BERT-Base: every field has transformers' default."""
    ours, theirs = BertConfig(), transformers.BertConfig()
    for field in fields(BertConfig):
        if field.name != "ffn_layers":
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
    assert ours.ffn_layers == list(range(theirs.num_hidden_layers))
    saved = ours.to_hugging_face("BertForMaskedLM")
    assert saved["hidden_act"] == theirs.hidden_act and saved["model_type"] == theirs.model_type


def test_a_first_run_makes_the_folder_of_all_runs(text, task_run, data_dir, tmp_path, monkeypatch):
    """Pretraining, saving, and fine-tuning a model of the hub need no folder of runs beforehand."""
    monkeypatch.chdir(tmp_path)
    pretrain(pretrain_options(text, "train/first", steps=2))
    MaskedLM(config()).save_pretrained("save/first")
    save_tokenizer(load_tokenizer(task_run), "tokenizer/first")
    for written in ("train/first/log.jsonl", "train/first/model.safetensors",
                    "save/first/config.json", "tokenizer/first/tokenizer.json"):
        assert Path(written).exists()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(task_run))
    finetune(task_options("somebody/a-model", data_dir, epochs=1))
    assert [path.name for path in Path("runs").glob("*/glue/*")] == ["sst2.json"]
