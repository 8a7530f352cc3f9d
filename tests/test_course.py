"""The course: copies without solutions, and checks that explain what is not right."""

import ast
import csv
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile

import pytest
from course_mistakes import BY_HAND, MISTAKES, MISTAKES_BY_HAND, PROJECT, RIGHT
from helpers import ROOT

from mini_undivided import glue, model
from mini_undivided.course import grade
from mini_undivided.course.__main__ import main
from mini_undivided.course.assignments import ASSIGNMENTS, checks_of, results, run
from mini_undivided.course.copy import FILES, find_functions, make_copy, replace_bodies
from mini_undivided.support.errors import UserError

SEEDS = range(int(os.environ.get("COURSE_SEEDS", 3)))
UNNAMED = ("none of the usual", "RuntimeError", "KeyError")
TABLE = MISTAKES + [
    (number, name, *((old, new) if number == 10 else ("", BY_HAND[name].replace(old, new))), cause)
    for number, name, old, new, cause in MISTAKES_BY_HAND]
WRITTEN = [n for n, (_, chapter, _) in ASSIGNMENTS.items() if chapter != "project"]


def owner_of(number, name):
    """The module or class that holds a function of an assignment, and its name there."""
    owner = importlib.import_module(f"mini_undivided.{ASSIGNMENTS[number][1]}")
    *outer, last = name.split(".")
    for each in outer:
        owner = getattr(owner, each)
    return owner, last


def put(monkeypatch, number, name, code):
    """Define a function of an assignment anew, in its chapter's namespace."""
    owner, last = owner_of(number, name)
    chapter, made = importlib.import_module(f"mini_undivided.{ASSIGNMENTS[number][1]}"), {}
    exec(textwrap.dedent(code), vars(chapter), made)
    monkeypatch.setattr(owner, last, made[last])


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A right project.py that can be imported."""
    (tmp_path / "project.py").write_text(PROJECT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "project", raising=False)
    yield tmp_path / "project.py"
    sys.modules.pop("project", None)


def course(*arguments, cwd=ROOT):
    """Run a command of the course → the finished process."""
    command = [sys.executable, "-m", "mini_undivided.course", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


# What is right, and what is not.


@pytest.mark.parametrize("number", ASSIGNMENTS)
def test_our_solutions_pass(number, project):
    """The product's own functions pass the checks of every assignment."""
    messages = [run(each, seed) for seed in SEEDS for each in checks_of(number)]
    assert not any(messages), messages


@pytest.mark.parametrize(("number", "codes"), [row[1:] for row in RIGHT], ids=[r[0] for r in RIGHT])
def test_other_right_solutions_pass(number, codes, monkeypatch):
    """Loops, other formulas, other libraries and other optimizers are accepted."""
    for name, code in codes.items():
        put(monkeypatch, number, name, code)
    assert [message for seed in SEEDS for each in checks_of(number)
            if (message := run(each, seed))] == []


def test_there_are_enough_mistakes():
    """Each assignment has three typical mistakes at least; most lead to a cause."""
    assert all(sum(row[0] == number for row in TABLE) >= 3 for number in ASSIGNMENTS)
    assert sum(row[4] in UNNAMED for row in TABLE) < 0.05 * len(TABLE)


@pytest.mark.parametrize(
    "mistake", TABLE, ids=[f"{row[0]}-{i}-{row[4]}" for i, row in enumerate(TABLE)])
def test_a_mistake_is_caught_and_named(mistake, monkeypatch, project):
    """Whatever the seed a check fails, and its message names the cause."""
    number, name, old, new, cause = mistake
    if number == 10:
        source = PROJECT
        project.write_text(source.replace(old, new))
    else:
        source = inspect.getsource(getattr(*owner_of(number, name)))
        put(monkeypatch, number, name, source.replace(old, new) if old else new)
    assert old in source
    for seed in SEEDS:
        messages = [message for each in checks_of(number) if (message := run(each, seed))]
        assert any(word in each for each in messages for word in cause.split("|")), messages


@pytest.mark.parametrize(("body", "message"), [
    ("raise NotImplementedError('assignment 6: write it')", "nothing is written yet: assignment 6"),
    ("return None", "is a return missing?"),
    ("raise SystemExit(0)", "SystemExit"),
    ("from mini_undivided.course.assignments import Wrong; raise Wrong", "the answer is wrong"),
    ("return undefined", "NameError: name 'undefined' is not defined")])
