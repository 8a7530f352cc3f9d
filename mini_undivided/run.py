"""From options to a run, read from top to bottom: `pretrain` is what train.py calls.

Options are checked; text, tokenizer and token files are found or made; a model, its optimizers and
its batches are built; the loop trains; results are written.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mini_undivided import pairs
from mini_undivided.costs import count_parameters, flops_per_token
from mini_undivided.data import Sequences, TrainingBatches, context_free_baseline
from mini_undivided.model import BertConfig, MaskedLM
from mini_undivided.optim import adamw, muon_and_adamw
from mini_undivided.pretrain import (
    FULL_TOKENS,
    State,
    WithLoss,
    masked_logits,
    masked_loss,
    train,
    validate,
)
from mini_undivided.support import run_directory
from mini_undivided.support.checkpoint import load_trainer
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import check_writable, write_json
from mini_undivided.support.machine import Machine
from mini_undivided.support.options import PretrainOptions
from mini_undivided.tokenizer import check_fits, save_tokenizer
from mini_undivided.tokens import prepare_text


class Objective(NamedTuple):
    """What is trained: a class of models, its loss and logits, and how batches are made."""

    model: type
    loss: Callable
    logits: Callable
    mask: Callable
    mask_validation: Callable


MASKED_LM = Objective(MaskedLM, masked_loss, masked_logits, Sequences.mask, Sequences.mask)
# In validation no second segment is random, so that losses compare with those of other runs.
PAIRS = Objective(pairs.PairedMaskedLM, pairs.paired_loss, pairs.paired_logits, pairs.mask_pairs,
                  partial(pairs.mask_pairs, random_ratio=0))


@dataclass
class Run:
    """What the loop works with."""

    options: PretrainOptions
    machine: Machine
    objective: Objective
    model: MaskedLM
    with_loss: torch.nn.Module  # model and loss, compiled and under DDP where that is due
    optimizers: list
    batches: TrainingBatches
    micro_batch: int  # sequences at once in this process
    flops_per_token: float
    steps: int | None  # None: the clock ends the run
    valid_set: Sequences
    state: State = field(default_factory=State)
    losses: list = field(default_factory=list)  # (loss, masked positions) of steps not yet logged
    since: float = 0.0  # when the first of those steps began
    started: float | None = None  # the time at state.seconds = 0; None until a first step is done

    @property
    def out(self):
        """The run directory."""
        return Path(self.options.out)

    @property
    def batch_tokens(self):
        """The tokens of a step, in all processes."""
        return self.batches.size * self.options.seq_len


def pretrain(options, resume=False, announce=None):
    """Pretrain as PretrainOptions say → the dictionary that train.json holds.

    announce: called as announce(record, run, tokenizer) in the first process before training
    begins. Raises UserError.
    """
    width = check(options, resume).hidden_size
    machine = Machine.start(options.device, options.dtype, width)
    torch.manual_seed(options.seed)
    corpus, tokenizer, tokens = machine.main_first(lambda: prepare_text(options, resume))
    if len(set(machine.gather_objects(tokens.folder.name))) > 1:  # named by what is in it
        raise UserError(f"the machines do not have the same text: {' '.join(options.corpus)}")
    run = make_run(options, machine, tokens, tokenizer)
    record = make_record(run, corpus, tokens, tokenizer)
    with run_directory.claimed(options.out, resume, machine):  # nobody else writes there now
        if resume:
            load_trainer(run)
        if machine.is_main:
            if announce:
                announce(record, run, tokenizer)
            if not resume:
                save_tokenizer(tokenizer, run.out)
                (run.out / "log.jsonl").unlink(missing_ok=True)
            write_json(run.out / "train.json", record)
        record["status"] = train(run)
        if record["status"] == "finished":
            record["result"] = {**result(run), "baseline": record["baseline"]}
        if machine.is_main:
            write_json(run.out / "train.json", record)
    del run  # DDP has to go before the process group does
    machine.close()
    return record


# Options.

def check(options, resume):
    """Check options before any work → the model's config, its vocabulary not known yet.

    Raises UserError if options do not fit together, or if `out` cannot be written or is taken.
    """
    if not options.out:
        raise UserError("the run directory has no name: give one with --out")
    if [options.steps, options.flops, options.minutes].count(None) != 2:
        raise UserError("a run has one length: give one of steps, flops and minutes")
    check_writable(options.out)
    run_directory.check_free(options.out, resume)
    if resume and not (Path(options.out) / "training_state.pt").exists():
        raise UserError(f"{options.out} has no checkpoint yet: start it again without --resume")
    if options.init:
        run_directory.check_finished(options.init)
    config = make_config(options, options.vocab_size)
    limit = config.max_position_embeddings
    if options.seq_len > limit:
        raise UserError(f"--seq-len {options.seq_len} is longer than the model's {limit} positions")
    if options.next_sentence:
        config.check_pairs(options.init)
    return config


# Model, optimizers, batches.

def check_sequences(tokens, seq_len, tokenizer):
    """The validation sequences. UserError if the training or the validation split has none."""
    train, valid = (Sequences(split, seq_len, tokenizer) for split in (tokens.train, tokens.valid))
    for name, split in (("training", train), ("validation", valid)):
        if len(split) == 0:
            raise UserError(
                f"the corpus is too small for its {name} split: of its {tokens.documents:,} "
                f"documents and {tokens.count:,} tokens, it needs {seq_len - 2} tokens at least; "
                "give more text or a shorter --seq-len")
    words = (~valid.is_special[valid.rows]).sum(axis=1)  # (N,)
    if np.rint(valid.mlm_probability * words).max() == 0:
        raise UserError("the validation split has no sequence with words enough to mask one: "
                        "give longer documents or a longer --seq-len")
    return valid


def make_run(options, machine, text, tokenizer):
    """Everything that the loop works with → Run."""
    valid_set = check_sequences(text, options.seq_len, tokenizer)
    objective = PAIRS if options.next_sentence else MASKED_LM
    model = make_model(options, objective, tokenizer).to(machine.device)
    if options.optimizer == "muon":
        optimizers = muon_and_adamw(model, options.muon_lr, options.lr, machine.quick_dtype)
    else:
        optimizers = [adamw(model.parameters(), options.lr)]
    compiled = machine.compiles if options.compile is None else options.compile
    with_loss = WithLoss(model, objective.loss)
    with_loss = machine.distribute(machine.compile(with_loss) if compiled else with_loss)
    if machine.world_size > 1:
        torch.manual_seed(options.seed + machine.rank)  # from here on for dropout alone

    sequences = Sequences(text.train, options.seq_len, tokenizer, options.mlm_probability)
    if sequences.num_masked == 0:
        raise UserError(f"--mlm-probability {options.mlm_probability:g} masks no token of a "
                        f"sequence of {options.seq_len}: give a larger one")
    size, micro_batch = batch_sizes(options, machine, model.config)
    if options.next_sentence and size == 1:
        raise UserError("--next-sentence takes the segments of a pair from two sequences, but a "
                        f"batch has one of {options.seq_len} tokens: give more --batch-tokens")
    batches = TrainingBatches(sequences, size, options.seed, objective.mask)
    flops = flops_per_token(model.config, options.seq_len, sequences.num_masked)
    steps = options.steps
    if options.flops:
        steps = options.flops / (flops * size * options.seq_len)
        steps = max(1, math.ceil(round(steps, 6)))  # a rounding error is no step
    return Run(options, machine, objective, model, with_loss, optimizers, batches, micro_batch,
               flops, steps, valid_set)


def make_config(options, vocab_size):
    """The model's config; its dropout is for fine-tuning, `options.dropout` for pretraining."""
    if options.init:
        return BertConfig.from_hugging_face(run_directory.resolve(options.init))
    return BertConfig(
        vocab_size=vocab_size, hidden_size=options.hidden_size, num_hidden_layers=options.layers,
        num_attention_heads=options.heads, intermediate_size=options.ffn_size,
        ffn_layers=options.ffn_layers)


