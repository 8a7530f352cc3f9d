"""What a pretraining run shows: its plan, what it learned, and the words that fill a [MASK].

Letters: M masked positions in a sentence, V words in the vocabulary.
"""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from mini_undivided.corpus import held_out, open_corpus, sentences
from mini_undivided.costs import count_parameters
from mini_undivided.metrics import mean_and_std
from mini_undivided.model import MaskedLM
from mini_undivided.report.figures import plot_losses
from mini_undivided.report.replicates import OWN
from mini_undivided.report.tables import beside, count, plus_minus, wrap
from mini_undivided.run import pretrain
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json, remove_temporaries
from mini_undivided.support.launcher import launcher, say
from mini_undivided.support.options import (
    MAY_CHANGE,
    PretrainOptions,
    resume_options,
    train_options,
)
from mini_undivided.support.run_directory import has_checkpoint, read_record
from mini_undivided.tokenizer import (
    check_fits,
    is_cased,
    load_tokenizer,
    same_tokenizer,
    special_ids,
)

DEFAULT_RUNS = Path(__file__).parent / "default_runs.json"  # made by docs/study.py


def train(options, resume=False):
    """Pretrain, print plan and results, and draw loss.png → whether the run finished."""

    def announce(record, run, tokenizer):
        print(describe(record, run, tokenizer), flush=True)

    record = read_record(options.out) if resume else {}
    if record.get("status") == "finished":
        say(f"{options.out} is finished; to train it further, start a new run with --init")
        remove_temporaries(options.out)  # of a kill while loss.png was drawn
        record["options"]["out"] = options.out  # where it is now
    else:
        record = pretrain(options, resume, announce)
    if launcher().rank == 0:
        plot_losses(record, usual_losses(record["options"]))
        print(ending(record))
    return record["status"] == "finished"


def differences(found, wanted):
    """Yield how a run that is there was trained otherwise than is wanted, as text.

    Its options may differ in what replicates may differ in, its text and tokenizer not at all.
    """
    record = read_record(found.out)
    for name, value in asdict(wanted).items():
        # `found` has the dtype that is typed, where a resumed run may change it
        shown = record["options"].get(name, getattr(found, name))
        if name not in OWN and value != shown:
            yield f"was started with {name} {shown}, not {value}"
    if record["corpus"]["fingerprint"] != open_corpus(wanted.corpus).fingerprint:
        yield f"was trained on another text than {' '.join(wanted.corpus)} is now"
    source = wanted.tokenizer or wanted.init
    if source and not same_tokenizer(load_tokenizer(found.out),
                                     load_tokenizer(source, wanted.cased)):
        yield f"was trained with another tokenizer than that of {source} now"


def usual_losses(options):
    """The validation losses of default runs, or None if the options are not the default's.

    Seed and device may differ; there are losses with all FFNs and without any.
    """
    default = asdict(PretrainOptions.preset("laptop"))
    free = {"ffn_layers", "seed", "out", *MAY_CHANGE}
    kept = options.get("ffn_layers")
    if any(options.get(name) != default[name] for name in default.keys() - free) or kept:
        return None
    return read_json(DEFAULT_RUNS).get("full" if kept is None else "noffn")


def train_seeds(typed):
    """Train replicates, seeds 0 to N - 1, as train.py's options say → whether all are finished."""
    if launcher().world_size > 1:  # a process group cannot be joined twice
        raise UserError("--seeds does not work under torchrun: start each seed with --seed")
    number, losses = typed["seeds"], []
    for seed in range(number):
        own = {**typed, "seed": seed}
        del own["seeds"]
        if seed and "out" in typed:
            own["out"] = f"{Path(typed['out'])}-seed{seed}"
        options = train_options(own)
        out = own["out"] = options.out
        resume = has_checkpoint(out)
        if resume:
            wanted = options
            options = resume_options({name: own[name] for name in MAY_CHANGE if name in own})
            if difference := next(differences(options, wanted), None):
                raise UserError(f"{out} {difference}, and is no replicate of these options: choose "
                                "another folder with --out, or give the same options")
        if not resume or read_record(out)["status"] != "finished":
            say(f"\nrun {seed + 1} of {number}, seed {seed}: {out}\n")
            if not train(options, resume):
                return False
        losses.append(read_record(out)["result"]["validation_loss"])
    loss = plus_minus(**mean_and_std(losses), digits=3)
    say(f"\n{count(number, 'seed')}: validation loss {loss} nats")
    return True


