"""Checks of 5: the training step."""

import copy
import math
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import nn

from mini_undivided.course.assignments import check, compare, distinct, normal, require
from mini_undivided.course.student import pure, remote


class Tiny(nn.Module):
    """A stand-in for MaskedLM: word vectors and a linear map."""

    def __init__(self, rng, V):
        super().__init__()
        self.word, self.out = nn.Embedding(V, 5).double(), nn.Linear(5, V).double()
        self.word.weight.data, self.out.weight.data = 10 * normal(rng, V, 5), normal(rng, V, 5)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, positions=None):
        """As MaskedLM.forward."""
        x = self.word(input_ids)
        return self.out(x if positions is None else x.take_along_dim(positions[..., None], 1))

    def surprise(self, batch):
        """-log p of each masked position of a batch, by definition."""
        used = batch.labels != -100
        logits = self(batch.input_ids, positions=batch.positions)[used]
        return -torch.distributions.Categorical(logits=logits).log_prob(batch.labels[used])

    def gradient(self, loss):
        """The gradient of a loss, as one vector."""
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(self.parameters()))])


def tiny_batches(rng):
    """A tiny model, and three micro-batches with unequal numbers of masked positions."""
    from mini_undivided.data import MaskedBatch, split

    V, T, M, B = distinct(rng, 4, 4, 11)
    labels = rng.integers(V, size=(3 * B, M))
    labels[rng.random(labels.shape) < 0.3] = -100
    labels[0], labels[B - 1], labels[-1], labels[-1, 0] = -100, 1, -100, 0
    drawn = rng.integers(V, size=(3 * B, T)), rng.integers(T, size=(3 * B, M)), labels
    batch = MaskedBatch(*map(torch.from_numpy, drawn))
    return Tiny(rng, V), list(split(batch, B))


@check(5, points=3)
def loss_of_a_batch(pretrain, rng):
    """masked_loss is the cross entropy in nats, summed over the masked positions."""
    model, (batch, *_) = tiny_batches(rng)
    rounded = pure("pretrain", "masked_loss", copy.deepcopy(model).bfloat16(), batch)
    require(torch.is_tensor(rounded), "masked_loss is a number, not a tensor")
    require(rounded.dtype != torch.bfloat16, "of bfloat16 logits, as on a GPU, the loss is in "
            "bfloat16, too, which has three digits: take logits.float()")
    for what, scale in {"masked_loss": 1, "masked_loss with large logits": 100}.items():
        model.out.weight.data *= scale
        losses = model.surprise(batch)
        right, positions = losses.sum(), batch.labels.numel()
        answer = pure("pretrain", "masked_loss", model, batch)
        require(answer.isfinite(), f"{what} is not finite: use log_softmax or cross_entropy, not "
                "the log of a softmax")
        compare(what, answer, right, {
            "when the mean is taken: train_step divides, once": losses.mean(),
            "when the sum is divided by all positions, the unused ones too": right / positions,
            "when the sum is divided by the sequences": right / len(batch.labels),
            "when IGNORE_INDEX is taken for a token": model.surprise(
                batch._replace(labels=batch.labels.clamp(min=0))).sum(),
            "with the opposite sign": -right, "in bits, not in nats": right / math.log(2)})


def clipped(gradient):
    """A gradient of norm 1 at most."""
    return gradient / gradient.norm().clamp(min=1)