def make_model(options, objective, tokenizer):
    """A new model, or that of --init, with pretraining's dropout (but BERT's in its config)."""
    config = make_config(options, tokenizer.get_vocab_size())
    check_fits(tokenizer, config.vocab_size, options.init)
    if options.init:
        kept = {} if options.ffn_layers is None else {"ffn_layers": options.ffn_layers}
        model = objective.model.from_pretrained(options.init, **kept)
    else:
        model = objective.model(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = options.dropout
    return model


def batch_sizes(options, machine, config):
    """Sequences in a step of all processes, and at once in each, from --batch-tokens → both.

    Raises UserError if there are none.
    """
    length = options.seq_len
    local = options.batch_tokens // length // machine.world_size
    if local == 0:
        raise UserError(f"--batch-tokens {options.batch_tokens} is less than one sequence of "
                        f"{length} tokens in each of {machine.world_size} process(es)")
    at_once = options.micro_batch or max(1, machine.tokens_at_once(config) // length)
    micro_batch = max(m for m in range(1, min(local, at_once) + 1) if local % m == 0)
    if options.micro_batch and micro_batch != options.micro_batch:
        raise UserError(f"--micro-batch {options.micro_batch} does not divide the {local} "
                        f"sequences that {options.batch_tokens} tokens a batch are in each process")
    return local * machine.world_size, micro_batch


# What is written.

def make_record(run, corpus, tokens, tokenizer):
    """What train.json says of a run that begins."""
    text = {"names": list(corpus.names), "fingerprint": corpus.fingerprint,
            "documents": tokens.documents, "pieces": tokens.pieces, "held_out": tokens.held_out,
            "held_out_unit": "documents" if corpus.holds_out_documents else "pieces",
            "overlap": tokens.overlap, "words": tokens.words, "tokens": tokens.count}
    return {"status": "running", "options": asdict(run.options),
            "machine": {"device": str(run.machine)}, "corpus": text,
            "baseline": context_free_baseline(tokens.valid, run.valid_set.is_special),
            "parameters": count_parameters(run.model.config, run.objective.model),
            "flops_per_token": run.flops_per_token, "versions": run_directory.versions()}


def result(run):
    """Validate on FULL_TOKENS at most → the figures of a finished run, for train.json."""
    state, scores = run.state, validate(run, FULL_TOKENS)
    tokens = state.step * run.batch_tokens
    if run.options.next_sentence:
        limit = FULL_TOKENS // run.options.seq_len
        scores["pair_accuracy"] = pairs.pair_accuracy(run.model, run.valid_set, limit, run.machine)
    timed_tokens = state.timed_steps * run.batch_tokens
    return {"step": state.step, "tokens": tokens, "flops": tokens * run.flops_per_token, **scores,
            "tokens_per_second": timed_tokens / max(state.training_seconds, 1e-9),
            "seconds": state.seconds, "peak_memory_bytes": run.machine.peak_memory()}
