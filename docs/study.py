"""The study: train what is missing, then make its tables and figures.

Run: python docs/study.py TEXT GLUE GROUP ...     train, in runs/study, and keep the results
     python docs/study.py                         tables and figures alone

TEXT is a folder of text (for docs/study.md: the English novels of
https://github.com/computationalstylistics/100_english_novels, and for the groups accuracy and glue
what the study says there), GLUE one of the official GLUE files. A result goes to
docs/results/study/GROUP/NAME.json as soon as it is there, and a run goes on from its last
checkpoint, so that the script can be stopped and started again, or started twice to use two
processors: each job is done by one of them. Groups: docs (the default runs, on built-in text),
tokens, flops, minutes, accuracy and glue (its runs, fine-tuned), scale, and speed, which wants a
quiet machine. What has to wait for another process is done when the script is started again.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mini_undivided.metrics import mean_and_std  # noqa: E402
from mini_undivided.report.figures import (  # noqa: E402
    WITH_FFNS,
    WITHOUT_FFNS,
    figure,
    legend_below,
)
from mini_undivided.report.replicates import difference, in_brackets  # noqa: E402
from mini_undivided.report.tables import plus_minus, spread, table  # noqa: E402
from mini_undivided.support.errors import UserError, command_line  # noqa: E402
from mini_undivided.support.files import read_json, write_json, write_text  # noqa: E402
from mini_undivided.support.run_directory import (  # noqa: E402
    check_finished,
    claim,
    has_checkpoint,
    read_log,
    read_record,
)
from mini_undivided.support.tasks import GLUE  # noqa: E402

RESULTS, RUNS = ROOT / "docs/results/study", Path("runs/study")
DEFAULTS = ROOT / "mini_undivided/report/default_runs.json"  # what loss.png draws a band of
GROUPS = ("docs", "tokens", "flops", "minutes", "accuracy", "glue", "scale", "speed")
KEPT = ("validation_loss", "validation_accuracy", "accuracy_at_mask", "tokens", "flops",
        "tokens_per_second", "seconds", "peak_memory_bytes", "baseline", "pair_accuracy")
RUN = {  # what a pretraining run's result has at least, and what one of fine-tuning has
    "validation_loss": float, "validation_accuracy": float, "tokens": int, "parameters": int,
    "flops_per_token": float, "flops?": float, "tokens_per_second?": float,
    "peak_memory_bytes?": float, "pair_accuracy?": float, "curve?": [[float]]}
TUNED = {"scores": [float]}
NO_FFN, MORE = ["--no-ffn"], ["--steps", "300"]
ARCHITECTURES = {  # name: (what it is, options)
    "full": ("an FFN in every layer", []),
    "none": ("no FFN", NO_FFN),
    "every2": ("an FFN in every 2nd layer", ["--ffn-every", "2"]),
    "last": ("an FFN in the last layer", ["--ffn-layers", "3"]),
    "first": ("an FFN in the first layer", ["--ffn-layers", "0"]),
    "deep": ("no FFN, 12 layers", [*NO_FFN, "--layers", "12"]),
    "wide": ("no FFN, 180 wide", [*NO_FFN, "--hidden-size", "180"]),
    "narrow": ("an FFN in every layer, 92 wide", ["--hidden-size", "92", "--ffn-size", "368"]),
    "shallow": ("an FFN in every layer, 1 layer", ["--layers", "1"]),
    "more": ("trained with FFNs, and 300 steps more", MORE),
    "cut": ("trained with FFNs, cut out, and 300 steps more", [*NO_FFN, *MORE])}
SIZES = {"2x32": (2, 32), "2x64": (2, 64), "3x96": (3, 96), "4x128": (4, 128)}  # layers, width
MARKERS = {"2x32": "D", "2x64": "x", "3x96": "^", "4x128": "s"}
BUDGETS = (1.5e12, 5e12, 1.5e13)  # FLOPs
TASKS = ("stsb", "qnli", "rte", "mrpc", "sst2", "cola")
CUT_TASKS = ("stsb", "qnli")  # on which the models are fine-tuned that FFNs were cut out of
TUNED_KINDS = {  # name: (what it is, options)
    "full": ("with FFNs", []), "none": ("no FFN", NO_FFN), "every2": ARCHITECTURES["every2"],
    "flops": ("no FFN, equal FLOPs", [*NO_FFN, "--flops", "FULL"])}
KINDS = {name: TUNED_KINDS[name][0] for name in ("full", "none")}
AS_IT_IS = ["--steps", "1", "--lr", "1e-12", "--muon-lr", "1e-12"]  # a step that changes nothing
CUT_KINDS = {  # of the runs with FFNs
    "more": ("FFNs, 300 steps more", MORE),
    "half0": ("every 2nd FFN cut out", ["--ffn-every", "2", *AS_IT_IS]),
    "half300": ("every 2nd FFN cut out, 300 steps more", ["--ffn-every", "2", *MORE]),
    "cut0": ("all FFNs cut out", [*NO_FFN, *AS_IT_IS]),
    "cut300": ("all FFNs cut out, 300 steps more", [*NO_FFN, *MORE])}


# Training.

LAPTOP = ["train.py", "--preset", "laptop", "--corpus", "TEXT"]
PAIRED = ["train.py", "--preset", "mini", "--corpus", "TEXT", "--next-sentence",
          "--mlm-probability", "0.25", "--batch-tokens", "2048"]
IN_TURN = [(name, seed) for seed in range(5) for name in KINDS]


def jobs():
    """Yield (group, name, command) of every job; train() says what words in capitals stand for."""
    for name, options in {"full": [], "noffn": NO_FFN}.items():
        for seed in range(5):
            end = f"-seed{seed}" if seed else ""
            yield "docs", name + end, ["train.py", *options, "--seed", str(seed)]
    others = [(name, seed) for seed in range(3) for name in ARCHITECTURES if name not in KINDS]
    for name, seed in IN_TURN + others:
        start = ["--init", run_of(f"full-seed{seed}")] if name in ("more", "cut") else []
        yield "tokens", f"{name}-seed{seed}", [*pretrain(name, seed), *start]
    for name, seeds in {"none": 5, "every2": 3, "wide": 3, "deep": 3}.items():
        for seed in range(seeds):
            yield "flops", f"{name}-seed{seed}", [*pretrain(name, seed), "--flops", "FULL"]
    for name, seed in IN_TURN:
        yield "minutes", f"{name}-seed{seed}", [*pretrain(name, seed), "--minutes", "2"]
    yield from accuracy_jobs()
    yield from scale_jobs()
    for turn in range(3):
        for name in [*ARCHITECTURES][:-2]:
            yield "speed", f"{name}-turn{turn}", [*pretrain(name, 0), "--steps", "100"]


def accuracy_jobs():
    """Pretraining with pairs of sentences; fine-tuning of these runs, and from scratch."""
    for seed in range(3):
        cut = ["--init", run_of(f"full-seed{seed}", "accuracy")]
        for name, (_, options) in {**TUNED_KINDS, **CUT_KINDS}.items():
            length = [] if {"--flops", "--steps"} & {*options} else ["--steps", "3000"]
            start = cut if name in CUT_KINDS else []
            yield "accuracy", f"{name}-seed{seed}", [
                *PAIRED, *options, *length, *start, "--seed", str(seed)]
    for task in TASKS:
        tune = ["--task", task, "--data-dir", "GLUE", "--dtype", "bfloat16"]
        tune += ["--train-examples", "10000"] * (task in ("qnli", "sst2"))
        for name in (*TUNED_KINDS, *(CUT_KINDS if task in CUT_TASKS else ())):
            for seed in range(3):
                yield "glue", f"{name}-{task}-seed{seed}", [
                    "finetune.py", run_of(f"{name}-seed{seed}", "accuracy"), *tune]
            if name in TUNED_KINDS and name != "flops":  # which from scratch is the same as "none"
                yield "glue", f"{name}-{task}-scratch", [
                    "finetune.py", run_of(f"{name}-seed0", "accuracy"), *tune, "--from-scratch",
                    "--seeds", "3"]


def scale_jobs():
    """Sizes at every budget, but for those far from its best, with and without FFNs."""
    for i, budget in enumerate(BUDGETS):
        for j, (size, (layers, width)) in enumerate(SIZES.items()):
            sizes = ["--layers", layers, "--hidden-size", width, "--ffn-size", 4 * width]
            for kind, options in {"full": [], "none": NO_FFN}.items():
                if j - 2 <= i <= j + 2:
                    yield "scale", f"{size}-{kind}-{budget:.1e}", [
                        *LAPTOP, *map(str, sizes), *options, "--flops", f"{budget:g}"]


def pretrain(name, seed):
    """The command of an architecture's run."""
    return [*LAPTOP, *ARCHITECTURES[name][1], "--seed", str(seed)]


