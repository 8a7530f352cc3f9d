"""From gradients to weights: two optimizers, and the learning rate over a run.

Shapes: N matrices of one shape, of m rows and n columns.

AdamW divides each weight's gradient by that weight's own typical gradient. Muon takes the gradient
of a matrix as a whole, U S Vᵀ, and sets its singular values to 1, so that what is rare in it counts
as much as what is common; `docs/study.md` says what that is worth. It is for the hidden weight
matrices; embeddings, biases and LayerNorms stay with AdamW.
"""

import torch

WARMUP = 0.1  # of the run: where the learning rate rises
HIDDEN = ("encoder.layers.", "head.", "pooler.")  # modules whose weight matrices are Muon's
STEPS = 5  # of the iteration in `orthogonalise`


def warmup_decay(progress, warmup=WARMUP):
    """The factor on the peak learning rate ("initial_lr"): a line up to `warmup`, one down to 0.

    Adam's first steps, and all of Muon's, are as large as the rate says, whatever the gradient; a
    post-norm model that is pushed far at the start may not recover (Xiong et al. 2020, 2002.04745).
    """
    if progress < warmup:
        return progress / warmup
    return max(0.0, (1.0 - progress) / (1.0 - warmup))


def scale_learning_rates(optimizers, factor):
    """Set the learning rate of every parameter group to `factor` times its "initial_lr"."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["initial_lr"]


def adamw(parameters, lr, weight_decay=0.01):
    """AdamW (Loshchilov & Hutter, 1711.05101), with no decay on biases and LayerNorms."""
    parameters = [p for p in parameters if p.requires_grad]
    groups = [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
              {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0}]
    groups = [{**group, "initial_lr": lr} for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-6, fused=True)


def muon_and_adamw(model, muon_lr, lr, dtype=torch.float32):
    """Muon for the hidden weight matrices of a MaskedLM, AdamW for the rest → both."""
    matrices = [p for name, p in model.named_parameters()
                if p.dim() == 2 and p.requires_grad and name.startswith(HIDDEN)]
    hidden = set(matrices)  # by identity
    rest = [p for p in model.parameters() if p not in hidden]
    return [Muon(matrices, muon_lr, dtype), adamw(rest, lr)]


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.

    With the gradient G, for each matrix W (m, n):

        momentum ← μ momentum + (1 - μ) G          then, with this new momentum (Nesterov's):
        W ← (1 - lr decay) W - lr √max(1, m / n) orthogonalise(μ momentum + (1 - μ) G)

    `orthogonalise` gives U Vᵀ. If that is tall, its m rows have a mean square norm of n / m; the
    root makes it 1, as in a square one. dtype: `orthogonalise`'s, where bfloat16 does no harm.
    """

    def __init__(self, params, lr, dtype=torch.float32, momentum=0.95, weight_decay=0.01):
        by_shape = {}
        for W in params:
            by_shape.setdefault(W.shape, []).append(W)
        groups = [{"params": matrices} for matrices in by_shape.values()]
        super().__init__(groups, {"lr": lr, "initial_lr": lr, "dtype": dtype, "momentum": momentum,
                                  "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        """Take a step; the N matrices of one shape, a group, are orthogonalised as one batch."""
        for group in self.param_groups:
            lr, mu, updates = group["lr"], group["momentum"], []
            for W in group["params"]:
                state = self.state[W]
                if not state:
                    state["momentum"] = torch.zeros_like(W)
                momentum = state["momentum"].lerp_(W.grad, 1 - mu)
                updates.append(W.grad.lerp(momentum, mu))  # (1 - μ) G + μ momentum
            updates = orthogonalise(torch.stack(updates).to(group["dtype"]))  # (N, m, n)
            for W, update in zip(group["params"], updates, strict=True):
                W.mul_(1 - lr * group["weight_decay"])
                W.add_(update, alpha=-lr * max(1, W.size(0) / W.size(1)) ** 0.5)


def orthogonalise(x):
    """About U Vᵀ of each matrix U S Vᵀ in x (N, m, n): singular values are brought near 1.

    Newton-Schulz: x ← a x + b (x xᵀ) x + c (x xᵀ)² x turns every singular value s into
    a s + b s³ + c s⁵, since x xᵀ x = U S³ Vᵀ. Five steps with Jordan's a, b and c bring every s
    between 0.01 and 1 to between 0.68 and 1.14, by matrix multiplications alone.
    """
    if x.size(1) > x.size(2):  # so that the Gram matrix is the smaller one
        return orthogonalise(x.mT).mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # now no s is above 1
    for _ in range(STEPS):
        gram = x @ x.mT  # (N, m, m)
        # baddbmm(p, q, r, beta, alpha) is beta p + alpha q r, in one pass over memory.
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)  # b gram + c gram²
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)  # a x + polynomial x
    return x
