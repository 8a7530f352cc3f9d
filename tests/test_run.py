"""From options to a run: what does not fit is refused before training, --init brings weights."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from helpers import losses, write_corpus

from mini_undivided.run import batch_sizes, pretrain
from mini_undivided.support.checkpoint import read_weights
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json, write_json
from mini_undivided.support.options import PretrainOptions, resume_options
from mini_undivided.tokenizer import load_tokenizer, save_tokenizer


@pytest.mark.parametrize(("change", "sentence"), [
    ({"seq_len": 500, "batch_tokens": 500}, "too small for its validation split"),
    ({"steps": None}, "a run has one length"), ({"minutes": 1.0}, "a run has one length")])
def test_what_does_not_fit_is_refused_in_one_sentence(options, change, sentence):
    """Options that do not fit together are a UserError that says so; nothing is left behind.

    test_wrong_calls.py has those that can be typed.
    """
    with pytest.raises(UserError, match=sentence):
        pretrain(replace(options, **change))
    assert not Path(options.out).exists()


def test_held_out_text_without_words_to_mask_is_refused(options, tmp_path):
    """Sequences so full of [SEP] that 15 % of their words are none cannot validate a run."""
    corpus = [write_corpus(tmp_path, "one.jsonl", [f"ant{i % 9}" for i in range(900)])]
    with pytest.raises(UserError, match="no sequence with words enough to mask one"):
        pretrain(replace(options, corpus=corpus, seq_len=8, batch_tokens=64))


def test_a_run_is_not_resumed_by_another_recipe(options):
    """--resume by another version is refused."""
    pretrain(replace(options, steps=1))
    record = read_json(Path(options.out) / "train.json")
    assert resume_options({"out": options.out}).out == options.out
    for version in ("0.2.0", None):
        record["versions"]["mini_undivided"] = version
        write_json(Path(options.out) / "train.json", record)
        with pytest.raises(UserError, match=f"version {version} .*start a new run with --init"):
            resume_options({"out": options.out})


@pytest.mark.parametrize(("tokens_at_once", "chosen", "processes", "sizes"), [
    (4096, None, 1, (60, 60)), (19 * 40, None, 1, (60, 30)), (19 * 40, None, 2, (60, 30)),
    (7, None, 1, (60, 1)), (19 * 40, 12, 1, (60, 12)), (19 * 13, None, 4, (60, 5))])
def test_a_micro_batch_is_what_fits_and_divides_the_batch(
        tokens_at_once, chosen, processes, sizes):
    """The largest number of sequences that fits in memory and divides those of a process."""
    options = PretrainOptions(seq_len=19, batch_tokens=19 * 60 + 5, micro_batch=chosen)
    machine = SimpleNamespace(world_size=processes, tokens_at_once=lambda config: tokens_at_once)
    assert batch_sizes(options, machine, None) == sizes


def test_init_starts_from_a_run_with_its_ffns_kept_or_cut(options, tmp_path):
    """With --init, the first loss is the old run's last, far below ln V.

    FFNs can be cut out of the weights on the way.
    """
    pretrain(replace(options, steps=100))
    old = losses(options.out)[100]
    further = replace(options, init=options.out, ffn_layers=None, steps=3, lr=1e-9, muon_lr=1e-9,
                      out=str(tmp_path / "more"))
    pretrain(further)
    assert abs(losses(further.out)[1] - old) < 0.5 < losses(options.out)[1] - old
    cut = replace(further, ffn_layers=[], out=str(tmp_path / "cut"))
    pretrain(cut)
    for out, has_ffn in ((cut.out, False), (further.out, True)):
        assert any("intermediate" in name for name in read_weights(out)) == has_ffn
    name = "bert.encoder.layer.1.attention.self.query.weight"
    torch.testing.assert_close(
        read_weights(cut.out)[name], read_weights(options.out)[name], atol=1e-6, rtol=1e-5)


def test_init_from_hugging_face(options, tmp_path):
    """--init starts from a folder that `transformers` wrote: its weights, and its tokenizer."""
    pretrain(replace(options, steps=1))
    tokenizer, folder = load_tokenizer(options.out), tmp_path / "theirs"
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=24, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=41, max_position_embeddings=37))
    theirs.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    start = replace(options, init=str(folder), ffn_layers=None, steps=1, lr=1e-12, muon_lr=1e-12,
                    out=str(tmp_path / "ours"))
    pretrain(start)
    for name in ("encoder.layer.0.attention.self.query", "embeddings.position_embeddings"):
        torch.testing.assert_close(read_weights(start.out)[f"bert.{name}.weight"],
                                   theirs.state_dict()[f"bert.{name}.weight"])
    with pytest.raises(UserError, match="--seq-len 38 is longer than the model's 37 positions"):
        pretrain(replace(start, seq_len=38, out=str(tmp_path / "long")))