def test_what_breaks_off_is_a_sentence(body, message, monkeypatch):
    """No traceback: an unwritten body, a forgotten return, an exit, a typing error."""
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
    """Only the bodies of the assignments' functions and of their twins differ from the project."""
    for number in WRITTEN:
        _, chapter, functions = ASSIGNMENTS[number]
        texts = ((root / f"mini_undivided/{chapter}.py").read_text() for root in (copy, ROOT))
        theirs, ours = (find_functions(ast.parse(text)) for text in texts)
        for name in functions:
            _, body = theirs[name].body
            assert ast.unparse(body) == (
                f"raise NotImplementedError('assignment {number}: write {name}')")
            assert ast.get_docstring(theirs[name]) == ast.get_docstring(ours[name])
    changed = {ROOT / f"mini_undivided/{ASSIGNMENTS[number][1]}.py" for number in WRITTEN}
    for path in (copy / "mini_undivided").rglob("*.py"):
        original = ROOT / path.relative_to(copy)
        assert original in changed or path.read_text() == original.read_text()
    assert (copy / "mini_undivided/report/default_runs.json").exists()  # loss.png needs it
    assert all((copy / name).exists() for name in FILES)


def test_no_solution_is_in_view(copy):
    """No line of a body that is gone stands anywhere else in the copy, checks included.

    But fine-tuning's step, which has no micro-batches, stays.
    """
    fine_tuning = inspect.getsource(glue.train_epoch)
    texts = [path.read_text() for path in copy.rglob("*.*") if path.suffix in (".py", ".md")]
    for number in WRITTEN:
        _, chapter, functions = ASSIGNMENTS[number]
        source = (ROOT / f"mini_undivided/{chapter}.py").read_text()
        nodes = find_functions(ast.parse(source))
        for name in functions:
            body = source.splitlines()[nodes[name].body[0].end_lineno : nodes[name].end_lineno]
            for line in (line.partition("  #")[0].strip() for line in body):
                if len(line) > 36 and line not in fine_tuning:
                    assert not any(line in text for text in texts), f"{name}: {line}"


SOURCE = '''
class A:
    @property
    def f(self):
        """Doc.

        More."""
        # why
        return 1  # one

    # a comment
    def g(self): return 2

def h(x):
    x += 1
    return (x,
            x)

z = 1
'''


def test_bodies_are_replaced_by_their_lines():
    """Decorators, docstrings and neighbours stay; a body without a docstring goes whole."""
    done = replace_bodies(SOURCE, {"A.f": "raise X", "h": "a()\nb()"})
    wanted = SOURCE.replace("        # why\n        return 1  # one\n", "        raise X\n")
    old = "    x += 1\n    return (x,\n            x)\n"
    assert done == wanted.replace(old, "    a()\n    b()\n")


def test_a_copy_does_not_overwrite(tmp_path):
    """A folder with a file in it is refused, and nothing is left beside it."""
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine").touch()
    with pytest.raises(UserError, match="exists and is not empty: name a new folder"):
        make_copy(tmp_path / "copy", [1])
    assert [path.name for path in tmp_path.rglob("*")] == ["copy", "mine"]


@pytest.mark.parametrize("number", WRITTEN)
def test_an_unwritten_assignment_fails_its_own_checks_alone(number, project, monkeypatch):
    """Without its functions an assignment's checks say what to write; all others pass.

    The project of the tenth needs the blocks of the second.
    """
    for name in ASSIGNMENTS[number][2]:
        owner, last = owner_of(number, name)

        def unwritten(*args, name=name, **kwargs):
            raise NotImplementedError(f"assignment {number}: write {name}")

        monkeypatch.setattr(owner, last, unwritten)
    needs = {number, 10} if number == 2 else {number}
    for other in ASSIGNMENTS:
        messages = [run(each, 0) for each in checks_of(other)]
        said = f"nothing is written yet: assignment {number}: write"
        assert all(said in each if other in needs else not each for each in messages), messages


