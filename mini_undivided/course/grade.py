"""Grading: a student's chapters over fresh copies of the project; one student, or a class.

Each submission is judged in a process of its own, where the lecturer's checks run; the student's
code runs in others (`student`), a new one in a new folder for each assignment.
"""

import csv
import json
import stat
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

from mini_undivided.course.assignments import ASSIGNMENTS, PACKAGE, checks_of, run
from mini_undivided.course.homework import ROOT, make_copy
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import write_text

LARGEST = 1 << 20  # bytes of a file that is handed in
MOST = 1 << 26  # bytes of all of them
NAMES = {f"{chapter}.py" for _, chapter, _ in ASSIGNMENTS.values()}
NOTHING = "no chapter (model.py, data.py, …) and no project.py was found"


def python_files(submission):
    """The Python files of a folder or zip file, {path within: first LARGEST bytes}; no links.

    What a virtual environment holds is left out. UserError if the rest is more than MOST bytes.
    """
    files, size = {}, 0
    try:
        for path, open_file in open_files(Path(submission)):
            if path.suffix == ".py" and "site-packages" not in path.parts:
                with open_file() as file:
                    files[path] = file.read(LARGEST)
                size += len(files[path])
                if size > MOST:
                    raise ValueError(f"more than {MOST >> 20} MB of Python")
    except Exception as error:  # a damaged zip file raises what zlib, lzma and others raise
        raise UserError(f"{submission} cannot be opened: {error}") from None
    return files


def open_files(submission):
    """Yield (path within, a function that opens it) of each file of a folder or zip file."""
    if submission.is_dir():
        for path in submission.rglob("*"):
            if stat.S_ISREG(path.lstat().st_mode):
                within = PurePosixPath(path.relative_to(submission).as_posix())
                yield within, partial(path.open, "rb")
    else:
        with zipfile.ZipFile(submission) as archive:
            for info in archive.infolist():
                yield PurePosixPath(info.filename), partial(archive.open, info)


def handed_in(submission):
    """The chapters, wherever they lie together, and modules of a student's own beside them.

    → {path in the project: bytes}.
    """
    found = {path: text for path, text in python_files(submission).items()
             if path.parent.name != "checks"}
    folders = {path.parent for path in found if path.name in NAMES}
    if not folders:
        return {}
    package = min(folders, key=lambda folder: (folder.name != "mini_undivided",
                                               len(folder.parts), folder))
    top = package.parent if package.name == "mini_undivided" else package
    files = {}
    for path, text in found.items():
        if path.parent == package and path.name in NAMES - {"project.py"}:
            files[f"mini_undivided/{path.name}"] = text
        elif path.parent in (top, package):  # project.py and helpers
            for name in (path.name, f"mini_undivided/{path.name}"):
                if path.name == "project.py" or not (ROOT / name).exists():
                    files[name] = text
    return files


def is_python(text):
    """Whether a file can be compiled: one that cannot costs its own assignments, and no others."""
    with suppress(Exception):
        return bool(compile(text, "a file", "exec"))
    return False


def judge(submission, numbers, seed, seconds):
    """In a submission's process: print a line of JSON, a check's message, after each check."""
    from mini_undivided.course.student import Student

    files = handed_in(submission)
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            project = Path(folder).resolve() / "project"
            make_copy(project, list(ASSIGNMENTS))  # what was not handed in is not written
            for name, text in files.items():
                if Path(name).stem == ASSIGNMENTS[number][1] or is_python(text):
                    (project / name).write_bytes(text)
            checks = checks_of(number)  # imported before the time counts
            with Student(project, number, seconds) as student:
                for function in checks:
                    print(json.dumps(run(function, seed)), flush=True)
            if student.reason:  # so loops cost a class twice the time limit, not ten times
                seconds /= 2


