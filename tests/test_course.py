"""The course: copies without solutions, and checks that explain what is not right."""

import ast
import csv
import importlib
import inspect
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from unittest import mock

import pytest
from course_mistakes import BY_HAND, MISTAKES, MISTAKES_BY_HAND, PROJECT, RIGHT
from helpers import ROOT

from mini_undivided import glue
from mini_undivided.course import grade as grading
from mini_undivided.course.__main__ import main
from mini_undivided.course.assignments import ASSIGNMENTS, checks_of, equal, run
from mini_undivided.course.grade import handed_in
from mini_undivided.course.homework import (
    FILES, REPEATED, find_functions, make_copy, without_bodies)
from mini_undivided.course.student import find
from mini_undivided.support.errors import UserError

SEEDS = range(int(os.environ.get("COURSE_SEEDS", 4)))
UNNAMED = ("but should be", "RuntimeError", "KeyError")
TABLE = [(False, *row) for row in MISTAKES] + [(True, *row) for row in MISTAKES_BY_HAND]
WRITTEN = [n for n, (_, chapter, _) in ASSIGNMENTS.items() if chapter != "project"]


def chapter_of(number):
    """The name of an assignment's chapter as a module."""
    return f"mini_undivided.{ASSIGNMENTS[number][1]}"


def put(monkeypatch, number, name, code):
    """Define a function of an assignment anew, in its chapter's namespace."""
    made = {}
    exec(textwrap.dedent(code), vars(importlib.import_module(chapter_of(number))), made)
    monkeypatch.setattr(f"{chapter_of(number)}.{name}", made[name.split(".")[-1]])


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A right project.py that can be imported."""
    (tmp_path / "project.py").write_text(PROJECT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "project", raising=False)
    yield tmp_path / "project.py"
    sys.modules.pop("project", None)


@pytest.fixture
def course(monkeypatch, tmp_path):
    """A function that runs a command of the course in this process, in a new folder."""
    def run_command(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the processes that it starts
        monkeypatch.setattr(sys, "argv", ["course", *map(str, arguments)])
        main()
    return run_command


# What is right, and what is not.


@pytest.mark.parametrize(
    "solution", [(f"ours, {number}", number, {}) for number in ASSIGNMENTS] + RIGHT,
    ids=lambda solution: solution[0])
def test_right_solutions_pass(solution, monkeypatch, project):
    """The product's own functions; loops, other formulas, other libraries, other optimizers."""
    _, number, codes = solution
    for name, code in codes.items():
        put(monkeypatch, number, name, code)
    messages = [run(each, seed) for seed in SEEDS for each in checks_of(number)]
    assert not any(messages), messages


def test_there_are_enough_mistakes():
    """Each assignment has three typical mistakes at least; most lead to a cause."""
    rows = MISTAKES + MISTAKES_BY_HAND
    assert all(sum(row[0] == number for row in rows) >= 3 for number in ASSIGNMENTS)
    assert sum(row[4] in UNNAMED for row in rows) < 0.05 * len(rows)


@pytest.mark.parametrize(
    "mistake", TABLE, ids=[f"{row[1]}-{i}-{row[5]}" for i, row in enumerate(TABLE)])
def test_a_mistake_is_caught_and_named(mistake, monkeypatch, project):
    """Whatever the seed a check fails, and its message names the cause."""
    by_hand, number, name, old, new, cause = mistake
    source = BY_HAND[name] if by_hand else inspect.getsource(find(chapter_of(number), name))
    assert old in source
    if number == 10:
        project.write_text(source.replace(old, new))
    else:
        put(monkeypatch, number, name, source.replace(old, new))
    for seed in SEEDS:
        messages = []
        for each in checks_of(number):
            messages.append(run(each, seed))
            if any(word in messages[-1] for word in cause.split("|")):
                break  # the other checks have nothing to add
        else:
            pytest.fail(f"seed {seed}: {messages}")


