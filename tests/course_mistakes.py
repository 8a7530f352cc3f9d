"""Typical mistakes in the assignments, and right solutions that look different from ours.

A mistake is (assignment, function, text of our solution, what stands there instead, what the
message has to say of its cause); without a text, the whole function.
"""

_IDS = "special = self.is_special[ids]"
_STEP = "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)"
_BACK = "(loss * (machine.world / num_masked)).backward()"

MISTAKES = [
    (1, "attend", " / math.sqrt(q.size(-1))", "", "without the division by √D"),
    (1, "attend", "math.sqrt(q.size(-1))", "q.size(-1)", "D instead of √D"),
    (1, "attend", "math.sqrt(q.size(-1))", "math.sqrt(k.size(-2))", "√T"),
    (1, "attend", "softmax(dim=-1)", "softmax(dim=-2)", "over the queries"),
    (1, "attend", "scores.softmax(dim=-1)", "scores", "without the softmax"),
    (1, "attend", "", """
def attend(q, k, v, mask=None, dropout=0.0):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    if mask is not None:
        scores = scores.masked_fill(mask, -1e9)
    return F.dropout(scores.softmax(dim=-1), dropout) @ v
""", "the mask is inverted"),
    (1, "attend", "", """
def attend(q, k, v, mask=None, dropout=0.0):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    if mask is not None:
        scores = scores + (~mask) * 1e9
    return F.dropout(scores.softmax(dim=-1), dropout) @ v
""", "−∞ has the wrong sign"),
    (1, "attend", "", """
def attend(q, k, v, mask=None, dropout=0.0):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    if mask is not None:
        scores = scores * mask
    return F.dropout(scores.softmax(dim=-1), dropout) @ v
""", "masked scores become 0"),
    (1, "attend", "", """
def attend(q, k, v, mask=None, dropout=0.0):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    if mask is not None:
        scores = scores + mask
    return F.dropout(scores.softmax(dim=-1), dropout) @ v
""", "0 and 1 are added"),
    (1, "attend", "if mask is not None:\n        scores", "if False:\n        scores",
     "after the softmax"),
    (1, "attend", "", """
def attend(q, k, v, mask=None, dropout=0.0):
    return attend_fast(q, k, v, mask, dropout)
""", "write it out"),
    (1, "attend", "if mask is not None", "if False", "the mask is not used"),
    (1, "attend", "F.dropout(weights, dropout) @ v", "F.dropout(weights @ v, dropout)",
     "on the output"),
    (1, "attend", "F.dropout(weights, dropout)", "weights", "dropout unused"),
    (1, "attend", "F.dropout(weights, dropout)", "F.dropout(weights, 1 - dropout)", "is kept"),
    (2, "FeedForward.forward", "x + self", "self", "residual is forgotten"),
    (2, "FeedForward.forward", "self.norm(x + self.dropout(self.gelu_down(self.up(x))))",
     "x + self.norm(self.dropout(self.gelu_down(self.up(x))))", "residual comes after the norm"),
    (2, "FeedForward.forward", "self.norm(x + self.dropout(self.gelu_down(self.up(x))))",
     "x + self.dropout(self.gelu_down(self.up(self.norm(x))))", "pre-norm"),
    (2, "FeedForward.forward", "self.norm(x + self.dropout(self.gelu_down(self.up(x))))",
     "x + self.dropout(self.gelu_down(self.up(x)))", "without the LayerNorm"),
    (2, "FeedForward.gelu_down", "F.gelu(y)", "y", "without the GELU"),
    (2, "FeedForward.gelu_down", "F.gelu(y)", "F.relu(y)", "ReLU"),
    (2, "FeedForward.gelu_down", "F.gelu(y)", "F.gelu(y, approximate='tanh')", "tanh"),
    (2, "FeedForward.forward", "self.gelu_down(self.up(x))", "self.down(F.gelu(self.up(x)))",
     "does not call self.gelu_down"),
    (2, "FeedForward.forward", "self.dropout(self.gelu_down(self.up(x)))",
     "self.gelu_down(self.up(x))", "dropout unused"),
    (2, "FeedForward.forward", "x + self.dropout(self.gelu_down(self.up(x)))",
     "self.dropout(x + self.gelu_down(self.up(x)))", "dropout acts on x as well"),
    (2, "Block.forward", "x if self.ffn is None else self.ffn(x)", "self.ffn(x)", "always called"),
    (2, "Block.forward", "return x if", "return F.layer_norm(2 * x, x.shape[-1:]) if",
     "identity is not an absent"),
    (2, "Block.forward", "x if self.ffn is None else self.ffn(x)", "x", "FFN is left out"),
    (2, "Block.forward", "x, mask, positions", "x, None, positions", "mask does not reach"),
    (2, "Block.forward", "x, mask, positions)\n", "x, mask, positions=positions)\n", "by name"),
    (2, "Block.forward", "x, mask, positions)\n", "x, mask)\n", "positions does not reach"),
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
    (3, "flops_per_token", "2 * seq_len * C", "seq_len * C", "only one of Q Kᵀ"),
    (3, "flops_per_token", " + 2 * seq_len * C", "", "without Q Kᵀ"),
    (3, "flops_per_token", " if i in config.ffn_layers else 0.0", "", "FFN in every layer"),
    (3, "flops_per_token", " + V * C", "", "output matrix"),
    (3, "flops_per_token", "1.0 if asked is None else asked / seq_len", "1.0", "asked is not used"),
    (3, "flops_per_token", "share if i == L - 1 else 1.0", "1.0", "not used in the last layer"),
    (3, "flops_per_token", "2 * C * C + here * (2 * C * C", "here * (4 * C * C",
     "last layer's keys and values"),
    (3, "flops_per_token", "(C * C + V * C)", "V * C", "head's dense layer"),
    (3, "flops_per_token", "share * (C * C + V * C)", "share * (C * C + V * C) + V * C",
     "no product is computed"),
    (4, "Sequences.mask", _IDS, "special = np.zeros(ids.shape, dtype=bool)", "special tokens"),
    (4, "Sequences.mask", "fate < TO_MASK + TO_RANDOM", "fate < TO_MASK + 2 * TO_RANDOM",
     "one should stay"),
    (4, "Sequences.mask", "fate < TO_MASK, self", "fate < 2, self", "everything chosen"),
    (4, "Sequences.mask", "(~special).sum(axis=1, keepdims=True)",
     "np.full((len(ids), 1), ids.shape[1])", "all tokens"),
    (4, "Sequences.mask", "words = self.ordinary[random[mine]]", "words = 2 + random[mine] * 0 + "
     "self.sep_id - 2", "special tokens are among the random words"),
    (4, "Sequences.mask", "random[mine]", "random[mine][:, :1]", "random words of a sequence"),
    (4, "Sequences.mask", "np.rint(", "np.floor(", "cut off"),
    (4, "Sequences.mask", "original = np.take_along_axis(ids, positions, axis=1)",
     "original = np.take_along_axis(np.roll(ids, 1, 1), positions, axis=1)", "labels"),
    (4, "Sequences.mask", "rng.random(ids.shape, dtype=np.float32)[mine]",
     "rng.random(ids[mine].shape, dtype=np.float32)", "draw for all"),
    (4, "Sequences.mask", "rng.random(ids.shape, dtype=np.float32)[mine]",
     "np.random.random(ids.shape)[mine]", "rng and nothing else"),
    (4, "Sequences.mask", "rng.random(ids.shape, dtype=np.float32)[mine]",
     "np.repeat(rng.random((1, ids.shape[1])), len(ids), 0)[mine]", "same places"),
    (4, "Sequences.mask", "MaskedBatch(*map(torch.from_numpy, (ids, positions, labels)))",
     "ids, positions, labels", "MaskedBatch of three tensors"),
    (5, "masked_loss", 'reduction="sum"', 'reduction="mean"', "mean is taken"),
    (5, "masked_loss", 'ignore_index=IGNORE, reduction="sum")',
     'ignore_index=IGNORE, reduction="sum") / labels.numel()', "all places"),
    (5, "train_step", "machine.world / num_masked", "1 / batch.num_masked() / len(batches)",
     "micro-batch means"),
    (5, "train_step", "machine.world / num_masked", "machine.world",
     "without division by num_masked"),
    (5, "train_step", "machine.world / num_masked", "1 / num_masked", "machine.world"),
    (5, "train_step", _STEP, "", "without clipping"),
    (5, "train_step", _BACK, _BACK + "\n            " + _STEP, "after each micro-batch"),
    (5, "train_step", _STEP, "torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)",
     "clip_grad_value_"),
    (5, "train_step", "optimizer.zero_grad(set_to_none=True)", "pass", "zero_grad"),
    (5, "train_step", _BACK, "model.zero_grad(); " + _BACK, "last micro-batch alone"),
    (5, "train_step", _BACK, _BACK + "; optimizers[0].step()", "after each micro-batch"),
    (5, "train_step", "total += loss.detach()", "total = loss.detach()", "last micro-batch alone"),
    (5, "train_step", "total += loss.detach()", "total = total + loss", "detach"),
    (5, "train_step", "return total", "return total.item()", "no tensor"),
    (5, "train_step", "now=i == len(batches) - 1", "now=True", "the last one alone"),
    (5, "train_step", "with machine.autocast()", "if True", "outside of machine.autocast"),
    (5, "train_step", "for optimizer in optimizers:", "for optimizer in optimizers[:1]:",
     "not all optimizers"),
    (6, "warmup_decay", "return progress / warmup", "return 1 - progress / warmup", "from nothing"),
    (6, "warmup_decay", "return progress / warmup", "return progress", "divided by its length"),
    (6, "warmup_decay", "(1.0 - progress) / (1.0 - warmup)", "1.0 - progress",
     "decay begin there"),
    (6, "warmup_decay", "max(0.0, (1.0 - progress) / (1.0 - warmup))",
     "(1.0 - progress) / (1.0 - warmup)", "negative"),
    (6, "warmup_decay", "max(0.0, (1.0 - progress) / (1.0 - warmup))",
     "max(0.0, (1.0 - progress) / (1.0 - warmup)) ** 0.5", "decay is not a straight line"),
    (6, "warmup_decay", "if progress < warmup", "if progress <= warmup", "divided by 0"),
    (6, "scale_learning_rates", 'factor * group["peak"]', 'factor * group["lr"]', "add up"),
    (6, "scale_learning_rates", 'factor * group["peak"]', "factor", "factor itself"),
    (6, "scale_learning_rates", "for optimizer in optimizers", "for optimizer in optimizers[:1]",
     "first optimizer"),
    (7, "f1", "(predicted == 1) & (labels == 1)", "(predicted == 0) & (labels == 0)", "label 0"),
    (7, "f1", "2 * true / (2 * true + wrong)", "true / (true + wrong)", "Jaccard"),
    (7, "f1", "np.sum(predicted != labels)",
     "np.sum(predicted > labels) + np.sum((predicted == 0) & (labels == 0))", "true negatives"),
    (7, "f1", " if true else 0.0", "", "division by 0"),
    (7, "f1", "2 * true / (2 * true + wrong)", "np.mean(predicted == labels)", "accuracy"),
    (7, "pearson", "x, y = x - x.mean(), y - y.mean()", "", "means are not subtracted"),
    (7, "pearson", "if np.ptp(x) == 0 or np.ptp(y) == 0:", "if False:", "one side constant"),
    (7, "matthews", "pearson(predicted, labels)", "2 * accuracy(predicted, labels) - 1", "2 ·"),
    (7, "ranks", "return (last - (counts - 1) / 2)[inverse]",
     "return np.argsort(np.argsort(values, kind='stable'), kind='stable') + 1.0", "ties"),
    (7, "ranks", "return (last - (counts - 1) / 2)[inverse]",
     "return np.argsort(np.argsort(values)) + 1", "argsort(argsort)"),
    (7, "ranks", "return (last - (counts - 1) / 2)[inverse]", "return last[inverse]", "greatest"),
    (7, "ranks", "return (last - (counts - 1) / 2)[inverse]", "return inverse + 1", "numbered"),
    (7, "ranks", "(counts - 1) / 2", "(counts + 1) / 2", "begin at 0"),
    (7, "spearman", "pearson(ranks(predicted), ranks(labels))", "pearson(predicted, labels)",
     "from the values"),
    (8, "centre", "    gram.diagonal(dim1=1, dim2=2).zero_()\n    means", "    means",
     "diagonal"),
    (8, "centre", "    gram.diagonal(dim1=1, dim2=2).zero_()\n    return", "    return",
     "once more at the end"),
    (8, "centre", "/ (n - 2)", "/ n", "n - 2"),
    (8, "centre", "/ (n - 1)", "/ (n - 2)", "n - 1"),
    (8, "centre", "", """
def centre(x):
    gram = x @ x.transpose(1, 2)
    gram = gram - gram.mean(1, keepdim=True)
    return gram - gram.mean(2, keepdim=True)
""", "H K H"),
    (8, "centre", "", """
def centre(x):
    return x @ x.transpose(1, 2)
""", "nothing is subtracted"),
    (8, "hsic", "(n * (n - 3))", "(n - 1) ** 2", "biased"),
    (8, "hsic", "(n * (n - 3))", "(n * n)", "n² for"),
    (8, "hsic", "(n * (n - 3))", "(n * (n - 2))", "(n - 2) for (n - 3)"),
    (8, "hsic", " / (n * (n - 3))", "", "without the division"),
    (8, "hsic", "a.flatten(1) @ b.flatten(1).T", "b.flatten(1) @ a.flatten(1).T", "shape"),
    (9, "fit", "strength / 2", "strength", "not halved"),
    (9, "fit", "W.square().sum()", "(W.square().sum() + b.square().sum())", "b is penalised"),
    (9, "fit", "labels, classes).sum()", "labels, classes).mean()", "averaged over layers"),
    (9, "fit", "steps=200", "steps=1", "more steps"),
    (9, "fit", "W.detach().clone(), b.detach().clone()", "W, b", "keep a copy"),
    (9, "fit", "return fits", "return fits[::-1]", "order of strengths"),
    (9, "fit", "labels, classes).sum()", "labels, classes).sum() * len(labels)", "summed over"),
    (9, "ProbeTask.control", "tags[w] for text in part for w in text",
     "rng.choice(self.labels['train']) for text in part for w in text", "for each token"),
    (9, "ProbeTask.control", "[tags[w] for text in part for w in text]",
     "(lambda mine: [mine[w] for text in part for w in text])(dict(zip(kinds, rng.choice("
     "self.labels['train'], len(kinds)))))", "another in test"),
    (9, "ProbeTask.control", 'rng.choice(self.labels["train"], len(kinds))',
     "rng.integers(self.classes, size=len(kinds))", "evenly"),
    (9, "ProbeTask.control", "default_rng(seed)", "default_rng(0)", "use the seed"),
    (9, "ProbeTask.control", "default_rng(seed)", "default_rng()", "same seed gives other"),
    (9, "ProbeTask.control", "kinds = sorted(", "kinds = list(", "sorted order"),
]

