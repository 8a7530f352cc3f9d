"""Typical mistakes in the assignments, and right solutions that look different from ours.

A mistake is (assignment, function, text of our solution, what stands there instead, what the
message has to say of its cause).
"""

from mini_undivided.course.assignments import ASSIGNMENTS

_CLIP = "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)"
_RANKS = "return (last - (counts - 1) / 2)[inverse]"
_BACK = "(loss * (machine.world_size / num_masked)).backward()"

MISTAKES = [
    (1, "attention", " / math.sqrt(q.size(-1))", "", "without the division by √D"),
    (1, "attention", "math.sqrt(q.size(-1))", "q.size(-1)", "D instead of √D"),
    (1, "attention", "math.sqrt(q.size(-1))", "math.sqrt(k.size(-2))", "√T"),
    (1, "attention", "softmax(dim=-1)", "softmax(dim=-2)", "over the queries"),
    (1, "attention", "scores.softmax(dim=-1)", "scores", "without the softmax"),
    (1, "attention", "if mask is not None:\n        scores", "if False:\n        scores",
     "after the softmax"),
    (1, "attention", "if mask is not None", "if False", "the mask is not used"),
    (1, "attention", "(weights, dropout) @ v", "(weights @ v, dropout)", "on the output"),
    (1, "attention", "F.dropout(weights, dropout)", "weights", "dropout unused"),
    (1, "attention", "F.dropout(weights, dropout)", "F.dropout(weights, 1 - dropout)", "is kept"),
    (2, "Block.forward", "x if self.ffn is None else self.ffn(x)", "self.ffn(x)", "not callable"),
    (2, "Block.forward", "return x if", "return F.layer_norm(2 * x, x.shape[-1:]) if",
     "identity is not an absent"),
    (2, "Block.forward", "x if self.ffn is None else self.ffn(x)", "x", "FFN is left out"),
    (2, "Block.forward", "x, mask, positions", "x, None, positions", "mask does not reach"),
    (2, "Block.forward", "x, mask, positions)\n", "x, mask)\n", "positions does not reach"),
    (2, "Block.forward", "x, mask, positions)\n",
     "x, *(() if self.ffn is None else (mask, positions)))\n", "mask does not reach"),
    (2, "Block.forward", "x, mask, positions)\n",
     "x, mask, None if self.ffn is None else positions)\n", "positions does not reach"),
    (2, "Block.forward", "mask, ", "None if self.ffn is None else mask, ", "mask does not reach"),
    (3, "count_parameters", "config)", "type(config)(**{**vars(config), 'ffn_layers': None}))",
     "every layer"),
    (3, "count_parameters", "return sum(p.numel() for p in model_class(config).parameters())",
     "return sum(p.numel() for p in model_class(config).parameters()) + 2 * config.hidden_size * "
     "(config.num_hidden_layers - len(config.ffn_layers))", "absent FFN"),
    (3, "count_parameters", "return sum(p.numel() for p in model_class(config).parameters())",
     "return sum(p.numel() for p in model_class(config).parameters()) + config.hidden_size * "
     "config.vocab_size", "tied"),
    (3, "count_parameters", "model_class(config)", "MaskedLM(config)", "whatever model_class"),
    (3, "flops_per_token", "6 * total", "2 * total", "forward pass alone"),
    (3, "flops_per_token", "6 * total", "3 * total", "it is two"),
    (3, "flops_per_token", "2 * seq_len * C", "seq_len * C", "one of Q Kᵀ"),
    (3, "flops_per_token", " + 2 * seq_len * C", "", "without Q Kᵀ"),
    (3, "flops_per_token", " if i in config.ffn_layers else 0.0", "", "FFN in every layer"),
    (3, "flops_per_token", " + V * C", "", "output matrix"),
    (3, "flops_per_token", "1.0 if num_masked is None else num_masked / seq_len", "1.0",
     "num_masked is not used"),
    (3, "flops_per_token", "ratio if i == L - 1 else 1.0", "1.0", "not used in the last layer"),
    (3, "flops_per_token", "2 * C * C + queries * (2 * C", "queries * (4 * C", "last layer's keys"),
    (3, "flops_per_token", "(C * C + V * C)", "V * C", "head's dense layer"),
    (3, "flops_per_token", "(C * C + V * C)", "(C * C + V * C) + V * C", "no product is computed"),
    (4, "Sequences.mask", "self.is_special[ids]", "np.zeros(ids.shape, dtype=bool)",
     "special tokens"),
    (4, "Sequences.mask", "< TO_MASK + TO_RANDOM", "< TO_MASK + 2 * TO_RANDOM", "one should stay"),
    (4, "Sequences.mask", "draws < TO_MASK, self", "draws < 2, self", "everything chosen"),
    (4, "Sequences.mask", "(~special).sum(axis=1, keepdims=True)",
     "np.full((len(ids), 1), ids.shape[1])", "all tokens"),
    (4, "Sequences.mask", "random, ", "self.sep_id, ", "special tokens are among the random words"),
    (4, "Sequences.mask", "random, ", "random[:, :1], ", "random words of a sequence"),
    (4, "Sequences.mask", "np.rint(", "np.floor(", "cut off"),
    (4, "Sequences.mask", "ids, positions, axis", "np.roll(ids, 1, 1), positions, axis", "labels"),
    (4, "Sequences.mask", "rng.random(ids.shape, dtype=np.float32)",
     "np.random.random(ids.shape)", "rng and nothing else"),
    (4, "Sequences.mask", "rng.random(ids.shape, dtype=np.float32)",
     "np.repeat(rng.random((1, ids.shape[1])), len(ids), 0)", "same positions"),
    (4, "Sequences.mask", "MaskedBatch(*map(torch.from_numpy, (ids, positions.copy(), labels)))",
     "ids, positions, labels", "MaskedBatch of three tensors"),
    (5, "masked_loss", 'reduction="sum"', 'reduction="mean"', "mean is taken"),
    (5, "masked_loss", 'reduction="sum")', 'reduction="sum") / labels.numel()', "all positions"),
    (5, "train_step", "machine.world_size / num_masked",
     "1 / (batch.labels >= 0).sum() / len(batches)",
     "micro-batch means"),
    (5, "train_step", "world_size / num_masked", "world_size", "without division by num_masked"),
    (5, "train_step", "machine.world_size / num_masked", "1 / num_masked", "machine.world_size"),
    (5, "train_step", _CLIP, "", "without clipping"),
    (5, "train_step", _BACK, _BACK + "\n            " + _CLIP, "after each micro-batch"),
    (5, "train_step", "nn.utils.clip_grad_norm_", "nn.utils.clip_grad_value_", "clip_grad_value_"),
    (5, "train_step", "optimizer.zero_grad(set_to_none=True)", "pass", "zero_grad"),
    (5, "train_step", _BACK, "model.zero_grad(); " + _BACK, "last micro-batch alone"),
    (5, "train_step", _BACK, _BACK + "; optimizers[0].step()", "after each micro-batch"),
    (5, "train_step", "total += loss.detach()", "total = loss.detach()", "last micro-batch alone"),
    (5, "train_step", "total += loss.detach()", "total = total + loss", "detach"),
    (5, "train_step", "return total", "return total.item()", "not a tensor"),
    (5, "train_step", "now=i == len(batches) - 1", "now=True", "the last one alone"),
    (5, "train_step", "with machine.autocast()", "if True", "outside of machine.autocast"),
    (5, "train_step", "in optimizers:", "in optimizers[:1]:", "not all optimizers"),
    (6, "warmup_decay", "return progress / warmup", "return 1 - progress / warmup", "from nothing"),
    (6, "warmup_decay", "return progress / warmup", "return progress", "divided by its length"),
    (6, "warmup_decay", "(1.0 - progress) / (1.0 - warmup)", "1.0 - progress", "decay begin there"),
    (6, "warmup_decay", "max(0.0, (1.0 - progress) / (1.0 - warmup))",
     "(1.0 - progress) / (1.0 - warmup)", "negative"),
    (6, "warmup_decay", "1.0 - warmup))", "1.0 - warmup)) ** 0.5", "decay is not a straight line"),
    (6, "warmup_decay", "if progress < warmup", "if progress <= warmup", "division by zero"),
    (6, "scale_learning_rates", 'factor * group["initial_lr"]', 'factor * group["lr"]', "add up"),
    (6, "scale_learning_rates", 'factor * group["initial_lr"]', "factor", "factor itself"),
    (6, "scale_learning_rates", "in optimizers", "in optimizers[:1]", "first optimizer"),
    (7, "f1", "(predicted == 1) & (labels == 1)", "(predicted == 0) & (labels == 0)", "label 0"),
    (7, "f1", "2 * true / (2 * true + wrong)", "true / (true + wrong)", "Jaccard"),
    (7, "f1", "!= labels", "> labels) + np.sum((predicted == 0) & (labels == 0)", "true negatives"),
    (7, "f1", " if true else 0.0", "", "division by 0"),
    (7, "f1", "2 * true / (2 * true + wrong)", "np.mean(predicted == labels)", "accuracy"),
    (7, "pearson", "x, y = x - x.mean(), y - y.mean()", "", "means are not subtracted"),
    (7, "pearson", "if np.ptp(x) == 0 or np.ptp(y) == 0:", "if False:", "one side constant"),
    (7, "matthews", "pearson(predicted, labels)", "2 * accuracy(predicted, labels) - 1", "2 ·"),
    (7, "ranks", _RANKS,
     "return np.argsort(np.argsort(values, kind='stable'), kind='stable') + 1.0", "ties"),
    (7, "ranks", _RANKS, "return np.argsort(np.argsort(values)) + 1", "argsort(argsort)"),
    (7, "ranks", _RANKS, "return last[inverse]", "greatest"),
    (7, "ranks", _RANKS, "return inverse + 1", "numbered"),
    (7, "ranks", "(counts - 1) / 2", "(counts + 1) / 2", "begin at 0"),
    (7, "spearman", "(ranks(predicted), ranks(labels))", "(predicted, labels)", "from the values"),
    (8, "centre", "gram.diagonal(dim1=1, dim2=2).zero_()\n    rows", "rows", "diagonal"),
    (8, "centre", "    gram.diagonal(dim1=1, dim2=2).zero_()\n    return", "    return",
     "once more at the end"),
    (8, "centre", "/ (n - 2)", "/ n", "n - 2"),
    (8, "centre", "/ (n - 1)", "/ (n - 2)", "n - 1"),
    (8, "hsic", "(n * (n - 3))", "(n - 1) ** 2", "biased"),
    (8, "hsic", "(n * (n - 3))", "(n * n)", "n² for"),
    (8, "hsic", "(n * (n - 3))", "(n * (n - 2))", "(n - 2) for (n - 3)"),
    (8, "hsic", " / (n * (n - 3))", "", "without the division"),
    (8, "hsic", "a.flatten(1) @ b.flatten(1).T", "b.flatten(1) @ a.flatten(1).T", "B with A"),
    (9, "fit", "strength / 2", "strength", "not halved"),
    (9, "fit", "W.square().sum()", "(W.square().sum() + b.square().sum())", "b is penalised"),
    (9, "fit", "labels, classes).sum()", "labels, classes).mean()", "averaged over layers"),
    (9, "fit", "steps=200", "steps=1", "more steps"),
    (9, "fit", "W.detach().clone(), b.detach().clone(", "W.detach(), b.detach(", "a copy of each"),
    (9, "fit", "return fits", "return fits[::-1]", "in their order"),
    (9, "fit", "labels, classes).sum()", "labels, classes).sum() * len(labels)", "summed over"),
    (9, "ProbeTask.control", "tags[w]", "rng.choice(self.labels['train'])", "for each token"),
    (9, "ProbeTask.control", "[tags[w] for text in split for w in text]",
     "(lambda mine: [mine[w] for text in split for w in text])(dict(zip(word_types, rng.choice("
     "self.labels['train'], len(word_types)))))", "another in test"),
    (9, "ProbeTask.control", 'rng.choice(self.labels["train"], len(word_types))',
     "rng.integers(self.classes, size=len(word_types))", "evenly"),
    (9, "ProbeTask.control", "default_rng(seed)", "default_rng(0)", "use the seed"),
    (9, "ProbeTask.control", "default_rng(seed)", "default_rng()", "same seed gives other"),
    (9, "ProbeTask.control", "word_types = sorted(", "word_types = list(", "sorted order"),
]

