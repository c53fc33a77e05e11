"""Which kernels serve, and what happens where they cannot; everything once more on the reference."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastib
from fastib import _fallback, _ops

TESTS = Path(__file__).parent
COMPILED = fastib.backends()["cpu"].name == "cpu"


def _python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )


def test_compiled_kernels_serve_the_cpu() -> None:
    """In every run of the tests but the one below, which asks for the reference."""
    backend = fastib.backends()["cpu"]
    assert backend.name == os.environ.get("FASTIB_BACKEND", "cpu").replace("auto", "cpu")
    if COMPILED:
        assert torch._C._dispatch_has_kernel_for_dispatch_key("fastib::gaussian_kl", "CPU")
        assert backend.detail.startswith("C++ kernels")


def test_every_operator_has_a_compiled_kernel() -> None:
    for name in _fallback.KERNELS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastib::{name}", "CompositeExplicitAutograd")
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastib::{name}", "CPU") == COMPILED


@pytest.mark.parametrize("backend", ["cpu", "auto", "reference"])
def test_backend_by_name(backend: str) -> None:
    result = _python("import fastib; print(fastib.backends()['cpu'].name)", FASTIB_BACKEND=backend)
    assert result.stdout.strip() == ("reference" if backend == "reference" else "cpu"), result.stderr


@pytest.mark.parametrize("backend", ["CPU", "gpu"])
def test_backend_that_does_not_exist(backend: str) -> None:
    result = _python("import fastib", FASTIB_BACKEND=backend)
    assert result.returncode != 0
    assert (
        f"ImportError: FASTIB_BACKEND='{backend}' is not a backend of this build: "
        "choose auto, cpu, cuda, triton, reference" in result.stderr
    )


def test_a_device_of_the_tests_that_is_not_there() -> None:
    """The operators' tests then say so, instead of running elsewhere."""
    for device, said in (("tpu", "'tpu': choose cpu or cuda"), ("cuda", "cuda: PyTorch .* finds no GPU")):
        if device == "cuda" and torch.cuda.is_available():
            continue
        command = [sys.executable, "-m", "pytest", "--collect-only", str(TESTS / "test_log_variance_penalty.py")]
        env = {**os.environ, "FASTIB_TEST_DEVICE": device}
        result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert result.returncode != 0 and re.search(f"FASTIB_TEST_DEVICE={said}", result.stderr)


@pytest.mark.skipif(torch.version.cuda is not None, reason="a PyTorch with CUDA may serve them")
@pytest.mark.parametrize("backend, reason", [("cuda", "has no CUDA"), ("triton", "has no GPU (TRITON_INTERPRET=1")])
def test_backend_that_this_pytorch_lacks(backend: str, reason: str) -> None:
    result = _python("import fastib", FASTIB_BACKEND=backend, TRITON_INTERPRET="0")
    assert result.returncode != 0
    assert f"ImportError: FASTIB_BACKEND={backend}: this PyTorch, {torch.__version__}, {reason}" in result.stderr


def test_triton_interpreted_serves_the_cpu() -> None:
    code = "import fastib, sys; print(fastib.backends()['cpu'].name, 'triton' in sys.modules)"
    result = _python(code, FASTIB_BACKEND="triton", TRITON_INTERPRET="1")
    assert result.stdout.strip() == "triton False", result.stderr  # imported when a kernel is first called


BROKEN = "import sys; sys.modules['fastib._C'] = None; import fastib, torch; "


def test_without_a_compiled_module_the_reference_serves_and_says_why() -> None:
    code = BROKEN + (
        "b = fastib.backends()['cpu']; print(b.name, '|', b.detail); "
        "print(fastib.gaussian_kl(torch.ones(2, 2), torch.zeros(2, 2)).item())"
    )
    result = _python(code, FASTIB_BACKEND="auto")
    assert result.stdout.startswith("reference | fastib._C does not load"), result.stderr
    assert result.stdout.splitlines()[1] == "1.0"


def test_asked_for_by_name_a_broken_module_raises() -> None:
    result = _python(BROKEN, FASTIB_BACKEND="cpu")
    assert "ImportError: FASTIB_BACKEND=cpu: fastib._C does not load" in result.stderr


def test_instruction_set_by_name() -> None:
    code = "import fastib; print(fastib.backends()['cpu'].detail)"
    assert _python(code, FASTIB_BACKEND="cpu", FASTIB_CPU_ISA="baseline").stdout.strip() == "C++ kernels, baseline"
    result = _python(code, FASTIB_BACKEND="cpu", FASTIB_CPU_ISA="mmx")
    assert "ImportError: FASTIB_CPU_ISA='mmx' is not supported here: choose auto, baseline" in result.stderr