def run_of(name, group="tokens"):
    """Where a run lies, as text."""
    return str(RUNS / group / name)


def train(corpus, glue, groups):
    """Do every job of these groups that has no result yet."""
    for group, name, command in jobs():
        if group in groups and not path_of(group, name).exists():
            words = {"TEXT": corpus, "GLUE": glue, "FULL": flops_of_full(group)}
            command = [words.get(word, word) for word in command]
            try:
                handle = claim(lock_of(group, name))
            except UserError:
                continue  # another process is at it
            if not path_of(group, name).exists() and can_begin(command):
                do(group, name, command)
            handle.release()


def can_begin(command):
    """Whether there is what a job needs: a finished run to start from, the FLOPs of another."""
    if None in command:
        return False
    run = command[1] if command[0] == "finetune.py" else None
    run = command[command.index("--init") + 1] if "--init" in command else run
    if run is None:
        return True
    try:
        check_finished(ROOT / run)
    except UserError:
        return False
    return has_checkpoint(ROOT / run)


def flops_of_full(group):
    """The FLOPs of a run with all FFNs of a group, as text; None before there is one."""
    path = path_of("accuracy" if group == "accuracy" else "tokens", "full-seed0")
    return f"{read_json(path, {'flops': float})['flops']:g}" if path.exists() else None


