"""A student's copy of the project: the bodies of the chosen functions are gone, their text is not.

Sources carry no markers: where a body begins and ends is read off their syntax tree.
"""

import ast
import re
import shutil
import zipfile
from pathlib import Path

from mini_undivided.course.assignments import ASSIGNMENTS, OWN
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import atomic, check_writable, write_text

ROOT = Path(__file__).parents[2]
# Tests hold a second solution of most functions; these do not.
FILES = ("train.py", "finetune.py", "analyze.py", "setup.cfg", "pyproject.toml", "LICENSE",
         ".gitignore", "docs/exercises.md", "tests/conftest.py", "tests/helpers.py",
         "tests/test_attention.py", "tests/test_corpus.py", "tests/test_tokenizer.py")
# What says again, or instead, what an assignment's function says: (chapter, pattern, replacement).
REPEATED = {
    1: [("model", r" +# PyTorch's fused kernel(.*\n)+? +attend = .*\n", ""),
        ("model", r"attend\(", "attention(")],
    5: [("pretrain", r"F.cross_entropy\(.*", "run.objective.loss(run.model, batch)"),
        ("pairs", r"    logits, pairs = (.*\n)+?    return words.*",
         '    raise NotImplementedError("--next-sentence is not in the assignments")')]}
README = """# mini_undivided: assignments

A small BERT, with and without its feed-forward layers, in which some functions are yours to write:

{rows}

[docs/exercises.md](docs/exercises.md) is the handout: how to check them, formulas, what to observe.
"""
SETUP = """#!/bin/bash
set -e
apt-get update && apt-get install -y python3-venv
python3 -m venv /autograder/venv
/autograder/venv/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu
/autograder/venv/bin/pip install -e '/autograder/source[test]'
"""
RUN = """#!/bin/bash
cd /autograder/source
/autograder/venv/bin/python -m mini_undivided.course grade /autograder/submission \\
  --json /autograder/results/results.json """


def make_copy(folder, numbers):
    """Write the project to a folder, without the bodies of the functions of some assignments."""
    folder = Path(folder).absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: name a new folder")
    if not (ROOT / "docs/exercises.md").exists():
        raise UserError(f"{ROOT} is not the project's own folder: install its clone by pip -e")
    check_writable(folder)
    for name in (*FILES, *package_files()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    rows = []
    for number in numbers:
        title, chapter, functions = ASSIGNMENTS[number]
        name = f"mini_undivided/{chapter}.py" if chapter != "project" else "project.py (new)"
        rows.append(f"- {number}, {title}: {', '.join(map('`{}`'.format, functions))} in `{name}`")
        if chapter != "project":
            text = without_bodies((folder / name).read_text("utf-8"), number, functions)
            (folder / name).write_text(text, "utf-8")
        for repeats, old, new in REPEATED.get(number, ()):
            path = folder / f"mini_undivided/{repeats}.py"
            path.write_text(re.sub(old, new, path.read_text("utf-8")), "utf-8")
    write_text(folder / "README.md", README.format(rows="\n".join(rows)))


def package_files():
    """The paths of the package's files in the project."""
    return [path.relative_to(ROOT) for kind in ("*.py", "*.json")
            for path in (ROOT / "mini_undivided").rglob(kind)]


def write_autograder(path, arguments):
    """Write Gradescope's autograder as a zip file; arguments: of `grade`, as text."""
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, text in {"setup.sh": SETUP, "run_autograder": RUN + arguments}.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, text)
        for name in ("README.md", *FILES, *package_files()):
            archive.write(ROOT / name, name)
        if Path(f"{OWN}.py").exists():
            archive.write(f"{OWN}.py")


def without_bodies(source, number, names):
    """A chapter's source in which an assignment's functions are not written; docstrings stay."""
    lines = source.splitlines(keepends=True)
    for name, node in reversed(find_functions(ast.parse(source)).items()):  # from the end upwards
        if name in names:
            first = node.body[0].end_lineno if ast.get_docstring(node) else node.body[0].lineno - 1
            code = f'raise NotImplementedError("assignment {number}: write {name}")\n'
            lines[first : node.end_lineno] = [" " * node.body[0].col_offset + code]
    return "".join(lines)


def find_functions(tree, prefix=""):
    """{qualified name: node} of the functions of a module and of its classes."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[prefix + node.name] = node
        elif isinstance(node, ast.ClassDef):
            found |= find_functions(node, f"{node.name}.")
    return found
