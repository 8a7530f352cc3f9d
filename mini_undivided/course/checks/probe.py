"""Checks of 9: a probe and its control task."""

import numpy as np
import torch
from torch.nn import functional as F

from mini_undivided.course.assignments import Wrong, check, normal, require
from mini_undivided.course.student import pure


def largest_gradient(x, y, W, b, classes, strength, on_b=0.0):
    """The largest part of the objective's gradient at W and b, over all layers."""
    W, b = (tensor.detach().double().requires_grad_() for tensor in (W, b))
    objective = strength / 2 * (W.square().sum() + on_b * b.square().sum())
    for logits in x.double() @ W + b:
        objective = objective + (
            F.cross_entropy(logits, y) if classes else (logits[:, 0] - y).square().mean() / 2)
    return max(g.abs().max().item() for g in torch.autograd.grad(objective, (W, b)))


@check(9, points=6)
def fitted_probe(probe, rng):
    """fit minimises mean loss + λ/2 |W|² for each layer and λ: the gradient there is 0."""
    L, N, C, K = int(rng.integers(3, 7)), 70, 6, int(rng.integers(3, 5))
    strengths, limit = (1.0, 0.1, 0.08), 2e-3
    for classes in (K, 0):
        x = normal(rng, L, N, C).float()
        score = x[0] @ normal(rng, C, K).float() + normal(rng, N, K).float() + torch.arange(K) / 2
        y = score.argmax(1) if classes else score[:, 0] + 1
        fits = pure("probe", "fit", x, y, classes, strengths)
        require(len(fits) == len(strengths), f"fit returns {len(fits)} pairs (W, b) for "
                f"{len(strengths)} strengths: is `strengths` used?")
        shapes = [(tuple(W.shape), tuple(b.shape)) for W, b in fits]
        wanted = [((L, C, classes or 1), (L, 1, classes or 1))] * len(strengths)
        require(shapes == wanted, f"W and b have the shapes {shapes}, but should have {wanted}")
        require(not any(tensor.requires_grad for pair in fits for tensor in pair),
                "W and b keep the graph alive: detach them")
        require(all(b.any() for _, b in fits), "b is 0: is it trained?")
        require(not all(torch.equal(fits[0][0], W) for W, _ in fits[1:]),
                "all λ have the same W: are strengths used, and a copy of each kept (clone())?")
        for (W, b), strength in zip(fits, strengths, strict=True):
            found = largest_gradient(x, y, W, b, classes, strength)
            if found < limit:
                continue
            where = f"{'classification' if classes else 'regression'}, λ = {strength:g}: "
            causes = {
                "λ |W|² is not halved": (2 * strength,),
                "λ is halved twice" if classes else "the squared error is not halved":
                    (strength / 2,),
                "the loss is averaged over layers: each layer has its own mean": (strength * L,),
                "λ |W|² is averaged over layers: it belongs to each layer": (strength / L,),
                "the loss is summed over examples: it is their mean": (strength / N,),
                "λ |W|² is multiplied by the number of examples": (strength * N,),
                "λ |W|² is divided by the number of its entries": (strength / W.numel(),),
                "the penalty on W is missing": (0.0,),
                "b is penalised as well: only W is": (strength, 1.0)}
            causes |= {f"this W is that of λ = {other:g}: are `strengths` used, in their order?":
                       (other,) for other in (*strengths, *probe.L2_PENALTIES) if other != strength}
            misses = {cause: largest_gradient(x, y, W, b, classes, *variant)
                      for cause, variant in causes.items()}
            cause = min(misses, key=misses.get)
            require(misses[cause] > 5 * limit, where + cause)
            start = largest_gradient(x, y, 0 * W, 0 * b, classes, strength)
            raise Wrong(f"{where}the gradient is {found:.2g} at the end and was {start:.2g} at the "
                        "start: take more steps until it is below 1e-4")


@check(9, points=4)
def control_task(probe, rng):
    """A word has one random tag wherever it occurs, drawn as often as tags occur in training."""
    share = np.array([0.6, 0.3, 0.1])
    kinds, often = [f"{letter}{i}" for i in range(600) for letter in "wW"], 1 / np.arange(9, 1209)
    texts = {part: rng.choice(kinds, (300, 9), p=often / often.sum()).tolist()
             for part in probe.SPLITS}
    labels = {part: rng.choice(3, 2700, p=share if part == "train" else share[::-1])
              for part in probe.SPLITS}
    task = probe.ProbeTask("tags", texts, labels, per_word=True)
    control, again, other = (pure("probe", "ProbeTask.control", task, n) for n in (5, 5, 6))
    require(list(control) == list(texts), f"control has the splits {list(control)}")
    tags = {}
    for part, tagged in control.items():
        words, here = [word for text in texts[part] for word in text], {}
        require(isinstance(tagged, np.ndarray), f"the tags of {part} are no array")
        require(len(tagged) == len(words), f"{part} has {len(tagged)} tags for {len(words)} words")
        require(all(here.setdefault(w, tag) == tag for w, tag in zip(words, tagged, strict=True)),
                "a word has different tags: draw one for each word, not one for each token")
        require(all(tags.get(w, tag) == tag for w, tag in here.items()),
                "a word has one tag in training and another in test: draw once, for all splits")
        tags |= here
    require(all(map(np.array_equal, control.values(), again.values())),
            "the same seed gives other tags")
    require(not all(map(np.array_equal, control.values(), other.values())),
            "another seed gives the same tags: use the seed")
    task.texts = {part: rows[::-1] for part, rows in texts.items()}
    turned = pure("probe", "ProbeTask.control", task, 5)
    require(all(np.array_equal(np.reshape(control[p], (300, 9))[::-1].ravel(), turned[p])
                for p in texts), "tags depend on the order of texts, or of a set, which changes "
            "from run to run: take words in sorted order")
    pairs = [(tags[w], tags[w.upper()]) for w in tags if w.islower() and w.upper() in tags]
    require(any(a != b for a, b in pairs), "words that differ in case have the same tag")
    found = np.bincount(np.array(list(tags.values()), dtype=int), minlength=3) / len(tags)
    say = f"tags occur in {', '.join(f'{s:.0%}' for s in found)} of words, not in 60, 30 and 10 %"
    require(len(found) == 3, f"{say}: there are other tags, too")
    causes = {"": share, ": they are drawn evenly": np.full(3, 1 / 3),
              ": they are drawn from all parts": (share + 2 * share[::-1]) / 3}
    cause = min(causes, key=lambda cause: np.abs(found - causes[cause]).max())
    require(not cause and np.abs(found - share).max() < 0.08, say + cause)
