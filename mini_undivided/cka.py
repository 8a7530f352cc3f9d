"""How similar are two layers? Debiased centred kernel alignment (CKA; Kornblith et al. 1905.00414).

Shapes: B texts in a batch, T tokens in the longest, C width and L number of layers, n rows in a
minibatch; K and G are two layers' Gram matrices (elsewhere K is a number of classes).

A layer is a matrix X (n, C) with a row for each token (or text). Its Gram matrix K = X Xᵀ says
which rows are similar according to this layer, and CKA is the correlation of two Gram matrices:

    CKA(K, G) = HSIC(K, G) / √(HSIC(K, K) HSIC(G, G))

so neither the width of a layer nor a rotation or scaling of it matters. HSIC, the Hilbert-Schmidt
independence criterion, is the covariance of their entries. Its plain form, Σ_ij K_ij G_ij /
(n - 1)² with K's and G's row and column means subtracted, is biased, since a row is always similar
to itself: unrelated Gaussian layers have a CKA of about C / (n + C), near 0 only if n is far above
C. The unbiased form (Song et al. 2012) leaves these diagonals out:

    HSIC(K, G) = Σ_ij K̃_ij G̃_ij / (n (n - 3))     with K̃_ii = 0 and, for i ≠ j,
    K̃_ij = K_ij - Σ_a K_ia / (n - 2) - Σ_a K_aj / (n - 2) + Σ_ab K_ab / ((n - 1) (n - 2))

where K's own diagonal counts as 0 ("U-centring"). Since HSIC is unbiased, it may be averaged over
minibatches, and CKA taken of the three averages (Nguyen et al. 2021, 2010.15327). Unrelated layers
give 0 on average, and single values on both sides of it.
"""

from contextlib import ExitStack

import torch

from mini_undivided.attention import collapse
from mini_undivided.support.errors import UserError
from mini_undivided.support.machine import in_float64

OUTPUTS = ("attention", "block")  # of a layer: after its attention sublayer, and after all of it
MIN_ROWS = 4  # in a minibatch: the estimator divides by n - 3
BUFFERED = 8  # minibatches whose rows are shuffled together, so that none is one text's tokens


# The formula, for two arrays.

def cka(a, b):
    """CKA of two layers: rows (n, C_A) and (n, C_B), in the same order → a number.

    NaN if a layer's rows are all the same: nothing varies, so nothing correlates.
    """
    K, G = (centre(x.double()[None]) for x in (a, b))
    return (hsic(K, G) / (hsic(K, K) * hsic(G, G)).sqrt()).item()


def centre(x):
    """U-centred Gram matrices K̃ of layers: x (L, n, C) → (L, n, n); rows and columns sum to 0."""
    n = x.size(1)
    x = x - x[:, :1]  # adds a_i + a_j + c to K_ij, centred away; a constant layer's K is now 0
    gram = x @ x.transpose(1, 2)  # (L, n, n)
    gram.diagonal(dim1=1, dim2=2).zero_()
    rows = gram.sum(2) / (n - 2)  # (L, n): Σ_a K_ia / (n - 2)
    total = rows.sum(1) / (n - 1)  # (L,): Σ_ab K_ab / ((n - 1) (n - 2))
    gram += total[:, None, None] - rows[:, :, None] - rows[:, None, :]
    gram.diagonal(dim1=1, dim2=2).zero_()
    return gram


def hsic(a, b):
    """HSIC of all pairs of layers: centred Grams (L_A, n, n), (L_B, n, n) → (L_A, L_B)."""
    n = a.size(1)
    return a.flatten(1) @ b.flatten(1).T / (n * (n - 3))


# The same for all layers of two encoders, over minibatches.

class CKA:
    """CKA of every layer of A with every layer of B, summed over equal minibatches in float64."""

    def __init__(self):
        self.ab = self.aa = self.bb = 0.0
        self.rows = 0  # the n to report

    def add(self, a, b):
        """Add the centred Grams of A (L_A, n, n) and of B (L_B, n, n), of the same n rows."""
        self.ab = self.ab + hsic(a, b)
        self.aa = self.aa + hsic(a, a).diagonal()  # each layer with itself
        self.bb = self.bb + hsic(b, b).diagonal()
        self.rows += a.size(1)

    def value(self):
        """(L_A, L_B), on the CPU: 1 for equal layers, 0 for unrelated, NaN for constant."""
        return (self.ab / (self.aa[:, None] * self.bb).sqrt()).cpu()


