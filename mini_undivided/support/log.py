"""What the training loop logs: rows of log.jsonl, and the text behind the progress bar.

A `run` is what the loop works with (run.py).
"""

import math
import time

import torch

from mini_undivided.support.errors import UserError
from mini_undivided.support.run_directory import append_log, has_checkpoint
from mini_undivided.support.terminal import show


def log_losses(run, bar):
    """The mean of the last losses goes to log and bar. UserError if it is not finite."""
    if not run.losses:
        return
    state, lr = run.state, run.optimizers[-1].param_groups[0]["lr"]
    total = run.machine.all_reduce(torch.stack([loss for loss, _ in run.losses]).sum().cpu())
    loss, now = total.item() / sum(count for _, count in run.losses), time.perf_counter()
    if not math.isfinite(loss):
        kept = f"; the last checkpoint stays in {run.out}" if has_checkpoint(run.out) else ""
        raise UserError(
            f"the loss became {loss} at step {state.step:,} with a learning rate of {lr:.2e}: "
            f"try a lower --lr or --dtype float32{kept}")
    row, text = {"loss": loss, "lr": lr}, ""
    if run.started is not None:
        state.timed_steps += len(run.losses)
        state.training_seconds += now - run.since
        speed = row["tokens_per_second"] = len(run.losses) * run.batch_tokens / (now - run.since)
        text = f", {speed:,.0f} tokens/s{run.machine.utilisation(speed * run.flops_per_token)}"
    log_row(run, row)
    previous = loss if state.smooth_loss is None else state.smooth_loss
    state.smooth_loss = 0.95 * previous + 0.05 * loss
    show(bar, state.progress, f"step {state.step:,}, loss {state.smooth_loss:.3f}{text}")
    run.losses, run.since = [], now


def log_row(run, row):
    """Add a row, with the run's step and tokens, to log.jsonl."""
    if run.machine.is_main:
        step = run.state.step
        append_log(run.out, {"step": step, "tokens": step * run.batch_tokens, **row})