def describe(record, run, tokenizer):
    """What a run is going to do, for people, as lines of text."""
    options, corpus, config = record["options"], record["corpus"], run.model.config
    size, at_once, processes = run.batches.size, run.micro_batch, run.machine.world_size
    whole = count_parameters(replace(config, ffn_layers=None), type(run.model))
    more = whole - record["parameters"]
    layers, kept, seq_len = config.num_hidden_layers, config.ffn_layers, options["seq_len"]
    if not kept:
        ffns = "no FFN"
    elif len(kept) == layers:
        ffns = "an FFN in every layer"
    else:
        ffns = f"FFNs in layers {', '.join(map(str, kept))}"
    parameters = f"{record['parameters']:,} parameters"
    if more:
        share = more / record["parameters"]
        parameters += f"; an FFN in every layer would add {more:,} (+{share:.0%})"
    length = count(options["steps"] or 0, "step")
    if not options["steps"]:
        flops, minutes = options["flops"], options["minutes"]
        length = f"{flops:.3g} FLOPs" if flops else f"{minutes:g} minutes"
    optimizer = f"AdamW (peak learning rate {options['lr']:g})"
    if options["optimizer"] == "muon":
        optimizer = ("Muon for the hidden weight matrices (peak learning rate "
                     f"{options['muon_lr']:g}), {optimizer} for the rest")
    pairs = "sequences are pairs, half of them random, " if options["next_sentence"] else ""
    held_out = count(corpus["held_out"], "whole document")
    if corpus["held_out_unit"] != "documents":
        held_out = f"{corpus['held_out']:,} of {corpus['pieces']:,} pieces, which share their " \
                   "documents"
    lines = {
        "corpus": f"{' '.join(corpus['names'])}: {count(corpus['documents'], 'document')}, "
                  f"{corpus['words']:,} words, {corpus['tokens']:,} tokens",
        "held out": held_out,
        "overlap": f"{corpus['overlap']:.1%} of the held-out words are in runs of 13 that training "
                   "has",
        "tokenizer": f"WordPiece, {'cased' if is_cased(tokenizer) else 'uncased'}, "
                     f"{tokenizer.get_vocab_size():,} entries",
        "model": f"{count(layers, 'layer')}, {config.hidden_size} wide, "
                 f"{count(config.num_attention_heads, 'head')}, {ffns}: {parameters}",
        "compute": f"{run.flops_per_token / 1e6:,.2f} million FLOPs per token, forward and "
                   "backward",
        "batch": f"{size * seq_len:,} tokens = {count(size, 'sequence')} of {seq_len} = "
                 f"{at_once} at once × {size // at_once // processes} accumulated × "
                 f"{count(processes, 'process', 'processes')}",
        "training": f"{length}, {options['mlm_probability']:.0%} of the tokens masked, {pairs}"
                    f"dropout {options['dropout']:g}, seed {options['seed']}",
        "optimizer": optimizer,
        "device": str(run.machine)}
    return "\n".join(wrap(f"{name:12}{text}", 12) for name, text in lines.items())


