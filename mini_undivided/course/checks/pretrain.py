"""Checks of 5: the training step."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from mini_undivided.course.assignments import check, compare, distinct, normal, require


class Tiny(nn.Module):
    """A stand-in for MaskedLM: word vectors and a linear map."""

    def __init__(self, rng, V):
        super().__init__()
        self.word, self.out = nn.Embedding(V, 5).double(), nn.Linear(5, V).double()
        self.word.weight.data, self.out.weight.data = 10 * normal(rng, V, 5), normal(rng, V, 5)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, positions=None):
        """As MaskedLM.forward."""
        self.cast = torch.is_autocast_enabled("cpu")
        x = self.word(input_ids)
        return self.out(x if positions is None else x.take_along_dim(positions[..., None], 1))

    def surprise(self, batch):
        """-log p of each masked place of a batch, by definition."""
        used = batch.labels != -100
        logits = self(batch.input_ids, positions=batch.positions)[used]
        return -torch.distributions.Categorical(logits=logits).log_prob(batch.labels[used])

    def gradient(self, loss):
        """The gradient of a loss, as one vector."""
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(self.parameters()))])


def tiny_batches(rng):
    """A tiny model, and three micro-batches with unequal numbers of masked places."""
    from mini_undivided.data import MaskedBatch

    V, T, M, B = distinct(rng, 4, 4, 11)
    labels = rng.integers(V, size=(3 * B, M))
    labels[rng.random(labels.shape) < 0.3] = -100
    labels[0], labels[B - 1], labels[-1], labels[-1, 0] = -100, 1, -100, 0
    drawn = rng.integers(V, size=(3 * B, T)), rng.integers(T, size=(3 * B, M)), labels
    batch = MaskedBatch(*map(torch.from_numpy, drawn))
    return Tiny(rng, V), list(batch.micro_batches(B))


@check(5, points=3)
def loss_of_a_batch(pretrain, rng):
    """masked_loss is the cross entropy in nats, summed over the masked places."""
    model, (batch, *_) = tiny_batches(rng)
    each = model.surprise(batch)
    right = each.sum()
    compare("masked_loss", pretrain.masked_loss(model, batch), right, {
        "when the mean is taken: train_step divides, once": each.mean(),
        "when the sum is divided by all places, the unused ones too": right / batch.labels.numel(),
        "with the opposite sign": -right,
        "in bits, not in nats": right / np.log(2)})


def clipped(gradient):
    """A gradient of norm 1 at most."""
    return gradient / gradient.norm().clamp(min=1)


def take_step(pretrain, model, batches, num_masked, world):
    """Take a step of gradient descent at rate 1 → what it subtracts, and the loss returned."""
    steps, syncs = [], []

    class Descent(torch.optim.SGD):
        def step(self, closure=None):
            steps.append(id(self))
            return super().step(closure)

    optimizers = [Descent(part.parameters(), lr=1.0) for part in (model.word, model.out)]
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    machine = SimpleNamespace(device=torch.device("cpu"), world=world,
                              autocast=lambda: torch.autocast("cpu"),  # float64 stays as it is
                              synchronise=lambda model, now: nullcontext(syncs.append(now)))
    loss = pretrain.train_step(model, optimizers, batches, num_masked, machine)
    require(len(steps) < 3, "optimizers step after each micro-batch: they should once, at the end")
    require(len(set(steps)) == 2, "not all optimizers take a step")
    require(model.cast, "the model is called outside of machine.autocast()")
    require(syncs and syncs[-1] and sum(syncs) == 1, f"machine.synchronise gets now = {syncs} for "
            f"{len(batches)} micro-batches: it should be True for the last one alone")
    return before - nn.utils.parameters_to_vector(model.parameters()).detach(), loss


@check(5, points=7)
def step_over_micro_batches(pretrain, rng):
    """A step over micro-batches is the step over the whole batch, clipped to norm 1."""
    model, batches = tiny_batches(rng)
    world, left = int(rng.integers(2, 5)), 0.0
    for number in (1, 2):
        losses = [model.surprise(batch) for batch in batches]
        parts = [model.gradient(loss.sum()) for loss in losses]
        whole, loss, n = sum(parts), sum(each.sum() for each in losses), sum(map(len, losses))
        means = sum(p / len(each) for p, each in zip(parts, losses, strict=True)) / len(parts)
        # The first step needs no clipping, the second one does.
        num = 1 + int(world * whole.norm().item() * (2 if number == 1 else 0.3))
        scale, within = world / num, 0.0
        for part in parts:
            within = clipped(within + scale * part)
        taken, answer = take_step(pretrain, model, batches, num, world)
        compare(f"the update of step {number}", taken, clipped(scale * whole), {
            "when the first step's gradient is still there: is zero_grad missing?":
                clipped(left + scale * whole),
            "without clipping": scale * whole,
            "with the mean of micro-batch means: divide the sum of all losses by num_masked":
                clipped(means),
            "without division by num_masked": clipped(whole),
            "without the factor machine.world, which undoes DDP's average": clipped(whole / num),
            "when the process's own places are counted, instead of num_masked": clipped(whole / n),
            "when the gradient is clipped after each micro-batch: do it once, at the end": within,
            "when each micro-batch's gradient is clipped by itself: do it once, at the end":
                sum(clipped(scale * part) for part in parts),
            "from the last micro-batch alone: gradients have to add up":
                clipped(scale * parts[-1]),
            "without the last micro-batch": clipped(scale * (whole - parts[-1])),
            "when the sum is also divided by the number of micro-batches":
                clipped(scale * whole / len(parts)),
            "with each entry clipped (clip_grad_value_): the norm of the whole is meant":
                (scale * whole).clamp(-1, 1)})
        compare("the loss returned", answer, loss, {
            "when it is divided by num_masked": loss / num,
            "for the last micro-batch alone": losses[-1].sum()})
        require(torch.is_tensor(answer),
                "the loss returned is no tensor: return a tensor (detached), not a number")
        require(not answer.requires_grad, "the loss returned keeps the graph alive: detach it")
        left = scale * whole