# Solutions as somebody writes them who has read the handout alone.
BY_HAND = {"attention": """
def attention(q, k, v, mask=None, dropout=0.0):
    D = q.shape[-1]
    scores = torch.matmul(q, k.transpose(-1, -2)) / D**0.5
    if mask is not None:
        scores = scores.masked_fill(mask == False, float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    weights = F.dropout(weights, p=dropout)
    return torch.matmul(weights, v)
""", "FeedForward.forward": """
def forward(self, x):
    y = self.down(F.gelu(self.up(x)))
    return self.norm(x + self.dropout(y))
""", "Block.forward": """
def forward(self, x, mask=None, positions=None):
    x = self.attention(x, mask, positions)
    if self.ffn is not None:
        x = self.ffn(x)
    return x
""", "count_parameters": """
def count_parameters(config, model_class=MaskedLM):
    C, I, V, L = (config.hidden_size, config.intermediate_size, config.vocab_size,
                  config.num_hidden_layers)
    total = V * C + config.max_position_embeddings * C + config.type_vocab_size * C
    total += 2 * C
    attention = 4 * (C * C + C) + 2 * C
    ffn = 2 * C * I + I + C + 2 * C
    total += L * attention + len(config.ffn_layers) * ffn
    if model_class is MaskedLM:
        total += C * C + C
        total += 2 * C + V
    return total
""", "flops_per_token": """
def flops_per_token(config, seq_len, num_masked=None):
    C, I, V, L, T = (config.hidden_size, config.intermediate_size, config.vocab_size,
                     config.num_hidden_layers, seq_len)
    M = T if num_masked is None else num_masked
    total = 0
    for layer in range(L):
        Q = M if layer == L - 1 else T
        total += 4 * T * C * C
        total += 4 * Q * C * C
        total += 4 * Q * T * C
        if layer in config.ffn_layers:
            total += 4 * Q * C * I
    total += 2 * M * (C * C + C * V)
    return 3 * total / T
""", "Sequences.mask": """
def mask(self, ids, rng):
    (B, T), M = ids.shape, self.num_masked
    noise = rng.random((B, T))
    special = self.is_special[ids]
    noise[special] = np.inf
    order = noise.argsort(1)[:, :M]
    action = rng.random((B, M))
    words = rng.choice(self.ordinary, size=(B, M))
    n = (~special).sum(1)
    used = np.arange(M) < np.round(self.mlm_probability * n)[:, None]
    old = np.take_along_axis(ids, order, 1)
    new = np.where(action < 0.8, self.mask_id, np.where(action < 0.9, words, old))
    inputs = ids.copy()
    np.put_along_axis(inputs, order, np.where(used, new, old), 1)
    labels = np.where(used, old, IGNORE_INDEX)
    return MaskedBatch(*(torch.from_numpy(x) for x in (inputs, order, labels)))
""", "masked_loss": """
def masked_loss(model, batch):
    logits = model(batch.input_ids, positions=batch.positions).float()
    loss = F.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none")
    return loss.sum()
""", "train_step": """
def train_step(model, optimizers, batches, num_masked, machine):
    total = 0.0
    for i, batch in enumerate(batches):
        last = i + 1 == len(batches)
        with machine.synchronise(model, now=last):
            with machine.autocast():
                loss = model(batch)
            (loss * machine.world_size / num_masked).backward()
        total = total + loss.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return total
""", "warmup_decay": """
def warmup_decay(progress, warmup=WARMUP):
    if progress < warmup:
        return progress / warmup
    return max(0.0, 1 - (progress - warmup) / (1 - warmup))
""", "scale_learning_rates": """
def scale_learning_rates(optimizers, factor):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
""", "f1": """
def f1(predicted, labels):
    tp = np.sum((predicted == 1) & (labels == 1))
    if tp == 0:
        return 0.0
    precision, recall = tp / np.sum(predicted == 1), tp / np.sum(labels == 1)
    return 2 * precision * recall / (precision + recall)
""", "pearson": """
def pearson(predicted, labels):
    x, y = predicted - np.mean(predicted), labels - np.mean(labels)
    below = np.sqrt(np.sum(x**2) * np.sum(y**2))
    if below == 0:
        return 0.0
    return np.sum(x * y) / below
""", "matthews": """
def matthews(predicted, labels):
    tp = float(np.sum((predicted == 1) & (labels == 1)))
    tn = float(np.sum((predicted == 0) & (labels == 0)))
    fp = float(np.sum((predicted == 1) & (labels == 0)))
    fn = float(np.sum((predicted == 0) & (labels == 1)))
    below = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    if below == 0:
        return 0.0
    return (tp * tn - fp * fn) / below
""", "ranks": """
def ranks(values):
    ordered = np.sort(values)
    result = np.zeros(len(values))
    for i, value in enumerate(values):
        same = np.flatnonzero(ordered == value) + 1
        result[i] = same.mean()
    return result
""", "spearman": """
def spearman(predicted, labels):
    return pearson(ranks(predicted), ranks(labels))
""", "centre": """
def centre(x):
    n = x.shape[1]
    K = x @ x.mT
    K = K * (1 - torch.eye(n, dtype=K.dtype))
    total = K.sum((1, 2), keepdim=True)
    rows, columns = K.sum(2, keepdim=True), K.sum(1, keepdim=True)
    K = K - rows / (n - 2) - columns / (n - 2) + total / ((n - 1) * (n - 2))
    return K * (1 - torch.eye(n, dtype=K.dtype))
""", "hsic": """
def hsic(a, b):
    n = a.shape[1]
    return (a[:, None] * b[None]).sum((2, 3)) / (n * (n - 3))
""", "fit": """
def fit(features, labels, classes, strengths=L2_PENALTIES, steps=200):
    (L, N, C), fits = features.shape, []
    for strength in strengths:
        W = torch.zeros(L, C, classes or 1, requires_grad=True)
        b = torch.zeros(L, 1, classes or 1, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [W, b], max_iter=300, tolerance_grad=1e-5, line_search_fn="strong_wolfe")
        def closure():
            optimizer.zero_grad()
            loss = losses(features @ W + b, labels, classes).sum()
            loss = loss + strength / 2 * (W**2).sum()
            loss.backward()
            return loss
        optimizer.step(closure)
        fits.append((W.detach(), b.detach()))
    return fits
""", "ProbeTask.control": """
def control(self, seed):
    rng = np.random.default_rng(seed)
    words = sorted({w for texts in self.texts.values() for text in texts for w in text})
    tags = dict(zip(words, rng.choice(self.labels["train"], size=len(words))))
    return {part: np.array([tags[w] for text in texts for w in text])
            for part, texts in self.texts.items()}
"""}
_SOFTMAX = "torch.softmax(scores, dim=-1)"
_MASKING = 'scores.masked_fill(mask == False, float("-inf"))'
_LOOP = "for layer in encoder.layers:\n        layer.ffn = encoder.layers[0].ffn"