@remote
def take_steps(model, batches, counts, world):
    """Steps of gradient descent at rate 1 → of each what it subtracts, and the loss returned.

    counts: the num_masked of each. Raises Wrong for what can be seen from outside.
    """
    from mini_undivided.pretrain import WithLoss, train_step

    tiny, steps, syncs, seen, now_inside = copy.deepcopy(model), [], [], [], []

    class Descent(torch.optim.SGD):
        def step(self, closure=None):
            steps.append(id(self))
            return super().step(closure)

    @contextmanager
    def synchronise(model, now):
        syncs.append(now)
        now_inside.append(True)
        yield
        now_inside.pop()

    def called(module, inputs, logits):
        seen.append((torch.is_autocast_enabled("cpu"), bool(now_inside)))
        logits.register_hook(lambda gradient: seen.append((True, bool(now_inside))))

    def called_for_logits(module, inputs, named):
        require(not named, "train_step calls the model for logits: model(batch) is the loss")

    tiny.out.register_forward_hook(called)
    model, taken = WithLoss(tiny, lambda tiny, batch: tiny.surprise(batch).sum()), []
    model.register_forward_pre_hook(called_for_logits, with_kwargs=True)
    optimizers = [Descent(part.parameters(), lr=1.0) for part in (tiny.word, tiny.out)]
    machine = SimpleNamespace(
        device=torch.device("cpu"), world_size=world, synchronise=synchronise,
        autocast=lambda: torch.autocast("cpu"))  # float64 stays as it is
    for count in counts:
        for record in (steps, syncs, seen):
            record.clear()
        before = nn.utils.parameters_to_vector(model.parameters()).detach()
        loss = train_step(model, optimizers, batches, count, machine)
        require(loss is not None, "train_step returns None: is a return missing?")
        require(torch.is_tensor(loss), "the loss returned is a number, not a tensor: with .item() "
                "the CPU waits for the GPU in each step")
        require(not loss.requires_grad, "the loss returned keeps the graph alive: detach it")
        require(steps, "no optimizer takes a step")
        require(len(set(steps)) == 2, "not all optimizers take a step")
        require(len(steps) == 2, "optimizers step after each micro-batch, not once, at the end")
        cast, inside = zip(*seen, strict=True)
        require(all(cast), "the model is called outside of machine.autocast()")
        require(syncs and syncs[-1] and sum(syncs) == 1, f"machine.synchronise gets now = {syncs} "
                f"for {len(batches)} micro-batches: it should be True for the last one alone")
        require(all(inside), "model or backward pass stand outside of `with machine.synchronise`")
        taken.append((before - nn.utils.parameters_to_vector(model.parameters()).detach(), loss))
    return taken


@check(5, points=7)
def step_over_micro_batches(pretrain, rng):
    """A step over micro-batches is the step over the whole batch, clipped to norm 1."""
    model, batches = tiny_batches(rng)
    start, world, left, kept = copy.deepcopy(model), int(rng.choice([2, 4, 5])), 0.0, 0.0
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    counts, rights = [], []
    for slack in (2, 0.3):  # the first step needs no clipping, the second one does
        losses = [model.surprise(batch) for batch in batches]
        parts = [model.gradient(loss.sum()) for loss in losses]
        whole, loss, n = sum(parts), sum(loss.sum() for loss in losses), sum(map(len, losses))
        means = sum(p / len(loss) for p, loss in zip(parts, losses, strict=True)) / len(parts)
        num = 1 + int(world * whole.norm().item() * slack)
        parts, scaled, in_turn = [world / num * part for part in parts], world / num * whole, 0.0
        for part in parts:
            in_turn = clipped(in_turn + part)
        right, pieces = clipped(scaled), scaled.split([shape.numel() for shape in shapes.values()])
        causes = {cause: clipped(gradient) for cause, gradient in {
            "with the first step's gradient: is zero_grad missing?": left + scaled,
            "with one optimizer's gradient of the first step: zero_grad is for each": kept + scaled,
            "with the mean of micro-batch means: divide the sum of all losses by num_masked": means,
            "without division by num_masked, or at norm 1 also if it is smaller": whole,
            "without the factor machine.world_size, which undoes DDP's average": whole / num,
            "when it is divided by machine.world_size, not multiplied": whole / num / world,
            "when the process's own positions are counted, not num_masked": world * whole / n,
            "from the last micro-batch alone: gradients have to add up": parts[-1],
            "when the sum is also divided by the number of micro-batches": scaled / len(parts),
        }.items()}
        clip = "clipped {}: it is done once, at the end, to the norm of the whole".format
        causes |= {
            "without clipping": scaled, clip("after each micro-batch"): in_turn,
            clip("for each micro-batch by itself"): sum(map(clipped, parts)),
            clip("for each parameter by itself"): torch.cat([*map(clipped, pieces)]),
            clip("for each optimizer by itself"):
                torch.cat([clipped(pieces[0]), clipped(torch.cat(pieces[1:]))]),
            clip("entry by entry (clip_grad_value_)"): scaled.clamp(-1, 1)}
        rights.append((right, loss, causes, {
            "when it is divided by num_masked": loss / num,
            "when it is multiplied by machine.world_size": world * loss,
            "for the last micro-batch alone": losses[-1].sum()}))
        counts.append(num)
        left, kept = scaled, torch.cat([0 * pieces[0], *pieces[1:]])
        vector = nn.utils.parameters_to_vector(model.parameters()).detach()
        nn.utils.vector_to_parameters(vector - right, model.parameters())
    taken = take_steps(start, batches, counts, world)
    for (update, answer), (right, loss, causes, of_loss) in zip(taken, rights, strict=True):
        compare("the update of a step", update, right, causes, shapes)
        compare("the loss returned", answer, loss, of_loss)
