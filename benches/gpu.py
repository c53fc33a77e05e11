"""Everything on a GPU machine, in one command and at most nine minutes, with nothing fetched: `python -m benches.gpu`.

It builds the kernels in place, tests and checks them, times them, and writes the rows. `--list` says what it would do.
A stage has its share of the time, and what those before it left over; where that ends, it is cut, and says so. What
runs on the GPU does so in processes of their own, since a process has one backend.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for who runs the file itself, python benches/gpu.py

from benches.tables import markdown, number

SECONDS = 540  # of all
MARGIN = 15  # of them for starting, ending and writing
BACKENDS = "cuda", "triton"
CORES = os.cpu_count() or 1
# Of many processes at once: a thread each, and what Triton keeps is kept apart from what users have.
MANY = {"OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(ROOT / "build" / "triton-checks")}

Line = dict[str, Any]


class Job(NamedTuple):
    name: str
    command: list[str]
    env: dict[str, str] = {}  # noqa: RUF012


class Ended(NamedTuple):
    name: str
    status: int | None  # None where its time was over
    output: str

    def lines(self) -> list[Line]:
        """Those of JSON; the last may be half a line where the job was stopped."""
        found = []
        for line in self.output.splitlines():
            if line.startswith("{"):
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue
        return found


class Outcome(NamedTuple):
    passed: bool
    said: str
    failed_operators: tuple[str, ...] = ()


def run(jobs: Sequence[Job], seconds: float) -> list[Ended]:
    """All jobs at once. What has not ended in time is stopped, with all that it started."""
    with tempfile.TemporaryDirectory() as folder:
        end = time.monotonic() + seconds
        started = []
        for i, job in enumerate(jobs):
            output = Path(folder, str(i))
            paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            commands = os.pathsep.join(
                [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
            )  # ninja among them
            env = {**os.environ, "PYTHONPATH": paths, "PATH": commands, **job.env}
            with output.open("w") as file:
                process = subprocess.Popen(
                    job.command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
                )
            started.append((job, process, output))
        try:
            return [
                Ended(job.name, _wait(process, end), output.read_text(errors="replace"))
                for job, process, output in started
            ]
        finally:
            for _, process, _ in started:
                _stop(process)


def _wait(process: subprocess.Popen[bytes], end: float) -> int | None:
    try:
        return process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        _stop(process)
        return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own
        process.wait()


def _fault(ended: Ended, lines: int = 12) -> str | None:
    """What is to be said of a job that did not come to a good end."""
    if ended.status == 0:
        return None
    how = "its time was over" if ended.status is None else f"exit status {ended.status}"
    said = ended.output.splitlines()
    crashes = [i for i, line in enumerate(said) if "Fatal Python error" in line]  # after the dots of tests
    shown = said[crashes[0] :][: 2 * lines] if crashes else said[-lines:]  # a crash first says where it was
    return "\n".join([f"{ended.name}: {how}", *shown])


def part(name: str, backend: str, *options: str, **env: str) -> Job:
    """A part of benches.on_device."""
    command = [sys.executable, "-m", "benches.on_device", name, *options]
    return Job(f"{name}, {backend}", command, {"FASTIB_BACKEND": backend, **MANY, **env})


def sliced(name: str, backend: str, count: int, **env: str) -> list[Job]:
    """A part in so many processes: most of it is compiling."""
    return [part(name, backend, "--slice", str(i), str(count), **env) for i in range(count)]


def checked(jobs: Sequence[Ended]) -> Outcome:
    """What parts say of their checks. A part without any has failed."""
    said, faults, operators = [], [], set()
    for ended in jobs:
        lines = ended.lines()
        operators |= {_first_word(line["failed"]).removesuffix("_backward") for line in lines if "failed" in line}
        failures = [f"{ended.name}: {line['failed']}: {line['why']}" for line in lines if "failed" in line]
        passed = sum("passed" in line for line in lines)
        said.append(f"{ended.name}: {passed} passed, {len(failures)} failed")
        faults += failures
        if fault := _fault(ended):
            faults.append(fault)
        elif passed == 0:
            faults.append(f"{ended.name}: nothing was checked")
    return Outcome(not faults, "\n".join([*said, *faults[:20]]), tuple(sorted(operators)))


def _first_word(label: str) -> str:
    """The operator, by which all that on_device checks is named."""
    return re.split(r"[ ,]", label)[0]


# The stages.


class Setting(NamedTuple):
    capability: str
    out: Path
    failed: tuple[str, ...] = ()  # the stages before
    failed_operators: tuple[str, ...] = ()  # those of which a test or check failed, and was not only cut


def build(setting: Setting, seconds: float) -> Outcome:
    env = {"TORCH_CUDA_ARCH_LIST": setting.capability, "MAX_JOBS": str(CORES), "FASTIB_CUDA": "1"}
    (ended,) = run([Job("build", [sys.executable, "setup.py", "build_ext", "--inplace"], env)], seconds)
    said = [line for line in ended.output.splitlines() if line.startswith("fastib: building")]
    return Outcome(ended.status == 0, _fault(ended, 40) or "".join(said))


def operators() -> list[Path]:
    """The tests of each operator."""
    return [
        path for path in sorted((ROOT / "tests").glob("test_*.py")) if (ROOT / f"csrc/cuda/{path.stem[5:]}.cu").exists()
    ]


def tests(setting: Setting, seconds: float) -> Outcome:
    """A process for each operator and backend."""
    options = ["-q", "-m", "", "--maxfail=3", "-p", "no:cacheprovider", "-p", "no:warnings", "--tb=short"]
    jobs = [
        Job(
            f"{path.name}, {backend}",
            [sys.executable, "-m", "pytest", *options, str(path)],
            {"FASTIB_BACKEND": backend, "FASTIB_TEST_DEVICE": "cuda", "CI": "", **MANY},
        )
        for path in operators()
        for backend in BACKENDS
    ]
    ended = run(jobs, seconds)
    faults = [fault for job in ended if (fault := _fault(job))]
    said = "\n".join([*(f"{job.name}: {_last_line(job)}" for job in ended), *faults])
    return Outcome(not faults, said, tuple(sorted({_operator_of(job.name) for job in ended if job.status})))


def _operator_of(job: str) -> str:
    return job.partition(".py")[0].removeprefix("test_")


def _last_line(job: Ended) -> str:
    lines = job.output.splitlines()
    return lines[-1].strip() if lines else "nothing"


def agreement(setting: Setting, seconds: float) -> Outcome:
    counts = {"cuda": 4, "triton": 12}  # Triton compiles what it calls
    return checked(run([job for backend in BACKENDS for job in sliced("agreement", backend, counts[backend])], seconds))


def graphs(setting: Setting, seconds: float) -> Outcome:
    return checked(run([job for backend in BACKENDS for job in sliced("graphs", backend, 7)], seconds))


# What each tool of compute-sanitizer says at its end where it found nothing.
SANITIZERS = {"memcheck": "ERROR SUMMARY: 0 errors", "racecheck": "RACECHECK SUMMARY: 0 hazards displayed"}
# What PyTorch asks the driver in vain is none of our errors.
OF_MEMCHECK = ["--report-api-errors", "no"]


def find_sanitizer() -> str | None:
    """Beside nvcc, or where the shell finds it."""
    from torch.utils.cpp_extension import CUDA_HOME

    nvcc = shutil.which("nvcc")
    beside = [Path(CUDA_HOME) / "bin"] if CUDA_HOME else []
    beside += [Path(nvcc).resolve().parent, Path(nvcc).parent] if nvcc else []
    folders = [*beside, *(folder.parent / "compute-sanitizer" for folder in beside)]
    found = (shutil.which("compute-sanitizer", path=str(folder)) for folder in folders)
    return next((command for command in found if command), None) or shutil.which("compute-sanitizer")


def sanitizer(setting: Setting, seconds: float) -> Outcome:
    command = find_sanitizer()
    if command is None:
        return Outcome(False, "compute-sanitizer is neither beside nvcc nor on the PATH: nothing was checked")
    options = {tool: ["--print-limit", "5", "--error-exitcode", "9"] for tool in SANITIZERS}
    options["memcheck"] += OF_MEMCHECK
    # Each tensor is an allocation of its own, so that memory beyond its end is nobody's.
    jobs = [
        Job(tool, [command, "--tool", tool, *options[tool], *job.command], job.env)
        for tool in SANITIZERS
        for job in sliced("calls", "cuda", 3, PYTORCH_NO_CUDA_MEMORY_CACHING="1")  # a process for each dtype
    ]
    ended = run(jobs, seconds)
    outcome = checked(ended)
    unclean = [
        f"{job.name}: its output lacks '{SANITIZERS[job.name]}'"
        for job in ended
        if job.status is not None and SANITIZERS[job.name] not in job.output
    ]
    return outcome._replace(passed=outcome.passed and not unclean, said="\n".join([outcome.said, *unclean]))


def benches(setting: Setting, seconds: float) -> Outcome:
    """One backend after the other: nothing else runs. The rows are written whatever became of the rest."""
    end = time.monotonic() + seconds
    forget_tiles()
    env = {"OMP_NUM_THREADS": str(CORES)}
    compiling = {**env, "TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    # Into torch.compile's cache, which saves each backend its own; what fails here fails below, and is said there.
    run(sliced("compile", "cuda", CORES, **compiling), seconds / 4)
    said, passed, results = [], True, {}
    for left, backend in zip((2, 1), BACKENDS, strict=True):
        share = (end - time.monotonic()) / left
        options = "--seconds", f"{max(0.0, share - 15):.0f}"  # its last case comes on top
        (ended,) = run([part("benches", backend, *options, **env)], share)
        results[backend] = ended.lines()
        outcome = checked([ended])
        cut = [f"{backend}: {line['cut']} of {line['of']} cases were cut" for line in results[backend] if "cut" in line]
        said += [outcome.said, *cut]
        passed = passed and outcome.passed
    return Outcome(passed, "\n".join([*said, written(results, setting)]))


def forget_tiles() -> None:
    """What Triton compiled for the tests stays. The tiles that it chose there, where much ran at once, are not kept."""
    for chosen in Path(MANY["TRITON_CACHE_DIR"]).rglob("*.autotune.json"):
        chosen.unlink()


def written(results: dict[str, list[Line]], setting: Setting) -> str:
    """The rows' table, after they are written: first where and of what they are, with the rates of that run and what
    failed in it, since no speed is to be reported of what is not right."""
    from benches import run as of_the_cpu

    lines = [line for of_backend in results.values() for line in of_backend]
    rows = [row for line in lines for row in line.get("rows", [])]
    headers = {backend: line for backend, found in results.items() for line in found if "header" in line}
    if not rows or not headers:
        return "no rows"
    header = next(iter(headers.values()))["header"]
    header |= {"failed": setting.failed, "failed_operators": setting.failed_operators}
    header["rates"] = {backend: line["rates"] for backend, line in headers.items()}
    path = of_the_cpu.write(header, header["card"], rows, setting.out)
    return f"{table(rows)}\nsaved {path.name}"


def table(rows: Sequence[Line]) -> str:
    """A line for each case and backend. Of a contender: ms of a replay of its graph / ms of a call as it is written /
    MiB that a call takes at most."""
    cases: dict[tuple[str, ...], dict[str, Line]] = {}
    for row in rows:
        key = row["operator"], row["shape"], row["dtype"], row["backend"]
        cases.setdefault(key, {})[row["contender"]] = row
    contenders = list(dict.fromkeys(row["contender"] for row in rows))
    lines = [["operator", "shape", "dtype", "backend", *contenders, "floor", "time / floor"]]
    for case, found in cases.items():
        cells = [_cell(found.get(name)) for name in contenders]
        ours = found["fastib"]
        floor = f"{number(ours['floor_ms'])} {ours['floor_kind']}"
        lines.append([*case, *cells, floor, number(ours["time_over_floor"])])
    return markdown(lines)


def _cell(row: Line | None) -> str:
    if row is None:
        return ""
    return f"{number(row['median_ms'])} / {number(row['call_ms'])} / {row['peak_bytes'] / 2**20:.3g}"


class Stage(NamedTuple):
    run: Callable[[Setting, float], Outcome]
    seconds: float
    what: str

    @property
    def name(self) -> str:
        return self.run.__name__


STAGES = [
    Stage(build, 90, "builds _C and _C_cuda in place, for this card alone"),
    Stage(agreement, 45, "noise bit for bit and results within the tests' budget: CPU = CUDA = Triton"),
    Stage(graphs, 35, "CUDA graphs of every operator, forward and backward: replays have fresh noise"),
    Stage(tests, 165, "the operators' tests on the GPU, for both backends"),
    Stage(sanitizer, 30, "compute-sanitizer's memcheck and racecheck on every CUDA kernel"),
    Stage(benches, 160, "times every operator against eager and torch.compile, and writes the rows"),
]


def missing() -> str | None:
    """Why there is no GPU to run on."""
    try:
        import torch
    except ImportError as error:
        return f"no GPU: PyTorch does not load ({error})"
    if torch.version.cuda is None:
        return f"no GPU: this PyTorch, {torch.__version__}, is built without CUDA"
    with warnings.catch_warnings(record=True) as caught:
        if torch.cuda.is_available():
            return None
    why = f": {str(caught[0].message).splitlines()[0]}" if caught else ""
    return f"no GPU: PyTorch {torch.__version__}, of CUDA {torch.version.cuda}, finds no device{why}"


def perform(stages: Sequence[Stage], setting: Setting, seconds: float = SECONDS - MARGIN) -> bool:
    """Whether all passed. A failure ends its stage alone."""
    end = time.monotonic() + seconds
    for i, stage in enumerate(stages):
        start = time.monotonic()
        limit = end - start - sum(later.seconds for later in stages[i + 1 :])
        print(f"--- {stage.name}, at most {limit:.0f} s: {stage.what}", flush=True)
        try:
            outcome = stage.run(setting, limit) if limit > 0 else Outcome(False, "cut: no time is left")
        except Exception as error:  # noqa: BLE001
            outcome = Outcome(False, f"{type(error).__name__}: {error}")
        print(outcome.said)
        word = "passed" if outcome.passed else "FAILED"
        print(f"=== {stage.name} {word} in {time.monotonic() - start:.0f} s", flush=True)
        if not outcome.passed:
            setting = setting._replace(
                failed=(*setting.failed, stage.name),
                failed_operators=tuple(sorted({*setting.failed_operators, *outcome.failed_operators})),
            )
    return not setting.failed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.gpu", description="Builds, checks and times on a GPU.")
    parser.add_argument("--list", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--only", choices=[stage.name for stage in STAGES], help="this stage alone, in all the time")
    parser.add_argument("--out", type=Path, default=ROOT / "benches" / "results", help="the folder for the rows")
    arguments = parser.parse_args(argv)
    if arguments.out.exists() and not arguments.out.is_dir():
        parser.error(f"--out: {arguments.out} is not a folder")
    stages = [stage for stage in STAGES if arguments.only in (None, stage.name)]
    if arguments.list:
        print("\n".join(f"{stage.name:<10} {stage.seconds:>4.0f} s  {stage.what}" for stage in stages))
        print(f"in all, at most {SECONDS} s; what a stage leaves over, the next may take")
        return 0
    if reason := missing():
        print(reason, file=sys.stderr)
        return 2
    import torch

    major, minor = torch.cuda.get_device_capability()
    return 0 if perform(stages, Setting(f"{major}.{minor}", arguments.out.absolute())) else 1


if __name__ == "__main__":
    sys.exit(main())
