"""Noisy weights: their distributions, the information in them, and the classifiers that pay for it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastib.models import VariationalClassifier, VariationalConv2d, VariationalLinear
from fastib.models.variational import POSTERIORS, VariationalLayer, variational_mlp

SHAPE = (2, 8, 8)
IMAGES = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def _random(module: nn.Module) -> None:
    """Every weight has a mean and a variance of its own."""
    for p in module.parameters():
        nn.init.normal_(p, -1.0, 1.0)


def _weights(network: Any) -> list[list[tuple[float, float, int]]]:
    """Mean, variance and fan_in of each weight of each layer: the variance of the logarithm, for log-normal noise."""
    found = []
    for layer in network.layers:
        posterior = layer.posterior
        values = (posterior.rho.sigmoid() if hasattr(posterior, "rho") else posterior.logvar.exp()).flatten().tolist()
        fan_in = posterior.mean.shape[1] - 1
        found.append([(m, v, fan_in) for m, v in zip(posterior.mean.flatten().tolist(), values, strict=True)])
    return found


def _kl(posterior: str, mean: float, variance: float, fan_in: int) -> float:
    """Of one weight, by hand."""
    if posterior == "log_normal":
        return -math.log(variance) / 2
    prior = 9 / fan_in
    return (variance / prior + mean**2 / prior - 1 - math.log(variance / prior)) / 2


# The information.


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_information_is_the_sum_over_all_weights(posterior: str) -> None:
    network = variational_mlp([7, 5, 3], posterior, 0.1).double()
    _random(network)
    weights = _weights(network)
    assert [len(of_layer) for of_layer in weights] == [5 * 8, 3 * 6]  # biases are charged
    kls = [[_kl(posterior, *weight) for weight in of_layer] for of_layer in weights]
    expected = math.fsum(map(math.fsum, kls))
    _, information = network(torch.rand(4, 7).double())
    assert information.item() == pytest.approx(expected, rel=1e-6)
    # The errors of other libraries: the mean of each tensor; of all; a factor of 2; a standard deviation for a
    # variance.
    of_tensors = math.fsum(math.fsum(of_layer) / len(of_layer) for of_layer in kls)
    of_deviations = math.fsum(_kl(posterior, m, v**0.5, fan_in) for of_layer in weights for m, v, fan_in in of_layer)
    for wrong in (of_tensors, expected / 58, 2 * expected, expected / 2, of_deviations):
        assert abs(information.item() - wrong) > 0.01 * abs(expected)


def test_information_of_log_normal_noise_is_entropy_that_it_lacks() -> None:
    """Against a log-uniform prior the KL is the negative entropy of the logarithm, up to a constant: 0 for a = 1."""
    for noise in (0.999999, 0.5, 1e-3, 1e-12):
        layer = VariationalLinear(3, 2, noise=noise).double()
        log_noise = torch.distributions.Normal(0.0, torch.tensor(noise).double().sqrt())
        unit = torch.distributions.Normal(0.0, torch.tensor(1.0).double())
        _, information = layer(torch.ones(1, 3).double())
        expected = 8 * (unit.entropy() - log_noise.entropy())
        assert information.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5) and information >= 0


def test_information_is_never_negative_or_infinite() -> None:
    layer = VariationalLinear(2, 2)
    for rho, expected in ((1e4, 0.0), (-1e4, 6 * 5e3)):
        nn.init.constant_(layer.posterior.rho, rho)
        outputs, information = layer(torch.ones(3, 2))
        assert information.item() == expected and outputs.isfinite().all()


def test_gaussian_information_is_that_of_pytorch() -> None:
    layer = VariationalConv2d(2, 3, 3, posterior="gaussian").double()
    _random(layer)
    q = torch.distributions.Normal(layer.posterior.mean, torch.exp(layer.posterior.logvar / 2))
    p = torch.distributions.Normal(0.0, torch.tensor(9 / 18).double().sqrt())
    _, information = layer(torch.rand(1, *SHAPE).double())
    torch.testing.assert_close(information, torch.distributions.kl_divergence(q, p).sum())


def test_weights_like_the_prior_know_nothing() -> None:
    layer = VariationalLinear(5, 4, posterior="gaussian")
    nn.init.zeros_(layer.posterior.mean)
    nn.init.constant_(layer.posterior.logvar, math.log(9 / 5))
    assert layer(torch.ones(1, 5))[1].item() == pytest.approx(0, abs=1e-6)


# The noise.


def test_log_normal_noise_has_mean_one_and_its_logarithm_the_variance() -> None:
    a, n = 0.3, 400_000
    posterior = VariationalLinear(n - 1, 1, noise=a).posterior
    with torch.no_grad():
        posterior.mean[:, ::2] = -2.0
        posterior.mean[:, 1::2] = 0.5
    noise = (posterior.draw()[0] / posterior.mean).detach().double()
    assert abs(noise.mean() - 1) < 5 * math.sqrt(math.expm1(a) / n)
    log_noise = noise.log()
    assert abs(log_noise.mean() + a / 2) < 5 * math.sqrt(a / n)
    assert abs(log_noise.var() - a) < 5 * a * math.sqrt(2 / n)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_the_noise_begins_as_asked(posterior: str) -> None:
    layer = VariationalLinear(50_000, 1, posterior=posterior, noise=0.04).double()
    weights = layer.posterior.draw()[0][:, :-1]
    deviation = (weights - layer.posterior.mean[:, :-1]) / layer.posterior.mean[:, :-1].abs()
    if posterior == "gaussian":
        deviation = (weights - layer.posterior.mean[:, :-1]) * math.sqrt(50_000) / 3
    assert deviation.std().item() == pytest.approx(0.2, rel=0.03)


def test_negative_weights_and_weights_of_zero() -> None:
    layer = VariationalLinear(3, 1, noise=0.5).double()
    layer.posterior.mean.data = torch.tensor([[-2.0, 0.0, 3.0, 0.0]]).double()
    torch.manual_seed(1)
    noise = (layer.posterior.draw()[0] / layer.posterior.mean).detach()
    torch.manual_seed(1)
    outputs, _ = layer(torch.tensor([[1.0, 1.0, 10.0]]).double())
    assert outputs.item() == pytest.approx((-2 * noise[0, 0] + 30 * noise[0, 2]).item(), rel=1e-12)
    outputs.sum().backward()
    grad = layer.posterior.mean.grad
    assert (grad > 0).all()  # a weight of 0 has a gradient, too: that of its noise
    assert grad[0, 0].item() == pytest.approx(noise[0, 0].item(), rel=1e-12)


# The layers.


def test_local_reparameterisation_is_the_draw_of_weights() -> None:
    """Of one input, the outputs of both have the mean and the variance of the formula."""
    layer = VariationalLinear(4, 2, posterior="gaussian").double()
    _random(layer)
    x, n = torch.tensor([[0.5, -2.0, 0.0, 1.0]]).double(), 5000
    with torch.no_grad():
        variance = torch.exp(layer.posterior.logvar)
        mean = F.linear(x, layer.posterior.mean[:, :-1], layer.posterior.mean[:, -1])
        variance = F.linear(x**2, variance[:, :-1], variance[:, -1])
        local = layer(x.expand(n, 4))[0]
        drawn = torch.cat([layer.apply_weights(x, layer.posterior.draw()[0]) for _ in range(n)])
    for outputs in (local, drawn):
        assert ((outputs.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
        assert ((outputs.var(0) - variance).abs() < 5 * variance * math.sqrt(2 / n)).all()
        assert abs(torch.corrcoef(outputs.T)[0, 1]) < 5 / math.sqrt(n)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_small_noise_stays_small_in_low_precision(dtype: torch.dtype) -> None:
    """Variances below the least number of float16, in a model of that dtype and under autocast."""
    layer = VariationalLinear(4, 3, posterior="gaussian")
    with torch.no_grad():
        layer.posterior.mean.zero_()
        layer.posterior.logvar.fill_(-14.0)
    x, expected = torch.ones(4000, 4), math.sqrt(5 * math.exp(-14.0))
    with torch.autocast("cpu", dtype):
        found = [layer(x)[0]]
    found.append(layer.to(dtype)(x.to(dtype))[0])
    for outputs in found:
        assert outputs.dtype == dtype and outputs.float().std().item() == pytest.approx(expected, rel=0.05)


def test_gradients_of_local_reparameterisation() -> None:
    layer = VariationalLinear(4, 2, posterior="gaussian").double()
    _random(layer)
    mean, logvar = layer.posterior.mean, layer.posterior.logvar
    x = torch.randn(3, 4, requires_grad=True).double()
    outputs, _ = layer(x)
    plain_mean = F.linear(x, mean[:, :-1], mean[:, -1])
    plain_std = F.linear(x**2, logvar.exp()[:, :-1], logvar.exp()[:, -1]).sqrt()
    noise = ((outputs - plain_mean) / plain_std).detach()
    weights = torch.randn(3, 2).double()
    actual = torch.autograd.grad((weights * outputs).sum(), (mean, logvar, x), retain_graph=True)
    expected = torch.autograd.grad((weights * (plain_mean + plain_std * noise)).sum(), (mean, logvar, x))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("logvar", [-3.0, -200.0])  # of which the exponential is 0 in float32
def test_gradients_are_finite_for_inputs_of_zero(logvar: float) -> None:
    layer = VariationalLinear(4, 2, posterior="gaussian")
    nn.init.constant_(layer.posterior.logvar, logvar)
    x = torch.zeros(3, 4, requires_grad=True)
    outputs, information = layer(x)
    (outputs.sum() + information).backward()
    assert outputs.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1)])
def test_a_convolution_is_that_of_the_weights_drawn(posterior: str, stride: int, padding: int) -> None:
    layer = VariationalConv2d(2, 5, 3, stride=stride, padding=padding, posterior=posterior)
    _random(layer)
    torch.manual_seed(2)
    weights, _ = layer.posterior.draw()
    torch.manual_seed(2)
    outputs, _ = layer(IMAGES)
    for actual, w in ((outputs, weights), (layer.mean(IMAGES), layer.posterior.mean)):
        expected = F.conv2d(IMAGES, w[:, :18].reshape(5, 2, 3, 3), w[:, 18], stride, padding)
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_who_shares_weights(posterior: str, kind: str) -> None:
    layer: VariationalLayer = VariationalConv2d(2, 3, 3, posterior=posterior, noise=0.5)
    if kind == "linear":
        layer = VariationalLinear(128, 3, posterior=posterior, noise=0.5)
    first, second = layer(IMAGES[:1].expand(2, *SHAPE))[0]
    assert torch.equal(first, second) != (kind == "linear" and posterior == "gaussian")
    assert not torch.equal(layer(IMAGES)[0], layer(IMAGES)[0])
    assert torch.equal(layer.mean(IMAGES), layer.mean(IMAGES))


# The classifier.


def _classifiers() -> dict[str, dict[str, Any]]:
    return {
        f"{posterior}-{network}-{depth}": {"posterior": posterior, "network": network, "depth": depth}
        for posterior in POSTERIORS
        for network in ("mlp", "conv")
        for depth in (1, 3)
    }


@pytest.mark.parametrize("options", _classifiers().values(), ids=_classifiers())
def test_a_classifier_is_its_formula(options: dict[str, Any]) -> None:
    model = VariationalClassifier(SHAPE, 3, 50, hidden=4, beta=0.7, **options)
    torch.manual_seed(3)
    terms = model(IMAGES, LABELS)
    torch.manual_seed(3)
    x, information = IMAGES, torch.zeros(())
    for i, layer in enumerate(model.network.layers):
        x, of_layer = layer(F.silu(x) if i > 0 else x)
        information = information + of_layer
    torch.testing.assert_close(terms.cross_entropy, F.cross_entropy(x, LABELS))
    torch.testing.assert_close(terms.information, information / 50)
    # N times the loss is the cross-entropy summed over the training set, plus beta times all information.
    torch.testing.assert_close(50 * terms.loss, 50 * F.cross_entropy(x, LABELS) + 0.7 * information)
    assert len(model.network.layers) == options["depth"] + 1
    assert terms.loss.requires_grad and not terms.information.requires_grad
    terms.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("options", _classifiers().values(), ids=_classifiers())
def test_logits_are_those_of_the_mean_weights(options: dict[str, Any]) -> None:
    model = VariationalClassifier(SHAPE, 3, 50, hidden=4, noise=1e-12, **options)
    torch.testing.assert_close(model.draw(IMAGES)[0], model.logits(IMAGES), rtol=1e-3, atol=1e-4)
    assert torch.equal(model.logits(IMAGES), model.logits(IMAGES)) and model.logits(IMAGES).shape == (6, 3)
    representations = model.representations(IMAGES)
    assert len(representations) == options["depth"] and all(len(x) == 6 for x in representations)
    if options["depth"] == 1:
        hidden = F.silu(model.network.layers[0].mean(IMAGES))
        torch.testing.assert_close(representations[0], hidden, rtol=1e-3, atol=1e-4)


def test_images_with_weights_of_their_own() -> None:
    for options in _classifiers().values():
        model = VariationalClassifier(SHAPE, 3, 50, hidden=4, noise=0.5, **options)
        first, second = model.draw(IMAGES[:1].expand(2, *SHAPE))[0]
        last_is_drawn_per_image = options["posterior"] == "gaussian"
        assert torch.equal(first, second) != last_is_drawn_per_image
        assert model.draws_per_image == (last_is_drawn_per_image and options["network"] == "mlp")


def test_the_price_warms_up() -> None:
    model = VariationalClassifier(SHAPE, 3, 50, hidden=4, beta=2.0, warm_up=4)
    for expected in (0.0, 0.5, 1.0, 1.5, 2.0, 2.0):
        terms = model(IMAGES, LABELS)
        torch.testing.assert_close(terms.loss, terms.cross_entropy + expected * terms.information)
        model.step()


def test_random_labels_are_fitted_where_information_is_cheap() -> None:
    """Ten images whose labels take ln 10 nats each: far below beta = 1 they are learned, far above it not."""
    x, y = torch.rand(10, 1, 4, 4), torch.randperm(10)
    found = []
    for beta in (0.01, 10.0):
        model = VariationalClassifier((1, 4, 4), 10, 10, hidden=16, beta=beta, noise=0.1)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(400):
            optimiser.zero_grad()
            terms = model(x, y)
            terms.loss.backward()
            optimiser.step()
        found.append(terms)
    cheap, dear = found
    assert cheap.cross_entropy < 0.3 and dear.cross_entropy > 1.5
    assert cheap.information > math.log(10) > 3 * dear.information


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VariationalLinear(0, 2), "in_features must be at least 1, got 0"),
        (lambda: VariationalLinear(2, 0), "out_features must be at least 1, got 0"),
        (lambda: VariationalLinear(2, 2, posterior="normal"), "posterior must be one of 'log_normal', 'gaussian'"),
        (lambda: VariationalLinear(2, 2, noise=0.0), "noise must be between 0 and 1, got 0.0"),
        (lambda: VariationalLinear(2, 2, noise=1.0), "noise must be between 0 and 1, got 1.0"),
        (lambda: VariationalLinear(2, 2, noise=math.nan), "noise must be a finite number, got nan"),
        (lambda: VariationalConv2d(0, 2, 3), "in_channels must be at least 1, got 0"),
        (lambda: VariationalConv2d(2, 2, 0), "kernel_size must be at least 1, got 0"),
        (lambda: VariationalConv2d(2, 2, 3, stride=0), "stride must be at least 1, got 0"),
        (lambda: VariationalConv2d(2, 2, 3, padding=-1), "padding must be at least 0, got -1"),
        (lambda: VariationalClassifier(SHAPE, 3, 0), "examples must be at least 1, got 0"),
        (lambda: VariationalClassifier(SHAPE, 3, 9, network="rnn"), "network must be one of 'mlp', 'conv', got 'rnn'"),
        (lambda: VariationalClassifier(SHAPE, 3, 9, hidden=0), "hidden must be at least 1, got 0"),
        (lambda: VariationalClassifier(SHAPE, 3, 9, depth=0), "depth must be at least 1, got 0"),
        (lambda: VariationalClassifier(SHAPE, 3, 9, noise=2.0), "noise must be between 0 and 1, got 2.0"),
        (lambda: VariationalClassifier(SHAPE, 3, 9, beta=-1.0), "beta must be a finite number of at least 0, got -1.0"),
        (lambda: VariationalClassifier(SHAPE, 3, 9, warm_up=-1), "warm_up must be at least 0, got -1"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_types() -> None:
    with pytest.raises(TypeError, match="in_features must be an integer, got float 2.0"):
        VariationalLinear(2.0, 2)
    with pytest.raises(TypeError, match="noise must be a number, got str '0.1'"):
        VariationalConv2d(2, 2, 3, noise="0.1")
