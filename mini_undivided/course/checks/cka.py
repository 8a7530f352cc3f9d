"""Checks of 8: debiased CKA."""

import itertools

import torch

from mini_undivided.course.assignments import check, compare, distinct, equal, normal, require
from mini_undivided.course.student import pure


def brute_hsic(K, G):
    """Unbiased HSIC by its definition: a mean over all four different rows (Song et al. 2012)."""
    i, j, q, r = torch.tensor(list(itertools.permutations(range(len(K)), 4))).T
    return (K[i, j] * (G[i, j] + G[q, r] - 2 * G[i, q])).mean()


def cycles(rng, count, n):
    """Symmetric matrices (count, n, n) with no diagonal, whose rows sum to 0: sums of 4-cycles."""
    made = torch.zeros(count, n, n, dtype=torch.float64)
    for matrix in made:
        for _ in range(4 * n):
            around, weight = rng.permutation(n)[:4], rng.normal()
            for side in range(4):
                a, b = around[side], around[side - 1]
                matrix[a, b] += weight * (-1) ** side
                matrix[b, a] += weight * (-1) ** side
    return made


@check(8, points=5)
def centred_gram(cka, rng):
    """centre has a diagonal and row sums of 0, and differs from K = X Xᵀ by u_i + u_j."""
    for n in (int(rng.integers(7, 10)), 4):  # the least that the divisors allow
        x = normal(rng, int(rng.integers(2, 4)), n, int(rng.integers(5, 7))) + 1
        answer, gram, rows = pure("cka", "centre", x), x @ x.mT, x - x.mean(1, True)
        biased, eye = rows @ rows.mT, torch.eye(n, dtype=x.dtype)
        wrong = {
            "X Xᵀ itself: nothing is subtracted": gram,
            "H K H, the biased form: leave the diagonal out, and divide by n - 2": biased,
            "H K H without its diagonal: K's own counts as 0 in the sums, too": biased * (1 - eye)}
        require(answer.shape == gram.shape, f"centre has the shape {tuple(answer.shape)}, but "
                f"should have {tuple(gram.shape)}: a matrix for each layer")
        for cause, value in wrong.items():
            require(not equal(answer, value), f"centre is {cause}")
        tiny, sums = 1e-5 * gram.abs().max(), answer.sum(2)
        require((answer * eye).abs().max() < tiny,
                "the diagonal of the result is not 0: set it to 0 once more at the end")
        require(sums.abs().max() < tiny, f"rows sum to {sums[0, 0]:.4g}, not to 0: is it n - 2 and "
                "(n - 1) (n - 2), and does K's diagonal count as 0 in the sums?")
        require(equal(answer, answer.mT), "the result is not symmetric")
        less, (i, j, q, r) = answer - gram, torch.tensor([*itertools.permutations(range(n), 4)]).T
        additive = less[:, i, j] + less[:, q, r] - less[:, i, r] - less[:, q, j]
        require(additive.abs().max() < tiny,
                "more than sums of rows and of all is subtracted, or the entries are scaled")


@check(8, points=5)
def hsic_of_pairs(cka, rng):
    """hsic is the unbiased estimate for each pair of layers, as its definition has it."""
    for n in (int(rng.integers(7, 10)), 4):
        A, B = distinct(rng, 2, 2, 4)
        a, b = cycles(rng, A, n), cycles(rng, B, n)
        right = torch.stack([torch.stack([brute_hsic(K, G) for G in b]) for K in a])
        plain = right * n * (n - 3)
        compare("hsic", pure("cka", "hsic", a, b), right, {
            "with (n - 1)² below, the biased form's": plain / (n - 1) ** 2,
            "with n² for n (n - 3)": plain / n**2,
            "with (n - 2) for (n - 3)": plain / (n * (n - 2)),
            "with (n - 1) for (n - 3)": plain / (n * (n - 1)),
            "with (n - 1) (n - 3)": plain / ((n - 1) * (n - 3)),
            "without the division by n (n - 3)": plain,
            "for B with A: rows are the layers of A": right.mT,
            "with the number of layers for n, which is a.size(1)": plain / (A * (A - 3)),
            "when it is normalised: that is CKA":
                plain / (a.flatten(1).norm(dim=1)[:, None] * b.flatten(1).norm(dim=1)),
            "for products of sums: multiply entry by entry, then sum":
                a.sum((1, 2))[:, None] * b.sum((1, 2)) / (n * (n - 3))})
