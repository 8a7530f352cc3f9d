"""docs/tutorial.ipynb: its cells run from top to bottom, and its outputs are clean."""

import json
import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT

STEPS = "STEPS = 1500"  # the line of the notebook that says how long it pretrains


@pytest.fixture(scope="module")
def cells():
    """The code cells of the notebook, in order."""
    notebook = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_cells_run_from_top_to_bottom(cells, tmp_path):
    """As one plain Python program, in another folder, with 20 steps of pretraining."""
    source = "\n".join("".join(cell["source"]) for cell in cells)
    assert source.count(STEPS) == 1
    program = tmp_path / "tutorial.py"
    program.write_text(source.replace(STEPS, "STEPS = 20"), encoding="utf-8")
    settings = {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", **settings})
    assert done.returncode == 0, done.stderr
    assert "the block is its attention: True" in done.stdout


def test_outputs_are_of_one_run_without_error(cells):
    """The cells were executed in order, none failed, and each figure is there."""
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    for cell in cells:
        pictures = ["image/png" in output.get("data", {}) for output in cell["outputs"]]
        assert any(pictures) == ("plt.show()" in "".join(cell["source"]))


def test_outputs_name_no_folder_of_a_machine(cells):
    """No output contains an absolute path, of Unix or of Windows."""
    outputs = [output for cell in cells for output in cell["outputs"]]
    lines = [line for output in outputs for line in
             [*output.get("text", []), *output.get("data", {}).get("text/plain", [])]]
    assert any("validation loss" in line for line in lines)  # there is something to search
    path = re.compile(r"(?<![\w.:/])/[\w.-]+/|\b[A-Z]:\\")
    assert not [line for line in lines if path.search(line)]
