"""Grading: a student's chapters over a fresh copy, each assignment in a process of its own.

The checks are the lecturer's. A process says what its checks found behind a secret that it reads
before any of the student's code runs, so that leaving early or printing gives no points.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from mini_undivided.course.assignments import ASSIGNMENTS, OWN, checks_of, results
from mini_undivided.course.copy import make_copy

LIMIT = 60  # seconds for the checks of an assignment
CHILD = "from mini_undivided.course.grade import child; child()"


def child():
    """In the process: run the checks of an assignment; a line of JSON after each."""
    secret, number, seed = sys.stdin.readline().split()
    out = os.fdopen(os.dup(1), "w")
    for i, (_, message) in enumerate(results(int(number), int(seed))):
        print(f"\n{secret} {json.dumps([i, message])}", file=out, flush=True)


def grade(submission, numbers, seed):
    """Check a submission's chapters → Gradescope's tests, {"name", "score", …} each."""
    submission, tests = Path(submission), []
    package = submission / "mini_undivided"
    package = package if package.is_dir() else submission  # chapters may lie flat
    handed_in = {"project.py": submission / "project.py"} | {
        f"mini_undivided/{chapter}.py": package / f"{chapter}.py"
        for _, chapter, _ in ASSIGNMENTS.values() if chapter != "project"}
    handed_in = {name: path for name, path in handed_in.items() if path.is_file()}
    if package == submission and not handed_in:
        return [verdict(each, "no folder mini_undivided in the submission")
                for number in numbers for each in checks_of(number)]
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        make_copy(project, list(ASSIGNMENTS))  # what is missing in a submission is not written
        for name, path in handed_in.items():
            shutil.copyfile(path, project / name)
        if Path(f"{OWN}.py").exists():
            shutil.copy(f"{OWN}.py", project)
        for number in numbers:
            tests += judge(project, number, seed)
    return tests


def judge(project, number, seed):
    """Run the checks of one assignment in a process → Gradescope's tests."""
    secret, checks = secrets.token_hex(16), checks_of(number)
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD], cwd=project, text=True, stdin=subprocess.PIPE,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        process.stdin.write(f"{secret} {number} {seed}\n")
        process.stdin.close()
        try:
            process.wait(LIMIT)
            reason = f"the process ended early, with status {process.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"it was stopped after {LIMIT} seconds: is there an endless loop?"
        finally:
            with suppress(ProcessLookupError, AttributeError):  # on Windows there is no killpg
                os.killpg(process.pid, signal.SIGKILL)  # and what the student's code has started
            process.kill()
            process.wait()
        output.seek(0)
        said = [line[33:] for line in output if line.startswith(f"{secret} ")]
    messages = dict(json.loads(line) for line in said)
    return [verdict(each, messages.get(i, reason)) for i, each in enumerate(checks)]


def verdict(check, message):
    """Gradescope's entry for a check: its points if the message is empty, else none."""
    title = ASSIGNMENTS[check.assignment][0]
    claim = check.__doc__.strip().splitlines()[0]
    return {"name": f"{check.assignment} {title}: {claim}", "number": str(check.assignment),
            "score": 0 if message else check.points, "max_score": check.points,
            "status": "failed" if message else "passed", "output": message or "passed"}