def test_from_copy_to_points(tmp_path):
    """A copy of two assignments: unwritten, one of them solved, and a lecturer's own check."""
    assert course("copy", tmp_path / "copy", "--assignments", "6,8").returncode == 0
    (tmp_path / "copy/own_checks.py").write_text(
        "from mini_undivided.course.assignments import check, require\n"
        "@check(6, points=3)\ndef mine(optim, rng):\n"
        "    '''A claim of mine.'''\n    require(optim.WARMUP == 0.5, 'the line is too short')\n")
    shutil.copy(ROOT / "mini_undivided/cka.py", tmp_path / "copy/mini_undivided")
    done = course("check", "6,8", "--seed", 3, cwd=tmp_path / "copy")
    assert done.returncode == 1 and done.stderr == ""
    assert "assignment 6: write warmup_decay" in done.stdout
    assert "A claim of mine.\n         the line is too short" in done.stdout
    assert re.search(r"8 CKA without bias +10 of +10", done.stdout)
    assert re.search(r"6 the schedule +0 of +13", done.stdout)


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["check", "11"], "11 is no assignment: give a number from 1 to 10"),
    (["copy", ROOT], "exists and is not empty"),
    (["check", "1", "--seed", "-1"], "-1 is not a whole number from 0 on"),
    (["grade", "nowhere"], "nowhere is no folder and no zip file"),
    (["grade", "a/b", "c/b", "--out", "x"], "two submissions have one name"),
    (["copy", ""], "the name of the new folder is empty"),
    (["grade", "a", "b", "--json", "x"], "--json holds the results of one submission: give one")])
