"""What a pretraining run needs before its loop: checked options, text, a model, a plan."""

from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from mini_undivided.corpus import open_corpus
from mini_undivided.data import Sequences, TrainingData, context_free_baseline
from mini_undivided.model import (
    BertConfig,
    MaskedLM,
    PairedMaskedLM,
    count_parameters,
    flops_per_token,
)
from mini_undivided.support import run_directory
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import (
    check_writable,
    is_whole,
    read_json,
    sealed,
    write_json,
)
from mini_undivided.support.options import SHORTEST
from mini_undivided.support.overlap import shared_words
from mini_undivided.support.token_files import cached_tokenizer, tokenize
from mini_undivided.tokenizer import (
    check_fits,
    load_tokenizer,
    opens_word,
    save_tokenizer,
)


def check(options, resume):
    """Raise UserError if options do not fit together, or if `out` cannot be written or is taken."""
    if not options.out:
        raise UserError("the run directory has no name: give one with --out")
    if [options.steps, options.flops, options.minutes].count(None) != 2:
        raise UserError("a run has one length: give one of steps, flops and minutes")
    check_writable(options.out)
    check_free(options.out, resume)
    if resume and not (Path(options.out) / "training_state.pt").exists():
        raise UserError(f"{options.out} has no checkpoint yet: start it again without --resume")
    if options.init:
        run_directory.check_finished(options.init)
    length = options.seq_len
    limit = make_config(options, options.vocab_size).max_position_embeddings
    if length > limit:
        raise UserError(f"--seq-len {length} is longer than the model's {limit} positions")


def check_free(out, resume):
    """Raise UserError if a new run would destroy another one."""
    if not resume and run_directory.has_checkpoint(out):
        advice = "resume it with --resume, or choose another folder with --out"
        raise UserError(f"{out} already holds a run: {advice}")


@contextmanager
def claimed(out, resume, machine):
    """Context: the run directory is this run's alone. UserError if it is taken."""
    claim = machine.in_first(lambda: run_directory.claim(out))
    try:
        # once more: another process may have finished there
        machine.in_first(lambda: check_free(out, resume))
        yield
    finally:
        run_directory.release(claim)


def begin(record, tokenizer, resume):
    """Write what a run directory holds before training; the log of a new run is a new one."""
    out = Path(record["options"]["out"])
    if not resume:
        save_tokenizer(tokenizer, out)
        (out / "log.jsonl").unlink(missing_ok=True)
    write_json(out / "train.json", record)


def make_config(options, vocab_size):
    """The model's config; its dropout is for fine-tuning, `options.dropout` for pretraining."""
    if options.init:
        return BertConfig.from_hugging_face(run_directory.resolve(options.init))
    return BertConfig(
        vocab_size=vocab_size, hidden_size=options.hidden_size, num_hidden_layers=options.layers,
        num_attention_heads=options.heads, intermediate_size=options.ffn_size,
        ffn_layers=options.ffn_layers, initializer_range=options.init_std)


def model_class(options):
    """What is trained: a model with a head for pairs or without."""
    return PairedMaskedLM if options.next_sentence else MaskedLM