def do(group, name, command):
    """Do one job to its end, and keep its result."""
    if command[0] == "finetune.py":
        call(command)
        task = command[command.index("--task") + 1]
        scratch = "-from-scratch" if "--from-scratch" in command else ""
        result = read_json(ROOT / command[1] / "glue" / f"{task}{scratch}.json", {
            "name": str, "primary": str, "scores": dict, "majority": dict, "train_examples": int})
        kept = {"scores": result["scores"][result["primary"]]["values"],
                "metric": f"{result['name']} {result['primary']}", "majority":
                result["majority"][result["primary"]], "train_examples": result["train_examples"]}
    else:
        out = Path("runs") / name if group == "docs" else RUNS / group / name
        command = [*command, "--out", str(out)]
        resume = ["train.py", "--resume", "--out", str(out)]
        call(resume if has_checkpoint(ROOT / out) else command)
        kept = pretrained(ROOT / out)
    path_of(group, name).parent.mkdir(parents=True, exist_ok=True)
    write_json(path_of(group, name), {"command": " ".join(["python", *command]), **kept})


def call(command):
    """Run a script of the product; end with it if it fails."""
    print("python", *command, flush=True)
    done = subprocess.run([sys.executable, *command], cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.returncode)


def pretrained(run):
    """What is kept of a finished run."""
    record = read_record(run)
    rows = [row for row in read_log(run) if "validation_loss" in row]
    return {**{key: record["result"][key] for key in KEPT if key in record["result"]},
            "curve": [[row["tokens"], row["validation_loss"]] for row in rows],
            **{key: record[key] for key in ("parameters", "flops_per_token", "machine",
                                            "versions")}}


def path_of(group, name):
    """Where a result is kept."""
    return RESULTS / group / f"{name}.json"


def lock_of(group, name):
    """The folder that a job's process holds while it is at work."""
    return ROOT / RUNS / "locks" / f"{group}-{name}"


# Tables and figures.

def results(group, name):
    """What was measured of an architecture so far, a dictionary a seed."""
    form = TUNED if group == "glue" else RUN
    return [read_json(path, form) for path in sorted((RESULTS / group).glob(f"{name}*.json"))]


def losses_of(runs):
    """The validation losses of several runs."""
    return [run["validation_loss"] for run in runs]


def compare(group, reference, kinds=ARCHITECTURES):
    """A table of a group's kinds, each against `reference`, results of others."""
    base, rows = losses_of(reference), []
    paired = any("pair_accuracy" in run for run in reference)
    for name, (text, _) in kinds.items():
        runs = results(group, name)
        if not runs:
            continue
        losses = losses_of(runs)
        gap = "–" if losses == base else gap_of(losses, base)
        rows.append([text, f"{runs[0]['parameters']:,}", f"{runs[0]['flops_per_token'] / 1e6:.2f}",
                     f"{np.mean([run['tokens'] for run in runs]) / 1e6:.2f}", str(len(runs)),
                     plus_minus(**mean_and_std(losses), digits=3),
                     *(spread(**mean_and_std([run[f"{what}_accuracy"] for run in runs]))
                       for what in ("validation", *["pair"] * paired)), gap])
    return table(["", "parameters", "MFLOPs a token", "M tokens", "seeds", "validation loss",
                  "masked accuracy, %", *["pairs right, %"] * paired,
                  "minus all FFNs' [95 %]"], rows)


