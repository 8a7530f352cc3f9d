"""Masked-language-model pretraining: the loss, the step, the loop, and what a run needs to begin.

Letters: B sequences in a micro-batch, T tokens and M masked positions in a sequence, V words.

The model sees sequences with some tokens hidden and names them: the loss is the cross entropy

    L = -(1 / n) Σ log p(token | the masked sequence)       over the n masked places of a step

What to expect: ln V at the start, when every word is as likely as any other; after some hundred
steps about the loss of the best model without context, where a small model stays for a while (the
plateau); then, once attention has learned where to look, a steady fall.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional as F

from mini_undivided.data import IGNORE, VALIDATION_BATCH, TrainingData, validation_batches
from mini_undivided.model import MaskedLM
from mini_undivided.optim import adamw, muon_and_adamw, scale_learning_rates, warmup_decay
from mini_undivided.support import run_directory, setup
from mini_undivided.support.checkpoint import load_trainer, save_trainer
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import write_json
from mini_undivided.support.machine import Machine
from mini_undivided.support.terminal import catch_signals, progress_bar, show

VALIDATIONS = 10  # in a run
SAVE_SECONDS = 600  # between checkpoints, if validations are rarer
QUICK_TOKENS, FULL_TOKENS = 2**15, 2**18  # of the validation part: during the run, and at its end


# The step.

def masked_loss(model, batch):
    """The cross entropy in nats, summed over the masked places of a batch."""
    logits = model(batch.input_ids, positions=batch.positions)  # (B, M, V)
    labels = batch.labels.flatten()  # (B, M) → (B M)
    return F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORE, reduction="sum")


def paired_loss(model, batch):
    """`masked_loss`, plus each pair's cross entropy times the number of its masked places.

    Divided by the number of masked places it is the mean over masked places plus the mean over
    pairs: BERT's loss, except that a pair counts by how many of its places are masked.
    """
    logits, pairs = model(
        batch.input_ids, token_type_ids=batch.token_type_ids, positions=batch.positions)
    labels = batch.labels.flatten()  # (B, M) → (B M)
    named = F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORE, reduction="sum")
    each = F.cross_entropy(pairs, batch.is_random, reduction="none")  # (B,)
    return named + ((batch.labels != IGNORE).sum(1) * each).sum()


def train_step(model, optimizers, batches, num_masked, machine):
    """One step of the optimizers over micro-batches → the summed loss, like them on the device.

    A micro-batch is as much of the step's batch as fits in memory; gradients add up over them.
    `num_masked` counts the masked places of all micro-batches and processes. The sum of all losses
    is divided by it, so that how a batch is split changes nothing: a mean of micro-batch
    means would give places in a micro-batch with few of them more weight. DDP (PyTorch's
    DistributedDataParallel) averages gradients over processes, hence the factor `machine.world`.
    """
    total = torch.zeros((), device=machine.device)
    for i, batch in enumerate(batches):
        # Gradients travel between processes once a step, with the last micro-batch.
        with machine.synchronise(model, now=i == len(batches) - 1):
            with machine.autocast():
                loss = (masked_loss if batch.is_random is None else paired_loss)(model, batch)
            (loss * (machine.world / num_masked)).backward()
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total


# The loop.

@dataclass
class State:
    """How far a run is. A checkpoint keeps it beside weights, optimizer and random states."""

    step: int = 0
    tokens: int = 0
    flops: float = 0.0  # of all steps, as model.flops_per_token counts them
    progress: float = 0.0  # share of the run that is over
    validated: int = 0  # validations so far
    seconds: float = 0.0  # by the clock
    training_seconds: float = 0.0  # without validating and saving
    smooth: float | None = None  # the loss that the progress bar shows


@dataclass
class Window:
    """The steps since losses were last read: ten on a GPU, because reading makes the CPU wait."""

    losses: list = field(default_factory=list)
    num_masked: int = 0
    tokens: int = 0
    flops: float = 0.0
    lr: float = 0.0
    since: float = field(default_factory=time.perf_counter)


class Trainer:
    """The state of a run, and its loop (`train`)."""

    def __init__(self, options, machine, model, stages, valid_set):
        # stages: parts of the run with sequences of one length, each with its batch plan
        # (support.setup)
        self.options, self.machine = options, machine
        self.stages, self.valid_set = stages, valid_set
        self.out, self.state, self.window = Path(options.out), State(), Window()
        self.model = machine.place(model)
        if options.optimizer == "muon":
            self.optimizers = muon_and_adamw(
                self.model, options.muon_lr, options.lr, machine.quick_dtype)
        else:
            self.optimizers = [adamw(self.model.parameters(), options.lr)]
        compiled = machine.compiles if options.compile is None else options.compile
        # The model as a step calls it, compiled and under DDP. It shares its weights with
        # self.model. Shapes are static within a stage.
        self.wrapped = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.wrapped = machine.distribute(self.wrapped)
        if machine.world > 1:
            torch.manual_seed(options.seed + machine.rank)  # from here on for dropout alone

    def train(self, place=(0, 1)):
        """Train to the end → "finished", or to the first Ctrl-C or SIGTERM → "interrupted".

        place: how many runs are over, and how many there are, for the progress bar.
        """
        state, read_every, self.window = self.state, 10 if self.machine.on_gpu else 1, Window()
        self.started, self.saved = time.perf_counter() - state.seconds, time.perf_counter()
        self.model.train()
        hidden = not self.machine.is_first
        with progress_bar(hidden, *place) as bar, catch_signals() as caught:
            while True:
                stage = self.stage
                batch = stage.data.batch(state.step, self.machine.rank, self.machine.world)
                num_masked, stop, save = self.agree(batch.num_masked(), bool(caught))
                over = stop or state.progress >= 1
                validate = int(state.progress * VALIDATIONS) > state.validated and not over
                if over or validate or save:
                    self.read_losses(bar)
                    if validate:
                        self.quick_validation(bar)
                    save_trainer(self)
                    self.saved, self.window = time.perf_counter(), Window()
                if over:
                    return "finished" if state.progress >= 1 else "interrupted"
                self.take_step(stage, batch, num_masked)
                if state.step % read_every == 0:
                    self.read_losses(bar)

    @property
    def stage(self):
        """The stage that the coming step belongs to."""
        return next(s for s in self.stages if self.state.progress < s.end or s is self.stages[-1])

    def agree(self, num_masked, stop):
        """Agree with all processes, by the first one's clock → all masked places, stop?, save?"""
        now, first = time.perf_counter(), self.machine.is_first
        self.state.seconds = now - self.started
        if self.options.minutes is not None:
            self.state.progress = min(1.0, self.state.seconds / (60 * self.options.minutes))
        save = now - self.saved > SAVE_SECONDS
        numbers = [num_masked, stop, save * first, self.state.progress * first]
        shared = self.machine.add_up(torch.tensor(numbers, dtype=torch.float64))
        num_masked, stop, save, self.state.progress = shared.tolist()
        return max(1, int(num_masked)), bool(stop), bool(save)

    def take_step(self, stage, batch, num_masked):
        """One step; `num_masked` places in all processes.

        Its learning rate is the schedule's in the middle of the step, or by the clock at its start.
        """
        plan, options, state, window = stage.plan, self.options, self.state, self.window
        tokens = plan.size * stage.length
        flops = tokens * plan.flops
        share = 1 / options.steps if options.steps else flops / (options.flops or math.inf)
        factor = warmup_decay(state.progress + share / 2)
        window.lr = options.lr * factor
        scale_learning_rates(self.optimizers, factor)
        parts = [part.move(self.machine) for part in batch.micro_batches(plan.micro)]
        loss = train_step(self.wrapped, self.optimizers, parts, num_masked, self.machine)
        window.losses.append(loss)
        window.num_masked += num_masked
        window.tokens += tokens
        window.flops += flops
        state.step, state.flops = state.step + 1, state.flops + flops
        if options.steps:
            state.progress = state.step / options.steps
        elif options.flops:
            state.progress = min(1.0, state.flops / options.flops)

    def read_losses(self, bar):
        """Read the last losses; their mean goes to log and bar. UserError if it is not finite."""
        window, state = self.window, self.state
        if not window.losses:
            return
        total = self.machine.add_up(torch.stack(window.losses).sum().cpu())
        loss, seconds = total.item() / window.num_masked, time.perf_counter() - window.since
        if not math.isfinite(loss):
            saved = run_directory.has_checkpoint(self.out)
            raise UserError(
                f"the loss became {loss} at step {state.step:,} with a learning rate of "
                f"{window.lr:.2e}: try a lower --lr or --dtype float32"
                + f"; the last checkpoint stays in {self.out}" * saved)
        state.training_seconds += seconds
        state.tokens += window.tokens
        speed = window.tokens / seconds
        self.log({"loss": loss, "lr": window.lr, "tokens_per_second": speed})
        state.smooth = loss if state.smooth is None else 0.95 * state.smooth + 0.05 * loss
        mfu = self.machine.utilisation(window.flops / seconds)
        show(bar, state.progress, f"step {state.step:,}, loss {state.smooth:.3f}, "
                                  f"{speed:,.0f} tokens/s{mfu}")
        self.window = Window()

    def log(self, row):
        """Add a row to log.jsonl."""
        if self.machine.is_first:
            row = {"step": self.state.step, "tokens": self.state.tokens, **row}
            run_directory.append_log(self.out, row)

    def quick_validation(self, bar):
        """Validate on a part of the validation part, and say so above the bar."""
        self.state.validated = int(self.state.progress * VALIDATIONS)
        scores = self.validate(QUICK_TOKENS)
        if self.machine.is_first:
            bar.write(f"step {self.state.step:,}: validation loss {scores['validation_loss']:.3f}, "
                      f"masked accuracy {scores['validation_accuracy']:.1%}")

    @torch.inference_mode()
    def validate(self, limit):
        """Loss and accuracy on at most `limit` tokens of the validation part, which are logged.

        Accuracy is given over all places that have to be named, and over those that show [MASK]: at
        the others the answer may stand there.
        """
        self.model.eval()
        sums = torch.zeros(5, dtype=torch.float64)  # loss; right and places, of all and at [MASK]
        count, machine = max(1, limit // self.options.seq_len), self.machine
        pairs = self.options.next_sentence
        for batch in validation_batches(self.valid_set, count, machine.rank, machine.world, pairs):
            batch = batch.move(machine)
            with machine.autocast():
                logits = MaskedLM.forward(  # of words alone, (B, M, V)
                    self.model, batch.input_ids, None, batch.token_type_ids, batch.positions)
            logits, labels = logits.float().flatten(0, 1), batch.labels.flatten()  # (B M, V), (B M)
            shown = batch.input_ids.gather(1, batch.positions).flatten()  # (B, M) → (B M)
            loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
            right, used = logits.argmax(-1) == labels, labels != IGNORE
            hidden = used & (shown == self.valid_set.mask_id)
            counts = (right & used, used, right & hidden, hidden)
            sums += torch.stack([loss, *(each.sum() for each in counts)]).cpu().double()
        self.model.train()
        loss, right, places, right_hidden, hidden = machine.add_up(sums).tolist()
        scores = {"validation_loss": loss / places, "validation_accuracy": right / places,
                  "accuracy_at_mask": right_hidden / max(1, hidden)}
        self.log(scores)
        return scores

    @torch.inference_mode()
    def pair_accuracy(self):
        """The share of the validation part's pairs, half of them random, classified correctly."""
        self.model.eval()
        machine, size = self.machine, min(VALIDATION_BATCH, len(self.valid_set))
        data = TrainingData(self.valid_set, size, 0, pairs=True)
        steps = max(1, min(len(self.valid_set), FULL_TOKENS // self.options.seq_len) // size)
        right = torch.zeros((), dtype=torch.float64)
        for step in range(machine.rank, steps, machine.world):
            batch = data.batch(step).move(machine)
            with machine.autocast():
                _, logits = self.model(batch.input_ids, None, batch.token_type_ids,
                                       positions=batch.positions)
            right += (logits.argmax(1) == batch.is_random).sum().cpu()
        self.model.train()
        return machine.add_up(right).item() / (steps * size)

    def result(self):
        """Validate on FULL_TOKENS at most → the figures of a finished run, for train.json."""
        scores, state = self.validate(FULL_TOKENS), self.state
        if self.options.next_sentence:
            scores["pair_accuracy"] = self.pair_accuracy()
        return {"step": state.step, "tokens": state.tokens, "flops": state.flops, **scores,
                "tokens_per_second": state.tokens / max(state.training_seconds, 1e-9),
                "seconds": state.seconds, "peak_memory_bytes": self.machine.peak_memory()}


# From options to a run.

def pretrain(options, resume=False, announce=None, place=(0, 1)):
    """Pretrain as PretrainOptions say → the dictionary that train.json holds.

    announce: called as announce(record, trainer, tokenizer) in the first process before training
    begins. place: as for Trainer.train. Raises UserError.
    """
    setup.check(options, resume)
    machine = Machine.start(options.device, options.dtype)
    torch.manual_seed(options.seed)
    corpus, tokenizer, tokens = machine.in_turn(lambda: setup.prepare_text(options, resume))
    valid_set = setup.check_sequences(tokens, options.seq_len, tokenizer)
    model = setup.make_model(options, tokenizer)
    stages = setup.make_stages(options, machine, model.config, tokens.train, tokenizer)
    trainer = Trainer(options, machine, model, stages, valid_set)
    record = setup.make_record(
        options, machine, corpus, tokens, tokenizer, model.config, stages, valid_set)
    with setup.claimed(options.out, resume, machine):  # from here on nobody else writes there
        if resume:
            load_trainer(trainer)
        if machine.is_first:
            if announce:
                announce(record, trainer, tokenizer)
            setup.begin(record, tokenizer, resume)
        record["status"] = trainer.train(place)
        if record["status"] == "finished":
            record["result"] = {**trainer.result(), "baseline": record["baseline"]}
        if machine.is_first:
            write_json(trainer.out / "train.json", record)
    del trainer  # DDP has to go before the process group does
    machine.close()
    return record
