"""Assignments: make a student's copy, check an answer, grade submissions.

Try: python -m mini_undivided.course copy ../homework
"""

import argparse
import sys
from pathlib import Path

from mini_undivided.support.errors import UserError, command_line
from mini_undivided.support.files import check_writable, write_json


def parser():
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m mini_undivided.course", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)
    copy = commands.add_parser("copy", help="write a student's copy of the project")
    copy.add_argument("folder", metavar="FOLDER", help="a new folder")
    check = commands.add_parser("check", help="check an assignment in this folder")
    check.add_argument("assignments", metavar="N", help="its number, several as 1,2, or all")
    grade = commands.add_parser("grade", help="grade students' folders, for a lecturer")
    grade.add_argument("submissions", metavar="SUBMISSION", nargs="+", help="a student's folder")
    grade.add_argument("--json", metavar="FILE", help="write Gradescope's results.json")
    for command in (copy, grade):
        command.add_argument(
            "--assignments", metavar="LIST", default="all", help="1,2,8 (default: all)")
    for command in (check, grade):
        command.add_argument(
            "--seed", type=natural, default=0, help="of the random inputs (default: 0)")
    return made


def natural(text):
    """An argparse type: a whole number that is not negative."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 on")
    return int(text)


def table(tests):
    """Points by assignment and in all, of Gradescope's tests."""
    from mini_undivided.course.assignments import ASSIGNMENTS

    lines = []
    for number, (title, *_) in ASSIGNMENTS.items():
        here = [test for test in tests if test["number"] == str(number)]
        if here:
            lines.append((f"{number:2d} {title}", here))
    lines.append(("   all", tests))
    return "\n".join(f"{title:<32} {sum(t['score'] for t in here):>3} of "
                     f"{sum(t['max_score'] for t in here):>3}" for title, here in lines)


def check(numbers, seed):
    """Print what the checks of some assignments find in this folder → whether all pass."""
    from mini_undivided.course.assignments import PACKAGE, results
    from mini_undivided.course.grade import verdict

    if not PACKAGE.parent.samefile("."):
        raise UserError(f"you are in {Path.cwd()}, but Python takes mini_undivided from "
                        f"{PACKAGE.parent}: change to your copy's folder")
    tests = []
    for number in numbers:
        for each, message in results(number, seed):
            tests.append(verdict(each, message))
            passed = tests[-1]["status"] == "passed"
            print(f"{'passed ' if passed else 'not yet'}  {tests[-1]['name']}", flush=True)
            if not passed:
                print(f"         {tests[-1]['output']}")
    print(f"\n{table(tests)}")
    return all(test["status"] == "passed" for test in tests)


def grade(submissions, numbers, seed, path):
    """Print a table of points for each submission, or write that of a single one to a file too."""
    from mini_undivided.course.grade import grade as points

    if path and len(submissions) > 1:
        raise UserError("--json holds the results of one submission: give one")
    for submission in submissions:  # all of them before any work
        if not Path(submission).is_dir():
            raise UserError(f"{submission} is not a folder: give a student's copy")
    if path:
        check_writable(Path(path).parent)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    for submission in submissions:
        tests = points(submission, numbers, seed)
        lost = [f"  {t['name']}\n    {t['output']}" for t in tests if t["status"] == "failed"]
        print("\n".join([submission, table(tests), *lost, ""]), flush=True)
        if path:
            write_json(path, {"score": sum(t["score"] for t in tests), "tests": tests})


def main():
    """Run one command."""
    with command_line():
        typed = parser().parse_args()
        from mini_undivided.course.assignments import chosen  # late, for --help

        numbers = chosen(typed.assignments)
        if typed.command == "copy":
            from mini_undivided.course.copy import make_copy

            make_copy(typed.folder, numbers)
            print(f"written to {Path(typed.folder)}: begin with its README.md")
        elif typed.command == "check":
            sys.exit(0 if check(numbers, typed.seed) else 1)
        else:
            grade(typed.submissions, numbers, typed.seed, typed.json)


if __name__ == "__main__":
    main()