# (name, assignment, {function: its code})
RIGHT = [
    ("loops", 1, {"attend": """
def attend(q, k, v, mask=None, dropout=0.0):
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
    ("an additive mask of minus infinity", 1, {"attend": """
def attend(q, k, v, mask=None, dropout=0.0):
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.mT)
    if mask is not None:
        scores = scores + torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    return F.dropout(torch.softmax(scores, -1), p=dropout) @ v
"""}),
    ("einsum, and an exponential written out", 1, {"attend": """
def attend(q, k, v, mask=None, dropout=0.0):
    weights = torch.einsum("bhmd,bhtd->bhmt", q, k).div(math.sqrt(q.size(-1))).exp()
    if mask is not None:
        weights = weights * mask
    weights = F.dropout(weights / weights.sum(-1, keepdim=True), dropout)
    return weights @ v
"""}),
    ("a scaled mask and float32", 1, {"attend": """
def attend(q, k, v, mask=None, dropout=0.0):
    scores = (q @ k.mT).float() / math.sqrt(q.size(-1))
    scores = scores if mask is None else scores - 1e9 * (~mask).float()
    return F.dropout(scores.softmax(-1), dropout).to(v.dtype) @ v
"""}),
    ("the error function, and an early return", 2, {
        "FeedForward.gelu_down": """
def gelu_down(self, y):
    return F.linear(y * 0.5 * (1 + torch.erf(y / math.sqrt(2))), self.down.weight, self.down.bias)
""", "FeedForward.forward": """
def forward(self, x):
    residual = x
    x = self.dropout(self.gelu_down(self.up(x)))
    return self.norm(residual + x)
""", "Block.forward": """
def forward(self, x, mask=None, positions=None):
    x = self.attention(x, mask, positions)
    if self.ffn is not None:
        x = self.ffn(x)
    return x
"""}),
    ("formulas", 3, {"count_parameters": """
def count_parameters(config, model_class=None):
    C, I, V = config.hidden_size, config.intermediate_size, config.vocab_size
    embeddings = (V + config.max_position_embeddings + config.type_vocab_size + 2) * C
    attention, ffn = 4 * (C * C + C) + 2 * C, 2 * C * I + I + C + 2 * C
    layers = config.num_hidden_layers * attention + len(config.ffn_layers) * ffn
    head = 0 if model_class is Encoder else C * C + C + 2 * C + V
    return embeddings + layers + head
""", "flops_per_token": """
def flops_per_token(config, seq_len, asked=None):
    C, T, L = config.hidden_size, seq_len, config.num_hidden_layers
    M = T if asked is None else asked
    flops = 0
    for layer in range(L):
        queries = M if layer == L - 1 else T
        flops += 2 * T * C * C * 2 + 2 * queries * C * C * 2 + 2 * 2 * queries * T * C
        if layer in config.ffn_layers:
            flops += 2 * 2 * queries * C * config.intermediate_size
    flops += 2 * M * C * (C + config.vocab_size)
    return 3 * flops / T
"""}),
    ("numel of a state", 3, {"count_parameters": """
def count_parameters(config, model_class=MaskedLM):
    return sum(t.numel() for t in model_class(config).state_dict().values())
"""}),
    ("a loop over rows", 4, {"Sequences.mask": """
def mask(self, ids, rng, mine=slice(None)):
    B, T = ids.shape
    inputs = ids.copy()
    positions = np.zeros((B, self.num_masked), dtype=np.int64)
    labels = np.full((B, self.num_masked), IGNORE)
    for row in range(B):
        places = rng.permutation(np.flatnonzero(~self.is_special[ids[row]]))
        wanted = round(self.mask_share * len(places))
        for i, place in enumerate(places[:wanted]):
            positions[row, i], labels[row, i] = place, ids[row, place]
            fate = rng.random()
            if fate < 0.8:
                inputs[row, place] = self.mask_id
            elif fate < 0.9:
                inputs[row, place] = rng.choice(self.ordinary)
    return MaskedBatch(*(torch.from_numpy(each[mine]) for each in (inputs, positions, labels)))
"""}),
    ("torch draws", 4, {"Sequences.mask": """
def mask(self, ids, rng, mine=slice(None)):
    generator = torch.Generator().manual_seed(int(rng.integers(2**40)))
    ids = torch.from_numpy(ids)
    special = torch.from_numpy(self.is_special)[ids]
    noise = torch.rand(ids.shape, generator=generator).masked_fill(special, -1)
    positions = noise.topk(self.num_masked).indices
    original = ids.gather(1, positions)
    count = torch.round(self.mask_share * (~special).sum(1, keepdim=True).double())
    used = torch.arange(self.num_masked) < count
    kind = torch.rand(positions.shape, generator=generator)
    words = torch.randint(len(self.ordinary), positions.shape, generator=generator)
    words = torch.from_numpy(self.ordinary)[words]
    shown = torch.where(kind < 0.1, words, torch.where(kind < 0.2, original, self.mask_id))
    inputs = ids.scatter(1, positions, torch.where(used, shown, original))
    labels = torch.where(used, original, IGNORE)
    return MaskedBatch(inputs[mine], positions[mine], labels[mine])
"""}),
    ("one backward pass, zeroed before", 5, {"masked_loss": """
def masked_loss(model, batch):
    scores = model(batch.input_ids, positions=batch.positions).log_softmax(-1)
    used = batch.labels != IGNORE
    return -scores[used].gather(1, batch.labels[used][:, None]).sum()
""", "train_step": """
def train_step(model, optimizers, batches, num_masked, machine):
    for optimizer in optimizers:
        optimizer.zero_grad()
    with machine.synchronise(model, now=True):
        with machine.autocast():
            total = torch.stack([masked_loss(model, batch) for batch in batches]).sum()
        (machine.world * total / num_masked).backward()
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
            group.update(lr=group["peak"] * factor)
"""}),
    ("numpy's interp", 6, {"warmup_decay": """
def warmup_decay(progress, warmup=WARMUP):
    import numpy as np
    if warmup == 0:
        return max(0.0, 1.0 - progress)
    return float(np.interp(progress, [0, warmup, 1], [0, 1, 0]))
"""}),
    ("precision and recall, a table, loops", 7, {"f1": """
def f1(predicted, labels):
    hits = sum(1 for p, y in zip(predicted, labels) if p == y == 1)
    if hits == 0:
        return 0.0
    precision, recall = hits / sum(predicted == 1), hits / sum(labels == 1)
    return 2 * precision * recall / (precision + recall)
""", "matthews": """
def matthews(predicted, labels):
    p, y = np.asarray(predicted, dtype=bool), np.asarray(labels, dtype=bool)
    tp, tn, fp, fn = (float(np.sum(each)) for each in (p & y, ~p & ~y, p & ~y, ~p & y))
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(below) if below else 0.0
""", "pearson": """
def pearson(predicted, labels):
    if np.std(predicted) == 0 or np.std(labels) == 0:
        return 0.0
    return float(np.corrcoef(predicted, labels)[0, 1])
""", "ranks": """
def ranks(values):
    values = np.asarray(values)
    below = (values[:, None] > values).sum(1)
    return below + ((values[:, None] == values).sum(1) + 1) / 2
""", "spearman": """
def spearman(predicted, labels):
    return pearson(ranks(predicted), ranks(labels))
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
def fit(features, labels, classes, strengths=STRENGTHS, steps=200):
    L, N, C = features.shape
    results = []
    for strength in strengths:
        W = torch.zeros(L, C, max(1, classes), requires_grad=True)
        b = torch.zeros(L, 1, max(1, classes), requires_grad=True)
        optimizer = torch.optim.Adam([W, b], lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        for _ in range(800):
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
def fit(features, labels, classes, strengths=STRENGTHS, steps=200):
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