@pytest.mark.parametrize("number", [3, 7])
def test_a_wrong_number_has_one_cause(number, monkeypatch):
    """Inputs are drawn so that no two of the usual mistakes give the same number."""
    def compare(what, answer, right, wrong, rounding=1e-4):
        values = [value for cause, value in wrong.items()
                  if "opposite" not in cause and not equal(value, right, rounding)]
        assert not any(equal(a, b, rounding) for a, b in itertools.combinations(values, 2)), what

    monkeypatch.setattr(f"mini_undivided.course.checks.{ASSIGNMENTS[number][1]}.compare", compare)
    messages = [run(each, seed) for seed in range(8) for each in checks_of(number)]
    assert not any(messages), messages


@pytest.mark.parametrize(("body", "message"), [
    ("raise NotImplementedError('assignment 6: write it')", "nothing is written yet: assignment 6"),
    ("return None", "is a return missing?"),
    ("raise SystemExit(0)", "SystemExit: 0 (does your code call exit?)"),
    ("compile('def f(:', 'optim.py', 'exec')", "optim.py, line 1: SyntaxError"),
    ("from mini_undivided.course.assignments import Wrong; raise Wrong", "the answer is wrong"),
    ("return undefined", "NameError: name 'undefined' is not defined")])
def test_what_breaks_off_is_a_sentence(body, message, monkeypatch):
    """No traceback: an unwritten body, a forgotten return, an exit, mistyped code."""
    put(monkeypatch, 6, "warmup_decay", f"def warmup_decay(progress, warmup=0.1):\n    {body}")
    assert message in run(checks_of(6)[0], 0)


# Copies.


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy with all assignments."""
    folder = tmp_path_factory.mktemp("course") / "copy"
    make_copy(folder, list(ASSIGNMENTS))
    return folder


def test_a_copy_lacks_bodies_and_nothing_else(copy):
    """Only the bodies of the assignments' functions and their twins differ from the project."""
    edited = {chapter for rows in REPEATED.values() for chapter, *_ in rows}
    for number in WRITTEN:
        _, chapter, functions = ASSIGNMENTS[number]
        texts = ((root / f"mini_undivided/{chapter}.py").read_text() for root in (copy, ROOT))
        theirs, ours = (find_functions(ast.parse(text)) for text in texts)
        if chapter not in edited:
            assert all(ast.unparse(theirs[name]) == ast.unparse(node)
                       for name, node in ours.items() if name not in functions)
        for name in functions:
            _, body = theirs[name].body
            assert ast.unparse(body) == (
                f"raise NotImplementedError('assignment {number}: write {name}')")
            assert ast.get_docstring(theirs[name]) == ast.get_docstring(ours[name])
    changed = {ROOT / "mini_undivided/pairs.py"}
    changed |= {ROOT / f"mini_undivided/{ASSIGNMENTS[number][1]}.py" for number in WRITTEN}
    for path in (copy / "mini_undivided").rglob("*.py"):
        original = ROOT / path.relative_to(copy)
        assert original in changed or path.read_text() == original.read_text()
    assert (copy / "mini_undivided/report/default_runs.json").exists()  # loss.png needs it
    assert all((copy / name).exists() for name in FILES)


def test_no_solution_is_in_view(copy):
    """No line of a body that is gone stands anywhere else in the copy, checks included.

    Nor does what computes the same: PyTorch's fused attention, validation's cross entropy. But
    fine-tuning's step, which has no micro-batches, stays.
    """
    fine_tuning = inspect.getsource(glue.fine_tune)
    texts = [path.read_text() for path in copy.rglob("*.*") if path.suffix in (".py", ".md")]
    chapters = {path.stem: path.read_text() for path in (copy / "mini_undivided").glob("*.py")}
    assert "scaled_dot_product_attention" not in chapters["model"]
    assert "y = attention(q, k, v, mask, dropout)" in chapters["model"]
    assert not any("F.cross_entropy" in chapters[name] for name in ("pretrain", "pairs"))
    assert "square" not in chapters["cka"]
    for number in WRITTEN:
        _, chapter, functions = ASSIGNMENTS[number]
        source = (ROOT / f"mini_undivided/{chapter}.py").read_text()
        nodes = find_functions(ast.parse(source))
        for name in functions:
            body = source.splitlines()[nodes[name].body[0].end_lineno : nodes[name].end_lineno]
            for line in (line.partition("  #")[0].strip() for line in body):
                if len(line) > 36 and line not in fine_tuning:
                    assert not any(line in text for text in texts), f"{name}: {line}"


