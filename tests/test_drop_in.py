"""Three programs as people write them, each run on plain PyTorch and, with its import changed, on fastib: equal curves."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

import fastib

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
data = (torch.rand(256, 16) < torch.rand(256, 1)).float()
model = Model()
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


def _curve(program: str, imported_from: str, path: Path) -> list[float]:
    path.write_text(program.replace("from interfaces import", f"from {imported_from} import", 1) + _MODEL)
    curve: list[float] = runpy.run_path(str(path))["curve"]
    return curve


@pytest.mark.parametrize(
    "program, module",
    [(DISTRIBUTIONS, "fastib.distributions"), (FUNCTIONS, "fastib"), (TERMS, "fastib")],
    ids=["distributions", "functions", "terms"],
)
def test_an_import_changes_no_curve(program: str, module: str, tmp_path: Path) -> None:
    plain, ours = (_curve(program, name, tmp_path / "program.py") for name in ("interfaces", module))
    assert ours == pytest.approx(plain, rel=1e-4) and ours != plain
    assert sum(ours[-10:]) < sum(ours[:10])  # it trains


def test_distributions_are_those_of_pytorch() -> None:
    """Shapes, broadcasting, gradients, and what PyTorch builds on them."""
    from fastib.distributions import Normal, kl_divergence

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


def test_distributions_compile_whole() -> None:
    """Which PyTorch's own do not."""
    from fastib.distributions import Normal, kl_divergence

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
