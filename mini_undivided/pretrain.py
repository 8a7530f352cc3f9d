"""Masked-language-model pretraining: gather, tokenise, train, validate, save, and show what was learned.

Letters: B sequences in a micro-batch, T tokens in a sequence, M masked positions in a sequence, V words.
"""

import math
import signal
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from mini_undivided import corpus as corpora
from mini_undivided import data, runs, runtime
from mini_undivided import tokenizer as wordpiece
from mini_undivided.figures import plot_losses
from mini_undivided.model import BertConfig, MaskedLM, count_parameters, flops_per_token
from mini_undivided.runtime import UserError
from mini_undivided.show import describe

WARMUP = 0.1  # share of the run in which the learning rate rises
SHORTEST = 16  # tokens in the sequences that a run begins with
VALIDATIONS = 10  # in a run
SAVE_SECONDS = 600  # between checkpoints, if validations are rarer
QUICK_TOKENS, FULL_TOKENS = 2**15, 2**18  # of the validation part: during the run, and at its end


@dataclass
class Options:
    """What train.py's options say, and train.json keeps. One of `steps` and `minutes` is None."""

    out: str
    corpus: list[str] = field(default_factory=lambda: ["docs"])
    tokenizer: str | None = None
    cased: bool = False
    init: str | None = None
    vocab_size: int = 4096
    layers: int = 4
    hidden_size: int = 128
    heads: int = 4
    ffn_size: int = 512
    ffn_layers: list[int] | None | str = None  # with `init` also "as saved"
    seq_len: int = 64
    short_first: float = 0.5
    batch_tokens: int = 1024
    micro_batch: int | None = None
    steps: int | None = 5000
    minutes: float | None = None
    lr: float = 2e-3
    dropout: float = 0.0
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    compile: bool | None = None


def pretrain(options, resume=False):
    """Run train.py's whole job → the dictionary that train.json holds. Raises UserError before any long work."""
    out = Path(options.out)
    check(options, resume)
    machine = runtime.start(options.device, options.dtype)
    torch.manual_seed(options.seed)
    corpus, tokenizer, tokens = in_turn(machine, lambda: prepare(options))
    valid_set = check_sequences(tokens, options.seq_len, tokenizer)
    model = make_model(options, tokenizer)
    stages = make_stages(options, machine, model.config, tokens.train, tokenizer)
    plan = stages[-1].plan
    entropy = data.unigram_entropy(tokens.valid, valid_set.is_special)
    record = {
        "status": "running",
        "options": asdict(options),
        "corpus": {
            "names": list(corpus.names),
            "fingerprint": corpus.fingerprint,
            "documents": tokens.documents,
            "words": tokens.words,
            "tokens": tokens.count,
        },
        "parameters": count_parameters(model.config),
        "flops_per_token": plan.flops,
        "versions": runs.versions(),
    }
    if machine.rank == 0:
        print(describe(record, stages, model.config, tokenizer, machine), flush=True)
        if not resume:
            wordpiece.save(tokenizer, out)
            (out / "log.jsonl").unlink(missing_ok=True)
        runs.write_json(out / "train.json", record)

    trainer = Trainer(options, machine, model, stages, valid_set)
    if resume:
        trainer.load()
    record["status"] = trainer.run()
    if record["status"] == "finished":
        loss, accuracy = trainer.validate(FULL_TOKENS)
        record["result"] = trainer.summary(loss, accuracy, entropy)
    if machine.rank == 0:
        runs.write_json(out / "train.json", record)
        plot_losses(out, entropy)
    if machine.world > 1:
        # With it goes DDP. Whoever lets go of the group last waits for gloo's threads: DDP would do so holding the lock of
        # Python's interpreter, for which such a thread may be waiting, for ever.
        del trainer
        dist.destroy_process_group()
    return record


def check(options, resume):
    """Raise UserError for options that do not fit together, and where `out` already holds another run."""
    if not resume and any((Path(options.out) / name).exists() for name in ("train.json", "model.safetensors")):
        raise UserError(f"{options.out} already holds a run: go on with --resume, or choose another folder with --out")
    if options.seq_len < 8:
        raise UserError(f"--seq-len {options.seq_len} is too short: with fewer than 8 tokens there is nothing to mask")
    if options.init is None:
        config = make_config(options, options.vocab_size)
    else:
        config = BertConfig.from_hugging_face(runs.resolve(options.init))
    if options.seq_len > config.max_position_embeddings:
        raise UserError(f"--seq-len {options.seq_len} is longer than the model's {config.max_position_embeddings} positions")


def make_config(options, vocab_size):
    """The model's config. Its dropout is BERT's, for fine-tuning; pretraining has its own (`options.dropout`)."""
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=options.ffn_size,
        ffn_layers=options.ffn_layers,
    )


