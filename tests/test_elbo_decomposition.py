"""elbo_decomposition and total_correlation: values, gradients, limits that pin each term, and known distributions."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from cases import DTYPES
from tolerance import assert_same_bits_for_threads, assert_within_budget
from torch import Tensor

import fastib
from fastib import _ops, reference
from fastib._arguments import ESTIMATORS, SAMPLE_REDUCTIONS, Algorithm, Estimator

N = 1000


def _posteriors(batch: int, dims: int) -> tuple[Tensor, Tensor, Tensor]:
    mu, logvar = torch.randn(batch, dims), torch.randn(batch, dims) - 1
    return mu + torch.exp(logvar / 2) * torch.randn_like(mu), mu, logvar


@pytest.mark.parametrize("reduction", SAMPLE_REDUCTIONS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 1), (33, 7), (150, 10), (3, 40)], ids=str)
def test_values_and_gradients(
    kernels: str, shape: tuple[int, int], dtype: torch.dtype, estimator: str, reduction: str
) -> None:
    inputs = [t.to(dtype).requires_grad_() for t in _posteriors(*shape)]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    ours, plain, oracle = (
        fn(*t, N, estimator=estimator, reduction=reduction)
        for fn, t in (
            (fastib.elbo_decomposition, inputs),
            (reference.elbo_decomposition, inputs),
            (reference.elbo_decomposition, doubles),
        )
    )
    slack = 512 if dtype == torch.float64 else 32
    size = {"none": 1, "mean": 1, "sum": shape[0]}[reduction] * shape[1]
    for a, p, o in zip(ours, plain, oracle, strict=True):
        assert_within_budget(a, p, o, scale=o.detach().abs().clamp(min=size), slack=slack)
    # One term's gradient may be 0 by cancellation (in one dimension that of TC is): errors are relative to the largest.
    each = [torch.autograd.grad(term.sum(), doubles, retain_graph=True) for term in oracle]
    scales = [torch.full_like(grads[0], max(g.abs().max().item() for g in grads)) for grads in zip(*each, strict=True)]
    for used in ((0,), (1,), (2,), (0, 1, 2)):
        factors = (torch.rand(3) + 0.5).tolist()
        of = [
            torch.autograd.grad(sum(terms[k].sum() * factors[k] for k in used), t, retain_graph=True)
            for terms, t in ((ours, inputs), (plain, inputs), (oracle, doubles))
        ]
        for a, p, o, scale in zip(*of, scales, strict=True):
            assert a.dtype == dtype
            assert_within_budget(a, p, o, scale=scale, slack=slack)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_is_made_of_the_aggregate_posterior(kernels: str, estimator: str) -> None:
    z, mu, logvar = (t.double() for t in _posteriors(40, 6))
    log_qz, log_qz_marginals = fastib.aggregate_posterior(z, mu, logvar, estimator=estimator, dataset_size=N)
    log_qz_x = torch.distributions.Normal(mu, torch.exp(logvar / 2)).log_prob(z).sum(-1)
    log_pz = torch.distributions.Normal(0, 1).log_prob(z).sum(-1)
    marginals = log_qz_marginals.sum(-1)
    expected = (log_qz_x - log_qz).mean(), (log_qz - marginals).mean(), (marginals - log_pz).mean()
    terms = fastib.elbo_decomposition(z, mu, logvar, N, estimator=estimator)
    for term, value in zip(terms, expected, strict=True):
        torch.testing.assert_close(term, value)
    torch.testing.assert_close(sum(terms), (log_qz_x - log_pz).mean())
    torch.testing.assert_close(fastib.total_correlation(z, mu, logvar, N, estimator=estimator), expected[1])


@pytest.mark.parametrize("reduction", SAMPLE_REDUCTIONS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradcheck(kernels: str, estimator: str, reduction: str) -> None:
    inputs = [t.double().requires_grad_() for t in _posteriors(5, 3)]
    options: dict[str, Any] = {"estimator": estimator, "reduction": reduction}
    assert torch.autograd.gradcheck(lambda *t: tuple(fastib.elbo_decomposition(*t, N, **options)), inputs)
    assert torch.autograd.gradcheck(lambda *t: fastib.total_correlation(*t, N, **options), inputs)


@pytest.mark.parametrize("kind", [0, 2])
def test_opcheck(kind: int) -> None:
    inputs = _posteriors(6, 3)
    options = Estimator.MSS, 100, 0, kind, 2, Algorithm.AUTO
    torch.library.opcheck(_ops.elbo_decomposition, (*inputs, *options))
    mi, tc, kl, saved = _ops.elbo_decomposition(*inputs, *options)
    for grads in ((mi, tc, kl), (None, tc, None)):
        torch.library.opcheck(_ops.elbo_decomposition_backward, (*grads, *inputs, saved, *options))


def test_same_bits_for_any_number_of_threads(kernels: str, threads: None) -> None:
    inputs = [t.requires_grad_() for t in _posteriors(400, 9)]

    def run() -> tuple[Tensor, ...]:
        terms = fastib.elbo_decomposition(*inputs, N)
        return *terms, *torch.autograd.grad(sum(terms), inputs)

    assert_same_bits_for_threads(run)


# The limits that pin each term. Their sum is the Monte-Carlo KL for any weights, and pins nothing.

LN_N = math.log(N)


def _collapsed(batch: int, dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every posterior is the prior."""
    return torch.randn(batch, dims), torch.zeros(batch, dims), torch.zeros(batch, dims)