def grade(submission, numbers, seed, seconds):
    """Check a submission, a folder or a zip file → Gradescope's tests, {"name", "score", …} each.

    One that cannot be opened, or holds nothing, fails in all of them, with the reason.
    """
    checks, messages, reason = checks_of(*numbers), [], NOTHING
    try:
        if handed_in(submission):
            arguments = json.dumps([str(submission), numbers, seed, seconds])
            done = subprocess.run([sys.executable, "-m", "mini_undivided.course.grade", arguments],
                                  stdout=subprocess.PIPE, text=True)
            messages = [json.loads(line) for line in done.stdout.splitlines()]
            reason = f"the grading ended early, with status {done.returncode}"
    except UserError as error:
        reason = str(error)
    messages += [reason] * (len(checks) - len(messages))
    return [verdict(*pair) for pair in zip(checks, messages, strict=True)]


def verdict(check, message):
    """Gradescope's entry for a check: its points if the message is empty, else none."""
    number, title = check.assignment, ASSIGNMENTS[check.assignment][0]
    claim = check.__doc__.strip().splitlines()[0]
    return {"name": f"{number} {title}: {claim}",
            "number": f"{number}.{1 + checks_of(number).index(check)}",
            "score": 0 if message else check.points, "max_score": check.points,
            "status": "failed" if message else "passed", "output": message or "passed",
            "visibility": check.visibility}


def check_here(numbers, seed):
    """Print what the checks of some assignments find in this folder → whether all pass."""
    if not PACKAGE.parent.samefile("."):
        raise UserError(f"you are in {Path.cwd()}, but Python takes mini_undivided from "
                        f"{PACKAGE.parent}: change to your copy's folder")
    tests = [verdict(function, run(function, seed)) for function in checks_of(*numbers)]
    print(feedback(tests))
    return all(test["status"] == "passed" for test in tests)


def points(tests, number=None):
    """The points of an assignment, or of all, and how many there are."""
    here = [test for test in tests if number in (None, int(test["number"].split(".")[0]))]
    return sum(test["score"] for test in here), sum(test["max_score"] for test in here)


def feedback(tests):
    """Points, and a sentence for each check that failed; what several failed for is said once."""
    titles = {number: f"{number:2d} {title}" for number, (title, *_) in ASSIGNMENTS.items()}
    rows = [(title, points(tests, number)) for number, title in {**titles, None: "   all"}.items()]
    lines = [f"{title:<32} {got:>3} of {most:>3}" for title, (got, most) in rows if most]
    reasons = {}  # {sentence: names of checks}
    for test in tests:
        if test["status"] == "failed":
            name = f"{test['number']} {test['name'].partition(' ')[2]}"
            reasons.setdefault(test["output"], []).append(name)
    for sentence, names in reasons.items():
        numbers = ", ".join(name.partition(" ")[0] for name in names)
        heading = numbers if names[1:] else names[0]
        lines += [textwrap.fill(text, 79, initial_indent=indent, subsequent_indent=indent,
                                break_long_words=False, break_on_hyphens=False)
                  for text, indent in ((heading, "  "), (sentence, "    "))]
    return "\n".join(lines)


def grade_class(submissions, numbers, seed, seconds, jobs):
    """Grade submissions, some at a time → yields each one and its tests, in order."""
    checks_of(*numbers)  # imported before the threads, which share them
    with ThreadPoolExecutor(jobs) as pool:
        graded = pool.map(lambda submission: grade(submission, numbers, seed, seconds), submissions)
        yield from zip(submissions, graded, strict=True)


def write_class(folder, graded, numbers):
    """Write points.csv, a row a student and a column an assignment, and each one's feedback.

    The feedback says nothing of checks that are not visible; if there are such, what is said of
    all is in a second file, for the lecturer.
    """
    folder = Path(folder)
    with open(folder / "points.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["submission", *numbers, "all"])
        for submission, tests in graded:
            name = Path(submission).resolve().name
            writer.writerow([name, *(points(tests, number)[0] for number in (*numbers, None))])
            file.flush()
            seen = [test for test in tests if test["visibility"] == "visible"]
            write_text(folder / f"{name}.txt", f"{name}\n{feedback(seen)}\n")
            if len(seen) < len(tests):
                write_text(folder / f"{name}-lecturer.txt", f"{name}\n{feedback(tests)}\n")
            yield submission, tests


if __name__ == "__main__":
    judge(*json.loads(sys.argv[1]))
