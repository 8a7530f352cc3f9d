"""What is to be written, and what a check is: how an answer becomes points and a sentence."""

import importlib
import math
import traceback
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F

from mini_undivided.support.errors import UserError, visible

# number: (title, chapter, functions to write). The chapter `project` is the student's own file.
ASSIGNMENTS = {
    1: ("attention with its mask", "model", ("attention",)),
    2: ("the FFN and the block", "model", ("FeedForward.forward", "Block.forward")),
    3: ("parameters and FLOPs", "costs", ("count_parameters", "flops_per_token")),
    4: ("masking", "data", ("Sequences.mask",)),
    5: ("the training step", "pretrain", ("masked_loss", "train_step")),
    6: ("the schedule", "optim", ("warmup_decay", "scale_learning_rates")),
    7: ("F1, Matthews, Spearman", "metrics", ("f1", "matthews", "pearson", "spearman", "ranks")),
    8: ("debiased CKA", "cka", ("centre", "hsic")),
    9: ("a probe and its control task", "probe", ("fit", "ProbeTask.control")),
    10: ("one FFN for all layers", "project", ("shared_ffn",))}
OWN = "own_checks"  # a lecturer's module, in the working folder
LONGEST = 600  # letters of a message
PACKAGE = Path(__file__).parents[1]
SDPA = F.scaled_dot_product_attention
CHECKS = []


def chosen(text):
    """The assignments of a list such as "1,2,8", "1 2" or "all". UserError if it is none."""
    parts = text.replace(",", " ").split()
    try:
        numbers = [*ASSIGNMENTS] if parts == ["all"] else [int(part) for part in parts]
    except ValueError:
        numbers = []
    if not numbers or not ASSIGNMENTS.keys() >= set(numbers):
        known = f"a number from 1 to {len(ASSIGNMENTS)}, several with commas between, or all"
        raise UserError(f"{text[:40]} is no assignment: give {known}")
    return list(dict.fromkeys(numbers))


# A check.

class Wrong(Exception):
    """An answer is wrong; the message says how, and what the cause is likely to be."""


def check(assignment, points, visibility="visible"):
    """Decorator of a check: a function of the chapter's module and a random generator.

    Its docstring is its claim. It raises Wrong if the claim does not hold. visibility: Gradescope's
    word for who sees the result: visible, hidden, after_due_date or after_published.
    """
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"there is no assignment {assignment}: give 1 to {len(ASSIGNMENTS)}")

    def register(function):
        if not function.__doc__:
            raise ValueError(f"{function.__name__} has no docstring, which is its claim")
        function.assignment, function.points = assignment, points
        function.visibility = visibility
        CHECKS.append(function)
        return function
    return register


def checks_of(*numbers):
    """The checks of some assignments, a lecturer's own included.

    UserError without SciPy, or if the lecturer's file has an error.
    """
    try:
        for number in numbers:
            importlib.import_module(f"mini_undivided.course.checks.{ASSIGNMENTS[number][1]}")
    except ModuleNotFoundError as error:
        raise UserError(f"the checks need {error.name}: pip install -e '.[test]'") from None
    if Path(f"{OWN}.py").exists():
        try:
            importlib.import_module(OWN)
        except (Exception, SystemExit) as error:
            raise UserError(f"{crash(error)} {type(error).__name__}: {error}") from None
    return [function for number in numbers for function in CHECKS if function.assignment == number]


def run(function, seed):
    """Run a check on numbers drawn from a seed → "" if it passes, or what is wrong."""
    torch.manual_seed(seed)
    chapter = ASSIGNMENTS[function.assignment][1].replace("project", "model")
    try:
        with around(function.assignment):
            chapter = importlib.import_module(f"mini_undivided.{chapter}")
            function(chapter, np.random.default_rng(seed))
    except (Exception, SystemExit) as error:
        said = visible(" ".join(explain(error).split()))
        return said if len(said) < LONGEST else f"{said[:LONGEST]} …"
    return ""


