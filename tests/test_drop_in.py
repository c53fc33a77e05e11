"""Three programs as people write them, each run on plain PyTorch and, with its import changed, on fastib: equal
curves."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from tolerance import assert_within_budget

import fastib
from fastib._arguments import accumulate_dtype
from fastib.distributions import Normal, kl_divergence

_MODEL = """
import torch
from torch import nn
from interfaces import reconstruction

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 2 * 4))
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 16))

torch.manual_seed(0)
data = (torch.rand(256, 16) < torch.rand(256, 1)).to(dtype)
model = Model().to(dtype)
optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
curve = []
for step in range(60):
    x = data[torch.randint(256, (32,))]
    mu, logvar = model.encoder(x).chunk(2, dim=-1)
    loss = loss_of(model, x, mu, logvar)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    curve.append(loss.item())
"""

DISTRIBUTIONS = """
from interfaces import Normal, kl_divergence

def loss_of(model, x, mu, logvar):
    posterior, prior = Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)
    z = posterior.rsample()
    return (reconstruction(model.decoder(z), x) + kl_divergence(posterior, prior).sum(-1)).mean()
"""

FUNCTIONS = """
from interfaces import gaussian_kl, reparameterize

def loss_of(model, x, mu, logvar):
    z = reparameterize(mu, logvar)
    return reconstruction(model.decoder(z), x).mean() + 4 * gaussian_kl(mu, logvar)
"""

TERMS = """
from interfaces import elbo_decomposition, gaussian_kl, reparameterize

log = []

def loss_of(model, x, mu, logvar):
    z = reparameterize(mu, logvar)
    mi, tc, dimension_wise = elbo_decomposition(z, mu, logvar, 256, reduction="none")
    terms = {"reconstruction": reconstruction(model.decoder(z), x), "mi": mi, "tc": tc, "kl": dimension_wise}
    terms["analytic"] = gaussian_kl(mu, logvar, reduction="sample")
    log.append({name: term.detach() for name, term in terms.items()})
    weights = {"reconstruction": 1, "mi": 1, "tc": 6, "kl": 1, "analytic": 0.1}
    return sum(weights[name] * term for name, term in terms.items()).mean()
