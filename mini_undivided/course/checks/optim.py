"""Checks of 6: the schedule."""

from functools import partial

import numpy as np
import torch
from torch import nn

from mini_undivided.course.assignments import check, compare, require
from mini_undivided.course.student import pure, remote

START = 5.0  # the rate of all groups, above any that is to be set


@check(6, points=6)
def schedule(optim, rng):
    """The factor goes from 0 in a line to 1 at `warmup`, in a line to 0 at 1, and stays there."""
    warmup, factor = rng.uniform(0.05, 0.4), partial(pure, "optim", "warmup_decay")
    for x, wanted, where, hint in (
            (0.0, 0, "at the start", "does the warm-up begin from nothing?"),
            (warmup, 1, "where the warm-up ends", "does the decay begin there?"),
            (1.0, 0, "at the end", "is what is left of the run divided by 1 - warmup?"),
            (1.2, 0, "after the end", "does it become negative?")):
        found = factor(x, warmup)
        require(abs(found - wanted) < 1e-6,
                f"the factor {where} is {found:.4g}, but should be {wanted}: {hint}")
    for name, least, most in (("warm-up", 0, warmup), ("decay", warmup, 1)):
        x = np.linspace(least, most, 9)[1:-1]
        middle = np.array([factor(point, warmup) for point in x])
        require(np.abs(np.diff(middle, 2)).max() < 1e-6, f"the {name} is not a straight line")
        require(abs(middle[3] - 0.5) < 1e-6, f"the factor is {middle[3]:.4g} in the middle of the "
                f"{name}, but should be 0.5: is progress divided by its length?")
    for x in (0.0, 0.4, 1.0):
        found = factor(x, 0.0)
        require(abs(found - (1 - x)) < 1e-9, f"without a warm-up (warmup=0) the factor at {x:g} is "
                f"{found:.4g}, but should be {1 - x:g}")


@remote
def set_rates(peaks, *factors):
    """The learning rates of three groups in two optimizers, after calls with some factors."""
    from mini_undivided.optim import scale_learning_rates

    groups = [{"params": [nn.Parameter(torch.zeros(1))], "initial_lr": peak} for peak in peaks]
    made = [torch.optim.SGD(groups[:2], lr=START), torch.optim.SGD(groups[2:], lr=START)]
    for factor in factors:
        scale_learning_rates(made, factor)
    return [group["lr"] for optimizer in made for group in optimizer.param_groups]


@check(6, points=4)
def scaled_rates(optim, rng):
    """Every group's rate is the factor times its own initial_lr, however often it is set."""
    peaks, (first, second) = np.array([0.3, 0.7, 1.1]), np.sort(rng.uniform(0.2, 0.9, size=2))
    compare("the learning rates after two calls", set_rates(peaks, first, second), second * peaks, {
        "when factors add up over calls: multiply initial_lr, not the last rate":
            first * second * np.full(3, START),
        "when a rate never rises": first * peaks,
        "when every group is set to the first group's initial_lr": second * np.full(3, 0.3),
        "when only the first optimizer is set": [*(second * peaks[:2]), START],
        "when only the first group of each is set": [second * 0.3, START, second * 1.1],
        "when initial_lr itself is changed": first * second * peaks,
        "when the factor is not used": peaks, "when rates stay as they are": np.full(3, START),
        "when the factor itself is set": np.full(3, second)})