def test_a_users_mistake_is_one_sentence(arguments, sentence, monkeypatch, capsys):
    """Status 2, and no traceback."""
    monkeypatch.setattr(sys, "argv", ["course", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and sentence in said and "Traceback" not in said


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


def test_an_earlier_failure_leaves_the_cause_open(monkeypatch):
    """The first check that fails may say that its cause is unusual, later ones do not."""
    put(monkeypatch, 1, "attend", inspect.getsource(model.attend).replace("@ v", "@ v * 7"))
    first, second, third = (message for _, message in results(1, 0))
    assert "the cause is none of the usual ones" in first
    assert second.startswith("the output with a mask is") and "cause" not in second + third


def test_a_check_elsewhere_is_refused(tmp_path, monkeypatch, capsys):
    """Outside a copy, where Python would take an installed package, nothing is checked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["course", "check", "6"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == "" and said.err == (
        f"error: you are in {tmp_path}, but Python takes mini_undivided from {ROOT}: "
        "change to your copy's folder\n")


# Grading.


@pytest.fixture
def submission(tmp_path):
    """A student's folder with right solutions of the first three, the sixth and the tenth."""
    folder = tmp_path / "student"
    (folder / "mini_undivided").mkdir(parents=True)
    for name in ("optim", "model"):
        shutil.copy(ROOT / f"mini_undivided/{name}.py", folder / "mini_undivided")
    (folder / "project.py").write_text(PROJECT)
    return folder


def test_results_are_gradescopes(submission, tmp_path):
    """results.json has a score, and tests with name, score, max_score, status and output.

    What a submission does not hold gives no points.
    """
    done = course("grade", submission, "--assignments", "8,10", "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    points = {test["number"].split(".")[0]: 0 for test in results["tests"]}
    for test in results["tests"]:
        points[test["number"].split(".")[0]] += test["score"]
        assert test.keys() == {"name", "number", "score", "max_score", "status", "output",
                               "visibility"}
        assert test["status"] == ("passed" if test["score"] == test["max_score"] else "failed")
    assert points == {"8": 0, "10": 10} and results["score"] == 10
    assert re.search(r"all +10 of +20", done.stdout)


HOSTILE = {
    "exit": ("import sys; sys.exit(0)", "does your code call exit?"),
    "leave": ("import os, atexit; atexit.register(print); os._exit(0)", "early, with status 0"),
    "syntax": ("def warmup_decay(:", "optim.py, line 1: SyntaxError"),
    "print": ("while True: print('x' * 1000, end='')", "stopped after 20 seconds"),
    "memory": ("x = []\nwhile True: x.append(bytearray(1 << 28))", "MemoryError|stopped after 20"),
    "fork": ("import os\nwhile True: os.fork()", "os.fork"),
    "spawn": ("import subprocess; subprocess.Popen(['yes'])", "subprocess.Popen"),
    "files": ("open('../evil', 'w')", "../evil"),
    "kill": ("import os; os.kill(os.getppid(), 9)", "os.kill"),
    "secret": ("import os; raise OSError(os.environ['SECRET'])", "KeyError"),
    "reads": (f"exec(open({str(ROOT / 'mini_undivided/optim.py')!r}).read())", "not allowed"),
    "large": ("WARMUP = 0.1\ndef warmup_decay(*a): return 'x' * (1 << 27)", "too large"),
    "checks": ('''
import gc, sys
import mini_undivided.course.assignments as course
import mini_undivided.course.student as student
course.compare = course.require = course.run = lambda *a: None
student.json.dumps = lambda *a, **b: '{"sentence": "", "kind": "TypeError", "value": 1}'
for module in [*sys.modules.values()]:
    vars(module).update(compare=course.compare, require=course.require)
print("secret {{{", flush=True)
warmup_decay = scale_learning_rates = lambda *a: 0.0
''', "")}


@pytest.fixture(scope="module")
def class_of_many(tmp_path_factory):
    """A graded class → its folder, the finished process, and the rows of points.csv.

    Hostile students, among them links, and honest ones with folders and zip files of many forms.
    """
    folder = tmp_path_factory.mktemp("class")
    for name, (text, _) in HOSTILE.items():
        (folder / name / "mini_undivided").mkdir(parents=True)
        (folder / name / "mini_undivided/optim.py").write_text(text)
    (folder / "link/mini_undivided").mkdir(parents=True)
    (folder / "link/mini_undivided/optim.py").symlink_to(ROOT / "mini_undivided/optim.py")
    (folder / "edited/mini_undivided/course").mkdir(parents=True)
    (folder / "edited/mini_undivided/course/assignments.py").write_text("def run(*a): return ''")
    shutil.copy(ROOT / "mini_undivided/cka.py", folder / "edited/mini_undivided")
    right = (ROOT / "mini_undivided/optim.py").read_text()
    helped = right.replace("import torch\n", "import torch\nimport helper\n", 1)
    for name, files in {
            "flat": {"optim.py": right}, "deep": {"a/copy/mini_undivided/optim.py": right},
            "helped": {"mini_undivided/optim.py": helped, "mini_undivided/helper.py": "x = 1"},
            "loop": {"optim.py": right + "\ndef scale_learning_rates(*a):\n    while True: pass"},
            }.items():
        for path, text in files.items():
            (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / path).write_text(text)
    with zipfile.ZipFile(folder / "zipped.zip", "w") as archive:
        archive.writestr("zipped/mini_undivided/optim.py", right)
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
               "--assignments", "6,6", "--timeout", "20", "--out", "points"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=lecturer,
                          cwd=folder / "lecturer")
    assert done.returncode == 0, done.stderr
    with open(folder / "lecturer/points/points.csv") as file:
        rows = {row["submission"]: row for row in csv.DictReader(file)}
    return folder, done, rows


def test_a_hostile_submission_costs_its_own_points_alone(class_of_many):
    """Endless output, memory, forks, exits, links, edited checks: no points, a reason each.

    Nobody else loses a point, nothing is written, and the lecturer's files are not read.
    """
    folder, _, rows = class_of_many
    for name, (_, message) in HOSTILE.items():
        said = (folder / f"lecturer/points/{name}.txt").read_text()
        assert rows[name]["all"] == "0", (name, said)
        assert any(each in said for each in message.split("|")), (name, said)
        assert "Traceback" not in said and len(said) < 3000
    assert rows["link"]["all"] == rows["edited"]["all"] == "0"
    honest = {name: rows[name]["all"] for name in ("flat", "deep", "helped", "zipped.zip")}
    assert set(honest.values()) == {"13"}, honest
    assert not list(folder.rglob("evil"))


def test_points_before_a_loop_stay(class_of_many):
    """An endless loop is stopped, and does not take the points of what was checked before it."""
    folder, _, rows = class_of_many
    assert rows["loop"]["all"] == "6"
    assert "an endless loop?" in (folder / "lecturer/points/loop.txt").read_text()


def test_a_class_has_a_table_and_feedback(class_of_many):
    """A row a student, a column an assignment, each graded once; what is hidden is not told."""
    folder, done, rows = class_of_many
    assert len(rows) == len(done.stdout.splitlines()) == len(HOSTILE) + 9
    assert rows["flat"] == {"submission": "flat", "6": "13", "all": "13"}
    feedback = {path.stem: path.read_text() for path in (folder / "lecturer/points").glob("*.txt")}
    assert re.search(r"6 the schedule +10 of +10", feedback["flat"])
    assert not any("hidden" in text for text in feedback.values())
    assert feedback["empty"].count("no project.py was found") == 1  # and not for each check
    assert "broken.zip cannot be opened" in feedback["broken.zip"]


def test_gradescopes_autograder(tmp_path, monkeypatch):
    """Its two scripts can be executed, grade as asked for, and have all that they install."""
    monkeypatch.chdir(tmp_path)
    done = course("autograder", tmp_path / "a.zip", "--assignments", "1,6", "--seed", 7)
    assert done.returncode == 0, done.stderr
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
    assert sum(each.points for n in ASSIGNMENTS for each in checks_of(n)) == 100