def test_other_devices_are_served_by_the_reference() -> None:
    meta = torch.zeros(4, 3, device="meta")
    z, kl = fastib.reparameterize_with_kl(meta, meta)
    assert z.shape == (4, 3) and kl.shape == () and z.device.type == "meta"
    served = {"reference"} if torch.version.cuda is None else {"cuda", "triton"}  # Triton comes with such a PyTorch
    assert fastib.backends()["cuda"].name in served


def test_operators_are_not_for_calling_with_gradients() -> None:
    """Gradients live in the autograd.Functions; the bare operator returns what has none."""
    mu = torch.zeros(2, 2, requires_grad=True)
    assert not _ops.gaussian_kl(mu, mu, None, None, 2, 1.0, 0.0).requires_grad
    assert fastib.gaussian_kl(mu, mu).requires_grad


def _penalised(fn: str, a: torch.Tensor, b: torch.Tensor, **options: Any) -> torch.Tensor:
    """A scalar of all results of one function."""
    out = getattr(fastib, fn)(a, b, **options)
    return sum(t.sum() for t in out) if isinstance(out, tuple) else out.sum()


TWICE = [
    ("reparameterize", {}),
    ("gaussian_kl", {}),
    ("gaussian_kl", {"free_bits": 0.01}),
    ("gaussian_kl", {"prior_mu": torch.ones(2), "prior_logvar": torch.ones(2)}),
    ("reparameterize_with_kl", {}),
    ("information_dropout", {}),
    ("information_dropout", {"prior": "log_normal"}),
]