# Mistakes in them: (assignment, function, text of theirs, what stands there instead, cause).
MISTAKES_BY_HAND = [
    (1, "attention", "D = q.shape[-1]", "D = v.shape[-1]", "the last size of v"),
    (1, "attention", "D = q.shape[-1]", "D = q.shape[-1] * q.shape[1]", "C = H D"),
    (1, "attention", _SOFTMAX, "scores.exp() / scores.exp().sum(-1, keepdim=True)", "not finite"),
    (1, "attention", _SOFTMAX, "torch.softmax(scores, dim=1)", "over the heads"),
    (1, "attention", "dim=-1)\n", "dim=-1) / D**0.5\n", "√D"),
    (1, "attention", "/ D**0.5", "* D**0.5", "multiplied by √D"),
    (1, "attention", _MASKING, "scores.masked_fill(mask, -1e9)", "the mask is inverted"),
    (1, "attention", _MASKING, "scores + (~mask) * 1e9", "−∞ has the wrong sign"),
    (1, "attention", _MASKING, "scores * mask", "masked scores become 0"),
    (1, "attention", _MASKING, "scores + mask", "0 and 1 are added"),
    (1, "attention", "D = q.shape[-1]",
     "return F.scaled_dot_product_attention(q, k, v, mask, dropout)", "write it out"),
    (1, "attention", _MASKING, "scores.masked_fill(mask == False, -30.0)", "far below"),
    (1, "attention", _MASKING, "scores.masked_fill(mask == False, -1e4)", "far below"),
    (1, "attention", _MASKING, "scores.masked_fill(mask[:1] == False, -1e9)", "first one's mask"),
    (1, "attention", "D = q.shape[-1]", "D = 1; q /= q.shape[-1] ** 0.5", "changes its input"),
    (1, "attention", "p=dropout)", "p=dropout, training=False)", "dropout unused"),
    (1, "attention", "F.dropout(weights, p=dropout)",
     "weights * (torch.rand(weights.shape) > dropout)", "without the division"),
    (1, "attention", "F.dropout(weights, p=dropout)",
     "weights * (torch.rand(weights.shape) < dropout) / (1 - dropout)", "share that becomes 0"),
    (1, "attention", "weights = F.dropout(weights, p=dropout)", "weights = torch.softmax("
     "F.dropout(scores, p=dropout), dim=-1)", "no weight is 0"),
    (1, "attention", "p=dropout)", "p=dropout); weights = weights / weights.sum(-1, keepdim=True)",
     "by their sum"),
    (2, "FeedForward.forward", "x + self", "self", "residual is forgotten"),
    (2, "FeedForward.forward", "self.norm(x + ", "x + self.norm(", "residual comes after the norm"),
    (2, "FeedForward.forward", "self.norm(x + self.dropout(y))", "x + self.dropout(y)",
     "without the LayerNorm"),
    (2, "FeedForward.forward", "self.up(x)))\n    return self.norm(x + self.dropout(y))",
     "self.up(self.norm(x))))\n    return x + self.dropout(y)", "pre-norm"),
    (2, "FeedForward.forward", "F.gelu(self.up(x))", "self.up(x)", "without the GELU"),
    (2, "FeedForward.forward", "F.gelu(", "F.relu(", "ReLU"),
    (2, "FeedForward.forward", "self.up(x)))", "self.up(x), approximate='tanh'))", "tanh"),
    (2, "FeedForward.forward", "y = self.down(F.gelu(self.up(x)))",
     "z = self.up(x); y = self.down(z * torch.sigmoid(1.702 * z))", "sigmoid"),
    (2, "FeedForward.forward", "self.dropout(y)", "y", "dropout unused"),
    (2, "FeedForward.forward", "x + self.dropout(y)", "self.dropout(x + y)", "on x as well"),
    (2, "FeedForward.forward", "norm(x + self.dropout(", "dropout(self.norm(x + ", "on x as well"),
    (2, "FeedForward.forward", "self.dropout(y)", "F.dropout(y, self.dropout.p)", "evaluation"),
    (2, "FeedForward.forward", "x + self", "x + x + self", "x is added twice"),
    (2, "FeedForward.forward", "self.down(F.gelu(self", "F.gelu(self.down(self", "between the two"),
    (2, "FeedForward.forward", "self.up(x)", "self.up(self.norm(x))", "normalised as well"),
    (2, "FeedForward.forward", "self.norm(x + self.dropout(y))",
     "self.norm(self.norm(x + self.dropout(y)))", "second LayerNorm"),
    (2, "FeedForward.forward", "return self.norm(x + self.dropout(y))",
     "x += self.dropout(y)\n    return self.norm(x)", "changes its input"),
    (2, "FeedForward.forward", "F.gelu(self.up(x)))\n    return self.norm(x + self.dropout(y))",
     "self.dropout(F.gelu(self.up(x))))\n    return self.norm(x + y)", "before W_down"),
    (2, "Block.forward", "x = self.attention(", "x = x + self.attention(", "x is added"),
    (2, "Block.forward", "x = self.ffn(x)", "x = x + self.ffn(x)", "attention's output is added"),
    (2, "Block.forward", "x = self.ffn(x)\n", "return self.ffn(x)\n    x = None\n",
     "is a return missing"),
    (2, "Block.forward", "x = self.attention(x, mask, positions)\n    if self.ffn is not None:\n"
     "        x = self.ffn(x)\n", "if self.ffn is not None:\n        x = self.ffn(x)\n"
     "    x = self.attention(x, mask, positions)\n", "before attention"),
    (2, "Block.forward", "x = self.attention(x, mask, positions)\n    if self.ffn is not None:\n"
     "        x = self.ffn(x)\n", "y = self.attention(x, mask, positions)\n    x = y + self.ffn(x) "
     "if self.ffn else y\n", "side by side"),
    (3, "count_parameters", " + config.type_vocab_size * C", "", "segment vectors"),
    (3, "count_parameters", "config.type_vocab_size * C", "2 * C", "number is type_vocab_size"),
    (3, "count_parameters", "    total += 2 * C\n", "", "LayerNorm of the embeddings"),
    (3, "count_parameters", "4 * (C * C + C)", "4 * C * C", "biases of attention"),
    (3, "count_parameters", "(C * C + C) + 2 * C", "(C * C + C)", "attention's LayerNorms"),
    (3, "count_parameters", "4 * (C * C + C)", "3 * (C * C + C)", "output map"),
    (3, "count_parameters", " + I + C", "", "biases of FFNs"),
    (3, "count_parameters", "2 * C * I", "C * I", "of an FFN's two"),
    (3, "count_parameters", "2 * C + V", "2 * C", "head's bias"),
    (3, "count_parameters", "2 * C + V", "V", "LayerNorm of the embeddings"),
    (3, "count_parameters", "is MaskedLM", "is None", "without the head"),
    (3, "count_parameters", "len(config.", "bool(config.", "only one is counted"),
    (3, "flops_per_token", "4 * Q * T * C", "4 * Q * Q * C", "only queries are fewer"),
    (3, "flops_per_token", "4 * Q * T * C", "4 * T * T * C", "not used in Q Kᵀ"),
    (3, "flops_per_token", "4 * Q * C * I", "4 * T * C * I", "last layer's FFN"),
    (3, "flops_per_token", "2 * M * (", "2 * T * (", "not used in the head"),
    (3, "flops_per_token", "total / T", "total / M", "each masked position"),
    (3, "flops_per_token", "total / T", "total", "whole sequence"),
    (3, "flops_per_token", "3 * total", "2 * total", "backward counts like forward"),
    (3, "flops_per_token", "4 * Q * C * I", "2 * Q * C * I", "one of the FFN's"),
    (3, "flops_per_token", "Q * T * C", "Q * T * C * config.num_attention_heads", "for each head"),
    (3, "flops_per_token", "if layer in config.ffn_layers", "if config.ffn_layers", "every layer"),
    (3, "flops_per_token", "total += 4 * Q * C * C\n", "total += 2 * Q * C * C\n", "output map"),
    (4, "Sequences.mask", "rng.choice(self.ordinary", "rng.choice(ids[~special]", "from the text"),
    (4, "Sequences.mask", "rng.choice(self.ordinary,", "rng.choice(self.ordinary[:40],", "evenly"),
    (4, "Sequences.mask", "rng.choice(self.ordinary,", "rng.integers(len(self.is_special),",
     "special tokens are among the random"),
    (4, "Sequences.mask", "action = rng.random((B, M))", "order.sort(1); "
     "action = np.sort(rng.random((B, M)), 1)", "depend on its position"),
    (4, "Sequences.mask", "rng.random((B, M))", "rng.random((B, 1))", "one draw for all"),
    (4, "Sequences.mask", "action < 0.9", "action < 0.85", "one should stay"),
    (4, "Sequences.mask", "action < 0.9", "action < 1", "one should stay"),
    (4, "Sequences.mask", "self.mask_id", "self.cls_id", "special tokens are among the random"),
    (4, "Sequences.mask", "noise = rng", "rng = np.random.default_rng(0); noise = rng",
     "another rng gives the same"),
    (4, "Sequences.mask", "np.round(", "np.ceil(", "rounded up"),
    (4, "Sequences.mask", "action = rng", "order.sort(1); action = rng", "more often than others"),
    (4, "Sequences.mask", "self.mlm_probability * n", "0.15 * n", "the number of labels"),
    (4, "Sequences.mask", "np.round(self.mlm_probability * n)[:", "M + 0 * n[:", "all tokens"),
    (4, "Sequences.mask", "special = self.is_special[ids]",
     "special = (ids == self.cls_id) | (ids == self.sep_id)", "special tokens are among"),
    (4, "Sequences.mask", "where(used, old", "where(used & (action < 0.9), old", "the token stays"),
    (4, "Sequences.mask", "old, IGNORE_INDEX)", "new, IGNORE_INDEX)", "read after the change"),
    (4, "Sequences.mask", "where(used, old", "where(inputs == self.mask_id, ids", "has the shapes"),
    (4, "Sequences.mask", "np.where(used, old, IGNORE_INDEX)", "old", "all tokens"),
    (5, "masked_loss", '"none")', '"none") / len(batch.labels)', "by the sequences"),
    (5, "masked_loss", "F.cross_entropy(logits.transpose(1, 2), batch.labels, reduction=\"none\")",
     "-torch.log(logits.softmax(-1).gather(-1, batch.labels.clamp(min=0)[..., None]))"
     "[batch.labels >= 0]", "log of a softmax"),
    (5, "masked_loss", "batch.labels,", "batch.labels.clamp(min=0),", "IGNORE_INDEX"),
    (5, "masked_loss", "loss.sum()", "loss.mean()", "all positions"),
    (5, "masked_loss", "loss.sum()", "loss.sum().item()", "is a number"),
    (5, "masked_loss", ").float()", ")", "take logits.float()"),
    (5, "train_step", "loss.detach()", "loss.item()", "a number, not a tensor"),
    (5, "train_step", "model(batch)", "masked_loss(model, batch)", "model(batch) is the loss"),
    (5, "train_step", _CLIP, "for o in optimizers:\n        torch.nn.utils.clip_grad_norm_("
     "o.param_groups[0]['params'], 1.0)", "each optimizer"),
    (5, "train_step", _CLIP, "for p in model.parameters():\n        torch.nn.utils.clip_grad_norm_"
     "(p, 1.0)", "each parameter"),
    (5, "train_step", _CLIP, "norm = sum(p.grad.norm() ** 2 for p in model.parameters()) ** 0.5\n"
     "    for p in model.parameters():\n        p.grad /= norm", "at norm 1"),
    (5, "train_step", "loss.detach()", "loss.clone()", "keeps the graph"),
    (5, "train_step", "            (loss * machine", "        (loss * machine", "stand outside"),
    (5, "train_step", "with machine.synchronise(model, now=last):", "if True:", "synchronise gets"),
    (5, "train_step", "now=last", "now=i == 0", "synchronise gets"),
    (5, "train_step", "* machine.world_size / num", "/ machine.world_size / num", "is divided by"),
    (5, "train_step", "/ num_masked", "/ (batch.labels >= 0).sum()", "micro-batch means"),
    (5, "train_step", "/ num_masked)", "/ num_masked / len(batches))", "number of micro-batches"),
    (5, "train_step", "        optimizer.step()\n", "", "no optimizer takes a step"),
    (5, "train_step", "return total", "return total / num_masked", "divided by num_masked"),
    (5, "train_step", "return total", "return total * machine.world_size", "multiplied by"),
    (5, "train_step", "return total\n", "", "return missing"),
    (5, "train_step", "        optimizer.zero_grad(", "    optimizers[0].zero_grad(", "zero_grad"),
    (6, "warmup_decay", "1 - (progress - warmup) / (1 - warmup)", "0.5 + 0.5 * __import__('math')"
     ".cos(3.14159265 * min(1, (progress - warmup) / (1 - warmup)))", "decay is not a straight"),
    (6, "warmup_decay", "max(0.0, 1 - (progress - warmup) / (1 - warmup))", "1.0", "at the end"),
    (6, "warmup_decay", "max(0.0, 1 - (progress - warmup) / (1 - warmup))",
     "(warmup / progress) ** 0.5 if progress else 1.0", "at the end"),
    (6, "warmup_decay", "if progress < warmup:\n        return progress / warmup",
     "if progress <= warmup:\n        return progress / max(warmup, 1e-9)", "without a warm-up"),
    (6, "warmup_decay", "return progress /", "return 0.1 + 0.9 * progress /", "from nothing"),
    (6, "warmup_decay", "return progress / warmup", "return (progress / warmup) ** 2",
     "warm-up is not a straight"),
    (6, "warmup_decay", "max(0.0, 1 - (progress -", "abs(1 - (progress -", "after the end"),
    (6, "warmup_decay", "1 - (progress - warmup) / (1", "1 - (progress", "divided by 1 - warmup"),
    (6, "warmup_decay", "    if progress", "    warmup = WARMUP\n    if progress", "warm-up"),
    (6, "scale_learning_rates", '= group["initial_lr"] * factor', "*= factor", "add up"),
    (6, "scale_learning_rates", 'group["lr"] = group["initial_lr"] * factor',
     'group["initial_lr"] *= factor; group["lr"] = group["initial_lr"]', "initial_lr itself"),
    (6, "scale_learning_rates", '["initial_lr"] * factor', '["initial_lr"]', "factor is not used"),
    (6, "scale_learning_rates", 'group["initial_lr"] * factor',
     'min(group["lr"], group["initial_lr"] * factor)', "never rises"),
    (6, "warmup_decay", "if progress", "if not warmup:\n        return 1.0\n    if progress",
     "without a warm-up"),
    (6, "scale_learning_rates", 'group["lr"]', 'optimizer.defaults["lr"]', "stay as they are"),
    (6, "scale_learning_rates", "param_groups", "param_groups[:1]", "first group of each"),
    (7, "f1", "2 * precision * recall / (precision + recall)", "(precision + recall) / 2",
     "arithmetic"),
    (7, "f1", "2 * precision * recall / (precision + recall)", "(precision * recall) ** 0.5",
     "geometric"),
    (7, "f1", "return 2 * precision", "return precision", "factor 2"),
    (7, "f1", "2 * precision * recall / (precision + recall)", "precision", "precision alone"),
    (7, "f1", "    if tp == 0:\n        return 0.0\n", "", "division by 0"),
    (7, "f1", "np.sum(labels == 1)", "np.sum(labels == 0)", "but should be"),
    (7, "pearson", "np.sum(x * y) / below", "abs(np.sum(x * y)) / below", "without its sign"),
    (7, "pearson", "np.sum(x * y) / below", "(np.sum(x * y) / below) ** 2", "square"),
    (7, "pearson", "np.sum(x * y) / below", "np.cov(x, y)[0, 1] / (x.std() * y.std())", "n - 1"),
    (7, "pearson", "np.sum(x * y) / below", "np.sum(x * y) / np.sum(x**2)", "slope"),
    (7, "pearson", ", labels - np.mean(labels)", ", labels", "one side's mean"),
    (7, "pearson", "if below == 0", "if predicted is labels", "one side constant"),
    (7, "matthews", "(tp * tn - fp * fn) / below", "abs(tp * tn - fp * fn) / below", "its sign"),
    (7, "matthews", "tp * tn - fp * fn", "fp * fn - tp * tn", "opposite sign"),
    (7, "matthews", "np.sqrt((tp", "((tp", "square root"),
    (7, "matthews", "(tp * tn - fp * fn) / below",
     "2 * (tp * tn - fp * fn) / ((tp + fp) * (fp + tn) + (tp + fn) * (fn + tn))", "Cohen"),
    (7, "ranks", "same.mean()", "same[0]", "least of their ranks"),
    (7, "ranks", "ordered = np.sort(values)", "values.sort(); ordered = values",
     "changes its input"),
    (7, "ranks", "+ 1\n", "\n", "begin at 0"),
    (7, "ranks", "np.zeros(len(values))", "np.zeros(len(values), int)", "cut off"),
    (7, "ranks", "np.sort(values)", "np.sort(values)[::-1]", "greatest comes first"),
    (7, "spearman", "ranks(labels)", "labels", "only one side"),
    (7, "spearman", "return pearson(ranks(predicted), ranks(labels))", "n, d = len(labels), "
     "ranks(predicted) - ranks(labels)\n    return 1 - 6 * np.sum(d**2) / (n * (n**2 - 1))",
     "without ties"),
    (7, "spearman", "pearson(", "pearson(-", "opposite"),
    (8, "centre", "K = x @ x.mT", "K = x @ x.mT; K = K - K.mean(1, keepdim=True); "
     "return K - K.mean(2, keepdim=True)", "H K H"),
    (8, "centre", "K = x @ x.mT", "return x @ x.mT", "nothing is subtracted"),
    (8, "centre", "x @ x.mT", "x.mT @ x", "RuntimeError"),
    (8, "centre", " + total / ((n - 1) * (n - 2))", "", "rows sum"),
    (8, "centre", "+ total / ((n - 1) * (n - 2))", "- total / ((n - 1) * (n - 2))", "rows sum"),
    (8, "centre", "total / ((n - 1) * (n - 2))", "total / (n * (n - 1))", "(n - 1) (n - 2)"),
    (8, "centre", " - columns / (n - 2)", "", "rows sum"),
    (8, "centre", "/ (n - 2) - columns / (n - 2)", "/ (n - 1) - columns / (n - 1)", "n - 2"),
    (8, "centre", "x.shape[1]", "x.shape[1]; x -= x.mean(1, keepdim=True)", "changes its input"),
    (8, "centre", "n = x.shape[1]", "n = x.shape[2]", "RuntimeError"),
    (8, "centre", "x @ x.mT", "torch.cosine_similarity(x[:, None], x[:, :, None], dim=-1)",
     "scaled"),
    (8, "hsic", "a[:, None] * b[None]", "a[None] * b[:, None]", "B with A"),
    (8, "hsic", "(a[:, None] * b[None]).sum((2, 3)) / (n * (n - 3))",
     "a.sum((1, 2))[:, None] * b.sum((1, 2)) / (n * (n - 3))", "products of sums"),
    (8, "hsic", ".sum((2, 3)) / (n * (n - 3))", ".mean((2, 3))", "n² for"),
    (8, "hsic", "n * (n - 3)", "(n - 1) * (n - 3)", "(n - 1) (n - 3)"),
    (8, "hsic", "n = a.shape[1]", "n = a.shape[0]", "number of layers"),
    (8, "hsic", "(n * (n - 3))", "(a.flatten(1).norm(dim=1)[:, None] * b.flatten(1).norm(dim=1))",
     "that is CKA"),
    (9, "fit", "(W**2).sum()", "(W**2).sum() / L", "averaged over layers"),
    (9, "fit", "strength / 2", "1.0 / 2", "are strengths used"),
    (9, "fit", "in strengths", "in L2_PENALTIES", "5 pairs (W, b) for 3"),
    (9, "fit", "in strengths", "in L2_PENALTIES[: len(strengths)]", "are `strengths` used"),
    (9, "fit", "(W**2).sum()", "(W**2).mean()", "number of its entries"),
    (9, "fit", "strength / 2", "strength * N / 2", "number of examples"),
    (9, "fit", "losses(features @ W + b, labels, classes)", "(losses(features @ W + b, labels, "
     "classes) * (1 if classes else 2))", "squared error is not halved"),
    (9, "fit", "max_iter=300", "max_iter=5", "more steps"),
    (9, "fit", "features @ W + b", "features @ W + 0 * b", "is it trained"),
    (9, "fit", "W.detach(), b.detach()", "W.clone(), b.clone()", "keep the graph"),
    (9, "fit", "(W**2).sum()", "W.abs().sum()", "more steps|is it trained"),
    (9, "ProbeTask.control", "for w in text}", "for w in map(str.lower, text)}", "KeyError"),
    (9, "ProbeTask.control", "for w in text", "for w in map(str.lower, text)", "differ in case"),
    (9, "ProbeTask.control", 'self.labels["train"]', "np.concatenate([*self.labels.values()])",
     "from all parts"),
    (9, "ProbeTask.control", "sorted({w for texts in self.texts.values() for text in texts for w "
     "in text})", "list(dict.fromkeys(w for texts in self.texts.values() for text in texts for w "
     "in text))", "sorted order"),
    (9, "ProbeTask.control", "np.array([tags[w] for text in texts for w in text])",
     "np.array([[tags[w] for w in text] for text in texts])", "tags for"),
    (9, "ProbeTask.control", "np.array([tags[w] for text in texts for w in text])",
     "[tags[w] for text in texts for w in text]", "no array"),
    (9, "ProbeTask.control", "np.array([tags[w]", "rng.permutation([tags[w]", "for each token"),
    (9, "ProbeTask.control", 'self.labels["train"]', 'np.unique(self.labels["train"])', "evenly"),
    (9, "ProbeTask.control", "self.texts.items()}", "[*self.texts.items()][:1]}", "has the splits"),
    (10, "shared_ffn", _LOOP, "for layer in encoder.layers:\n        layer.ffn = __import__('copy')"
     ".deepcopy(layer.ffn)", "own copy"),
    (10, "shared_ffn", _LOOP, "for layer in encoder.layers[1:]:\n        layer.ffn.load_state_dict("
     "encoder.layers[0].ffn.state_dict())", "own copy"),
    (10, "shared_ffn", "in encoder.layers:", "in encoder.layers[2:]:", "FFN of its own"),
    (10, "shared_ffn", "layer.ffn = encoder.layers[0].ffn",
     "layer.ffn.up = encoder.layers[0].ffn.up", "number of parameters is"),
    (10, "shared_ffn", _LOOP, "encoder.layers[1].ffn = None", "some layer has no FFN"),
    (10, "shared_ffn", "return encoder", "return encoder.layers", "return a model.Encoder"),
    (10, "shared_ffn", "    return encoder\n", "", "return missing"),
    (10, "shared_ffn", "layer.ffn = encoder.layers[0].ffn", "layer.ffn.up, layer.ffn.down = "
     "encoder.layers[0].ffn.up, encoder.layers[0].ffn.down", "LayerNorm of its own"),
    (10, "shared_ffn", _LOOP, "for i in range(len(encoder.layers)):\n        "
     "encoder.layers[i] = encoder.layers[0]", "layers themselves"),
    (10, "shared_ffn", _LOOP, "encoder.layers[0].ffn.up.reset_parameters()\n    " + _LOOP,
     "`initialise` begins"),
]

