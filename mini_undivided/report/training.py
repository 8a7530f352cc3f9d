"""What a pretraining run shows: its plan before, what it learned after; and the words that fill a [MASK].

Letters: M masked positions in a sentence, V words in the vocabulary.
"""

from dataclasses import replace
from pathlib import Path

import torch

from mini_undivided.corpus import HELD_OUT_EVERY, held_out, open_corpus, sentences
from mini_undivided.model import MaskedLM, count_parameters
from mini_undivided.pretrain import pretrain
from mini_undivided.report.figures import plot_losses
from mini_undivided.support.errors import UserError, is_first_process
from mini_undivided.support.files import read_json
from mini_undivided.tokenizer import is_cased, load_tokenizer, special_ids


def train(options, resume=False):
    """Pretrain, print the plan before and the results after, and draw loss.png → whether the run finished."""

    def announce(record, trainer, tokenizer):
        print(describe(record, trainer, tokenizer), flush=True)

    record = pretrain(options, resume, announce)
    if is_first_process():
        plot_losses(options.out, record["unigram_entropy"])
        print(ending(record))
    return record["status"] == "finished"


def describe(record, trainer, tokenizer):
    """What a run is going to do, for people, as lines of text."""
    options, corpus, config = record["options"], record["corpus"], trainer.model.config
    stages, machine = trainer.stages, trainer.machine
    plan = stages[-1].plan
    shorter = ", ".join(f"{stage.length} up to {stage.end:.0%} of the run" for stage in stages[:-1])
    full = count_parameters(replace(config, ffn_layers=None)) - record["parameters"]
    ffns = {0: "no FFN", config.num_hidden_layers: "an FFN in every layer"}.get(
        len(config.ffn_layers), f"FFNs in layers {', '.join(map(str, config.ffn_layers))}"
    )
    more = (
        f"; an FFN in every layer would add {full:,} (+{full / record['parameters']:.0%})"
        if full
        else ""
    )
    length = (
        f"{options['steps']:,} steps" if options["steps"] else f"{options['minutes']:g} minutes"
    )
    case = "cased" if is_cased(tokenizer) else "uncased"
    return "\n".join((
        f"corpus      {' '.join(corpus['names'])}: {corpus['documents']:,} documents, {corpus['words']:,} words, "
        f"{corpus['tokens']:,} tokens, one document in {HELD_OUT_EVERY} held out",
        f"tokenizer   WordPiece, {case}, {tokenizer.get_vocab_size():,} entries",
        f"model       {config.num_hidden_layers} layers, {config.hidden_size} wide, {config.num_attention_heads} heads, "
        f"{ffns}: {record['parameters']:,} parameters{more}",
        f"compute     {plan.flops / 1e6:,.2f} million FLOPs a token, forward and backward",
        f"batch       {plan.size * options['seq_len']:,} tokens = {plan.size} sequences of {options['seq_len']} = "
        f"{plan.micro} at once × {plan.accumulation} accumulated × {machine.world} process(es)",
        f"lengths     {shorter + ', then ' if shorter else ''}{options['seq_len']} tokens a sequence",
        f"training    {length}, learning rate up to {options['lr']:g}, dropout {options['dropout']:g}, "
        f"seed {options['seed']}",
        f"device      {machine}",
    ))  # fmt: skip


def ending(record):
    """How a run ended, and if it finished, what it learned, as lines of text."""
    out = record["options"]["out"]
    if record["status"] != "finished":
        return f"interrupted and saved; resume it with: python train.py --resume --out {out}"
    result = record["result"]
    gain = result["unigram_entropy"] - result["validation_loss"]
    return (
        f"validation loss {result['validation_loss']:.3f} nats, {gain:.2f} under the unigram entropy "
        f"{result['unigram_entropy']:.3f}; masked accuracy {result['validation_accuracy']:.1%}\n"
        f"{result['tokens']:,} tokens in {result['seconds']:.0f} s, {result['tokens_per_second']:,.0f} tokens/s, "
        f"peak memory {result['peak_memory_bytes'] / 1e6:,.0f} MB\n"
        f"written to {out}: model.safetensors, loss.png and more\n\n"
        f"held-out sentences, their [MASK] filled in:\n{show_fills(out)}"
    )


@torch.inference_mode()
def fill(model, tokenizer, sentence, top=5):
    """The likeliest words for each [MASK] of a sentence → for each a list of `top` (word, probability).

    Raises UserError if there is no [MASK], or if the sentence is longer than the model's positions.
    """
    encoding = tokenizer.encode(sentence)
    places = [i for i, token in enumerate(encoding.tokens) if token == "[MASK]"]
    if not places:
        raise UserError(
            f'there is no [MASK] in "{sentence}"; write one for each word to be filled in'
        )
    model.eval()
    device = next(model.parameters()).device
    ids, positions = (
        torch.tensor([encoding.ids], device=device),
        torch.tensor([places], device=device),
    )
    logits = model(ids, positions=positions)[0]  # (M, V)
    logits[:, special_ids(tokenizer)] = float("-inf")
    best = logits.softmax(-1).topk(min(top, logits.size(-1)))
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[(tokenizer.id_to_token(i), p) for i, p in zip(*row, strict=True)] for row in rows]


def fill_text(run, sentence):
    """The likeliest words for each [MASK] of a sentence, as lines of text."""
    fills = fill(MaskedLM.from_pretrained(run), load_tokenizer(run), sentence)
    lines = (", ".join(f"{word} {p:.1%}" for word, p in words) for words in fills)
    return "\n".join(f"[MASK] {number}: {line}" for number, line in enumerate(lines, 1))


def show_fills(out):
    """Six held-out sentences of a run's corpus with one word masked, and what the model puts there, as lines of text."""
    options = read_json(Path(out) / "train.json")["options"]
    model, tokenizer = MaskedLM.from_pretrained(out), load_tokenizer(out)
    lines = []
    for text in held_out(open_corpus(options["corpus"])):
        for sentence in sentences(text)[:1]:
            hole = make_hole(sentence, tokenizer, options["seq_len"])
            if hole:
                question, word = hole
                guesses = ", ".join(
                    f"{guess} {p:.0%}" for guess, p in fill(model, tokenizer, question)[0]
                )
                lines.append(f"{question}\n    {guesses}   (it was: {word})")
        if len(lines) == 6:
            break
    return "\n".join(lines)


def make_hole(sentence, tokenizer, seq_len):
    """Mask the middle word of a sentence of 8 to 20 words, if it is one token → (sentence, word), or None."""
    words = sentence.split()
    place = len(words) // 2
    if not 8 <= len(words) <= 20 or len(tokenizer.encode(sentence).ids) > seq_len:
        return None
    if len(tokenizer.encode(words[place]).ids) != 3:  # [CLS], the word, [SEP]
        return None
    return " ".join([*words[:place], "[MASK]", *words[place + 1 :]]), words[place]