def test_a_body_without_a_docstring_goes_whole():
    """As a student may have left it; decorators, comments and neighbours stay."""
    source = "@a\ndef f(x):\n    {}\n\n# why\ndef g(): return 2\n"
    done = without_bodies(source.format("x += 1\n    return (x,\n            x)"), 6, ["f"])
    assert done == source.format('raise NotImplementedError("assignment 6: write f")')


@pytest.mark.parametrize("number", WRITTEN)
def test_checks_need_their_own_assignment_alone(number, project, monkeypatch):
    """An assignment's checks pass with all others unwritten, and without it say what to write.

    The project of the tenth needs the blocks of the second.
    """
    written = {name: find(chapter_of(number), name) for name in ASSIGNMENTS[number][2]}
    for other in WRITTEN:
        for name in ASSIGNMENTS[other][2]:
            unwritten = NotImplementedError(f"assignment {other}: write {name}")
            function = mock.create_autospec(find(chapter_of(other), name), side_effect=unwritten)
            monkeypatch.setattr(f"{chapter_of(other)}.{name}", function)
    said = f"nothing is written yet: assignment {number}: write"
    assert all(said in run(each, 0) for each in checks_of(number))
    for name, function in written.items():
        monkeypatch.setattr(f"{chapter_of(number)}.{name}", function)
    checks = checks_of(2, 10) if number == 2 else checks_of(number)
    assert not any(messages := [run(each, 0) for each in checks]), messages


def test_from_copy_to_points(course, tmp_path):
    """A copy of two assignments: unwritten, one of them solved, and a lecturer's own check."""
    course("copy", "copy", "--assignments", "6,8")
    (tmp_path / "copy/own_checks.py").write_text(
        "from mini_undivided.course.assignments import check, require\n"
        "@check(6, points=3)\ndef mine(optim, rng):\n"
        "    '''A claim of mine.'''\n    require(optim.WARMUP == 0.5, 'the line is too short')\n")
    shutil.copy(ROOT / "mini_undivided/cka.py", tmp_path / "copy/mini_undivided")
    done = subprocess.run(
        [sys.executable, "-m", "mini_undivided.course", "check", "6,8", "--seed", "3"],
        capture_output=True, text=True, cwd=tmp_path / "copy")
    assert done.returncode == 1 and done.stderr == ""
    assert "assignment 6: write warmup_decay" in done.stdout
    assert "A claim of mine.\n    the line is too short" in done.stdout
    assert re.search(r"8 debiased CKA +10 of +10", done.stdout)
    assert re.search(r"6 the schedule +0 of +13", done.stdout)


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["check", "11"], "11 is no assignment: give a number from 1 to 10"),
    (["check", "6"], f"but Python takes mini_undivided from {ROOT}: change to your copy's folder"),
    (["copy", ROOT], f"{ROOT} exists and is not empty: name a new folder"),
    (["check", "1", "--seed", "-1"], "-1 is not a whole number from 0 on"),
    (["grade", "nowhere"], "nowhere is no folder and no zip file"),
    (["grade", "a/b", "c/b", "--out", "x"], "two submissions have one name"),
    (["copy", ""], "exists and is not empty"),
    (["copy", "~/pyproject.toml"], f"{ROOT}/pyproject.toml exists and is not empty"),
    (["grade", "a", "b", "--json", "x"], "--json holds the results of one submission: give one")])
def test_a_users_mistake_is_one_sentence(arguments, sentence, course, tmp_path, monkeypatch, capsys):
    """Status 2, no traceback, and nothing is done: outside of a copy nothing is checked either."""
    (tmp_path / "mine").touch()
    monkeypatch.setenv("HOME", str(ROOT))
    with pytest.raises(SystemExit) as end:
        course(*arguments)
    said = capsys.readouterr()
    assert end.value.code == 2 and sentence in said.err and "Traceback" not in said.err
    assert said.out == "" and [path.name for path in tmp_path.rglob("*")] == ["mine"]


@pytest.mark.parametrize(("code", "message"), [
    ("@check(11, points=1)", "line 2: ValueError: there is no assignment 11: give 1 to 10"),
    ("@check(6, points=1)", "line 2: ValueError: f has no docstring, which is its claim"),
    ("undefined", "line 2: NameError: name 'undefined' is not defined"),
    ("def f(:", "line 2: SyntaxError")])