def draw_gaps(full):
    """docs/gaps.svg: each architecture's loss minus that of `full`, with 95 % intervals."""
    groups = {"tokens": "at equal tokens", "flops": "at equal FLOPs"}
    names = [*ARCHITECTURES][1:]
    losses = {(group, name): found for group in groups for name in names
              if len(found := losses_of(results(group, name))) > 1}
    leads = [f"{gap_of(losses[group, 'none'], full)} nats {label}"
             for group, label in groups.items() if (group, "none") in losses]
    title = (f"Without FFNs the validation loss differs by {', '.join(leads)}. Blue: with FFNs, "
             "orange: without; bars: 95 % intervals")
    with figure(ROOT / "docs/gaps.svg", 1, 1, (8, 5), title) as (_, (axes,)):
        axes.axvline(0, color="gray", linewidth=1, label="an FFN in every layer")
        for i, (group, label) in enumerate(groups.items()):
            axes.plot([], [], "os"[i], color="gray", label=label)
            for row, name in enumerate(names):
                if found := losses.get((group, name)):
                    gap, half = difference(found, full)
                    color = WITHOUT_FFNS if "--no-ffn" in ARCHITECTURES[name][1] else WITH_FFNS
                    axes.errorbar(gap, row + 0.2 * i, xerr=half, fmt="os"[i], color=color,
                                  capsize=3)
        axes.set_yticks(range(len(names)), [ARCHITECTURES[name][0] for name in names])
        axes.invert_yaxis()
        axes.set(xlabel="difference of the validation loss (nats; left is better)")
        legend_below(axes)


def speed_table():
    """Tokens a second and memory at full length: the median of three turns, and their range."""
    rows = []
    for name, (text, _) in ARCHITECTURES.items():
        if runs := results("speed", name):
            speeds = [run["tokens_per_second"] for run in runs]
            memory = np.median([run["peak_memory_bytes"] for run in runs]) / 2**20
            rows.append([text, f"{runs[0]['parameters']:,}", f"{np.median(speeds):,.0f}",
                         f"{min(speeds):,.0f} to {max(speeds):,.0f}", f"{memory:,.0f}"])
    return table(["", "parameters", "tokens/s", "range", "memory, MiB"], rows)


def glue_table():
    """Dev scores × 100, what pretraining is worth, and what it loses without FFNs, by task."""
    kinds = {name: text for name, (text, _) in TUNED_KINDS.items() if results("glue", name)}
    tuned, fresh = ({name: glue_scores(name, which) for name in kinds}
                    for which in ("seed", "scratch"))
    rows = {}
    for name, text in kinds.items():
        for what, scores in {"pretrained": tuned[name], "from scratch": fresh[name]}.items():
            if what == "pretrained" or name != "flops":
                rows[f"{text}, {what}"] = [plus_minus(**mean_and_std(column), digits=1)
                                           for column in scores.T]
    for name, text in kinds.items():
        rows[f"{text}: worth of pretraining"] = gaps(tuned[name], fresh[name])
    for name, text in kinds.items():
        if name != "full":
            rows[f"{text} minus FFNs: score"] = gaps(tuned[name], tuned["full"])
            rows[f"{text} minus FFNs: worth of pretraining"] = gaps(
                tuned[name] - fresh[name], tuned["full"] - fresh["full"])
    header = ["", *(GLUE[task].name for task in finished_tasks()), "mean"]
    return table(header, [[text, *cells] for text, cells in rows.items() if {*cells} != {"–"}])


def cuts_table():
    """FFNs cut out of trained models: the loss, scores, and these less those of whole models."""
    rows, whole = [], {task: scores_of("full", task, "seed") for task in CUT_TASKS}
    for name, (text, _) in {"full": TUNED_KINDS["full"], **CUT_KINDS}.items():
        scores = {task: scores_of(name, task, "seed") for task in CUT_TASKS}
        if all(scores.values()):
            losses = losses_of(results("accuracy", name))
            rows.append([text, plus_minus(**mean_and_std(losses), digits=3)])
            for task, values in scores.items():
                rows[-1] += [plus_minus(**mean_and_std(values), digits=1),
                             "–" if name == "full" else gap_of(values, whole[task], 1)]
    tasks = [cell for task in CUT_TASKS for cell in (GLUE[task].name, "minus FFNs' [95 %]")]
    return table(["", "validation loss", *tasks], rows)