@pytest.mark.parametrize("fn, options", TWICE)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("leaf", [True, False])
def test_second_derivatives_raise(fn: str, options: dict[str, Any], which: int, leaf: bool) -> None:
    """Also by what the inputs were made of, and where the incoming gradient is a constant."""
    if fn == "reparameterize" and which == 0:
        return  # its gradient by mu is the incoming one: see below
    w = [torch.rand(3, 2, requires_grad=True) for _ in range(2)]
    inputs = w if leaf else [t**2 for t in w]
    (grad,) = torch.autograd.grad(_penalised(fn, *inputs, **options), w[which], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not offered"):
        torch.autograd.grad(grad.sum(), w[which], retain_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not offered"):
        (grad**2).sum().backward()  # a gradient penalty
    with pytest.raises(RuntimeError, match="second derivatives are not offered"):
        torch.autograd.functional.hessian(lambda a, b: _penalised(fn, a**2, b**2, **options), tuple(w))


def test_a_prior_has_no_second_derivative_either() -> None:
    w = torch.rand(2, requires_grad=True)
    kl = fastib.gaussian_kl(torch.rand(3, 2), torch.rand(3, 2), w**2, w)
    (grad,) = torch.autograd.grad(kl, w, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not offered"):
        torch.autograd.grad(grad.sum(), w)


def test_gradients_that_are_linear_are_differentiable_again() -> None:
    w = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    for fn in (
        lambda t: fastib.reparameterize(t**3, torch.zeros_like(t), rng=torch.tensor([1, 2])) ** 2,
        lambda t: fastib.log_variance_penalty(t**3) ** 2,
    ):
        assert torch.autograd.gradgradcheck(fn, (w,))


def test_a_graph_of_the_gradients_changes_none() -> None:
    inputs = [torch.rand(3, 2, requires_grad=True) for _ in range(2)]
    for fn, options in TWICE:
        torch.manual_seed(0)
        plain = torch.autograd.grad(_penalised(fn, *inputs, **options), inputs)
        torch.manual_seed(0)
        graphed = torch.autograd.grad(_penalised(fn, *inputs, **options), inputs, create_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(plain, graphed, strict=True))


def test_activation_checkpoints() -> None:
    """They recompute what is saved, and give it out once."""
    inputs = [torch.rand(3, 2, requires_grad=True) for _ in range(2)]
    for fn, options in TWICE:
        grads = []
        for run in (_penalised, functools.partial(checkpoint, _penalised, use_reentrant=False)):
            torch.manual_seed(0)
            grads.append(torch.autograd.grad(run(fn, *inputs, **options), inputs, create_graph=True))
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("reduction", ["none", "sample", "batchmean"])
def test_compiles_whole_and_gives_the_same_bits(reduction: str) -> None:
    def f(mu: torch.Tensor, logvar: torch.Tensor, rng: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z, kl = fastib.reparameterize_with_kl(mu, logvar, rng=rng, reduction=reduction)
        y, cost = fastib.information_dropout(z.relu(), logvar, rng=rng, reduction=reduction)
        between = fastib.gaussian_kl(mu, logvar, z, logvar, reduction=reduction)
        return y, kl + cost + between + fastib.log_variance_penalty(logvar, reduction=reduction)

    torch.use_deterministic_algorithms(False)
    inputs = [torch.randn(8, 5, requires_grad=True) for _ in range(2)]
    rng = torch.tensor([1, 2])
    eager, compiled = f(*inputs, rng), torch.compile(f, fullgraph=True, backend="aot_eager")(*inputs, rng)
    for a, b in zip(eager, compiled, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(*(torch.autograd.grad([t.sum() for t in out], inputs) for out in (eager, compiled)), strict=True):
        torch.testing.assert_close(a, b)


def test_compiles_with_numbers_that_vary() -> None:
    """Dynamo makes them symbolic, and so their checks."""
    torch.use_deterministic_algorithms(False)

    def f(mu: torch.Tensor, logvar: torch.Tensor, free_bits: float, beta: float) -> torch.Tensor:
        kl = fastib.gaussian_kl(mu, logvar, free_bits=free_bits)
        element = fastib.gaussian_kl(mu, logvar, free_bits=free_bits, free_bits_per="element")
        return kl + element + fastib.losses.BetaVAELoss(beta)(mu, mu.sigmoid(), mu, logvar).loss

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for size, number in ((5, 0.25), (6, 0.5), (7, 0.75)):
        inputs = [torch.randn(8, size) for _ in range(2)]
        torch.testing.assert_close(compiled(*inputs, number, number), f(*inputs, number, number))


def test_compiles_once_for_many_sizes_of_a_batch() -> None:
    """More of them than dynamo compiles anew."""
    torch.use_deterministic_algorithms(False)

    def f(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
        z, kl = fastib.reparameterize_with_kl(mu, logvar)
        _, dropout = fastib.information_dropout(mu, logvar, reduction="mean")
        floored = fastib.gaussian_kl(mu, logvar, free_bits=0.2) + fastib.gaussian_kl(mu, logvar, z.detach(), mu)
        return kl + dropout + floored + fastib.log_variance_penalty(logvar, reduction="mean")

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in range(3, 25):
        inputs = [torch.randn(batch, 5, requires_grad=True) for _ in range(2)]
        results = []
        for fn in (compiled, f):
            torch.manual_seed(batch)
            loss = fn(*inputs)
            results += [loss, *torch.autograd.grad(loss, inputs)]
        torch.testing.assert_close(results[:3], results[3:])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_noise(backend: str) -> None:
    """Drawn by default: new in each call, repeated after torch.manual_seed, and the backward sees the forward's."""
    torch.use_deterministic_algorithms(False)

    @torch.compile(fullgraph=True, backend=backend)
    def f(zero: torch.Tensor, logvar: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z, _ = fastib.reparameterize_with_kl(zero, logvar)
        y, _ = fastib.information_dropout(zero + 1, logvar)
        return fastib.reparameterize(zero, logvar), z, y

    zero, logvar = torch.zeros(50, 3), torch.zeros(50, 3, requires_grad=True)
    torch.manual_seed(3)
    first, second = f(zero, logvar), f(zero, logvar)
    torch.manual_seed(3)
    repeated = f(zero, logvar)
    assert all(torch.equal(a, b) for a, b in zip(first, repeated, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    for out, expected in zip(first, (first[0] / 2, first[1] / 2, first[2] * first[2].log()), strict=True):
        (grad,) = torch.autograd.grad(out.sum(), logvar, retain_graph=True)
        torch.testing.assert_close(grad, expected.detach())


SELECTION = "(vae or chunk or transposed or non_finite or extreme-torch or check or known or bits_of) and not float16"


@pytest.mark.skipif(not COMPILED, reason="this is that run")
def test_all_operators_on_the_reference() -> None:
    """The operators' own tests, in a process that asks for the reference, which is slow: not on every layout."""
    files = [str(path) for path in sorted(TESTS.glob("test_*.py")) if path.stem[5:] in _fallback.KERNELS]
    assert len(files) == 8
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *files, "-k", SELECTION],
        env={**os.environ, "FASTIB_BACKEND": "reference", "CI": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:]
