"""From gradients to weights: the optimizers, and the learning rate over a run."""

import torch

WARMUP = 0.1  # share of the run in which the learning rate rises


def adamw(model, lr, weight_decay=0.01):
    """AdamW (Loshchilov & Hutter, 1711.05101), with no decay on biases and LayerNorms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
              {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-6, fused=True)


def warmup_decay(progress, warmup=WARMUP):
    """The factor on the peak learning rate: up in a line until `warmup`, then down to 0.

    Adam's first steps are almost as large as the learning rate whatever the gradient, and a
    post-norm model that is pushed far at the start does not recover: hence the line up.
    """
    if progress < warmup:
        return progress / warmup
    return max(0.0, (1.0 - progress) / (1.0 - warmup))


def set_learning_rate(optimizer, lr):
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