def ending(record):
    """How a run ended, and if it finished, what it learned, as lines of text."""
    out = record["options"]["out"]
    if record["status"] != "finished":
        return f"interrupted and saved; resume it with: python train.py --resume --out {out}"
    result, baseline = record["result"], record.get("baseline")
    lines = [f"validation loss {result['validation_loss']:.3f} nats, "
             f"masked accuracy {result['validation_accuracy']:.1%}"]
    if "pair_accuracy" in result:
        right = f"{result['pair_accuracy']:.1%} are classified correctly"
        lines.append(f"of the pairs, half of them random, {right}")
    if baseline:
        gap = beside(result["validation_loss"], baseline["loss"])
        lines[0] += f", at [MASK] alone {result['accuracy_at_mask']:.1%}"
        lines.append(f"without context the best model has {baseline['loss']:.3f} and "
                     f"{baseline['accuracy']:.1%}, at [MASK] {baseline['accuracy_at_mask']:.1%}: "
                     f"this one is {gap} it")
    peak = result["peak_memory_bytes"]
    memory = f", peak memory {peak / 1e6:,.0f} MB" if peak else ""
    lines += [f"{result['tokens']:,} tokens in {result['seconds']:.0f} s, "
              f"{result['tokens_per_second']:,.0f} tokens/s{memory}",
              f"written to {out}: model.safetensors, loss.png and more"]
    return "\n".join([*(wrap(line, 2) for line in lines), show_fills(out)])


@torch.inference_mode()
def fill(model, tokenizer, sentence, top=5):
    """The likeliest words for each [MASK] of a sentence → for each `top` (word, probability).

    Raises UserError if there is no [MASK], or if the sentence is longer than the model's positions.
    """
    encoding = tokenizer.encode(sentence)
    masked = [i for i, token in enumerate(encoding.tokens) if token == "[MASK]"]
    if not masked:
        raise UserError(f'there is no [MASK] in "{sentence}"; '
                        "write one for each word to be filled in")
    model.eval()
    device = next(model.parameters()).device
    ids, positions = (torch.tensor([row], device=device) for row in (encoding.ids, masked))
    logits = model(ids, positions=positions)[0]  # (M, V)
    logits = logits[:, : tokenizer.get_vocab_size()]  # a model may have room for more words
    logits[:, special_ids(tokenizer)] = float("-inf")
    best = logits.softmax(-1).topk(min(top, logits.size(-1)))
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[(tokenizer.id_to_token(i), p) for i, p in zip(*row, strict=True)] for row in rows]


def fill_text(run, sentence):
    """The likeliest words for each [MASK] of a sentence, as lines of text."""
    model, tokenizer = MaskedLM.from_pretrained(run), load_tokenizer(run)
    check_fits(tokenizer, model.config.vocab_size, run)
    fills = fill(model, tokenizer, sentence)
    lines = (", ".join(f"{word} {p:.1%}" for word, p in words) for words in fills)
    return "\n".join(f"[MASK] {number}: {line}" for number, line in enumerate(lines, 1))


def show_fills(out):
    """Six held-out sentences with a word masked, and what the model puts there, if they fit."""
    record = read_record(out)
    options = record["options"]
    corpus = open_corpus(options["corpus"], record["corpus"]["fingerprint"])
    model, tokenizer = MaskedLM.from_pretrained(out), load_tokenizer(out)
    lines = ["\nheld-out sentences, their [MASK] filled in:"]
    for text in held_out(corpus):
        for sentence in sentences(text)[:1]:
            hole = make_hole(sentence, tokenizer, options["seq_len"])
            if hole:
                question, word = hole
                words = fill(model, tokenizer, question)[0]
                guesses = ", ".join(f"{guess} {p:.0%}" for guess, p in words)
                lines += [wrap(question, 2), wrap(f"    {guesses}   (it was: {word})", 4)]
        if len(lines) == 1 + 2 * 6:
            break
    return "\n".join(lines) if len(lines) > 1 else ""


def make_hole(sentence, tokenizer, seq_len):
    """Mask the middle word of 8 to 20, if it is one token → (sentence, word), or None."""
    words = sentence.split()
    middle = len(words) // 2
    if not 8 <= len(words) <= 20 or len(tokenizer.encode(sentence).ids) > seq_len:
        return None
    if len(tokenizer.encode(words[middle]).ids) != 3:  # [CLS], the word, [SEP]
        return None
    return " ".join([*words[:middle], "[MASK]", *words[middle + 1 :]]), words[middle]