"""


def _curve(program: str, imported_from: str, dtype: torch.dtype, path: Path) -> list[float]:
    path.write_text(program.replace("from interfaces import", f"from {imported_from} import", 1) + _MODEL)
    curve: list[float] = runpy.run_path(str(path), {"dtype": dtype})["curve"]
    return curve


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "program, module",
    [(DISTRIBUTIONS, "fastib.distributions"), (FUNCTIONS, "fastib"), (TERMS, "fastib")],
    ids=["distributions", "functions", "terms"],
)
def test_an_import_changes_no_curve(program: str, module: str, dtype: torch.dtype, tmp_path: Path) -> None:
    plain, ours = (_curve(program, name, dtype, tmp_path / "program.py") for name in ("interfaces", module))
    assert ours == pytest.approx(plain, rel=1e-4) and ours != plain
    assert sum(ours[-10:]) < sum(ours[:10])  # it trains


def test_distributions_are_those_of_pytorch() -> None:
    """Shapes, broadcasting, gradients, and what PyTorch builds on them."""
    mu, scale = torch.randn(5, 3, requires_grad=True), (torch.rand(5, 3) + 0.1).requires_grad_()
    ours, plain = Normal(mu, scale), torch.distributions.Normal(mu, scale)
    priors = (0.0, 1.0), (torch.randn(3), torch.rand(3) + 0.1), (torch.randn(2, 1, 3), torch.rand(2, 1, 3) + 0.1)
    for prior in priors:
        for of in (Normal, torch.distributions.Normal):
            kl = kl_divergence(ours, of(*prior))
            expected = torch.distributions.kl_divergence(plain, torch.distributions.Normal(*prior))
            torch.testing.assert_close(kl, expected)
            for a, b in zip(
                torch.autograd.grad(kl.sum(), (mu, scale)),
                torch.autograd.grad(expected.sum(), (mu, scale)),
                strict=True,
            ):
                torch.testing.assert_close(a, b)
    torch.manual_seed(1)
    z = ours.rsample((7,))
    torch.manual_seed(1)
    noise = fastib.reparameterize(torch.zeros(7, 5, 3), torch.zeros(7, 5, 3))
    torch.testing.assert_close(z, mu + scale * noise)
    for a, b in zip(torch.autograd.grad(z.sum(), (mu, scale)), (torch.full((5, 3), 7.0), noise.sum(0)), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(ours.log_prob(z), plain.log_prob(z)) and ours.sample().requires_grad is False
    independent = torch.distributions.Independent(ours, 1)
    prior = torch.distributions.Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    torch.testing.assert_close(kl_divergence(independent, prior), kl_divergence(ours, Normal(0.0, 1.0)).sum(-1))
    assert independent.rsample().shape == (5, 3)
    with pytest.raises(ValueError, match="scale"):
        Normal(mu, -scale, validate_args=True)


_DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("of_scale", _DTYPES, ids=str)
def test_distributions_promote_as_pytorch(dtype: torch.dtype, of_scale: torch.dtype) -> None:
    """But that what is below float32 has its KL in that."""
    loc, scale = torch.randn(3, dtype=dtype), torch.rand(3).to(of_scale) + 1
    ours, plain = Normal(loc, scale), torch.distributions.Normal(loc, scale)
    assert ours.rsample((2,)).dtype == plain.rsample((2,)).dtype
    numbers = (0, 1), (0.0, 1.0), (torch.tensor(0.0).double(), torch.tensor(1.0).double())
    for prior in (*numbers, *((torch.zeros(3, dtype=of), torch.ones(3, dtype=of)) for of in _DTYPES)):
        for q in (Normal(*prior), torch.distributions.Normal(*prior)):
            kl = kl_divergence(ours, q)
            expected = torch.distributions.kl_divergence(plain, torch.distributions.Normal(*prior))
            assert kl.dtype == accumulate_dtype(expected.dtype)
            torch.testing.assert_close(kl, expected.to(kl.dtype), rtol=0.05, atol=0.05)
            independent = [torch.distributions.Independent(of, 1) for of in (ours, q.expand((3,)))]
            torch.testing.assert_close(kl_divergence(*independent), kl.sum(), check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_distributions_are_as_exact_as_those_of_pytorch(dtype: torch.dtype) -> None:
    """Of small scales, too. A KL in float32 is held to the budget of the dtype of its distributions."""
    loc, scale = torch.randn(500).to(dtype), torch.exp(torch.linspace(-7, 3, 500)).to(dtype)
    seed, leaves = 5, [t.clone().requires_grad_() for t in (loc, scale)]

    def drawn(of: torch.distributions.Normal) -> torch.Tensor:
        torch.manual_seed(seed)
        return of.rsample()

    eps = drawn(Normal(torch.zeros(500, dtype=dtype), 1.0))
    oracle = loc.double() + scale.double() * drawn(Normal(torch.zeros(500), 1.0)).double()
    z = drawn(Normal(*leaves))
    assert_within_budget(z, loc + scale * eps, oracle)
    for a, b in zip(torch.autograd.grad(z.sum(), leaves), (torch.ones_like(loc), eps), strict=True):
        assert torch.equal(a, b)
    priors = (0.0, 1.0), (loc.flip(0), scale.flip(0))
    for prior in priors:
        q = [torch.as_tensor(t) for t in prior]
        doubles, of_doubles = (torch.distributions.Normal(*(t.double() for t in of)) for of in ((loc, scale), q))
        oracle = torch.distributions.kl_divergence(doubles, of_doubles)
        plain = torch.distributions.kl_divergence(
            torch.distributions.Normal(loc, scale), torch.distributions.Normal(*prior)
        )
        assert_within_budget(kl_divergence(Normal(loc, scale), Normal(*prior)).to(dtype), plain, oracle)


def test_scales_whose_squares_are_no_numbers() -> None:
    """In float32: gradients as PyTorch's where a scale is 0, and a KL of 0.5 at one deviation from a narrow prior."""
    loc, logvar = torch.randn(5, requires_grad=True), torch.full((5,), -300.0, requires_grad=True)
    z = Normal(loc, torch.exp(logvar / 2), validate_args=False).rsample()
    by_loc, by_logvar = torch.autograd.grad(z.sum(), (loc, logvar))
    assert torch.equal(by_loc, torch.ones(5)) and torch.equal(by_logvar, torch.zeros(5))
    narrow = torch.tensor(1e-22)
    torch.testing.assert_close(kl_divergence(Normal(narrow, narrow), Normal(0.0, narrow)), torch.tensor(0.5))


def test_distributions_compile_whole() -> None:
    """Which PyTorch's own do not."""

    def loss(mu: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        posterior = Normal(mu, scale)
        return posterior.rsample().sum() + kl_divergence(posterior, Normal(torch.zeros_like(mu), scale * 2)).sum()

    torch.use_deterministic_algorithms(False)
    mu, scale = torch.randn(5, 3, requires_grad=True), torch.rand(5, 3) + 0.1
    results = []
    for fn in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        value = fn(mu, scale)
        results.append((value, *torch.autograd.grad(value, mu)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)
