"""A student's functions in a process of their own, which answers calls with data and nothing else.

While it is open, the functions of an assignment, and those of the checks that are `remote`, run
over there; a check draws inputs and compares answers here. The process has nothing of the
lecturer's environment, and bounds on time, memory, output, files and processes. That stops
accidents and simple tricks; it is no sandbox.
"""

import copy
import functools
import importlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from time import process_time
from unittest import mock

import numpy as np
import torch

from mini_undivided.course.assignments import ASSIGNMENTS, Wrong, around, equal, explain, require

MEMORY = 2 << 30  # bytes beyond what Python and PyTorch take
SLACK = 4  # by the clock a busy machine may take so much longer than by computing time
LARGEST = 1 << 26  # bytes of an answer
# What no assignment needs, in the names of Python's audit events (PEP 578).
REFUSED = ("ctypes.dl", "os.", "pty.", "resource.", "shutil.", "signal.", "socket.", "subprocess.")
HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.putenv", "os.unsetenv")
# What `serve` needs is there before a student's file of the same name can be found.
START = """import sys
from contextlib import suppress
own = tuple({sys.prefix, sys.base_prefix})
sys.path[:] = [path for path in sys.path if path.startswith(own)]
import json, pickle, unittest.mock, torch
with suppress(ImportError):
    import resource
sys.path.insert(0, sys.argv[1])
from mini_undivided.course.student import serve
serve(int(sys.argv[2]), float(sys.argv[3]), own)"""
STUDENTS = []  # the process that is open


def remote(function):
    """Decorator of a function that needs the student's code: it runs in the student's process."""
    @functools.wraps(function)
    def call(*arguments, **named):
        if STUDENTS:
            return STUDENTS[-1].ask(function, arguments, named)
        return function(*arguments, **named)
    return call


def find(module, name):
    """A function of a module, or of a class in it."""
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


@remote
def pure(module, name, *arguments):
    """What a function returns, which may not change the arrays that it is given."""
    kept = copy.deepcopy(arguments)
    answer = find(f"mini_undivided.{module}", name)(*arguments)
    for before, after in zip(kept, arguments, strict=True):
        require(not isinstance(before, torch.Tensor | np.ndarray) or equal(after, before),
                f"{name} changes its input: work on a new array")
    require(answer is not None, f"{name} returns None: is a return missing?")
    return answer


class Student(ExitStack):
    """Context: an assignment's functions are those in a folder, for some seconds of computing."""

    def __init__(self, project, number, seconds):
        super().__init__()
        kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PATH", "SYSTEMROOT")
                if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", START, str(project), str(number), str(seconds)],
            cwd=project,
            env={**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self.number, self.reason = number, ""
        self.too_long = f"it was stopped after {seconds:g} seconds: is there an endless loop?"
        self.timer = threading.Timer(SLACK * seconds, self.end, [self.too_long])

    def __enter__(self):
        self.callback(self.process.wait)
        self.callback(self.end, "")
        _, chapter, names = ASSIGNMENTS[self.number]
        for name in names if chapter != "project" else ():
            function = remote(find(f"mini_undivided.{chapter}", name))
            self.enter_context(mock.patch(f"mini_undivided.{chapter}.{name}", function))
        STUDENTS.append(self)
        self.callback(STUDENTS.pop)
        self.process.stdout.readline()  # it is ready: time counts from here
        self.timer.start()
        self.callback(self.timer.cancel)
        return self

    def end(self, reason):
        """Kill the process, and what it has started."""
        self.reason = self.reason or reason
        with suppress(ProcessLookupError, AttributeError):  # on Windows there is no killpg
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    def ask(self, function, arguments, named):
        """Call a function over there → what it returns; what it raises is raised here."""
        call = pickle.dumps((function.__module__, function.__qualname__, arguments, named))
        with suppress(OSError):
            self.process.stdin.write(len(call).to_bytes(8, "big") + call)
            self.process.stdin.flush()
        line = self.process.stdout.readline(LARGEST)
        if not line.endswith(b"\n"):
            self.end("what your function returns is too large" if line else "")
            status = self.process.wait()
            if status == -getattr(signal, "SIGXCPU", math.inf):  # on Windows there is none
                self.reason = self.too_long
            raise Wrong(self.reason or f"the process ended early, with status {status}: does your "
                        "code call exit, or need much memory?")
        answer = json.loads(line, object_hook=decode)
        if "sentence" in answer:
            raise Wrong(answer["sentence"])
        return answer["value"]


def encode(value):
    """What JSON does not know: tensors and arrays of numbers. Tuples become lists."""
    grad = value.requires_grad if isinstance(value, torch.Tensor) else None
    array = np.asarray(value if grad is None else value.detach())
    if array.dtype.kind not in "biuf":
        raise TypeError(f"your function returned a {type(value).__name__}")
    return {"array": array.tobytes().hex(), "dtype": array.dtype.str, "shape": array.shape,
            "grad": grad}


def decode(item):
    """The tensor or array that was encoded."""
    if "array" not in item:
        return item
    array = np.frombuffer(bytearray.fromhex(item["array"]), item["dtype"]).reshape(item["shape"])
    return array if item["grad"] is None else torch.from_numpy(array).requires_grad_(item["grad"])


# Over there.

def serve(number, seconds, own):
    """Answer the calls that come from stdin until it is closed; what is printed vanishes.

    seconds: of computing; own: Python's own folders.
    """
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    torch.manual_seed(0)
    bound(seconds, own)
    print(file=answers, flush=True)
    while length := int.from_bytes(calls.read(8), "big"):
        call = calls.read(length)
        try:
            with around(number):
                module, name, arguments, named = pickle.loads(call)  # imports the student's code
                answer = {"value": find(module, name)(*arguments, **named)}
            line = json.dumps(answer, default=encode)
        except BaseException as error:
            line = json.dumps({"sentence": explain(error)})
        print(line, file=answers, flush=True)


def bound(seconds, own):
    """Bound time, memory, files, processes: none is written or started, only Python's are read."""
    with suppress(ImportError, OSError):  # some systems lack these limits
        import resource

        time = math.ceil(process_time() + seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (time, time + 1))  # a signal, then the end
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        for kind, most in {resource.RLIMIT_AS: size + MEMORY, resource.RLIMIT_FSIZE: 0,
                           resource.RLIMIT_NPROC: 0}.items():
            resource.setrlimit(kind, (most, most))
    readable = tuple(os.path.realpath(folder) + os.sep for folder in (*own, os.getcwd(), "/sys"))
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def refuse(event, arguments, realpath=os.path.realpath):
        refused = event.startswith(REFUSED) and event not in HARMLESS
        if event == "open" and not isinstance(arguments[0], int):
            path = os.fsdecode(arguments[0])
            refused = path != os.devnull and (
                arguments[2] & writing or not realpath(path).startswith(readable))
        if refused:
            raise PermissionError(f"{event}{str(arguments[:1])[:80]} is not allowed in grading")
    sys.addaudithook(refuse)
