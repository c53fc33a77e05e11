"""The models: their losses are those of the papers, and everything in them is trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastib
from fastib.models import (
    AIR,
    MLPVAE,
    VIB,
    AllCNN,
    AnnealedVAE,
    BetaTCVAE,
    BetaVAE,
    Catch,
    ConvVAE,
    MultiEntityVAE,
    VariationalClassifier,
)

SHAPE = (1, 16, 16)
VAES = {
    "beta-vae": lambda **options: BetaVAE(SHAPE, beta=4.0, **options),
    "annealed-vae": lambda **options: AnnealedVAE(SHAPE, gamma=10.0, capacity=5.0, capacity_steps=10, **options),
    "beta-tcvae": lambda **options: BetaTCVAE(SHAPE, 100, beta=6.0, **options),
}
IMAGES = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def _plain_terms(name: str, kl: Tensor, parts: Any) -> Tensor:
    """What is added to the reconstruction."""
    if name == "beta-vae":
        return 4 * kl
    if name == "annealed-vae":
        return 10 * (kl - 0.5).abs()  # after one of the ten steps to 5 nats
    return parts.mutual_information + 6 * parts.total_correlation + parts.dimension_wise_kl


@pytest.mark.parametrize("network", ["conv", "mlp"])
@pytest.mark.parametrize("name", VAES)
def test_a_vae_is_its_formula(name: str, network: str) -> None:
    model = VAES[name](network=network, latent_dim=4, hidden=32)
    model.step()
    torch.manual_seed(1)
    terms = model(IMAGES)
    torch.manual_seed(1)
    mu, logvar = model.encode(IMAGES)
    z = fastib.reparameterize(mu, logvar)
    reconstruction = F.binary_cross_entropy_with_logits(model.network.decode(z), IMAGES, reduction="sum") / len(IMAGES)
    kl = ((mu**2 + logvar.expm1() - logvar) / 2).sum() / len(IMAGES)
    beside = _plain_terms(name, kl, fastib.reference.elbo_decomposition(z, mu, logvar, 100))
    torch.testing.assert_close(terms.reconstruction, reconstruction)
    torch.testing.assert_close(terms.loss, reconstruction + beside)
    torch.testing.assert_close(model.kl_of_dimensions(IMAGES).sum(), kl)
    torch.testing.assert_close(model.decode(z), torch.sigmoid(model.network.decode(z)))


def test_beta_warms_up() -> None:
    model = BetaVAE(SHAPE, beta=4.0, warm_up=4, latent_dim=2)
    for expected in (0.0, 1.0, 2.0, 3.0, 4.0, 4.0):
        terms = model(IMAGES)
        torch.testing.assert_close(terms.loss, terms.reconstruction + expected * terms.kl)
        model.step()


def test_a_gaussian_decoder_gives_means() -> None:
    model = BetaVAE(SHAPE, likelihood="gaussian", latent_dim=2)
    z = torch.randn(3, 2)
    assert torch.equal(model.decode(z), model.network.decode(z))


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 32, 32), (1, 28, 28), (3, 8, 12), (2, 6, 6)])
@pytest.mark.parametrize("network", [ConvVAE, MLPVAE])
def test_images_of_every_size(network: type[ConvVAE | MLPVAE], shape: tuple[int, int, int]) -> None:
    model = network(5, shape)
    mu, logvar = model.encode(torch.rand(2, *shape))
    assert mu.shape == logvar.shape == (2, 5) and model.decode(mu).shape == (2, *shape)


def test_images_that_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="image_shape must have an even height and width of at least 6, got 7 x 8"):
        ConvVAE(5, (1, 7, 8))


def _classifiers() -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {"vib": VIB(SHAPE, 3, hidden=32, latent_dim=8)}
    for noise in ("information", "dropout", "none"):
        for activation in ("relu", "softplus"):
            for pooling in (False, True):
                options = {"noise": noise, "activation": activation, "pooling": pooling, "width": 4}
                found["-".join(map(str, options.values()))] = AllCNN(SHAPE, 3, **options)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("model", _classifiers().values(), ids=_classifiers())
def test_all_of_a_classifier_is_trained(model: Any) -> None:
    terms = model(IMAGES, LABELS)
    torch.testing.assert_close(terms.loss, terms.cross_entropy + model.beta * terms.information)
    terms.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert sum(p.grad.abs().sum() for p in model.parameters()) > 0
    model.eval()
    assert torch.equal(model.logits(IMAGES), model.logits(IMAGES)) and model.logits(IMAGES).shape == (6, 3)


@pytest.mark.parametrize("name", VAES)
def test_all_of_a_vae_is_trained(name: str) -> None:
    model = VAES[name](latent_dim=3)
    model(IMAGES).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_vib_is_its_formula() -> None:
    model = VIB(SHAPE, 3, hidden=32, latent_dim=8, beta=0.1)
    torch.manual_seed(2)
    terms = model(IMAGES, LABELS)
    torch.manual_seed(2)
    mu, rho = model.encoder(IMAGES).chunk(2, dim=-1)
    std = F.softplus(rho - 5)
    z = fastib.reparameterize(mu, 2 * std.log())
    information = (mu**2 + std**2 - 2 * std.log() - 1).sum() / 2 / len(IMAGES)
    torch.testing.assert_close(terms.information, information)
    torch.testing.assert_close(terms.loss, F.cross_entropy(model.decoder(z), LABELS) + 0.1 * information)


def test_the_standard_deviation_of_vib_never_vanishes() -> None:
    model = VIB(SHAPE, 3, hidden=32, latent_dim=1)
    last = model.encoder[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, -300.0]))  # of which softplus is 0 in float32
    _, logvar = model.encode(IMAGES)
    assert torch.equal(logvar, torch.full((6, 1), -610.0))
    logvar.sum().backward()
    assert last.bias.grad is not None and last.bias.grad[1].item() == 12


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_information_dropout_is_its_formula(activation: str) -> None:
    model = AllCNN(SHAPE, 3, activation=activation, width=4, beta=0.01)
    x, total = IMAGES, torch.zeros(())
    torch.manual_seed(3)
    layers = model.layers(IMAGES)
    torch.manual_seed(3)
    for body, end, noise, layer in zip(model.bodies, model.ends, model.noises, layers, strict=True):
        inputs = body(x)
        std = 0.7 * torch.sigmoid(noise.size(inputs))
        activations = end(inputs)
        rng = torch.randint(2**63 - 1, (2,))
        zero = torch.zeros_like(activations)
        n = fastib.reparameterize(zero, zero, rng=rng)
        torch.testing.assert_close(layer.z, activations * torch.exp(std * n - std**2 / 2), rtol=1e-3, atol=1e-4)
        if activation == "relu":
            kl = torch.where(activations > 0, -std.log(), 0.0)
        else:  # to a prior whose log has mean 0 and variance 1
            kl = (std**2 + (activations.log() - std**2 / 2) ** 2 - 1) / 2 - std.log()
        torch.testing.assert_close(layer.information, kl, rtol=1e-3, atol=1e-3)
        total = total + kl.sum() / len(IMAGES)
        x = layer.z
    torch.manual_seed(3)
    torch.testing.assert_close(model(IMAGES, LABELS).information, total.detach(), rtol=1e-3, atol=1e-2)


def test_the_noise_has_mean_one() -> None:
    model = AllCNN(SHAPE, 3, width=4).eval()
    many = IMAGES[:1].expand(4000, *SHAPE)
    z = model.layers(many)[0].z.mean(0)
    clean = model.ends[0](model.bodies[0](IMAGES[:1]))[0]
    torch.testing.assert_close(z, clean, rtol=0.07, atol=1e-3)


def test_baselines_have_the_same_shape_and_no_information() -> None:
    models = [
        AllCNN(SHAPE, 3, noise=noise, pooling=pooling, width=4)
        for noise in ("dropout", "none")
        for pooling in (False, True)
    ]
    counts = {sum(p.numel() for p in model.parameters()) for model in models}
    shapes = {tuple(layer.z.shape for layer in model.layers(IMAGES)) for model in models}
    assert len(counts) == len(shapes) == 1
    assert all(layer.information.abs().sum() == 0 for model in models for layer in model.layers(IMAGES))
    dropped = models[0].layers(IMAGES)[0].z
    kept = models[2].layers(IMAGES)[0].z
    assert (dropped == 0).double().mean() > (kept == 0).double().mean() + 0.15


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        pytest.param(AIR(SHAPE, hidden=8, latent_dim=2, window=8, most=1), [IMAGES], id="air"),
        pytest.param(
            MultiEntityVAE(SHAPE, entities=2, latent_dim=4, width=4, hidden=8), [IMAGES], id="multi-entity-vae"
        ),
        pytest.param(VIB(SHAPE, 3, latent_dim=4, hidden=8), [IMAGES, LABELS], id="vib"),
        pytest.param(Catch(SHAPE, 3, 6, hidden=8), [IMAGES, LABELS, torch.arange(6)], id="catch"),
    ],
)
def test_an_exported_model_can_be_saved(model: nn.Module, arguments: list[Tensor], tmp_path: Path) -> None:
    exported = torch.export.export(model, tuple(arguments))
    torch.export.save(exported, tmp_path / "model.pt2")
    torch.manual_seed(3)
    expected = exported.module()(*arguments)
    torch.manual_seed(3)
    found = torch.export.load(tmp_path / "model.pt2").module()(*arguments)
    assert type(found) is type(expected)
    torch.testing.assert_close(tuple(found), tuple(expected))


@pytest.mark.parametrize("model", [AIR(SHAPE, hidden=8), MultiEntityVAE(SHAPE, width=4, hidden=8)])
def test_no_images_have_no_entities(model: AIR | MultiEntityVAE) -> None:
    assert model.compose(model.entities(IMAGES[:0])).shape == (0, *SHAPE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BetaVAE(SHAPE, network="rnn"), "network must be one of 'conv', 'mlp', got 'rnn'"),
        (lambda: BetaVAE(SHAPE, latent_dim=0), "latent_dim must be at least 1, got 0"),
        (lambda: BetaVAE(SHAPE, beta=math.nan), "beta must be a finite number of at least 0, got nan"),
        (lambda: BetaVAE(SHAPE, warm_up=-1), "warm_up must be at least 0, got -1"),
        (lambda: BetaVAE(SHAPE, warm_up=3, beta=-1.0), "beta must be a finite number of at least 0, got -1.0"),
        (lambda: BetaVAE(SHAPE, hidden=0), "hidden must be at least 1, got 0"),
        (lambda: AnnealedVAE(SHAPE, capacity_steps=0), "capacity_steps must be at least 1, got 0"),
        (lambda: BetaTCVAE(SHAPE, 100, estimator="best"), "estimator must be one of"),
        (lambda: MLPVAE(3, SHAPE, hidden=0), "hidden must be at least 1, got 0"),
        (lambda: VIB(SHAPE, 3, beta=-1.0), "beta must be a finite number of at least 0, got -1.0"),
        (lambda: AllCNN(SHAPE, 3, noise="gaussian"), "noise must be one of 'information', 'dropout', 'none'"),
        (lambda: AllCNN(SHAPE, 3, activation="tanh"), "activation must be one of 'relu', 'softplus', got 'tanh'"),
        (lambda: AllCNN(SHAPE, 3, width=0), "width must be at least 1, got 0"),
        (lambda: VIB((1, 16), 3), r"image_shape must be channels, height and width, got \(1, 16\)"),
        (lambda: VIB(SHAPE, 3, latent_dim=0), "latent_dim must be at least 1, got 0"),
        (lambda: VIB(SHAPE, 3, hidden=0), "hidden must be at least 1, got 0"),
        (lambda: VIB(SHAPE, 0), "classes must be at least 1, got 0"),
        (lambda: VIB(SHAPE, 2.5), "classes must be an integer, got float 2.5"),  # type: ignore[arg-type]
        (lambda: AllCNN((1, 8), 3), r"image_shape must be channels, height and width, got \(1, 8\)"),
        (lambda: AllCNN((0, 8, 8), 2), "image_shape must be at least 1, got 0"),
        (lambda: AllCNN(SHAPE, 0), "classes must be at least 1, got 0"),
        (lambda: AllCNN(SHAPE, 3, pooling="yes"), "pooling must be a bool, got str 'yes'"),  # type: ignore[arg-type]
        (lambda: AllCNN(SHAPE, 3, beta=-1.0), "beta must be a finite number of at least 0, got -1.0"),
        (lambda: VariationalClassifier(SHAPE, 0, 9), "classes must be at least 1, got 0"),
        (lambda: ConvVAE(3, (0, 8, 8)), "image_shape must be at least 1, got 0"),
        (lambda: ConvVAE(3, (1, 8)), r"image_shape must be channels, height and width, got \(1, 8\)"),
        (lambda: AIR((1, -4, -4)), "image_shape must be at least 1, got -4"),
        (lambda: Catch((1, 0, 4), 3, 10), "image_shape must be at least 1, got 0"),
        (lambda: MultiEntityVAE((1, 8)), "image_shape must be channels, height and width"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        make()