def test_an_error_in_own_checks_is_one_sentence(code, message, tmp_path, monkeypatch):
    """It names the line; so is a check of an assignment that does not exist refused."""
    (tmp_path / "own_checks.py").write_text(
        f"from mini_undivided.course.assignments import check\n{code}\ndef f(*_): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"own_checks.py, {message}"):
        checks_of(6)


# Grading.


def test_results_are_gradescopes(tmp_path, course, capsys):
    """results.json has a score, and tests with name, score, max_score, status and output.

    What a submission does not hold gives no points. A chapter that is not Python costs its own:
    others, which import it, are graded beside one in which nothing is written.
    """
    (tmp_path / "student/mini_undivided").mkdir(parents=True)
    for name in ("model", "pretrain"):
        shutil.copy(ROOT / f"mini_undivided/{name}.py", tmp_path / "student/mini_undivided")
    (tmp_path / "student/mini_undivided/data.py").write_text("def mask(:")
    (tmp_path / "student/project.py").write_text(PROJECT)
    course("grade", "student", "--assignments", "4,5,8,10", "--json", "r.json")
    results = json.loads((tmp_path / "r.json").read_text())
    points = dict.fromkeys(("4", "5", "8", "10"), 0)
    for test in results["tests"]:
        number = test["number"].split(".")[0]
        points[number] += test["score"]
        assert test.keys() == {"name", "number", "score", "max_score", "status", "output",
                               "visibility"}
        assert test["status"] == ("passed" if test["score"] == test["max_score"] else "failed")
        assert ("data.py, line 1: SyntaxError" in test["output"]) == (number == "4")
    assert points == {"4": 0, "5": 10, "8": 0, "10": 10} and results["score"] == 20
    assert re.search(r"all +20 of +40", capsys.readouterr().out)


HANDED_IN = {  # files of a submission → what is taken of them
    "flat": (["optim.py", "notes.txt"], ["mini_undivided/optim.py"]),
    "deep": (["a/copy/mini_undivided/optim.py"], ["mini_undivided/optim.py"]),
    "helped": (["mini_undivided/optim.py", "mini_undivided/helper.py"],
               ["helper.py", "mini_undivided/helper.py", "mini_undivided/optim.py"]),
    "edited": (["mini_undivided/cka.py", "mini_undivided/course/assignments.py",
                "mini_undivided/course/checks/optim.py"], ["mini_undivided/cka.py"]),
    "environment": (["cka.py", "venv/lib/site-packages/torch/optim.py"], ["mini_undivided/cka.py"]),
    "project": (["project.py"], ["mini_undivided/project.py", "project.py"]),
    "empty": ([], [])}


@pytest.mark.parametrize("form", HANDED_IN)
@pytest.mark.parametrize("zipped", [False, True])
def test_what_is_handed_in_is_found(form, zipped, tmp_path, monkeypatch):
    """Chapters wherever they lie, modules beside them, and nothing of the course; no links.

    Nor what a virtual environment holds. The project that is handed in counts where there is
    another, as in a student's own copy.
    """
    written, taken = HANDED_IN[form]
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/project.py").touch()
    monkeypatch.setattr(grading, "ROOT", tmp_path / "copy")
    for name in written:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    (tmp_path / "in").mkdir(exist_ok=True)
    if zipped:
        submission = shutil.make_archive(tmp_path / "student", "zip", tmp_path / "in")
    else:
        submission = tmp_path / "in"
        (submission / "data.py").symlink_to(ROOT / "mini_undivided/data.py")
    found = handed_in(submission)
    assert sorted(found) == taken
    assert all(text.decode().endswith(name.split("/")[-1]) for name, text in found.items())


def test_the_size_of_what_is_handed_in_is_bounded(tmp_path, monkeypatch):
    """More Python than anyone writes is refused."""
    (tmp_path / "cka.py").write_text("x = 23")
    monkeypatch.setattr(grading, "MOST", 6)
    assert handed_in(tmp_path) == {"mini_undivided/cka.py": b"x = 23"}
    (tmp_path / "helper.py").write_text("y")
    with pytest.raises(UserError, match="cannot be opened: more than 0 MB of Python"):
        handed_in(tmp_path)


def test_a_damaged_zip_file_is_opened_or_refused(tmp_path):
    """Whichever of its bytes is wrong: the class behind it has to be graded."""
    draw, path, refused = random.Random(0), tmp_path / "student.zip", 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("optim.py", "x = 1\n" * 99)
        archive.writestr("data.py", "y = 2\n" * 99, zipfile.ZIP_LZMA)
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= draw.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            handed_in(path)
        except UserError as error:
            refused += "student.zip cannot be opened" in str(error)
    assert refused > 50


FORBIDDEN = f"""
import os, subprocess
said = []
for act in (os.fork, lambda: subprocess.Popen(["yes"]), lambda: open("../evil", "w"),
            lambda: os.kill(os.getppid(), 9), lambda: os.environ["SECRET"],
            lambda: open({str(ROOT / "mini_undivided/optim.py")!r}).read()):
    try:
        act()
        said.append("done")
    except (OSError, KeyError) as error:
        said.append(str(error))
raise ValueError(said)
"""
RIGHT_OPTIM = (ROOT / "mini_undivided/optim.py").read_text()
HOSTILE = {  # optim.py, and what feedback has to say
    "leave": (RIGHT_OPTIM + "\ndef scale_learning_rates(*a): __import__('os')._exit(0)",
              ["early, with status 0"]),
    "memory": ("x = bytearray(1 << 33)", ["MemoryError"]),
    "forbidden": (FORBIDDEN, ["os.fork", "subprocess.Popen", "../evil", "os.kill", "'SECRET'",
                              "mini_undivided/optim.py',) is not allowed"]),
    "large": ("WARMUP = 0.1\ndef warmup_decay(*a): return 'x' * (1 << 27)", ["too large"]),
    "checks": ('''
import gc, sys
import mini_undivided.course.assignments as course
import mini_undivided.course.student as student
course.compare = course.require = course.run = lambda *a: None
student.json.dumps = lambda *a, **b: '{"sentence": "", "value": 1}'
for module in [*sys.modules.values()]:
    vars(module).update(compare=course.compare, require=course.require)
print("secret {{{", flush=True)
warmup_decay = scale_learning_rates = lambda *a: 0.0
''', [])}


@pytest.fixture(scope="module")
def class_of_many(tmp_path_factory):
    """A graded class, hostile and honest → its folder, what was printed, rows of points.csv.

    Its limit is one that no slow machine reaches: what hangs has a test of its own.
    """
    folder = tmp_path_factory.mktemp("class")
    for name, (text, _) in HOSTILE.items():
        (folder / name).mkdir()
        (folder / name / "optim.py").write_text(text)
    (folder / "shadow").mkdir()
    for name in ("optim", "torch", "numpy", *sys.stdlib_module_names):
        (folder / "shadow" / f"{name}.py").write_text(f"open({str(folder / 'evil')!r}, 'w')")
    with zipfile.ZipFile(folder / "honest.zip", "w") as archive:
        archive.writestr("a/mini_undivided/optim.py", f"import helper\n{RIGHT_OPTIM}")
        archive.writestr("a/mini_undivided/helper.py", "x = 1")
    (folder / "broken.zip").write_bytes(b"PK")
    (folder / "empty").mkdir()
    submissions = sorted(folder.iterdir())
    (folder / "lecturer").mkdir()
    (folder / "lecturer/own_checks.py").write_text(
        "from mini_undivided.course.assignments import check, require\n"
        "@check(6, points=3, visibility='hidden')\ndef mine(optim, rng):\n"
        "    '''A hidden claim.'''\n    require(optim.warmup_decay(1) == 0, 'it is not 0')\n")
    lecturer = {**os.environ, "PYTHONPATH": str(ROOT), "SECRET": "42", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mini_undivided.course", "grade", *submissions, "--jobs", "2",
               "--assignments", "6,6", "--timeout", "3600", "--out", "points"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=lecturer,
                          cwd=folder / "lecturer")
    assert done.returncode == 0, done.stderr
    with open(folder / "lecturer/points/points.csv") as file:
        rows = {row["submission"]: row for row in csv.DictReader(file)}
    return folder, done.stdout, rows


def test_a_hostile_submission_costs_its_own_points_alone(class_of_many):
    """Memory, forks, exits, edited checks: a reason each, and points for earlier checks at most.

    Nobody else loses a point, nothing is written, not by a module that has the name of one of
    Python's either, and the lecturer's files are not read.
    """
    folder, _, rows = class_of_many
    for name, (_, parts) in HOSTILE.items():
        written = (folder / f"lecturer/points/{name}.txt").read_text()
        said = " ".join(written.split())  # where its lines break depends on where the tests are
        assert rows[name]["all"] == ("6" if name == "leave" else "0")  # as was earned before
        assert all(part in said for part in parts), (name, said)
        assert "Traceback" not in said and "done" not in said and len(said) < 3000
    assert rows["honest.zip"]["all"] == "13"
    assert not list(folder.rglob("evil"))


def test_a_chapter_that_cannot_be_imported_is_named(tmp_path, course, capsys):
    """Its error is said once, for the assignments too that only use the chapter."""
    (tmp_path / "model.py").write_text("import missing_module\n")
    course("grade", tmp_path, "--assignments", "1,2")
    said = capsys.readouterr().out
    assert "1.1, 1.2, 1.3, 2.1, 2.2, 2.3, 2.4\n    model.py, line 1: ModuleNotFoundError" in said


def test_what_hangs_is_stopped(tmp_path, course, capsys):
    """An endless loop with endless output ends at the limit, the next one at half of it."""
    (tmp_path / "optim.py").write_text(
        "def warmup_decay(*a):\n    while True: print('x' * 100_000, end='')")
    (tmp_path / "project.py").write_text("while True: pass")
    course("grade", tmp_path, "--assignments", "6,10", "--timeout", "1")
    said = capsys.readouterr().out
    assert "0 of  20" in said, said
    assert "6.1, 6.2\n    it was stopped after 1 seconds: is there an endless loop?" in said, said
    assert "\n    it was stopped after 0.5 seconds: is there an endless loop?" in said, said


def test_a_class_has_a_table_and_feedback(class_of_many):
    """A row a student, a column an assignment, each graded once; what is hidden is not told."""
    folder, printed, rows = class_of_many
    assert len(rows) == len(printed.splitlines()) == len(HOSTILE) + 4
    assert rows["honest.zip"] == {"submission": "honest.zip", "6": "13", "all": "13"}
    feedback = {path.stem: path.read_text() for path in (folder / "lecturer/points").glob("*.txt")}
    assert re.search(r"6 the schedule +10 of +10", feedback["honest.zip"])
    assert not any("hidden" in text for text in feedback.values())
    assert feedback["empty"].count("no project.py was found") == 1  # and not for each check
    assert "broken.zip cannot be opened" in feedback["broken.zip"]


def test_gradescopes_autograder(tmp_path, course):
    """Its two scripts can be executed, grade as asked for, and have all that they install."""
    course("autograder", "a.zip", "--assignments", "1,6", "--seed", 7)
    shutil.unpack_archive(tmp_path / "a.zip", tmp_path / "autograder")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        modes = [archive.getinfo(name).external_attr >> 16 & 0o111
                 for name in ("setup.sh", "run_autograder")]
    assert modes == [0o111, 0o111]
    script = (tmp_path / "autograder/run_autograder").read_text()
    command = re.search(r"grade (/autograder/submission .*)", script.replace("\\\n", "")).group(1)
    assert "--json /autograder/results/results.json" in command
    arguments = command.replace("/autograder/submission", str(ROOT)).replace("1,6", "6").split()
    arguments[arguments.index("--json") + 1] = "results.json"
    done = subprocess.run([sys.executable, "-m", "mini_undivided.course", "grade", *arguments],
                          cwd=tmp_path / "autograder", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "autograder/results.json").read_text())
    assert results["score"] == 10 and [t["number"] for t in results["tests"]] == ["6.1", "6.2"]


def test_points_are_a_hundred():
    """The checks of all assignments add up to 100 points."""
    assert sum(each.points for each in checks_of(*ASSIGNMENTS)) == 100