def around(number):
    """Context: in the first assignment PyTorch's fused kernel is out of reach, later it attends."""
    if number == 1:
        refusal = Wrong("attention calls PyTorch's fused kernel: write it out, with matmul and "
                        "softmax")
        return mock.patch.object(F, "scaled_dot_product_attention", side_effect=refusal)
    if ASSIGNMENTS[number][1] in ("model", "project"):
        model = importlib.import_module("mini_undivided.model")  # patch hides why this may fail
        return mock.patch.object(model, "attention", SDPA)
    return nullcontext()


def explain(error):
    """What an exception says to a student, in a sentence."""
    if isinstance(error, Wrong):
        return str(error) or "the answer is wrong"  # a student's own code may raise it, too
    if isinstance(error, NotImplementedError):
        return f"nothing is written yet: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name == "project":
        return "there is no project.py yet: write it into the folder where train.py is"
    doubt = " (does your code call exit?)" if isinstance(error, SystemExit) else ""
    return f"{crash(error)} {type(error).__name__}: {error}{doubt}"


def crash(error):
    """Where a student's, or lecturer's, code broke off: the last of its lines in a traceback."""
    if isinstance(error, SyntaxError):
        return f"{Path(error.filename or 'a file').name}, line {error.lineno}:"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.parent in (PACKAGE, Path.cwd()):
            return f"{path.name}, line {frame.lineno}:"
    return "what your function returned cannot be used:"


# What checks say.

def require(condition, message):
    """Raise Wrong with a message unless a condition holds."""
    if not condition:
        raise Wrong(message)


def array(value):
    """A tensor, array or number as an array of float64."""
    value = value.detach() if isinstance(value, torch.Tensor) else value
    return np.asarray(value, dtype=np.float64)


def equal(a, b, rounding=1e-4):
    """Whether two tensors or arrays of one shape are equal but for rounding in float32."""
    a, b = array(a), array(b)
    tiny = rounding / 10 * np.abs(b).max(initial=1e-9, where=np.isfinite(b))
    return a.shape == b.shape and np.allclose(a, b, rtol=rounding, atol=tiny)


def compare(what, answer, right, wrong, shapes=None, rounding=1e-4):
    """Raise Wrong unless an answer is the right one; wrong: {how one gets it: wrong answer}.

    shapes: {name: shape} of the tensors of which the answer, a vector, is made.
    """
    require(answer is not None, f"{what} is None: is a return missing?")
    answer, right = array(answer), array(right)
    if equal(answer, right, rounding):
        return
    for cause, value in wrong.items():
        if not equal(value, right, rounding):
            require(not equal(answer, value, rounding), f"{what} is what one gets {cause}")
    require(answer.shape == right.shape,
            f"{what} has the shape {answer.shape}, but should have {right.shape}")
    require(np.isfinite(answer).all(), f"{what} has values that are NaN or infinite")
    worst = int(np.abs(answer - right).argmax())
    found, wanted, at = answer.flat[worst], right.flat[worst], ""
    for name, shape in (shapes or {"": right.shape}).items():
        if worst < math.prod(shape) and shape:
            at = f" at {name}{list(map(int, np.unravel_index(worst, shape)))}"
            break
        worst -= math.prod(shape)
    raise Wrong(f"{what} is {shown(found)}{at}, but should be {shown(wanted)}")


def shown(number):
    """A number as a message shows it: a count to its last digit."""
    return f"{number:,.0f}" if number == round(number) and abs(number) < 1e9 else f"{number:.5g}"


def normal(rng, *shape):
    """Normal random numbers, a float64 tensor."""
    return torch.from_numpy(rng.normal(size=shape))


def distinct(rng, count, least, most):
    """Different sizes from least to most, so that no mistaken axis can pass."""
    return [int(n) for n in least + rng.permutation(most - least + 1)[:count]]
