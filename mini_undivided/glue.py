"""Fine-tuning, on the tasks of GLUE (Wang et al. 2018, 1804.07461).

Shapes: B examples in a batch, T tokens in the longest of them, K labels.

Fine-tuning puts a small new head on a pretrained encoder and trains both, briefly, on a task's
examples. What pretraining was worth shows against the same model with fresh weights
(--from-scratch). An encoded example is a pair of lists, token ids and segment ids. GLUE calls its
validation splits "dev".
"""

import math

import numpy as np
import torch
from torch.nn import functional as F

from mini_undivided.corpus import held_out_docs, sentences
from mini_undivided.metrics import in_words, score
from mini_undivided.optim import adamw, scale_learning_rates, warmup_decay
from mini_undivided.support.errors import UserError
from mini_undivided.support.glue_files import make_docs_task, read_glue
from mini_undivided.support.tasks import BUILT_IN
from mini_undivided.support.terminal import progress

SORTED_BATCHES = 50  # batches whose examples are sorted by length together
EVAL_BATCH = 128


def fine_tune(model, task, splits, encoded, machine, epochs, batch_size, lr, seed):
    """Train on the "train" split, and score the dev splits after each epoch → the last scores.

    task: its name and metrics (support/tasks.py). splits: {name: Split}, of texts and an array
    `labels`; encoded: {name: encoded examples}. The learning rate rises to `lr` and falls as in
    `take_step`; `seed` is for shuffling. Scores: {metric: value}.
    Raises UserError if the loss is not finite.
    """
    examples, name = encoded["train"], f"{task.name}, seed {seed}"
    labels = torch.tensor(splits["train"].labels.tolist())  # int64, or float32 in a regression
    optimizer, rng = adamw(model.parameters(), lr), np.random.default_rng(seed)
    steps, step = epochs * math.ceil(len(examples) / batch_size), 0
    with progress(total=steps, desc=name) as bar:
        for epoch in range(1, epochs + 1):
            model.train()
            for chosen in length_batches(examples, batch_size, rng):  # indices, by length
                scale_learning_rates([optimizer], warmup_decay((step + 0.5) / steps))
                inputs = collate([examples[i] for i in chosen], machine)
                with machine.autocast():
                    logits = model(*inputs)  # (B, K)
                loss = task_loss(logits.float(), machine.to_device(labels[chosen]))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                bar.update()
                if step % 10 == 0:  # reading the loss makes the CPU wait for a GPU
                    bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
            if not math.isfinite(loss.item()):
                raise UserError(f"the loss became {loss.item()} in epoch {epoch}; "
                                f"try a lower --lr than {lr:g}")
            dev = [split for split in splits if split.startswith("dev")]
            predictions = {split: predict(model, encoded[split], machine) for split in dev}
            scores = score(task, splits, predictions)
            bar.write(f"{name}, epoch {epoch} of {epochs}: {in_words(scores)}")
    return scores


def task_loss(logits, labels):
    """The mean cross entropy of class indices (B,); the mean squared error if they are floats."""
    if labels.is_floating_point():  # a regression: K = 1
        return F.mse_loss(logits[:, 0], labels)
    return F.cross_entropy(logits, labels)


@torch.inference_mode()
def predict(model, examples, machine):
    """The model's predictions for encoded examples, in their order: class indices, or values."""
    model.eval()
    order = np.argsort([len(ids) for ids, _ in examples], kind="stable")
    logits = []
    for i in range(0, len(examples), EVAL_BATCH):
        inputs = collate([examples[j] for j in order[i : i + EVAL_BATCH]], machine)
        with machine.autocast():
            logits.append(model(*inputs).float().cpu())  # (B, K)
    logits = torch.cat(logits).numpy()
    if not np.isfinite(logits).all():
        raise UserError("the model's predictions are no longer numbers: try a lower --lr")
    predictions = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1)
    restored = np.empty_like(predictions)  # the examples' order again
    restored[order] = predictions
    return restored


def collate(examples, machine):
    """Pad encoded examples to the longest → a model's three inputs, (B, T), on the device.

    input_ids, attention_mask (None without padding), token_type_ids.
    """
    lengths = [len(ids) for ids, _ in examples]
    tensors = torch.zeros(2, len(examples), max(lengths), dtype=torch.long)  # 0 is BERT's [PAD]
    for i, example in enumerate(examples):
        tensors[:, i, : lengths[i]] = torch.tensor(example)
    attention_mask = None
    if min(lengths) < max(lengths):
        is_real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # (B, T)
        attention_mask = machine.to_device(is_real)
    input_ids, token_type_ids = map(machine.to_device, tensors)
    return input_ids, attention_mask, token_type_ids


# Not needed at first reading: batches with little padding, a task's examples, a learning rate.


def length_batches(examples, size, rng):
    """Index arrays of `size` examples of similar length: shuffled, then sorted within pools."""
    lengths, order = np.array([len(ids) for ids, _ in examples]), rng.permutation(len(examples))
    pools = [order[i : i + SORTED_BATCHES * size]
             for i in range(0, len(order), SORTED_BATCHES * size)]
    pools = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
    batches = [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def padding_ratio(examples, batches):
    """The padding among the tokens of these batches, from 0 to 1."""
    real = sum(len(ids) for ids, _ in examples)
    return 1 - real / sum(len(batch) * max(len(examples[i][0]) for i in batch) for batch in batches)


def read_task(key, data_dir=None, predict=False):
    """The examples of a task of GLUE (as `read_glue`) or of a built-in one → {name: Split}."""
    if key in BUILT_IN:
        return make_docs_task(key, [(lib, sentences(text)) for lib, text in held_out_docs()])
    return read_glue(key, data_dir, predict)


def default_lr(width):
    """Ours, for three to five epochs: small models want more than BERT-Base's usual 3e-5."""
    return 3e-4 if width <= 256 else 1e-4 if width <= 512 else 3e-5
