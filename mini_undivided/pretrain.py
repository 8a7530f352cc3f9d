"""Masked-language-model pretraining: the loss, the step, the loop, validation.

Shapes: B sequences in a micro-batch, T tokens and M masked positions in a sequence, V words.

The model sees sequences with some tokens masked and predicts them: the loss is the cross entropy

    L = -(1 / n) Σ log p(token | the masked sequence)       over the n masked positions of a step

What to expect: ln V at the start, when every word is as likely as any other; after a few hundred
steps about the loss of the best model without context; then, as attention learns where to look, a
steady fall.

A `machine` (support/machine.py) is a device and this process, number `rank` of the `world_size`
that train together: `autocast()` computes in its dtype, `is_main` is true of the first process,
`all_reduce` sums over all, and `synchronise` has DDP (PyTorch's DistributedDataParallel) exchange
gradients now or later. Without torchrun there is one process, and these two do nothing.
"""

import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from mini_undivided.data import IGNORE_INDEX, split, validation_batches
from mini_undivided.optim import scale_learning_rates, warmup_decay
from mini_undivided.support.checkpoint import save_trainer
from mini_undivided.support.log import log_losses, log_row
from mini_undivided.support.terminal import catch_signals, progress_bar

VALIDATIONS = 10  # in a run; `result` in run.py makes the last, at its end
SAVE_SECONDS = 600  # between checkpoints, if validations are rarer
QUICK_TOKENS, FULL_TOKENS = 2**15, 2**18  # of the validation split: during the run, and at its end


# The step.

def masked_logits(model, batch):
    """The model's logits at the masked positions of a batch, (B, M, V)."""
    return model(batch.input_ids, positions=batch.positions)


def masked_loss(model, batch):
    """The cross entropy in nats, summed over the masked positions of a batch.

    In float32, whatever the type of the logits: bfloat16 rounds a loss of 4 to 8 nats to 1/32.
    """
    logits = masked_logits(model, batch).float().flatten(0, 1)  # (B, M, V) → (B M, V)
    labels = batch.labels.flatten()  # (B, M) → (B M)
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")


class WithLoss(nn.Module):
    """A model and its loss as one module: torch.compile makes one graph, DDP sees one forward."""

    def __init__(self, model, loss=masked_loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch):
        """The summed loss of a batch."""
        return self.loss(self.model, batch)


def train_step(model, optimizers, batches, num_masked, machine):
    """One step of the optimizers over micro-batches → the summed loss, on their device.

    model: a WithLoss; batches: micro-batches, each as much of the step's batch as fits in memory.
    `num_masked` is n above (Sequences' is M), of all micro-batches and processes. The sum of all
    losses is divided by it, so that how a batch is split changes nothing: a mean of micro-batch
    means would give positions in a micro-batch with few of them more weight. DDP averages gradients
    over processes, hence the factor `machine.world_size`. Clipping bounds what an odd batch can do.
    """
    total = torch.zeros((), device=machine.device)
    for i, batch in enumerate(batches):
        # Gradients travel between processes once a step, with the last micro-batch.
        with machine.synchronise(model, now=i == len(batches) - 1):
            with machine.autocast():
                loss = model(batch)
            (loss * (machine.world_size / num_masked)).backward()
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total


# The loop.

@dataclass
class State:
    """How far a run is. A checkpoint keeps it beside weights, optimizers and random state."""

    step: int = 0
    progress: float = 0.0  # from 0 to 1
    validated: int = 0  # tenths of the run that had passed at the last validation
    seconds: float = 0.0  # by the clock, but for the first step after each start, which may compile
    # For the log.
    training_seconds: float = 0.0  # without validating and saving
    timed_steps: int = 0  # the steps that took training_seconds
    smooth_loss: float | None = None  # what the progress bar shows