def in_turn(machine, work):
    """Do `work` in process 0, then in the others, which find its result in the cache."""
    result = work() if machine.rank == 0 else None
    if machine.world > 1:
        dist.barrier()
    return work() if machine.rank else result


def prepare(options):
    """Find the corpus, load or train the tokenizer, make the token files → Corpus, Tokenizer, Tokens."""
    corpus = corpora.open_corpus(options.corpus)
    if options.init or options.tokenizer:
        tokenizer = wordpiece.load(options.init or options.tokenizer, options.cased)
    else:
        tokenizer = data.train_tokenizer(corpus, options.vocab_size, options.cased)
    return corpus, tokenizer, data.tokenize(corpus, tokenizer)


def check_sequences(tokens, seq_len, tokenizer):
    """The validation sequences. Raises UserError where the training or the validation part has none."""
    train_set, valid_set = (data.Sequences(part, seq_len, tokenizer) for part in (tokens.train, tokens.valid))
    for name, part in (("training", train_set), ("validation", valid_set)):
        if len(part) == 0:
            raise UserError(
                f"the corpus is too small for its {name} part: of its {tokens.documents:,} documents and "
                f"{tokens.count:,} tokens, that part needs {seq_len - 2} tokens at least; give more text or a "
                "shorter --seq-len"
            )
    return valid_set


def make_model(options, tokenizer):
    """A new model, or the one of --init, on the CPU, with pretraining's dropout but BERT's in the config it saves."""
    if options.init:
        config = BertConfig.from_hugging_face(runs.resolve(options.init))
        wordpiece.check_fits(tokenizer, config.vocab_size, options.init)
        model = MaskedLM.from_pretrained(options.init, ffn_layers=options.ffn_layers)
    else:
        model = MaskedLM(make_config(options, tokenizer.get_vocab_size()))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = options.dropout
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = options.dropout
    return model


@dataclass(frozen=True)
class Plan:
    """How the batch of a step is split: `size` sequences, `micro` at once in each process, `accumulation` times."""

    size: int
    micro: int
    accumulation: int
    flops: float


def make_plan(options, machine, config, sequences):
    """Derive the split from --batch-tokens and --micro-batch. Raises UserError where they cannot be had."""
    length = sequences.seq_len
    local = options.batch_tokens // length // machine.world
    if local == 0:
        raise UserError(
            f"--batch-tokens {options.batch_tokens} is less than one sequence of {length} tokens in each of "
            f"{machine.world} process(es)"
        )
    at_once = (options.micro_batch or 0) * options.seq_len or (16384 if machine.device.type == "cuda" else 4096)
    micro = max(m for m in range(1, local + 1) if local % m == 0 and (m == 1 or m * length <= at_once))
    if options.micro_batch and length == options.seq_len and micro != options.micro_batch:
        raise UserError(
            f"--micro-batch {options.micro_batch} does not divide the {local} sequences that {options.batch_tokens} "
            "tokens a batch are in each process"
        )
    return Plan(local * machine.world, micro, local // micro, flops_per_token(config, length, sequences.places))


@dataclass(frozen=True)
class Stage:
    """A part of the run, up to the share `end` of it, with sequences of one length."""

    end: float
    length: int
    plan: Plan
    data: data.TrainingData


def make_stages(options, machine, config, tokens, tokenizer):
    """The run's stages: --short-first of it with 16 tokens a sequence, then doubled by and by up to --seq-len.

    Attention begins as a mean over the whole sequence. The shorter that is, the more of each neighbour is in it, and
    the sooner the model leaves the plateau where it only knows how common words are: see the README for how much. Long
    sequences at the end teach the later positions. (For GPT: Li et al. 2021, 2108.06084.)
    """
    lengths = [SHORTEST << i for i in range(10) if SHORTEST << i < options.seq_len] if options.short_first else []
    count, rest = len(lengths), 1 - options.short_first
    found = []
    for i, length in enumerate([*lengths, options.seq_len]):
        sequences = data.Sequences(tokens, length, tokenizer)
        plan = make_plan(options, machine, config, sequences)
        end = options.short_first + rest * i / count if count else 1.0
        found.append(Stage(end, length, plan, data.TrainingData(sequences, plan.size, options.seed)))
    return found


def masked_loss(model, batch):
    """The cross entropy in nats, summed over the masked places of a batch."""
    logits = model(batch.input_ids, positions=batch.positions)  # (B, M, V)
    return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=data.IGNORE, reduction="sum")