def _separated(batch: int, dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every posterior is far from all others in every dimension."""
    mu = torch.stack([torch.randperm(batch) for _ in range(dims)], 1).float()
    logvar = torch.full_like(mu, -12.0)
    return mu + torch.exp(logvar / 2) * torch.randn_like(mu), mu, logvar


def _monte_carlo_kl(z: Tensor, mu: Tensor, logvar: Tensor) -> float:
    q, p = torch.distributions.Normal(mu, torch.exp(logvar / 2)), torch.distributions.Normal(0, 1)
    return (q.log_prob(z) - p.log_prob(z)).sum(-1).mean().item()


def _check(terms: fastib.ELBODecomposition, expected: tuple[float, float, float], atol: float = 1e-3) -> None:
    for term, value in zip(terms, expected, strict=True):
        assert term.item() == pytest.approx(value, abs=atol, rel=1e-5)


@pytest.mark.parametrize(("batch", "dims"), [(64, 10), (7, 3)])
def test_collapse(kernels: str, batch: int, dims: int) -> None:
    inputs = _collapsed(batch, dims)
    for estimator in ("mss", "in_batch", "leave_one_out"):
        _check(fastib.elbo_decomposition(*inputs, N, estimator=estimator), (0, 0, 0))
    mws = fastib.elbo_decomposition(*inputs, N, estimator="mws")
    _check(mws, (LN_N, (dims - 1) * LN_N, -dims * LN_N))


@pytest.mark.parametrize(("batch", "dims"), [(64, 10), (7, 3)])
def test_separated(kernels: str, batch: int, dims: int) -> None:
    inputs = _separated(batch, dims)
    kl, ln_b = _monte_carlo_kl(*inputs), math.log(batch)
    mss = fastib.elbo_decomposition(*inputs, N)
    _check(mss, (LN_N, (dims - 1) * LN_N, kl - dims * LN_N), atol=1e-2)
    in_batch = fastib.elbo_decomposition(*inputs, N, estimator="in_batch")
    _check(in_batch, (ln_b, (dims - 1) * ln_b, kl - dims * ln_b), atol=1e-2)


@pytest.mark.parametrize("logvar", [-24.0, -20.0, -17.0])
@pytest.mark.parametrize("estimator", ["mss", "mws", "in_batch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_terms_at_their_limits_have_no_gradient(
    kernels: str, dtype: torch.dtype, estimator: str, logvar: float
) -> None:
    """Where each point has only its own component, exactly: a remainder would be multiplied by 1 / sigma."""
    means = torch.arange(60.0)[:, None] * torch.tensor([1.0, -2.0, 0.25])
    z = (means + math.exp(logvar / 2) * torch.randn(60, 3)).to(dtype).requires_grad_()
    mu, log_var = means.to(dtype).requires_grad_(), torch.full((60, 3), logvar, dtype=dtype).requires_grad_()
    terms = fastib.elbo_decomposition(z, mu, log_var, N, estimator=estimator)
    leaves = z, mu, log_var
    for loss in (terms.mutual_information, terms.total_correlation, 0.3 * terms[0] + 6 * terms[1]):
        for gradient in torch.autograd.grad(loss, leaves, retain_graph=True):
            assert (gradient == 0).all()
    assert (torch.autograd.grad(terms.dimension_wise_kl, z)[0] != 0).any()


def _hash_code(dims: int) -> tuple[Tensor, Tensor]:
    """One corner of a cube for each of 2**dims samples, as tight as can be."""
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * dims)
    return corners, torch.full_like(corners, -12.0)


def test_hash_code(kernels: str) -> None:
    """A network that maps each training image to an index: ln N nats of information, and no correlation."""
    dims, batch = 10, 128
    corners, logvar = _hash_code(dims)
    n = len(corners)
    rows = torch.randperm(n)[:batch]
    mu, logvar = corners[rows], logvar[rows]
    z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
    mss = fastib.elbo_decomposition(z, mu, logvar, n)
    assert mss.mutual_information.item() == pytest.approx(math.log(n), rel=1e-5)
    assert abs(mss.total_correlation.item()) < 2 * dims / (batch - 1)
    in_batch = fastib.elbo_decomposition(z, mu, logvar, n, estimator="in_batch")
    assert in_batch.mutual_information.item() == pytest.approx(math.log(batch), rel=1e-5)
    assert in_batch.total_correlation.item() == pytest.approx(math.log(n / batch), abs=2 * dims / batch)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_sample_tells_more_than_the_ceiling(kernels: str, estimator: str) -> None:
    for inputs in (_posteriors(50, 5), _separated(50, 5), _separated(50, 64), _collapsed(50, 2)):
        terms = fastib.elbo_decomposition(*inputs, N, estimator=estimator, reduction="none")
        weight = {"mss": 1 / N, "mws": 1 / (N * 50), "in_batch": 1 / 50, "leave_one_out": 0}[estimator]
        ceiling = -math.log(weight) if weight else math.inf
        assert terms.mutual_information_ceiling == pytest.approx(ceiling)
        # Rounding of the result is all that may be added: it is not formed from two large densities.
        assert (terms.mutual_information <= ceiling * (1 + 1e-6)).all()


def test_the_whole_data_set_is_exact(kernels: str) -> None:
    """At B = N, "mss" is the density of the mixture of all posteriors, without any estimate."""
    z, mu, logvar = (t.double() for t in _posteriors(60, 4))
    mss, in_batch = (fastib.elbo_decomposition(z, mu, logvar, 60, estimator=e) for e in ("mss", "in_batch"))
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(60, dtype=torch.float64)),
        torch.distributions.Independent(torch.distributions.Normal(mu, torch.exp(logvar / 2)), 1),
    )
    log_qz_x = torch.distributions.Normal(mu, torch.exp(logvar / 2)).log_prob(z).sum(-1)
    torch.testing.assert_close(mss.mutual_information, (log_qz_x - mixture.log_prob(z)).mean())
    for a, b in zip(mss, in_batch, strict=True):
        torch.testing.assert_close(a, b)


def test_total_correlation_of_a_correlated_gaussian(kernels: str) -> None:
    """Posteriors whose aggregate is N(0, [[1, r], [r, 1]]): TC is -ln(1 - r^2) / 2, within its standard error."""
    n, correlation, variance = 4096, 0.6, 0.3
    covariance = torch.tensor([[1 - variance, correlation], [correlation, 1 - variance]])
    mu = torch.distributions.MultivariateNormal(torch.zeros(2), covariance).sample((n,))
    logvar = torch.full_like(mu, math.log(variance))
    z = mu + math.sqrt(variance) * torch.randn_like(mu)
    tc = fastib.total_correlation(z, mu, logvar, n, reduction="none")
    standard_error = tc.std().item() / math.sqrt(n)
    assert tc.mean().item() == pytest.approx(-math.log(1 - correlation**2) / 2, abs=3 * standard_error)


def test_large_densities_keep_the_digits_of_the_information(kernels: str) -> None:
    """log q(z|x) and log q(z) are thousands of nats, their difference a few."""
    mu = torch.randn(20, 400) * 1e-9
    logvar = torch.full_like(mu, -40.0)
    z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
    ours = fastib.elbo_decomposition(z, mu, logvar, 100, reduction="none").mutual_information
    oracle = fastib.elbo_decomposition(z.double(), mu.double(), logvar.double(), 100, reduction="none")
    torch.testing.assert_close(ours.double(), oracle.mutual_information, rtol=1e-4, atol=1e-4)


def test_one_dimension_has_no_total_correlation(kernels: str) -> None:
    z, mu, logvar = _posteriors(64, 1)
    tc = fastib.total_correlation(z, mu, logvar, N, reduction="none")
    torch.testing.assert_close(tc, torch.zeros(64), atol=2e-6, rtol=0)


def test_a_short_last_batch_has_weights_of_its_own() -> None:
    z, mu, logvar = _posteriors(32, 3)
    short = fastib.elbo_decomposition(z[:5], mu[:5], logvar[:5], N)
    weights = 1 / N, (N - 1) / (N * 4)
    log_qz, log_qz_marginals = fastib.aggregate_posterior(z[:5], mu[:5], logvar[:5], weights=weights)
    torch.testing.assert_close(short.total_correlation, (log_qz - log_qz_marginals.sum(-1)).mean())


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, -1], ids=hex)
@pytest.mark.parametrize("which", [0, 1, 2], ids=["z", "mu", "logvar"])
def test_nan_propagates_into_terms_and_gradients(kernels: str, which: int, bits: int) -> None:
    """To the terms and gradients to which the plain expression has it propagate."""
    inputs = [t.clone() for t in _posteriors(6, 3)]
    inputs[which].view(torch.int32)[2, 1] = bits
    found, expected = [], []
    for results, fn in ((found, fastib.elbo_decomposition), (expected, reference.elbo_decomposition)):
        leaves = [t.clone().requires_grad_() for t in inputs]
        terms = fn(*leaves, N, reduction="none")
        results += [*terms, *torch.autograd.grad([t.sum() for t in terms], leaves)]
    assert any(t.isnan().any() for t in expected)
    for ours, plain in zip(found[:3], expected[:3], strict=True):
        assert torch.equal(ours.isnan(), plain.isnan())
    for ours, plain in zip(found[3:], expected[3:], strict=True):
        assert ours.isnan()[plain.isnan()].all()


# Arguments.

MATRIX = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dataset_size": None}, ValueError, "dataset_size must be given"),
        ({"dataset_size": 3}, ValueError, "dataset_size must be at least the number of components, 4, got 3"),
        ({"dataset_size": 10.0}, TypeError, "dataset_size must be an integer, got float"),
        ({"dataset_size": True}, TypeError, "dataset_size must be an integer, got bool True"),
        ({"dataset_size": 10**400}, ValueError, "dataset_size must be at most 9223372036854775807, got 1000"),
        ({"dataset_size": -1}, ValueError, "dataset_size must be at least 1, got -1"),
        ({"estimator": "mssw"}, ValueError, "estimator must be one of .*got 'mssw'"),
        ({"reduction": "batchmean"}, ValueError, "reduction must be one of .*got 'batchmean'"),
        ({"z": torch.zeros(5, 3)}, ValueError, "z must have one row for each row of mu, 4, got 5"),
        ({"z": torch.zeros(4, 2)}, ValueError, "z must have the latent dimensions of mu, 3, got 2"),
        ({"z": torch.zeros(4)}, ValueError, r"z must have two dimensions, got shape \(4,\)"),
        ({"z": MATRIX.long()}, TypeError, "z must be float16"),
        ({"z": MATRIX.double()}, TypeError, "z must have the dtype of mu"),
        ({"z": MATRIX.to("meta")}, ValueError, "z must be on the device of mu"),
        ({"mu": torch.zeros(4, 3, 1)}, ValueError, "mu must have two dimensions"),
        ({"logvar": torch.zeros(4, 2)}, ValueError, "logvar must have the shape of mu"),
        ({"logvar": 1.0}, TypeError, "logvar must be a torch.Tensor, got float"),
        ({"mu": MATRIX.to(torch.complex64)}, TypeError, "mu must be float16"),
    ],
)
@pytest.mark.parametrize("module", [fastib, reference], ids=["fastib", "reference"])
def test_wrong_arguments(module: Any, change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"z": MATRIX, "mu": MATRIX, "logvar": MATRIX, "dataset_size": 10} | change
    for function in (module.elbo_decomposition, module.total_correlation):
        with pytest.raises(error, match=message):
            function(**arguments)


@pytest.mark.parametrize("estimator", ["mss", "leave_one_out"])
def test_one_sample_is_no_minibatch(estimator: str) -> None:
    one = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="at least two components, mu has 1"):
        fastib.elbo_decomposition(one, one, one, 10, estimator=estimator)
    terms = fastib.elbo_decomposition(one, one, one, 10, estimator="in_batch")
    assert terms.mutual_information.item() == pytest.approx(0, abs=1e-6)


def test_no_samples() -> None:
    empty = torch.zeros(0, 3)
    with pytest.raises(ValueError, match="mu must have at least one component"):
        fastib.elbo_decomposition(empty, empty, empty, 10)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({}, ValueError, "dataset_size must be given with estimator='mss'"),
        ({"weights": (0.5,)}, TypeError, "weights must be two numbers"),
        ({"weights": 0.5}, TypeError, "weights must be two numbers"),
        ({"weights": (-0.1, 0.5)}, ValueError, r"weights\[0\] must be a finite number of at least 0"),
        ({"weights": (0.1, math.nan)}, ValueError, r"weights\[1\] must be a finite number"),
        ({"weights": (0, 0)}, ValueError, "weights must not both be 0"),
        ({"weights": (1, 1), "estimator": "mws"}, ValueError, "weights must be None with estimator='mws'"),
        ({"weights": (1, 1), "log_weights": torch.zeros(4, 4)}, ValueError, "weights must be None with log_weights"),
        ({"log_weights": torch.zeros(4, 3)}, ValueError, r"log_weights must have shape \(4, 4\), got \(4, 3\)"),
        ({"log_weights": torch.zeros(4, 4).long()}, TypeError, "log_weights must be float16"),
        ({"log_weights": torch.zeros(4, 4, requires_grad=True)}, ValueError, "log_weights must not require a gradient"),
        ({"log_weights": torch.zeros(4, 4, device="meta")}, ValueError, "log_weights must be on the device of mu"),
        ({"dataset_size": 10, "row_offset": 1}, ValueError, "row_offset must leave each row .*row_offset=1"),
        ({"dataset_size": 10, "row_offset": -1}, ValueError, "row_offset must be at least 0, got -1"),
        ({"dataset_size": 10, "row_offset": 0.0}, TypeError, "row_offset must be an integer"),
        ({"dataset_size": 10, "row_offset": 2**70}, ValueError, "row_offset must be at most"),
        ({"weights": (0.1, 0.1), "dataset_size": 10}, ValueError, "dataset_size must be None with weights, .*got 10"),
    ],
)
@pytest.mark.parametrize("module", [fastib, reference], ids=["fastib", "reference"])
def test_wrong_weights(module: Any, change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        module.aggregate_posterior(MATRIX, MATRIX, MATRIX, **change)


def test_the_ceiling_stays_with_the_terms() -> None:
    terms = fastib.elbo_decomposition(*_posteriors(8, 2), N)
    for other in (
        terms._replace(total_correlation=torch.zeros(())),
        copy.deepcopy(terms),
        pickle.loads(pickle.dumps(terms)),
    ):
        assert other.mutual_information_ceiling == terms.mutual_information_ceiling == pytest.approx(math.log(N))
    assert terms._make(terms).mutual_information_ceiling == math.inf  # rebuilt from terms alone: what always holds


@pytest.mark.parametrize("module", [fastib, reference], ids=["fastib", "reference"])
@pytest.mark.parametrize("algorithm", ["direct", "near_linear"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_parts_make_the_whole(kernels: str, module: Any, algorithm: str, estimator: str) -> None:
    """Values and gradients of rows [0, 30) and [30, 100), each against all posteriors."""
    inputs = [t.requires_grad_() for t in _posteriors(100, 5)]
    z, mu, logvar = inputs
    options = {"dataset_size": 700, "estimator": estimator, "algorithm": algorithm}
    whole = module.elbo_decomposition(z, mu, logvar, reduction="none", **options)
    parts = [
        module.elbo_decomposition(z[begin:end], mu, logvar, row_offset=begin, reduction="none", **options)
        for begin, end in ((0, 30), (30, 100))
    ]
    joined = [torch.cat(terms) for terms in zip(*parts, strict=True)]
    for a, b in zip(joined, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    grads = torch.randn(3, 100)
    for a, b in zip(
        torch.autograd.grad(joined, inputs, list(grads)), torch.autograd.grad(whole, inputs, list(grads)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert module.elbo_decomposition(z[:0], mu, logvar, row_offset=7, **options)[0].isnan()


def test_rows_beyond_the_posteriors() -> None:
    z, mu, logvar = _posteriors(10, 2)
    with pytest.raises(ValueError, match="row_offset=4 and 7 rows exceed the 10 components"):
        fastib.elbo_decomposition(z[:7], mu, logvar, 100, row_offset=4)
    with pytest.raises(ValueError, match="z must have one row for each row of mu, 10, got 7"):
        fastib.elbo_decomposition(z[:7], mu, logvar, 100)