def train(run):
    """Train to the end → "finished", or to the first Ctrl-C or SIGTERM → "interrupted".

    run: what the loop works with, a `Run` of run.py.
    """
    state, machine, last_save = run.state, run.machine, time.perf_counter()
    log_every = 10 if machine.on_gpu else 1  # steps: reading a loss makes the CPU wait for the GPU
    run.model.train()
    # caught: a list, empty until a signal comes. log_losses reads run.losses and empties it.
    with progress_bar(not machine.is_main) as bar, catch_signals() as caught:
        while True:
            batch = run.batches.batch(state.step, machine.rank, machine.world_size)
            num_masked, stop, save = sync_processes(run, batch, caught, last_save)
            over = stop or state.progress >= 1
            tenths = int(state.progress * VALIDATIONS)
            validation_is_due = tenths > state.validated and not over
            if over or validation_is_due or save:
                log_losses(run, bar)
                if validation_is_due:
                    state.validated = tenths
                    scores = validate(run, QUICK_TOKENS)
                    if machine.is_main:
                        bar.write(f"step {state.step:,}: validation loss "
                                  f"{scores['validation_loss']:.3f}, masked accuracy "
                                  f"{scores['validation_accuracy']:.1%}")
                save_trainer(run)
                last_save = run.since = time.perf_counter()
            if over:
                return "finished" if state.progress >= 1 else "interrupted"
            run.losses.append((take_step(run, batch, num_masked), num_masked))
            if run.started is None or state.step % log_every == 0:
                log_losses(run, bar)
            if run.started is None:  # the first step may compile: it is logged alone, untimed
                run.started = time.perf_counter() - state.seconds  # above 0 after --resume


def sync_processes(run, batch, caught, last_save):
    """All processes agree → the step's masked positions, whether to stop, and whether to save.

    Sets state.seconds and state.progress: clocks differ, so with --minutes all take process 0's.
    `all_reduce` only adds: a signal anywhere stops all; to save and progress the others add 0.
    """
    state, now = run.state, time.perf_counter()
    if run.started is not None:
        state.seconds = now - run.started
    if run.options.minutes is not None:
        state.progress = min(1.0, state.seconds / (60 * run.options.minutes))
    is_main = run.machine.is_main
    save = is_main and now - last_save > SAVE_SECONDS
    numbers = [(batch.labels != IGNORE_INDEX).sum(), bool(caught), save, is_main * state.progress]
    shared = run.machine.all_reduce(torch.tensor(numbers, dtype=torch.float64))
    num_masked, stop, save, state.progress = shared.tolist()  # sums over the processes
    return max(1, int(num_masked)), bool(stop), bool(save)  # never a division by 0


def take_step(run, batch, num_masked):
    """Take one step of the run → the loss summed over this process's masked positions.

    num_masked: those of all processes. The schedule is read at the middle of the step, since at its
    start the first rate would be 0, as it is with --minutes, where a step's share is unknown.
    """
    state = run.state
    half_a_step = 0.5 / run.steps if run.steps else 0.0
    scale_learning_rates(run.optimizers, warmup_decay(state.progress + half_a_step))
    # Moved whole, then split on the device: three copies a step, however many micro-batches.
    batches = list(split(run.machine.batch_to_device(batch), run.micro_batch))
    loss = train_step(run.with_loss, run.optimizers, batches, num_masked, run.machine)
    state.step += 1
    if run.steps:
        state.progress = state.step / run.steps
    return loss


# Validation.

@torch.inference_mode()
def validate(run, limit):
    """Compute and log loss and accuracy on at most `limit` tokens of the validation split.

    Accuracy is given over all masked positions, and over those that show [MASK]: where a masked
    token was kept, the model sees the answer.
    """
    machine, sums = run.machine, torch.zeros(5, dtype=torch.float64)  # the loss, then the flags
    run.model.eval()
    count, mask = max(1, limit // run.valid_set.seq_len), run.objective.mask_validation
    for batch in validation_batches(
            run.valid_set, count, machine.rank, machine.world_size, mask):
        batch = machine.batch_to_device(batch)
        with machine.autocast():
            logits = run.objective.logits(run.model, batch)  # (B, M, V)
        logits, labels = logits.float().flatten(0, 1), batch.labels.flatten()  # (B M, V), (B M)
        shown = batch.input_ids.gather(1, batch.positions).flatten()  # (B, M) → (B M)
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
        is_masked = labels != IGNORE_INDEX
        correct = logits.argmax(-1) == labels  # never where labels are IGNORE_INDEX
        at_mask = is_masked & (shown == run.valid_set.mask_id)
        flags = (correct, is_masked, correct & at_mask, at_mask)
        sums += torch.stack([loss, *(flag.sum() for flag in flags)]).cpu().double()
    run.model.train()
    loss, correct, masked, correct_at_mask, at_mask = machine.all_reduce(sums).tolist()  # now sums
    scores = {"validation_loss": loss / masked, "validation_accuracy": correct / masked,
              "accuracy_at_mask": correct_at_mask / max(1, at_mask)}
    log_row(run, scores)
    return scores
