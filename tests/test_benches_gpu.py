"""The bench of a GPU, as far as it runs without one."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benches import gpu, harness, on_device, report, suites, tables
from fastib import _fallback


def test_what_would_be_done_on_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "run", None)  # nothing is
    assert gpu.main(["--list"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["build", "agreement", "graphs", "tests", "sanitizer", "benches"]
    assert sum(stage.seconds for stage in gpu.STAGES) + gpu.MARGIN <= gpu.SECONDS == 540 and "540 s" in last
    assert gpu.main(["--list", "--only", "tests"]) == 0
    assert capsys.readouterr().out.split()[0] == "tests"


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--only", "test"], "invalid choice: 'test'"), (["--out", __file__], "is not a folder")]
)
def test_wrong_arguments_of_the_bench_of_a_gpu(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main(arguments)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cuda", "said"), [(None, "is built without CUDA"), ("13.0", "of CUDA 13.0, finds no device: no driver")]
)
def test_no_gpu_is_one_line_and_nothing_is_built(
    cuda: str | None, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable() -> bool:
        gpu.warnings.warn("no driver", stacklevel=1)
        return False

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    monkeypatch.setattr(gpu, "run", None)
    assert gpu.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no GPU: ") and torch.__version__ in line and line.endswith(said)


def _stages(*ends: Callable[[float], gpu.Outcome]) -> list[gpu.Stage]:
    def stage(number: int, end: Callable[[float], gpu.Outcome]) -> gpu.Stage:
        def run(setting: gpu.Setting, seconds: float) -> gpu.Outcome:
            return end(seconds)

        run.__name__ = f"stage{number}"
        return gpu.Stage(run, 10, "")

    return [stage(number, end) for number, end in enumerate(ends)]


SETTING = gpu.Setting("9.0", Path())


def test_a_failure_stops_no_other_stage(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(seconds: float) -> gpu.Outcome:
        raise OSError("no such thing")

    good, before = gpu.Outcome(True, "fine"), []
    stages = _stages(broken, lambda s: gpu.Outcome(False, "bad"), lambda s: good)
    stages.append(gpu.Stage(lambda setting, s: before.append(setting.failed) or good, 10, ""))
    assert not gpu.perform(stages, SETTING)
    assert before == [("stage0", "stage1")]
    said = capsys.readouterr().out
    for text in ("OSError: no such thing\n=== stage0 FAILED", "bad\n=== stage1 FAILED", "fine\n=== stage2 passed"):
        assert text in said
    assert gpu.perform(_stages(lambda s: good), SETTING)


def test_a_stage_has_its_share_and_what_was_left_over(capsys: pytest.CaptureFixture[str]) -> None:
    given: list[float] = []

    def end(seconds: float) -> gpu.Outcome:
        given.append(seconds)
        return gpu.Outcome(True, "")

    gpu.perform(_stages(end, end), SETTING, seconds=25)
    assert given == pytest.approx([15, 25], abs=0.5)
    assert not gpu.perform(_stages(end, end), SETTING, seconds=5)  # no time for the first
    assert len(given) == 3 and "cut: no time is left" in capsys.readouterr().out


def test_what_takes_too_long_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    code = (
        "import subprocess, sys, time\n"
        'print(\'{"passed": "a"}\', flush=True); print(\'{"pas\', end="", flush=True)\n'
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    start = time.monotonic()
    jobs = [gpu.Job("slow", [sys.executable, "-c", code]), gpu.Job("bad", [sys.executable, "-c", "1 / 0"])]
    slow, bad = gpu.run(jobs, seconds=1.5)
    assert time.monotonic() - start < 3 and slow.status is None and slow.lines() == [{"passed": "a"}]
    assert bad.status == 1 and "ZeroDivisionError" in bad.output
    time.sleep(3)
    assert not (tmp_path / "late").exists()
    outcome = gpu.checked([slow, bad])
    assert not outcome.passed
    for text in ("slow: 1 passed, 0 failed", "slow: its time was over", "bad: exit status 1", "ZeroDivisionError"):
        assert text in outcome.said


def test_what_parts_say() -> None:
    good, bad = '{"passed": "x"}\n', '{"failed": "y", "why": "z"}\n'
    for status, output, passed in ((0, good, True), (0, good + bad, False), (0, "", False), (3, good, False)):
        assert gpu.checked([gpu.Ended("part", status, output)]).passed == passed
    crash = "Fatal Python error: Segmentation fault\n  the innermost frame\n" + 40 * "an outer frame\n"
    assert "the innermost frame" in gpu.checked([gpu.Ended("part", -11, good + crash)]).said
    assert "part: y: z" in gpu.checked([gpu.Ended("part", 0, bad)]).said


def test_operators_whose_checks_fail_are_said() -> None:
    labels = [
        str(next(iter(on_device.specs()))),
        "gaussian_kl_backward float32 3, tiles 1",
        "reparameterize, its own rng",
    ]
    lines = [json.dumps({"failed": label, "why": "?"}) for label in labels]
    operators = "aggregate_posterior", "gaussian_kl", "reparameterize"
    assert gpu.checked([gpu.Ended("part", 0, "\n".join(lines))]).failed_operators == operators


def test_every_operator_has_tests_and_calls() -> None:
    assert {path.stem[5:] for path in gpu.operators()} == {name for name in _fallback.KERNELS if "backward" not in name}
    assert {name for _, name, _ in on_device._table([torch.float32])} == set(_fallback.KERNELS)


def test_kernels_agree_with_the_reference() -> None:
    halves = [list(on_device.agreement("cpu", slice(i, None, 2))) for i in range(2)]
    lines = [line for half in halves for line in half]
    assert not [line for line in lines if "failed" in line]
    assert len({line["passed"] for line in lines}) == len(lines) == 4 * len(list(on_device._table([torch.float32])))


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("philox_words", lambda words: words ^ 1, "other words"),
        ("reparameterize", lambda z: torch.where(torch.arange(z.shape[1]) == 3, z * (1 + 1e-4), z), "exceeds"),
        ("gaussian_kl_backward", lambda grads: (grads[0], grads[0], *grads[2:]), "exceeds"),
    ],
)
def test_disagreement_is_seen(
    name: str, changed: Callable[[object], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = on_device._operator
    monkeypatch.setattr(
        on_device, "_operator", lambda n: (lambda *a: changed(kernel(n)(*a))) if n == name else kernel(n)
    )
    arguments = next(a for _, n, a in on_device._table([torch.float32]) if n == name)
    with pytest.raises(AssertionError, match=said):
        on_device._assert_agreement("cpu", name, arguments)


def test_every_call_of_the_table_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert on_device.main(["calls", "--device", "cpu"]) == 0
    torch.set_default_device(None)
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert len(lines) == 3 * len(list(on_device._table([torch.float32])))
    assert not [line for line in lines if "failed" in line]


def _as_a_graph(call: suites.Contender) -> on_device.Captured:
    """Results that stay where they are, and are made anew by each replay."""
    results = tuple(t.clone() for t in call())

    def replay() -> None:
        for result, anew in zip(results, call(), strict=True):
            result.copy_(anew)

    return on_device.Captured(replay, results)


def test_graphs_without_a_gpu() -> None:
    lines = list(on_device.graphs(capture=_as_a_graph))
    assert not [line for line in lines if "failed" in line]
    assert len(lines) == len(suites.OPERATORS) + len(suites.WITH_NOISE)


def test_a_graph_with_stale_noise_is_seen() -> None:
    """Neither its results nor, where no rng is given, its noise change."""
    lines = list(on_device.graphs(capture=lambda call: on_device.Captured(lambda: None, call())))
    stale = [line["failed"] for line in lines if "failed" in line]
    assert stale == [line for line in map(str, stale) if line.split(",")[0].split()[0] in suites.WITH_NOISE]
    assert len(stale) == 2 * len(suites.WITH_NOISE)


def test_a_graph_of_other_results_is_seen() -> None:
    def capture(call: suites.Contender) -> on_device.Captured:
        results = tuple(t.clone() for t in call())
        return on_device.Captured(lambda: [t.add_(1) for t in results], results)

    lines = [line for line in on_device.graphs(capture=capture) if "its own rng" not in str(line)]
    assert all("not the eager call" in line["why"] for line in lines) and len(lines) == len(suites.OPERATORS)


def _device() -> on_device.Device:
    return on_device.Device(harness._turn, harness._turn, _as_a_graph, lambda call: 3 * 2**20, 1e10, 1e9)


def test_what_is_timed_on_a_gpu() -> None:
    specs = on_device.specs()
    assert len(set(specs)) == len(specs)
    assert {spec.operator for spec in specs} == set(suites.OPERATORS)
    assert {spec.dtype for spec in specs} == {torch.float32, torch.bfloat16}


def test_rows_of_a_gpu_are_written_and_not_taken_for_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "CONTENDERS", ["fastib", "eager"])
    monkeypatch.setattr(on_device, "_SECONDS_A_CASE", 0.02)
    cases = [suites.Spec("reparameterize", (16, 8)), suites.Spec("elbo_decomposition", (64, 10), torch.bfloat16)]
    lines = list(on_device.benches(_device(), "cuda", 60, cases))
    assert [line.get("passed") for line in lines] == list(map(str, cases))
    rows = [row for line in lines for row in line["rows"]]
    assert [row["contender"] for row in rows] == ["fastib", "eager"] * 2
    (of_triton,) = on_device.benches(_device(), "triton", 60, cases[:1])
    assert [row["contender"] for row in of_triton["rows"]] == ["fastib"]
    for row in rows:
        assert row["backend"] == "cuda" and row["peak_bytes"] == 3 * 2**20 and row["call_ms"] > 0
        assert row["time_over_floor"] == pytest.approx(row["median_ms"] / row["floor_ms"])
    assert rows[0]["floor_kind"] == "bytes" and rows[0]["floor_ms"] == pytest.approx(1e3 * 6 * 16 * 8 * 4 / 1e10)
    assert rows[2]["floor_kind"] == "exponentials" and rows[2]["floor_ms"] == pytest.approx(
        1e3 * 2 * 64 * 64 * 10 / 1e9
    )

    of_where = {"driver": "1", "cuda": "13.0", "torch": "2.11", "triton": "3.6", "commit": "0123456789", "dirty": False}
    rates = {"bytes_per_second": 3e12, "exponentials_per_second": 4e12}
    header = {"header": {"date": "2026-01-02", "card": "A Card 80GB"} | of_where, "rates": rates}
    setting = gpu.Setting("9.0", tmp_path, failed=("tests",))
    said = gpu.written({"cuda": [header, *lines], "triton": [of_triton]}, setting)
    path = tmp_path / "2026-01-02-a-card-80gb.jsonl"
    assert said.endswith(f"saved {path.name}") and len(said.splitlines()) == 2 + len(cases) + 2
    first, *saved = map(json.loads, path.read_text().splitlines())
    assert saved == rows + of_triton["rows"]
    assert first == header["header"] | {
        "failed": ["tests"],
        "failed_operators": [],
        "rates": {"cuda": header["rates"]},
    }
    assert report.newest(tmp_path) == [] and report.newest(tmp_path, of_cards=True) == [path]
    section = report.card(path)
    assert "A Card 80GB" in section and "3.00 TB/s" in section and "commit 012345678, " in section
    assert ", 2026-01-02; in this run failed: tests. The floor" in section
    path.write_text(path.read_text().replace('"failed": ["tests"]', '"failed": []'))
    assert ", 2026-01-02. The floor" in report.card(path)
    columns, _, *table = section[section.index("| operator") :].splitlines()
    assert [c.strip() for c in columns.split("|")[4:7]] == ["cuda", "triton", "eager"] and len(table) == len(cases)
    cells = [c.strip() for c in table[0].split("|")]
    ratio = of_triton["rows"][0]["median_ms"] / rows[0]["median_ms"]
    assert cells[4] == tables.number(rows[0]["median_ms"]) and cells[5].endswith(f"({tables.number(ratio)}x)")
    path.write_text(path.read_text().replace('"failed_operators": []', '"failed_operators": ["reparameterize"]'))
    section = report.card(path)
    assert "of reparameterize, which are left out." in section
    assert "| reparameterize " not in section and "| elbo_decomposition " in section
    assert gpu.written({"cuda": []}, setting) == "no rows"


def test_operators_whose_tests_fail_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """By either backend; not those whose tests were cut."""
    ends = {"test_gaussian_kl.py, triton": -11, "test_reparameterize.py, cuda": None}
    monkeypatch.setattr(gpu, "run", lambda jobs, seconds: [gpu.Ended(j.name, ends.get(j.name, 0), "") for j in jobs])
    outcome = gpu.tests(SETTING, 1)
    assert not outcome.passed and outcome.failed_operators == ("gaussian_kl",)
    seen: list[gpu.Setting] = []

    def last(setting: gpu.Setting, seconds: float) -> gpu.Outcome:
        seen.append(setting)
        return gpu.Outcome(True, "")

    gpu.perform([*[gpu.Stage(gpu.tests, 1, "")] * 2, gpu.Stage(last, 1, "")], SETTING)
    assert seen[0].failed_operators == ("gaussian_kl",)


def test_benches_of_a_gpu_end_in_time_and_lose_no_row_to_a_failure() -> None:
    cases = [suites.Spec("reparameterize", (4, 4)), suites.Spec("gaussian_kl", (4, 4))]
    assert list(on_device.benches(_device(), "cuda", -1, cases)) == [{"cut": 2, "of": 2}]

    def peak(call: suites.Contender) -> int:
        raise torch.OutOfMemoryError("too much")

    lines = list(on_device.benches(_device()._replace(peak=peak), "cuda", 60, cases))
    assert [line["failed"] for line in lines] == list(map(str, cases))


def test_a_contender_without_memory_is_left_out() -> None:
    def measure(call: object) -> object:
        if call == "large":
            raise torch.OutOfMemoryError("too much")
        return call

    assert on_device._of_each(measure, {"fastib": "small", "eager": "large"}) == {"fastib": "small"}
    with pytest.raises(torch.OutOfMemoryError):
        on_device._of_each(measure, {"fastib": "large"})


@pytest.mark.parametrize(
    ("status", "said", "passed"),
    [(0, list(gpu.SANITIZERS.values()), True), (0, ["ERROR SUMMARY: 1 error"], False), (9, [], False)],
)
def test_the_sanitizer_must_say_that_it_found_nothing(
    status: int, said: list[str], passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sanitizer that runs the command behind its own arguments, and says so much at its end."""
    fake = tmp_path / "compute-sanitizer"
    lines = "\n".join(f"echo '========= {text}'" for text in said)
    fake.write_text(
        f'#!/bin/sh\nwhile [ "$1" != -c ]; do shift; done\n"{sys.executable}" "$@"\n{lines}\nexit {status}\n'
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    code = "import os; print('{\"passed\": \"' + os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'] + '\"}')"
    monkeypatch.setattr(
        gpu, "part", lambda name, backend, *options, **env: gpu.Job(name, [sys.executable, "-c", code], env)
    )
    outcome = gpu.sanitizer(SETTING, 60)
    assert outcome.passed == passed and "memcheck: 1 passed" in outcome.said and "racecheck: 1 passed" in outcome.said


def test_no_sanitizer_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda command, path=None: None)
    outcome = gpu.sanitizer(SETTING, 60)
    assert not outcome.passed and "nothing was checked" in outcome.said