def train_step(model, optimizer, batches, masked, machine):
    """One step of the optimiser over micro-batches already on the device → the summed loss, left on the device.

    `masked` is the number of masked places over all micro-batches and processes: the sum of all losses is divided by
    it, so that how a batch is split changes nothing. DDP averages gradients over processes, hence the factor.
    """
    total = torch.zeros((), device=machine.device)
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        # Gradients travel between processes once a step, with the last micro-batch.
        with nullcontext() if last or machine.world == 1 else model.no_sync():
            with machine.autocast():
                loss = masked_loss(model, batch)
            (loss * (machine.world / masked)).backward()
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


STATE = ("step", "tokens", "progress", "validated", "seconds", "training_seconds", "smooth")  # kept in checkpoints


class Trainer:
    """The state of a run, and its loop."""

    def __init__(self, options, machine, model, stages, valid_set):
        self.options, self.machine, self.stages, self.out = options, machine, stages, Path(options.out)
        self.model = model.to(machine.device)
        self.optimizer = runtime.adamw(self.model, options.lr)
        self.valid_set = valid_set
        self.step = self.tokens = self.validated = 0
        self.progress = 0.0  # share of the run that is over
        self.seconds = self.training_seconds = 0.0  # by the clock; without validating and saving
        self.smooth = None  # the loss that the progress bar shows
        compiled = options.compile if options.compile is not None else machine.device.type == "cuda"
        # Shares its weights with self.model. Shapes are static within a stage.
        self.parallel = torch.compile(self.model, dynamic=False) if compiled else self.model
        if machine.world > 1:
            self.parallel = DistributedDataParallel(self.parallel)
            torch.manual_seed(options.seed + machine.rank)  # from here on only dropout draws from it

    @property
    def stage(self):
        """The stage that the coming step belongs to."""
        return next(stage for stage in self.stages if self.progress < stage.end or stage is self.stages[-1])

    def run(self):
        """Train to the end → "finished", or to the first Ctrl-C or SIGTERM → "interrupted". Saves in both cases."""
        self.model.train()
        started = time.perf_counter() - self.seconds
        read_every = 1 if self.machine.device.type == "cpu" else 10  # reading the loss makes the CPU wait for a GPU
        saved = time.perf_counter()
        window = Window()
        with self.bar() as bar, catch_signals() as caught:
            while True:
                self.seconds = time.perf_counter() - started
                if self.options.steps:
                    self.progress = self.step / self.options.steps
                stage = self.stage
                batch = stage.data.batch(self.step, self.machine.rank, self.machine.world)
                save_due = time.perf_counter() - saved > SAVE_SECONDS
                masked, stop, save_due = self.agree(batch.masked(), bool(caught), save_due)
                done = stop or self.progress >= 1
                validate = int(self.progress * VALIDATIONS) > self.validated and not done
                save = save_due or validate or done
                if window.losses and (save or self.step % read_every == 0):
                    self.report(bar, window)
                    window = Window()
                if validate:
                    self.validated = int(self.progress * VALIDATIONS)
                    loss, accuracy = self.validate(QUICK_TOKENS)
                    if self.machine.rank == 0:
                        bar.write(f"step {self.step:,}: validation loss {loss:.3f}, masked accuracy {accuracy:.1%}")
                if save:
                    self.save()
                    saved = time.perf_counter()
                if done:
                    return "finished" if self.progress >= 1 else "interrupted"
                if not window.losses:
                    window = Window()  # its clock starts here, after validating and saving
                window.lr = self.learning_rate()
                runtime.set_learning_rate(self.optimizer, window.lr)
                parts = [data.MaskedBatch(*map(self.machine.move, part)) for part in batch.split(stage.plan.micro)]
                window.losses.append(train_step(self.parallel, self.optimizer, parts, masked, self.machine))
                window.masked += masked
                window.tokens += stage.plan.size * stage.length
                window.flops += stage.plan.size * stage.length * stage.plan.flops
                self.step += 1

    def agree(self, masked, stop, save):
        """Add up over processes what all need before a step → masked places, stop?, save? By the clock: progress too."""
        if self.options.minutes is not None:
            self.progress = min(1.0, self.seconds / (60 * self.options.minutes))
        if self.machine.world > 1:
            first = self.machine.rank == 0  # whose clock counts
            shared = torch.tensor([masked, stop, save * first, self.progress * first], dtype=torch.float64)
            dist.all_reduce(shared)
            masked, stop, save, self.progress = shared.tolist()
        return max(1, int(masked)), bool(stop), bool(save)

    def learning_rate(self):
        """The rate in the middle of the coming step."""
        half = 0.0 if self.options.steps is None else 0.5 / self.options.steps
        return self.options.lr * runtime.warmup_decay(self.progress + half, WARMUP)

    def report(self, bar, window):
        """Read the losses of the last steps, write their mean to the log and the bar; stop where it is not finite."""
        total = torch.stack(window.losses).sum().cpu()
        if self.machine.world > 1:
            dist.all_reduce(total)
        loss, seconds = total.item() / window.masked, time.perf_counter() - window.since
        if not math.isfinite(loss):
            raise UserError(
                f"the loss became {loss} at step {self.step:,} with a learning rate of {window.lr:.2e}: try a lower --lr "
                f"or --dtype float32; the last checkpoint stays in {self.out}"
            )
        self.training_seconds += seconds
        self.tokens += window.tokens
        speed = window.tokens / seconds
        if self.machine.rank == 0:
            row = {"step": self.step, "tokens": self.tokens, "loss": loss, "lr": window.lr, "tokens_per_second": speed}
            runs.append_log(self.out, row)
        self.smooth = loss if self.smooth is None else 0.95 * self.smooth + 0.05 * loss
        peak = runtime.peak_flops(self.machine)
        mfu = f", {window.flops / seconds / self.machine.world / peak:.1%} MFU" if peak else ""
        bar.n = self.progress
        bar.set_postfix_str(f"step {self.step:,}, loss {self.smooth:.3f}, {speed:,.0f} tokens/s{mfu}", refresh=False)
        bar.update(0)

    @torch.inference_mode()
    def validate(self, limit):
        """Loss and accuracy on at most `limit` tokens of the validation part, and a row of the log."""
        self.model.eval()
        sums = torch.zeros(3, dtype=torch.float64)  # loss, right answers, places
        sequences = max(1, limit // self.options.seq_len)
        for batch in data.validation_batches(self.valid_set, sequences, self.machine.rank, self.machine.world):
            batch = data.MaskedBatch(*map(self.machine.move, batch))
            with self.machine.autocast():
                logits = self.model(batch.input_ids, positions=batch.positions).float()  # (B, M, V)
            labels = batch.labels.flatten()
            loss = F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=data.IGNORE, reduction="sum")
            right = (logits.argmax(-1).flatten() == labels).sum()
            sums += torch.stack([loss, right, (labels != data.IGNORE).sum()]).cpu().double()
        self.model.train()
        if self.machine.world > 1:
            dist.all_reduce(sums)
        loss, accuracy = (sums[0] / sums[2]).item(), (sums[1] / sums[2]).item()
        if self.machine.rank == 0:
            row = {"step": self.step, "tokens": self.tokens, "validation_loss": loss, "validation_accuracy": accuracy}
            runs.append_log(self.out, row)
        return loss, accuracy

    def save(self):
        """Write the checkpoint: what --resume reads first, then the weights that others read."""
        random = torch.get_rng_state()
        if self.machine.device.type == "cuda":
            random = torch.cat([random, torch.cuda.get_rng_state()])
        everyone = [torch.empty_like(random) for _ in range(self.machine.world)]
        if self.machine.world > 1:
            dist.all_gather(everyone, random)
        else:
            everyone = [random]
        if self.machine.rank > 0:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": everyone,
            **{name: getattr(self, name) for name in STATE},
        }
        runs.write_state(self.out, state)
        self.model.save_pretrained(self.out)

    def load(self):
        """Go on from training_state.pt, as if there had been no interruption."""
        state = runs.read_state(self.out)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in STATE:
            setattr(self, name, state[name])
        mine = state["random"][self.machine.rank % len(state["random"])]
        cpu = torch.get_rng_state().numel()
        torch.set_rng_state(mine[:cpu])
        if self.machine.device.type == "cuda" and mine.numel() > cpu:
            torch.cuda.set_rng_state(mine[cpu:])
        if self.machine.rank == 0:
            runs.truncate_log(self.out, self.step)

    def bar(self):
        """The progress bar, in process 0 only."""
        form = "{percentage:3.0f} %|{bar:20}| {elapsed} < {remaining}{postfix}"  # the postfix begins with ", "
        hidden = self.machine.rank > 0
        return tqdm(total=1.0, desc="training", bar_format=form, disable=hidden, mininterval=0.2, dynamic_ncols=True)

    def summary(self, loss, accuracy, entropy):
        """The result of a finished run, for train.json."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "unigram_entropy": entropy,
            "tokens_per_second": self.tokens / self.training_seconds,
            "seconds": self.seconds,
            "peak_memory_bytes": runtime.peak_memory(self.machine),
        }


@dataclass
class Window:
    """The steps since the loss was last read."""

    losses: list = field(default_factory=list)
    masked: int = 0
    tokens: int = 0
    flops: float = 0.0
    lr: float = 0.0
    since: float = field(default_factory=time.perf_counter)


@contextmanager
def catch_signals():
    """Context: the first Ctrl-C or SIGTERM is put into the list that this yields; a second one ends the program."""
    caught = []

    def handler(number, frame):
        caught.append(number)
        signal.signal(number, before[number])

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, old in before.items():
            signal.signal(number, old)