def gaps(scores, others):
    """The difference of each column with its interval, as texts: scores and others (seeds, n)."""
    return [gap_of(ours, theirs, 1) for ours, theirs in zip(scores.T, others.T, strict=True)]


def glue_scores(name, which):
    """Scores × 100 → (3, finished tasks and their mean), NaN for what is not there yet.

    which: "seed", a row a pretraining seed, or "scratch", a row a fine-tuning seed.
    """
    if (name, which) == ("flops", "scratch"):
        name = "none"  # which is the same model
    columns = [scores_of(name, task, which) for task in finished_tasks()]
    columns = [scores if len(scores) == 3 else [np.nan] * 3 for scores in columns]
    return np.array([*columns, np.mean(columns, axis=0)]).T


def finished_tasks():
    """The tasks that have all scores of the two main kinds."""
    return [task for task in TASKS if all(len(scores_of(name, task, which)) == 3
                                          for name in KINDS for which in ("seed", "scratch"))]


def scores_of(name, task, which):
    """Scores × 100 of a task, as far as they are there."""
    return [100 * score for run in results("glue", f"{name}-{task}-{which}")
            for score in run["scores"]]


def draw_accuracy():
    """docs/accuracy.svg: what pretraining is worth on each task, by kind, with 95 % intervals."""
    colors = {"full": WITH_FFNS, "none": WITHOUT_FFNS, "every2": "gray", "flops": WITHOUT_FFNS}
    worth = {}  # kind: (differences, half widths of their intervals)
    for name in TUNED_KINDS:
        columns = zip(glue_scores(name, "seed").T, glue_scores(name, "scratch").T, strict=True)
        gaps = np.transpose([difference(*each) for each in columns])
        if np.isfinite(gaps[0, -1]):  # else not all tasks are done
            worth[name] = gaps
    means = (f"{TUNED_KINDS[name][0]} {gaps[-1]:+.1f}" for name, (gaps, _) in worth.items())
    title = f"Points that pretraining adds, on average: {'; '.join(means)} (bars: 95 % intervals)"
    with figure(ROOT / "docs/accuracy.svg", 1, 1, (8, 4), title) as (_, (axes,)):
        axes.axhline(0, color="gray", linewidth=1)
        for i, (name, (gaps, halves)) in enumerate(worth.items()):
            middle = np.arange(len(gaps)) + 0.15 * (i - (len(worth) - 1) / 2)
            axes.errorbar(middle, gaps, yerr=halves, fmt="osD^"[i], color=colors[name], capsize=3,
                          label=TUNED_KINDS[name][0],
                          fillstyle="none" if name == "flops" else "full")
        tasks = finished_tasks()
        axes.set_xticks(range(len(tasks) + 1), [*(GLUE[task].name for task in tasks), "mean"])
        axes.set(ylabel="dev score less that from scratch", xlim=(-0.5, len(tasks) + 0.5))
        legend_below(axes)


def gap_of(values, others, digits=3):
    """The difference of means with its interval, as text, if both have seeds enough."""
    if min(len(values), len(others)) < 2 or np.isnan([*values, *others]).any():
        return "–"
    return in_brackets(*difference(values, others), digits)


def scale():
    """{kind: {size: {budget: loss}}} of what was measured so far."""
    losses = {kind: {size: {} for size in SIZES} for kind in KINDS}
    for group, name, _ in jobs():
        if group == "scale" and path_of(group, name).exists():
            size, kind, budget = name.split("-", 2)
            result = read_json(path_of(group, name), RUN)
            losses[kind][size][float(budget)] = result["validation_loss"]
    return losses


def scale_table(losses):
    """Losses by size and budget, and the frontier: the best size at each budget."""
    rows = []
    for kind, sizes in losses.items():
        for size, each in sizes.items():
            cells = [f"{each[b]:.3f}" if b in each else "–" for b in BUDGETS]
            rows.append([f"{size.replace('x', ' × ')}, {KINDS[kind]}", *cells])
        best = [f"{loss:.3f}" for _, loss in frontier(sizes)]
        rows.append([f"**best, {KINDS[kind]}**", *best, *["–"] * (len(BUDGETS) - len(best))])
    return table(["layers × width", *(f"{budget:.1e}" for budget in BUDGETS)], rows)