def layer_outputs(encoder, input_ids, attention_mask=None, token_type_ids=None):
    """One forward pass → {"attention": layers, "block": embeddings and layers}, each (B, T, C).

    The attention output is that of the whole sublayer, after its residual and LayerNorm: without
    an FFN, the block's.
    """
    attention = []
    keep = lambda _, inputs, output: attention.append(output)  # noqa: E731
    with ExitStack() as hooks:  # removes them at its end
        for layer in encoder.layers:
            hooks.enter_context(layer.attention.register_forward_hook(keep))
        _, block = encoder(
            input_ids, attention_mask, token_type_ids, output_hidden_states=True)
    return {"attention": attention, "block": block}


@torch.inference_mode()
def compare(encoders, batches, pairs, n=256):
    """CKA of pairs of encoders, and the rank collapse of each encoder.

    encoders: {name: Encoder}, all in evaluation mode and with the same tokenizer. batches: the
    encoders' three inputs, on their device. pairs: of names, (a, b). n: rows, tokens, in a
    minibatch; what is left over at the end is not used.
    → {(a, b): {"attention": (L_A, L_B), "block": (L_A + 1, L_B + 1)}}, {name: (L + 1, 2)}, and the
    number of rows. Raises UserError if the rows do not fill one minibatch.
    """
    if n < MIN_ROWS:
        raise UserError(f"CKA needs at least {MIN_ROWS} rows in a minibatch, not {n}")
    sums = {pair: {output: CKA() for output in OUTPUTS} for pair in pairs}
    collapses = {name: [] for name in encoders}
    buffer = ShuffleBuffer(n)
    for input_ids, attention_mask, token_type_ids in batches:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        real = mask.bool()
        for name, encoder in encoders.items():
            outputs = layer_outputs(encoder, input_ids, attention_mask, token_type_ids)
            collapses[name].append(collapse(outputs["block"], real))
            for output, layers in outputs.items():
                x = torch.stack(layers)  # (L, B, T, C)
                buffer.add((name, output), x[:, real])
        add_minibatches(sums, buffer.take(BUFFERED * n))
    add_minibatches(sums, buffer.take(n))
    rows = max((outputs["block"].rows for outputs in sums.values()), default=0)
    if pairs and not rows:
        raise UserError(f"CKA needs {n} tokens at least, but there are {buffer.size}: give more "
                        "text or more --examples")
    values = {pair: {output: total.value() for output, total in outputs.items()}
              for pair, outputs in sums.items()}
    return values, {name: torch.cat(c, dim=2).mean(2).cpu() for name, c in collapses.items()}, rows


# Not needed at first reading: rows and minibatches.

def add_minibatches(sums, minibatches):
    """Add {(name, output): rows (L, n, C)} of each to the sums; each Gram is computed once."""
    for minibatch in minibatches:
        grams = {key: centre(rows) for key, rows in minibatch.items()}
        for (a, b), outputs in sums.items():
            for output, total in outputs.items():
                total.add(grams[a, output], grams[b, output])


class ShuffleBuffer:
    """Rows of all encoders, to be shuffled in the same order and cut into minibatches of n."""

    def __init__(self, n):
        self.n, self.rows = n, {}  # {key: list of rows}
        self.generator = torch.Generator().manual_seed(0)

    @property
    def size(self):
        """Rows that wait."""
        return sum(rows.size(1) for rows in next(iter(self.rows.values()), []))

    def add(self, key, rows):
        """Add rows (L, number, C) of an output of one encoder."""
        self.rows.setdefault(key, []).append(rows)

    def take(self, at_least):
        """Yield minibatches {key: (L, n, C) in float64} if `at_least` rows wait; keep the rest."""
        if self.size < at_least:
            return
        order = torch.randperm(self.size, generator=self.generator)
        whole = {key: torch.cat(rows, dim=1) for key, rows in self.rows.items()}
        whole_minibatches = len(order) // self.n * self.n
        for chosen in order[:whole_minibatches].split(self.n):
            yield {key: in_float64(rows[:, chosen.to(rows.device)]) for key, rows in whole.items()}
        rest = order[whole_minibatches:]
        self.rows = {key: [rows[:, rest.to(rows.device)]] for key, rows in whole.items()}
