"""What a pretraining run needs before its loop: options that fit together, text, a model, and a plan for its batches."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mini_undivided.corpus import open_corpus
from mini_undivided.data import Sequences, TrainingData, cached_tokenizer, tokenize, unigram_entropy
from mini_undivided.model import BertConfig, MaskedLM, count_parameters, flops_per_token
from mini_undivided.support import run_directory
from mini_undivided.support.errors import UserError
from mini_undivided.tokenizer import check_fits, load_tokenizer

SHORTEST = 16  # tokens in the sequences that a run begins with


def check(options, resume):
    """Raise UserError if options do not fit together, or if `out` already holds another run."""
    out = Path(options.out)
    if not resume and any((out / name).exists() for name in ("train.json", "model.safetensors")):
        raise UserError(
            f"{out} already holds a run: resume it with --resume, or choose another folder with --out"
        )
    if options.seq_len < 8:
        raise UserError(
            f"--seq-len {options.seq_len} is too short: with fewer than 8 tokens there is nothing to mask"
        )
    config = make_config(options, options.vocab_size)
    limit = config.max_position_embeddings
    if options.seq_len > limit:
        raise UserError(f"--seq-len {options.seq_len} is longer than the model's {limit} positions")


def make_config(options, vocab_size):
    """The model's config. Its dropout is BERT's, for fine-tuning; pretraining has its own (`options.dropout`)."""
    if options.init:
        return BertConfig.from_hugging_face(run_directory.resolve(options.init))
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=options.ffn_size,
        ffn_layers=options.ffn_layers,
    )


def make_model(options, tokenizer):
    """A new model, or the one of --init, with pretraining's dropout but BERT's in the config it saves."""
    config = make_config(options, tokenizer.get_vocab_size())
    check_fits(tokenizer, config.vocab_size, options.init)
    if options.init:
        kept = {} if options.ffn_layers is None else {"ffn_layers": options.ffn_layers}
        model = MaskedLM.from_pretrained(options.init, **kept)
    else:
        model = MaskedLM(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = options.dropout
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = options.dropout
    return model


def prepare_text(options):
    """Find the corpus, load or train the tokenizer, write the token files → Corpus, Tokenizer, Tokens."""
    corpus = open_corpus(options.corpus)
    if options.init or options.tokenizer:
        tokenizer = load_tokenizer(options.init or options.tokenizer, options.cased)
    else:
        tokenizer = cached_tokenizer(corpus, options.vocab_size, options.cased)
    return corpus, tokenizer, tokenize(corpus, tokenizer)


def check_sequences(tokens, seq_len, tokenizer):
    """The validation sequences. Raises UserError if the training or the validation part has none."""
    train, valid = (Sequences(part, seq_len, tokenizer) for part in (tokens.train, tokens.valid))
    for name, part in (("training", train), ("validation", valid)):
        if len(part) == 0:
            raise UserError(
                f"the corpus is too small for its {name} part: of its {tokens.documents:,} documents "
                f"and {tokens.count:,} tokens, that part needs {seq_len - 2} tokens at least; give "
                "more text or a shorter --seq-len"
            )
    return valid


@dataclass(frozen=True)
class Plan:
    """How the batch of a step is split: `size` sequences, `micro` at once in each process, `accumulation` times."""

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
    """The run's stages: --short-first of it with 16 tokens a sequence, which are then doubled up to --seq-len.

    Attention begins as a mean over the whole sequence. The shorter that is, the more of each neighbour
    is in it, and the sooner the model leaves the plateau where it only knows how common words are. Long
    sequences at the end teach the later positions. (For GPT: Li et al. 2021, 2108.06084.)
    """
    lengths = [SHORTEST << i for i in range(10) if SHORTEST << i < options.seq_len]
    lengths = lengths if options.short_first else []
    count, rest = len(lengths), 1 - options.short_first
    stages = []
    for i, length in enumerate([*lengths, options.seq_len]):
        sequences = Sequences(tokens, length, tokenizer)
        plan = make_plan(options, machine, config, sequences)
        end = options.short_first + rest * i / count if count else 1.0
        stages.append(Stage(end, length, plan, TrainingData(sequences, plan.size, options.seed)))
    return stages


def make_plan(options, machine, config, sequences):
    """Derive the split from --batch-tokens and --micro-batch. Raises UserError if there is none."""
    length = sequences.seq_len
    local = options.batch_tokens // length // machine.world
    if local == 0:
        raise UserError(
            f"--batch-tokens {options.batch_tokens} is less than one sequence of {length} tokens in "
            f"each of {machine.world} process(es)"
        )
    at_once = (options.micro_batch or 0) * options.seq_len or (16384 if machine.on_gpu else 4096)
    fitting = (m for m in range(1, local + 1) if m == 1 or m * length <= at_once)
    micro = max(m for m in fitting if local % m == 0)
    if options.micro_batch and length == options.seq_len and micro != options.micro_batch:
        raise UserError(
            f"--micro-batch {options.micro_batch} does not divide the {local} sequences that "
            f"{options.batch_tokens} tokens a batch are in each process"
        )
    flops = flops_per_token(config, length, sequences.places)
    return Plan(local * machine.world, micro, local // micro, flops)


def make_record(options, machine, corpus, tokens, config, stages, valid_set):
    """What train.json says of a run that begins."""
    return {
        "status": "running",
        "options": asdict(options),
        "machine": {"device": str(machine), "matmul": machine.matmul},
        "corpus": {
            "names": list(corpus.names),
            "fingerprint": corpus.fingerprint,
            "documents": tokens.documents,
            "words": tokens.words,
            "tokens": tokens.count,
        },
        "unigram_entropy": unigram_entropy(tokens.valid, valid_set.is_special),
        "parameters": count_parameters(config),
        "flops_per_token": stages[-1].plan.flops,
        "versions": run_directory.versions(),
    }