# (name, assignment, {function: its code})
RIGHT = [
    *((f"by hand, {number}", number, {name: BY_HAND[name] for name in names})
      for number, (_, chapter, names) in ASSIGNMENTS.items() if chapter != "project"),
    ("loops", 1, {"attention": """
def attention(q, k, v, mask=None, dropout=0.0):
    B, H, M, D = q.shape
    outputs = torch.zeros(B, H, M, v.size(-1), dtype=q.dtype)
    for b in range(B):
        for h in range(H):
            for i in range(M):
                scores = torch.stack([q[b, h, i] @ key / D**0.5 for key in k[b, h]])
                if mask is not None:
                    scores[~mask[b, 0, 0]] = -math.inf
                values = v[b, h] if v.dim() == 4 else v
                outputs[b, h, i] = F.dropout(scores.softmax(0), dropout) @ values
    return outputs
"""}),
    ("an additive mask of minus infinity", 1, {"attention": """
def attention(q, k, v, mask=None, dropout=0.0):
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.mT)
    if mask is not None:
        scores = scores + torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    return F.dropout(torch.softmax(scores, -1), p=dropout) @ v
"""}),
    ("einsum, and an exponential written out", 1, {"attention": """
def attention(q, k, v, mask=None, dropout=0.0):
    scores = torch.einsum("bhmd,bhtd->bhmt", q, k).div(math.sqrt(q.size(-1)))
    if mask is not None:
        scores = scores - 1e12 * ~mask
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    weights = F.dropout(weights / weights.sum(-1, keepdim=True), dropout)
    return weights @ v
"""}),
    ("a scaled mask and float32", 1, {"attention": """
def attention(q, k, v, mask=None, dropout=0.0):
    scores = (q @ k.mT).float() / math.sqrt(q.size(-1))
    scores = scores if mask is None else scores - 1e9 * (~mask).float()
    return F.dropout(scores.softmax(-1), dropout).to(v.dtype) @ v
"""}),
    ("the error function", 2, {"FeedForward.forward": """
def forward(self, x):
    residual = x
    y = self.up(x)
    y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    x = self.dropout(F.linear(y, self.down.weight, self.down.bias))
    return self.norm(residual + x)
"""}),
    ("arguments by name", 2, {"Block.forward": """
def forward(self, x, mask=None, positions=None):
    attended = self.attention(x=x, mask=mask, positions=positions)
    return self.ffn(x=attended) if self.ffn else attended
"""}),
    ("numel of a state", 3, {"count_parameters": """
def count_parameters(config, model_class=MaskedLM):
    return sum(t.numel() for t in model_class(config).state_dict().values())
"""}),
    ("a loop over rows", 4, {"Sequences.mask": """
def mask(self, ids, rng):
    B, T = ids.shape
    inputs = ids.copy()
    positions = np.zeros((B, self.num_masked), dtype=np.int64)
    labels = np.full((B, self.num_masked), IGNORE_INDEX)
    for row in range(B):
        places = rng.permutation(np.flatnonzero(~self.is_special[ids[row]]))
        wanted = round(self.mlm_probability * len(places))
        for i, place in enumerate(places[:wanted]):
            positions[row, i], labels[row, i] = place, ids[row, place]
            fate = rng.random()
            if fate < 0.8:
                inputs[row, place] = self.mask_id
            elif fate < 0.9:
                inputs[row, place] = rng.choice(self.ordinary)
    return MaskedBatch(*(torch.from_numpy(each) for each in (inputs, positions, labels)))
"""}),
    ("torch draws", 4, {"Sequences.mask": """
def mask(self, ids, rng):
    generator = torch.Generator().manual_seed(int(rng.integers(2**40)))
    ids = torch.from_numpy(ids)
    special = torch.from_numpy(self.is_special)[ids]
    noise = torch.rand(ids.shape, generator=generator).masked_fill(special, -1)
    positions = noise.topk(self.num_masked).indices
    original = ids.gather(1, positions)
    count = torch.round(self.mlm_probability * (~special).sum(1, keepdim=True).double())
    used = torch.arange(self.num_masked) < count
    kind = torch.rand(positions.shape, generator=generator)
    words = torch.randint(len(self.ordinary), positions.shape, generator=generator)
    words = torch.from_numpy(self.ordinary)[words]
    shown = torch.where(kind < 0.1, words, torch.where(kind < 0.2, original, self.mask_id))
    inputs = ids.scatter(1, positions, torch.where(used, shown, original))
    labels = torch.where(used, original, IGNORE_INDEX)
    return MaskedBatch(inputs, positions, labels)
"""}),
    ("one backward pass, zeroed before", 5, {"masked_loss": """
def masked_loss(model, batch):
    scores = model(batch.input_ids, positions=batch.positions).float().log_softmax(-1)
    used = batch.labels != IGNORE_INDEX
    return -scores[used].gather(1, batch.labels[used][:, None]).sum()
""", "train_step": """
def train_step(model, optimizers, batches, num_masked, machine):
    for optimizer in optimizers:
        optimizer.zero_grad()
    with machine.synchronise(model, now=True):
        with machine.autocast():
            total = torch.stack([model(batch) for batch in batches]).sum()
        (machine.world_size * total / num_masked).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    for p in model.parameters():
        p.grad /= max(1.0, norm.item())
    for optimizer in optimizers:
        optimizer.step()
    return total.detach()
"""}),
    ("a minimum of two lines", 6, {"warmup_decay": """
def warmup_decay(progress, warmup=WARMUP):
    up = progress / warmup if warmup else 1.0
    return min(up, max(0, 1 - (progress - warmup) / (1 - warmup)))
""", "scale_learning_rates": """
def scale_learning_rates(optimizers, factor):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.update(lr=group["initial_lr"] * factor)
"""}),
    ("numpy's interp", 6, {"warmup_decay": """
def warmup_decay(progress, warmup=WARMUP):
    import numpy as np
    if warmup == 0:
        return max(0.0, 1.0 - progress)
    return float(np.interp(progress, [0, warmup, 1], [0, 1, 0]))
"""}),
    ("correlation from NumPy, and a matrix of comparisons", 7, {"pearson": """
def pearson(predicted, labels):
    if np.std(predicted) == 0 or np.std(labels) == 0:
        return 0.0
    return float(np.corrcoef(predicted, labels)[0, 1])
""", "ranks": """
def ranks(values):
    values = np.asarray(values)
    below = (values[:, None] > values).sum(1)
    return below + ((values[:, None] == values).sum(1) + 1) / 2
"""}),
    ("matrices of ones, and a trace", 8, {"centre": """
def centre(x):
    n = x.size(1)
    off = 1 - torch.eye(n, dtype=x.dtype)
    gram = torch.einsum("lic,ljc->lij", x, x) * off
    J = torch.ones(n, n, dtype=x.dtype)
    centred = gram - (J @ gram + gram @ J) / (n - 2) + J @ gram @ J / ((n - 1) * (n - 2))
    return centred * off
""", "hsic": """
def hsic(a, b):
    n = a.size(1)
    return torch.stack([torch.stack([(K @ G).trace() for G in b]) for K in a]) / (n * (n - 3))
"""}),
    ("Adam, and a dictionary", 9, {"fit": """
def fit(features, labels, classes, strengths=L2_PENALTIES, steps=200):
    L, N, C = features.shape
    results = []
    for strength in strengths:
        W = torch.zeros(L, C, max(1, classes), requires_grad=True)
        b = torch.zeros(L, 1, max(1, classes), requires_grad=True)
        optimizer = torch.optim.Adam([W, b], lr=0.3)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
        for _ in range(400):
            optimizer.zero_grad()
            objective = losses(features @ W + b, labels, classes).sum()
            (objective + strength / 2 * (W**2).sum()).backward()
            optimizer.step()
            schedule.step()
        results.append((W.detach(), b.detach()))
    return results
""", "ProbeTask.control": """
def control(self, seed):
    rng, words, labels = np.random.default_rng(seed), {}, {}
    for part, texts in self.texts.items():
        words[part] = [word for text in texts for word in text]
    tags = {w: rng.choice(self.labels["train"]) for w in sorted(set().union(*words.values()))}
    for part in words:
        labels[part] = np.array([tags[word] for word in words[part]])
    return labels
"""}),
    ("one layer after the other", 9, {"fit": """
def fit(features, labels, classes, strengths=L2_PENALTIES, steps=200):
    pairs = []
    for strength in strengths:
        each = []
        for x in features:
            W = torch.zeros(x.size(1), max(1, classes), requires_grad=True)
            b = torch.zeros(1, max(1, classes), requires_grad=True)
            optimizer = torch.optim.LBFGS([W, b], max_iter=500, line_search_fn="strong_wolfe")
            def closure():
                optimizer.zero_grad()
                logits = x @ W + b
                loss = F.cross_entropy(logits, labels) if classes else (
                    F.mse_loss(logits[:, 0], labels) / 2)
                loss = loss + strength / 2 * W.norm() ** 2 if W.any() else loss
                loss.backward()
                return loss
            optimizer.step(closure)
            each.append((W.detach(), b.detach()))
        pairs.append(tuple(torch.stack(parts) for parts in zip(*each)))
    return pairs
"""}),
]
PROJECT = """
from mini_undivided.model import Encoder

def shared_ffn(config):
    encoder = Encoder(config)
    for layer in encoder.layers:
        layer.ffn = encoder.layers[0].ffn
    return encoder
"""
BY_HAND["shared_ffn"] = PROJECT