def frontier(sizes):
    """The best loss of any size at each budget that has one → [(budget, loss)]."""
    return [(b, min(each[b] for each in sizes.values() if b in each))
            for b in BUDGETS if any(b in each for each in sizes.values())]


def slope(points):
    """How much the loss falls when FLOPs grow tenfold: least squares on (budget, loss)."""
    return -np.polyfit(np.log10([b for b, _ in points]), [loss for _, loss in points], 1)[0]


def draw_scale(losses):
    """docs/scale.svg: loss against training FLOPs, with and without FFNs."""
    best = [dict(frontier(losses[kind])) for kind in KINDS]
    leads = (f"{best[1][b] - best[0][b]:+.2f} at {b / 1e12:g}" for b in best[0] if b in best[1])
    title = (f"At the best size (layers × width) of each budget, without FFNs (orange) the loss "
             f"differs by {', '.join(leads)} trillion FLOPs (nats)")
    with figure(ROOT / "docs/scale.svg", 1, 1, (8, 5.5), title) as (_, (axes,)):
        for kind, sizes in losses.items():
            color = WITHOUT_FFNS if kind == "none" else WITH_FFNS
            for size, each in sizes.items():
                axes.plot(each.keys(), each.values(), MARKERS[size] + ":", color=color, alpha=0.5)
            points = frontier(sizes)
            fall = slope(points[1:])  # the first budget ends on the plateau
            axes.plot(*zip(*points, strict=True), color=color, linewidth=2.5,
                      label=f"best size, {KINDS[kind]}: −{fall:.2f} nats per tenfold FLOPs "
                            f"from {BUDGETS[1] / 1e12:g} trillion on")
        for size, marker in MARKERS.items():
            axes.plot([], [], marker + ":", color="gray", label=size.replace("x", " × "))
        axes.set(xscale="log", xlabel="training FLOPs, in trillions (10¹²)",
                 ylabel="validation loss per masked token (nats)")
        axes.set_xticks(BUDGETS, [f"{budget / 1e12:g}" for budget in BUDGETS])
        axes.minorticks_off()
        legend_below(axes, 2)


def fill(text, name, content):
    """Put content between a document's marks for it."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{content}\n\n{end}{rest.split(end)[1]}"


def default_runs():
    """{"full" or "noffn": {"tokens", "mean", "std"}} of the default's validation losses."""
    curves = {}
    for name in ("full", "noffn"):
        curve = np.array([run["curve"] for run in results("docs", name)])  # (seeds, points, 2)
        if len(curve) > 1:
            tokens = curve[0, :, 0].tolist()
            curves[name] = {"seeds": len(curve), "tokens": tokens, **mean_and_std(curve[..., 1])}
    return curves


def write_up():
    """Fill the tables of docs/study.md, and draw its figures."""
    curves = default_runs()
    if len(curves) == 2:
        write_json(DEFAULTS, curves)
    full, path = results("tokens", "full"), ROOT / "docs/study.md"
    tables = {"tokens": compare("tokens", full), "flops": compare("flops", full),
              "minutes": compare("minutes", results("minutes", "full")),
              "accuracy": compare("accuracy", results("accuracy", "full"), TUNED_KINDS),
              "speed": speed_table(), "cuts": cuts_table()}
    if len(full) > 1:
        draw_gaps(losses_of(full))
    if finished_tasks():
        tables["glue"] = glue_table()
        draw_accuracy()
    losses = scale()
    if all(len(frontier(sizes)) > 2 for sizes in losses.values()):
        tables["scale"] = scale_table(losses)
        draw_scale(losses)
    text = path.read_text(encoding="utf-8")
    for name, content in tables.items():
        text = fill(text, name, content)
    write_text(path, text)


def main(corpus=None, glue=None, *groups):
    """Train, if folders are given, and write up."""
    if corpus:
        if not groups or not {*groups} <= {*GROUPS}:
            raise UserError(f"give TEXT, GLUE and some of {' '.join(GROUPS)}")
        train(corpus, glue, groups)
    write_up()


if __name__ == "__main__":
    with command_line():
        main(*sys.argv[1:])