def make_model(options, tokenizer):
    """A new model, or that of --init, with pretraining's dropout (but BERT's in its config)."""
    config = make_config(options, tokenizer.get_vocab_size())
    check_fits(tokenizer, config.vocab_size, options.init)
    if options.next_sentence:
        config.check_pairs(options.init)
    if options.init:
        kept = {} if options.ffn_layers is None else {"ffn_layers": options.ffn_layers}
        model = model_class(options).from_pretrained(options.init, **kept)
    else:
        model = model_class(options)(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = options.dropout
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = options.dropout
    return model


def prepare_text(options, resume):
    """Find corpus, load or train tokenizer, write token files → Corpus, Tokenizer, Tokens.

    Raises UserError if the text or the tokenizer of a resumed run has changed.
    """
    record = run_directory.read_record(options.out) if resume else None
    corpus = open_corpus(options.corpus, record and record["corpus"]["fingerprint"])
    if record:
        tokenizer = load_tokenizer(options.out)
    elif options.init or options.tokenizer:
        tokenizer = load_tokenizer(options.init or options.tokenizer, options.cased)
    else:
        tokenizer = cached_tokenizer(corpus, options.vocab_size, options.cased)
    if record and corpus.fingerprint != record["corpus"]["fingerprint"]:
        raise UserError(f"the text of {' '.join(options.corpus)} is not that which the run in "
                        f"{options.out} was started with: put it back, or start a new run")
    tokens = tokenize(corpus, tokenizer)
    saved = record["corpus"].get("tokens", tokens.count) if record else tokens.count
    if saved != tokens.count:
        raise UserError(f"the text of the run in {options.out} now has {tokens.count:,} tokens "
                        f"instead of {saved:,}: its tokenizer has changed; start a new run")
    overlap(tokens, tokenizer)  # here, since processes prepare the text in turn
    return corpus, tokenizer, tokens


def overlap(tokens, tokenizer):
    """The share of the held-out words in runs of 13 that training has too; once, then cached."""
    path = tokens.folder / "overlap.json"
    if not is_whole(path):
        sep = tokenizer.token_to_id("[SEP]")
        shared = shared_words(tokens.train, tokens.valid, opens_word(tokenizer), sep)
        with sealed(path) as temporary:
            write_json(temporary, {"shared": float(shared.mean()) if len(shared) else 0.0})
    return read_json(path)["shared"]


def check_sequences(tokens, seq_len, tokenizer):
    """The validation sequences. UserError if the training or the validation part has none."""
    train, valid = (Sequences(part, seq_len, tokenizer) for part in (tokens.train, tokens.valid))
    for name, part in (("training", train), ("validation", valid)):
        if len(part) == 0:
            raise UserError(
                f"the corpus is too small for its {name} part: of its {tokens.documents:,} "
                f"documents and {tokens.count:,} tokens, that part needs {seq_len - 2} tokens at "
                "least; give more text or a shorter --seq-len")
    words = (~valid.is_special[valid.rows]).sum(axis=1)  # (N,)
    if np.rint(valid.mask_share * words).max() == 0:
        raise UserError("the validation part has no sequence with words enough to hide one: "
                        "give longer documents or a longer --seq-len")
    return valid


@dataclass(frozen=True)
class Plan:
    """A step's batch: `size` sequences, `micro` at once in each process, `accumulation` times."""

    size: int
    micro: int
    accumulation: int
    flops: float  # a token


@dataclass(frozen=True)
class Stage:
    """A part of the run, up to the share `end` of it, with sequences of one length."""

    end: float
    length: int
    plan: Plan
    data: TrainingData


def make_stages(options, machine, config, tokens, tokenizer):
    """The run's stages: --short-first of it with 16 tokens a sequence, then doubled to --seq-len.

    Attention begins as a mean over the whole sequence. The shorter that is, the more of each
    neighbour is in it, and the sooner the model leaves the plateau where it only knows how common
    words are. Long ones at the end teach later positions. (For GPT: Li et al. 2021, 2108.06084.)
    """
    lengths = [SHORTEST << i for i in range(10) if SHORTEST << i < options.seq_len]
    lengths = lengths if options.short_first else []
    count, rest = len(lengths), 1 - options.short_first
    stages = []
    for i, length in enumerate([*lengths, options.seq_len]):
        sequences = Sequences(tokens, length, tokenizer, options.mask_share)
        if sequences.num_masked == 0:
            raise UserError(f"--mask-share {options.mask_share:g} hides no token of a sequence of "
                            f"{length}, with which the run begins or ends: give a larger one")
        plan = make_plan(options, machine, config, sequences)
        if options.next_sentence and plan.size == 1:
            raise UserError("--next-sentence takes the parts of a pair from two sequences, but a "
                            f"batch has one of {length} tokens: give more --batch-tokens")
        end = options.short_first + rest * i / count if count else 1.0
        data = TrainingData(sequences, plan.size, options.seed, options.next_sentence)
        stages.append(Stage(end, length, plan, data))
    return stages


def make_plan(options, machine, config, sequences):
    """Derive the split from --batch-tokens and --micro-batch. Raises UserError if there is none."""
    length = sequences.seq_len
    local = options.batch_tokens // length // machine.world
    if local == 0:
        raise UserError(f"--batch-tokens {options.batch_tokens} is less than one sequence of "
                        f"{length} tokens in each of {machine.world} process(es)")
    at_once = (options.micro_batch or 0) * options.seq_len or (16384 if machine.on_gpu else 4096)
    fitting = (m for m in range(1, local + 1) if m == 1 or m * length <= at_once)
    micro = max(m for m in fitting if local % m == 0)
    if options.micro_batch and length == options.seq_len and micro != options.micro_batch:
        raise UserError(f"--micro-batch {options.micro_batch} does not divide the {local} "
                        f"sequences that {options.batch_tokens} tokens a batch are in each process")
    flops = flops_per_token(config, length, sequences.num_masked)
    return Plan(local * machine.world, micro, local // micro, flops)


def make_record(options, machine, corpus, tokens, tokenizer, config, stages, valid_set):
    """What train.json says of a run that begins."""
    text = {"names": list(corpus.names), "fingerprint": corpus.fingerprint,
            "documents": tokens.documents, "pieces": tokens.pieces, "held_out": tokens.held_out,
            "held_out_unit": "documents" if corpus.holds_out_documents else "pieces",
            "overlap": overlap(tokens, tokenizer), "words": tokens.words, "tokens": tokens.count}
    return {"status": "running", "options": asdict(options),
            "machine": {"device": str(machine), "matmul": machine.matmul}, "corpus": text,
            "baseline": context_free_baseline(tokens.valid, valid_set.is_special),
            "parameters": count_parameters(config, model_class(options)),
            "flops_per_token": stages[-1].plan.flops,
            "versions": run_directory.versions()}
