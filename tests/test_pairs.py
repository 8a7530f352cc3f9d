"""Pairs, BERT's second objective: how they are made, what is learned of them, and scored."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from helpers import B, T, V, assert_close, config, saved_by_them, unmasked
from torch.nn import functional as F

from mini_undivided import data
from mini_undivided.corpus import open_corpus
from mini_undivided.model import MaskedLM
from mini_undivided.pairs import (
    PairBatch, PairedMaskedLM, mask_pairs, pair_accuracy, paired_logits, paired_loss)
from mini_undivided.run import PAIRS, pretrain
from mini_undivided.support.checkpoint import read_pooler
from mini_undivided.support.errors import UserError
from mini_undivided.support.machine import Machine
from mini_undivided.tokenizer import load_tokenizer
from mini_undivided.tokens import tokenize


def test_pairs_are_of_neighbours_or_of_two_sequences(greek):
    """A pair is [CLS] A [SEP] B [SEP]; half of the B's are the sequence's own.

    The others are the same positions of the sequence before it in the batch, and are called random.
    A has at least a quarter of the sequence, B a quarter less its [SEP]s. No [SEP] is masked.
    """
    _, tokenizer, tokens = greek
    sequences = data.Sequences(tokens.train, 21, tokenizer, 0.4)
    before = np.concatenate([sequences.read(np.arange(400))] * 30)
    batch = mask_pairs(sequences, before.copy(), np.random.default_rng(0))
    counted = batch.labels != data.IGNORE_INDEX
    ids = unmasked(batch)
    cuts = 20 - batch.token_type_ids.sum(1)
    assert set(cuts.tolist()) == set(range(5, 16))
    assert abs(batch.is_random.float().mean() - 0.5) < 0.02  # of 12,000
    for i, (row, cut) in enumerate(zip(ids[:400], cuts.tolist(), strict=False)):
        source = before[i - 1 if batch.is_random[i] else i]
        assert row[cut] == sequences.sep_id and batch.token_type_ids[i, : cut + 1].sum() == 0
        assert row[:cut].tolist() == before[i, :cut].tolist()
        assert row[cut + 1 :].tolist() == source[cut + 1 :].tolist()
    assert not (batch.labels == sequences.sep_id).any() and counted.any(1).all()
    alone = [mask_pairs(sequences, before[:1].copy(), np.random.default_rng(i)) for i in range(9)]
    assert not any(batch.is_random.any() for batch in alone)


def test_pairs_are_validated_where_they_follow(greek):
    """The text is the same but for one [SEP] a sequence, and so are nearly all masks."""
    _, tokenizer, tokens = greek
    sequences = data.Sequences(tokens.train, 41, tokenizer)
    (plain,), (paired,) = (data.validation_batches(sequences, 50, mask=mask)
                           for mask in (data.Sequences.mask, PAIRS.mask_validation))
    differ = (plain.input_ids != paired.input_ids).sum(1)
    assert 1 <= differ.float().mean() < 4 and not paired.is_random.any()
    assert paired.token_type_ids.sum(1).unique().numel() > 5
    assert (plain.positions == paired.positions).float().mean() > 0.8


@torch.no_grad()
def test_logits_of_pairs_are_transformers(tmp_path, inputs):
    """PairedMaskedLM gives both logits of BertForPreTraining, those of words at the positions.

    Saved by us, the model is opened by transformers, and as a MaskedLM of ours.
    """
    reference, folder = saved_by_them(tmp_path, "BertForPreTraining")
    input_ids, _, segments = inputs
    positions = torch.tensor([[7, 3]] * B)
    batch = PairBatch(input_ids, positions, None, segments, None)
    ours, wanted = PairedMaskedLM.from_pretrained(folder), reference(
        input_ids, token_type_ids=segments)
    words, pairs = ours.both_heads(batch)
    assert_close(pairs, wanted.seq_relationship_logits)
    assert_close(words, wanted.prediction_logits[:, [7, 3]])
    assert_close(paired_logits(ours, batch), words)
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.BertForPreTraining.from_pretrained(tmp_path / "ours").eval()
    assert_close(again(input_ids, token_type_ids=segments).seq_relationship_logits, pairs)
    alone = MaskedLM.from_pretrained(tmp_path / "ours")
    assert_close(alone(input_ids, token_type_ids=segments)[:, [7, 3]], words)


def pairs_to_score(masked):
    """A batch of pairs of which the sequences have so many masked positions of 3."""
    labels = torch.randint(5, V, (B, 3)).where(
        torch.arange(3) < torch.tensor(masked)[:, None], data.IGNORE_INDEX)
    return PairBatch(torch.randint(5, V, (B, T)), torch.tensor([[1, 5, 12]] * B), labels,
                     (torch.arange(T) > 6).long().repeat(B, 1), torch.randint(0, 2, (B,)))


def test_the_loss_of_pairs_is_that_of_transformers(tmp_path):
    """Over the number of masked positions, it is the loss of BertForPreTraining.

    That is the sum of two means, if as many are masked in each sequence.
    """
    reference, folder = saved_by_them(tmp_path, "BertForPreTraining")
    batch = pairs_to_score([3] * B)
    labels = torch.full((B, T), data.IGNORE_INDEX).scatter(1, batch.positions, batch.labels)
    wanted = reference(
        batch.input_ids, token_type_ids=batch.token_type_ids, labels=labels,
        next_sentence_label=batch.is_random).loss
    loss = paired_loss(PairedMaskedLM.from_pretrained(folder), batch) / (3 * B)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_pair_counts_by_its_masked_positions():
    """So micro-batches add up to the batch, however many positions each has.

    As that of words alone, the loss is taken in float32 of whatever the model returns.
    """
    batch = pairs_to_score([3, 1, 0, 2, 3])
    words, pairs = 5 * torch.randn(B, 3, V).bfloat16(), 5 * torch.randn(B, 2).bfloat16()

    class Model:
        def both_heads(self, batch):
            return words, pairs

    def loss(words, pairs):
        names = F.cross_entropy(
            words.flatten(0, 1), batch.labels.flatten(), ignore_index=data.IGNORE_INDEX,
            reduction="sum")
        return names + F.cross_entropy(pairs, batch.is_random, reduction="none") @ torch.tensor(
            [3, 1, 0, 2, 3], dtype=pairs.dtype)

    assert paired_loss(Model(), batch).item() == pytest.approx(
        loss(words.float(), pairs.float()).item(), rel=1e-6)
    assert abs(loss(words, pairs).item() / loss(words.float(), pairs.float()).item() - 1) > 1e-5
    model = PairedMaskedLM(config()).eval()
    parts = sum(paired_loss(model, part) for part in data.split(batch, 2))
    assert parts.item() == pytest.approx(paired_loss(model, batch).item(), rel=1e-5)


def test_pairs_are_scored_without_dropout(greek):
    """Accuracy on pairs is taken in evaluation mode, without gradients, and training goes on."""
    _, tokenizer, tokens = greek
    valid_set = data.Sequences(tokens.valid, 21, tokenizer)
    model, modes = PairedMaskedLM(config(vocab_size=tokenizer.get_vocab_size())).train(), []
    both_heads = model.both_heads

    def spy(batch):
        modes.append((model.training, torch.is_grad_enabled()))
        words, _ = both_heads(batch)
        return words, torch.eye(2)[batch.is_random]  # all are known

    model.both_heads = spy
    machine = Machine(torch.device("cpu"))
    assert pair_accuracy(model, valid_set, len(valid_set), machine) == 1.0
    assert set(modes) == {(False, False)} and model.training


def test_pairs_are_learned(options, tmp_path):
    """With --next-sentence a run learns whether parts belong together, and keeps the head.

    Documents of the corpus say one word each (some pairs span two). Fine-tuning begins with the
    pooler of such a run, and a run with one sequence a batch is refused.
    """
    options = replace(options, next_sentence=True, seq_len=33, batch_tokens=33 * 16, steps=500)
    record = pretrain(options)
    tokenizer = load_tokenizer(options.out)
    tokens = tokenize(open_corpus(options.corpus), tokenizer)
    sequences = data.Sequences(tokens.train, 33, tokenizer, 0.4)
    batch = data.TrainingBatches(sequences, 200, 9, mask_pairs).batch(0)
    model = PairedMaskedLM.from_pretrained(options.out)
    with torch.no_grad():
        _, logits = model.both_heads(batch)
    assert (logits.argmax(1) == batch.is_random).float().mean() > 0.75
    assert record["result"]["pair_accuracy"] > 0.6  # of few pairs, a part of which span documents
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert torch.equal(read_pooler(options.out, model.config)["weight"], model.pooler.weight)
    with pytest.raises(UserError, match="--next-sentence takes the segments of a pair from two"):
        pretrain(replace(options, batch_tokens=33, out=str(tmp_path / "one")))
