"""Assignments: make a student's copy, check an answer, grade, make Gradescope's autograder.

Try: python -m mini_undivided.course copy ../homework
"""

import argparse
import os
import sys
from pathlib import Path

from mini_undivided.support.errors import UserError, command_line
from mini_undivided.support.files import check_writable, from_user, write_json
from mini_undivided.support.options import Parser


def parser():
    """The command line."""
    made = Parser(prog="python -m mini_undivided.course", description=__doc__)
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)
    copy = commands.add_parser("copy", help="write a student's copy of the project")
    copy.add_argument("folder", type=from_user, metavar="FOLDER", help="a new folder")
    check = commands.add_parser("check", help="check an assignment in this folder")
    check.add_argument("assignments", metavar="N", nargs="+", help="numbers, or all")
    grade = commands.add_parser("grade", help="grade students' work, for a lecturer")
    grade.add_argument(
        "submissions", type=from_user, metavar="SUBMISSION", nargs="+",
        help="a student's folder or zip file")
    grade.add_argument("--json", type=from_user, metavar="FILE",
                       help="write Gradescope's results.json")
    grade.add_argument("--out", type=from_user, metavar="FOLDER",
                       help="write points.csv and each student's feedback there")
    grade.add_argument("--jobs", type=natural, metavar="N", default=os.cpu_count(),
                       help="submissions at a time (default: a core each)")
    autograder = commands.add_parser("autograder", help="write what Gradescope runs")
    autograder.add_argument("path", type=from_user, metavar="FILE", help="a zip file to upload")
    for command in (copy, grade, autograder):
        command.add_argument(
            "--assignments", metavar="N", nargs="+", default=["all"],
            help="numbers (default: all)")
    for command in (check, grade, autograder):
        command.add_argument(
            "--seed", type=natural, default=0, help="of the random inputs (default: 0)")
    for command in (grade, autograder):
        command.add_argument("--timeout", type=natural, metavar="SECONDS", default=60,
                             help="for the checks of an assignment (default: 60)")
    return made


def natural(text):
    """An argparse type: a whole number that is not negative."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 on")
    return int(text)


def grade(typed, numbers):
    """Print points and what is wrong for each submission, and write what files are asked for."""
    from mini_undivided.course.grade import feedback, grade_class, points, write_class

    names = [Path(submission).resolve().name for submission in typed.submissions]
    if typed.json and len(names) > 1:
        raise UserError("--json holds the results of one submission: give one")
    if typed.out and len({*names}) < len(names):
        raise UserError("two submissions have one name, which --out has to tell apart")
    for submission in typed.submissions:  # all of them before any work
        if not (Path(submission).is_dir() or submission.endswith(".zip")):
            raise UserError(f"{submission} is no folder and no zip file: give a student's")
    for folder in (typed.out, typed.json and Path(typed.json).parent):
        if folder:
            check_writable(folder)
            Path(folder).mkdir(parents=True, exist_ok=True)
    jobs = max(1, typed.jobs)
    graded = grade_class(typed.submissions, numbers, typed.seed, typed.timeout, jobs)
    if typed.out:
        graded = write_class(typed.out, graded, numbers)
    for submission, tests in graded:
        got, most = points(tests)
        said = f"{got} of {most}" if typed.out else f"\n{feedback(tests)}\n"
        print(submission, said, flush=True)
        if typed.json:
            write_json(typed.json, {"score": got, "tests": tests})


def main():
    """Run one command."""
    with command_line():
        typed = parser().parse_args()
        from mini_undivided.course import assignments, homework  # late, for --help
        from mini_undivided.course.grade import check_here

        numbers = assignments.chosen(" ".join(typed.assignments))
        if typed.command == "copy":
            homework.make_copy(typed.folder, numbers)
            print(f"written to {Path(typed.folder)}: begin with its README.md")
        elif typed.command == "check":
            sys.exit(0 if check_here(numbers, typed.seed) else 1)
        elif typed.command == "grade":
            grade(typed, numbers)
        else:
            homework.write_autograder(
                typed.path, f"--assignments {','.join(map(str, numbers))} "
                f"--seed {typed.seed} --timeout {typed.timeout}")
            print(f"written to {typed.path}: upload it to Gradescope as the autograder")


if __name__ == "__main__":
    main()
