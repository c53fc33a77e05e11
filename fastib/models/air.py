"""Attend-Infer-Repeat: a network that looks for one object after the other, and decides when there are no more."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli

import fastib
from fastib._arguments import accumulate_dtype, check_choice, check_integer, check_number
from fastib.models.model import pixels_of
from fastib.models.scene import Entities, SceneModel
from fastib.schedules import Linear


class AIRTerms(NamedTuple):
    """The loss of AIR and what it is made of: scalars, means of the batch, float32 from a model in float32. All but
    `loss` are detached: they are for the log."""

    loss: Tensor
    """What is to be minimised, in nats, and has the gradients."""
    reconstruction: Tensor
    """In nats, without the constant of the Gaussian."""
    kl: Tensor
    """In nats: that of the places and contents of the objects that there are, and of the decisions."""
    kl_presence: Tensor
    """The part of `kl` that is the decisions'."""
    objects: Tensor
    """The number of objects in an image; of relaxed decisions, their sum."""


class Step(NamedTuple):
    """What a step of the inference finds in B images.

    `logit` is of one more object, where there have been all before it; `presence` says whether there is, in [0, 1], and
    `before`, whether there was one in the step before. `drawn` [B, 1, side, side] is what the object adds to the image;
    `kl` [B] is that of its `where` [B, 3] and `what` [B, latent_dim], whose logarithms of variances are `logvar`
    [B, 3 + latent_dim], and `kl_presence` [B] that of the decision, which was made from the `state`.
    """

    logit: Tensor
    presence: Tensor
    before: Tensor
    where: Tensor
    what: Tensor
    logvar: Tensor
    drawn: Tensor
    kl: Tensor
    kl_presence: Tensor
    state: Tensor


# How a step decides: from its logit, and whether there was an object in the step before it, [B] each.
Decision = Callable[[Tensor, Tensor], Tensor]


def _most_likely(logit: Tensor, before: Tensor) -> Tensor:
    return before * (logit > 0)


def _sampled(logit: Tensor, before: Tensor) -> Tensor:
    return before * torch.bernoulli(torch.sigmoid(logit.detach()))


class AIR(SceneModel):
    """An image as a sum of objects, each with a place, `where`, and a content, `what`, found one after the other by a
    recurrent network that says before each whether there is one more::

        before, left = 1, image
        for step in range(most):
            state = lstm(left, where, what, before)
            presence = before * Bernoulli(sigmoid(f(state)))        # the presence of one more
            where, kl_where = fastib.reparameterize_with_kl(*g(state))
            what, kl_what = fastib.reparameterize_with_kl(*encoder(read(left, where)))
            left = left - presence * write(decoder(what), where)
            kl = kl + presence * (kl_where + kl_what) + before * KL(Bernoulli(sigmoid(f(state))), Bernoulli(prior))
            before = presence
        loss = (left**2).sum() / (2 * likelihood_std**2) + kl

    The windows of `read` and `write` are squares of the side `scale` of the canvas, wholly inside it::

        scale = scale_floor + (1 - scale_floor) * sigmoid(where[0])
        centre = (1 - scale) * tanh(where[1:])                      # in [-1, 1], x and y

    and are resampled bilinearly, with `align_corners=False`: -1 and 1 are the edges of the canvas, not the centres of
    its first and last pixels.

    A step sees what is left of the image, as in DRAW; in the paper it sees the whole image, and what is left is for the
    state of the network to know. There, trainings fail in a way of their own: two steps draw the same object, each half
    as bright, and stay so; here the second finds nothing left to draw.

    Args:
        image_shape: channels, height and width of the images: one channel, and as high as wide.
        presence: how gradients pass the decisions. "concrete": they are relaxed to numbers between 0 and 1, and the KLs
            are taken at those. "score_function": they are sampled, and what follows from one is weighed by the gradient
            of its log probability, less a baseline that is learned; unbiased, and of large variance.
        most: the largest number of objects.
        latent_dim: the number of dimensions of `what`.
        window: the side of `read`'s and the decoder's images, in pixels.
        hidden: the width of all layers.
        scale_floor: the least side of an object, in sides of the canvas. Without one, windows collapse to a point, from
            which no gradient leads back.
        likelihood_std: the standard deviation of the pixels.
        temperature: of the relaxation.
        prior_start, prior_end: the prior probability of one more object goes from the one to the other, linearly in its
            logit, in `prior_steps` steps: at first objects cost little, and later they must be worth their price.
        baseline_factor: the learning rate of the baseline, in those of the rest.

    Call it with images [B, 1, H, W] in [0, 1]; it returns `AIRTerms(loss, reconstruction, kl, kl_presence, objects)`;
    in `eval` decisions are sampled.

    Gradients: of the loss, by the parameters, the baseline's too, and the images. In `eval`, "concrete" passes none
    through the decisions.

    Raises:
        TypeError, ValueError: for arguments of a wrong type or value, naming the argument.

    Source: Eslami et al. 2016, "Attend, infer, repeat: fast scene understanding with generative models", section 2; the
    baseline: Mnih & Gregor 2014, "Neural variational inference and learning in belief networks", section 2.3; the
    relaxation: Maddison et al. 2017, "The concrete distribution"; what is left: Gregor et al. 2015, "DRAW: a recurrent
    neural network for image generation", equation 3.

    >>> import torch
    >>> from fastib.models import AIR
    >>> model = AIR((1, 32, 32), hidden=32, most=2)
    >>> model.entities(torch.rand(4, 1, 32, 32)).images.shape
    torch.Size([4, 2, 1, 32, 32])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        presence: str = "concrete",
        most: int = 3,
        latent_dim: int = 50,
        window: int = 28,
        hidden: int = 256,
        scale_floor: float = 0.2,
        likelihood_std: float = 0.3,
        temperature: float = 1.0,
        prior_start: float = 0.1,
        prior_end: float = 1e-3,
        prior_steps: int = 20_000,
        baseline_factor: float = 10.0,
    ) -> None:
        super().__init__()
        check_choice("presence", presence, ("concrete", "score_function"))
        for name, value in (("most", most), ("latent_dim", latent_dim), ("window", window), ("hidden", hidden)):
            check_integer(name, value, 1)
        check_integer("prior_steps", prior_steps, 1)
        for name, number in (("likelihood_std", likelihood_std), ("temperature", temperature)):
            _check_positive(name, number)
        check_number("baseline_factor", baseline_factor, minimum=0.0)
        for name, number in (("scale_floor", scale_floor), ("prior_start", prior_start), ("prior_end", prior_end)):
            _check_fraction(name, number)
        pixels_of(image_shape)
        if image_shape[0] != 1 or image_shape[1] != image_shape[2]:
            raise ValueError(f"image_shape must be (1, side, side), got {tuple(image_shape)}")
        self.presence, self.most, self.latent_dim, self.window = presence, most, latent_dim, window
        self.side, self.scale_floor, self.likelihood_std = image_shape[1], scale_floor, likelihood_std
        self.temperature, self.baseline_factor = temperature, baseline_factor
        self.prior_logit = Linear(_logit(prior_start), _logit(prior_end), prior_steps)
        self.look = nn.Sequential(nn.Flatten(), nn.Linear(self.side**2, hidden), nn.ReLU())
        self.lstm = nn.LSTMCell(hidden + 3 + latent_dim + 1, hidden)
        self.decide = nn.Linear(hidden, 1 + 6)
        self.encoder = nn.Sequential(nn.Flatten(), *_mlp(window**2, hidden, 2 * latent_dim))
        self.decoder = nn.Sequential(*_mlp(latent_dim, hidden, window**2), nn.Unflatten(1, (1, window, window)))
        if presence == "score_function":
            self.baseline = nn.Sequential(*_mlp(hidden, hidden, 1))

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.presence == "concrete":
            return super().parameter_groups()
        baseline = list(self.baseline.parameters())
        others = [p for name, p in self.named_parameters() if not name.startswith("baseline.")]
        return [{"params": others}, {"params": baseline, "factor": self.baseline_factor}]

    def step(self) -> None:
        self.prior_logit.step()

    def forward(self, images: Tensor) -> AIRTerms:
        relaxed = self.training and self.presence == "concrete"
        return self.terms(images, self._relaxed if relaxed else _sampled)

    def terms(self, images: Tensor, decision: Decision) -> AIRTerms:
        """Those of the loss, with the decisions made so."""
        steps = self.infer(images, decision)
        mean = torch.stack([s.drawn for s in steps]).sum(0)
        reconstruction = (images - mean).square().flatten(1).sum(1) / (2 * self.likelihood_std**2)
        costs = [s.presence * s.kl for s in steps]
        kl_presence = torch.stack([s.kl_presence for s in steps]).sum(0)
        kl = torch.stack(costs).sum(0) + kl_presence
        loss = reconstruction + kl
        if self.presence == "score_function":
            loss = loss + self._of_decisions(steps, reconstruction, costs)
        objects = torch.stack([s.presence for s in steps]).sum(0)
        parts = (part.detach().mean() for part in (reconstruction, kl, kl_presence, objects))
        return AIRTerms(loss.mean(), *parts)

    def infer(self, images: Tensor, decision: Decision, noise: bool = True) -> list[Step]:
        """The steps of the inference; without noise, places and contents are the means of their posteriors."""
        presence, where = images.new_ones(len(images)), images.new_zeros(len(images), 3)
        what, state, steps = images.new_zeros(len(images), self.latent_dim), None, []
        left = images
        for _ in range(self.most):
            before = presence
            state = self.lstm(torch.cat([self.look(left), where, what, before.unsqueeze(1)], dim=1), state)
            logit, of_where = self.decide(state[0]).split([1, 6], dim=1)
            logit = logit.squeeze(1)
            kl_presence = before * self._kl_of_decision(logit)
            presence = decision(logit, before)
            where, kl_where = _draw(of_where, noise)
            of_what = self.encoder(self.read(left, where))
            what, kl_what = _draw(of_what, noise)
            logvar = torch.cat([of_where.chunk(2, dim=1)[1], of_what.chunk(2, dim=1)[1]], dim=1)
            drawn = presence.view(-1, 1, 1, 1) * self.write(self.decode(what), where)
            kl = kl_where + kl_what
            steps.append(Step(logit, presence, before, where, what, logvar, drawn, kl, kl_presence, state[0]))
            left = left - drawn
        return steps

    def entities(self, images: Tensor) -> Entities:
        steps = self.infer(images, _most_likely, noise=False)
        codes = torch.stack([torch.cat([s.where, s.what], dim=1) for s in steps], dim=1)
        return Entities(
            torch.stack([s.presence > 0 for s in steps], dim=1),
            codes,
            torch.stack([s.logvar for s in steps], dim=1),
            torch.stack([s.drawn for s in steps], dim=1),
            torch.stack([self._box(s.where) for s in steps], dim=1),
        )

    def compose(self, entities: Entities) -> Tensor:
        return entities.images.sum(1).clamp(0, 1)

    def decode(self, what: Tensor) -> Tensor:
        """The windows of contents [B, latent_dim]: [B, 1, window, window], in [0, 1]."""
        return torch.sigmoid(self.decoder(what) + _BLACK)

    def window_of(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """Sides [B], in sides of the canvas, and centres [B, 2], x and y in [-1, 1], of places [B, 3]."""
        scale = self.scale_floor + (1 - self.scale_floor) * torch.sigmoid(where[:, 0])
        return scale, (1 - scale).unsqueeze(1) * torch.tanh(where[:, 1:])

    def read(self, images: Tensor, where: Tensor) -> Tensor:
        """The windows of images [B, 1, side, side] at places [B, 3]: [B, 1, window, window]."""
        scale, centre = self.window_of(where)
        return _resample(images, scale, centre, self.window)

    def write(self, windows: Tensor, where: Tensor) -> Tensor:
        """Windows [B, 1, window, window] at places [B, 3] of black canvases: [B, 1, side, side]."""
        scale, centre = self.window_of(where)
        return _resample(windows, 1 / scale, -centre / scale.unsqueeze(1), self.side)

    def _box(self, where: Tensor) -> Tensor:
        """Left, top, right and bottom of a window, in pixels: [B, 4]."""
        scale, centre = self.window_of(where)
        half = scale.unsqueeze(1)
        return (torch.cat([centre - half, centre + half], dim=1) + 1) * self.side / 2

    def _relaxed(self, logit: Tensor, before: Tensor) -> Tensor:
        temperature = logit.new_tensor(self.temperature)
        relaxed = LogitRelaxedBernoulli(temperature, logits=logit, validate_args=False).rsample()
        return before * torch.sigmoid(relaxed)

    def _kl_of_decision(self, logit: Tensor) -> Tensor:
        # Of the logits: probabilities are rounded to 0 and 1, where a KL is infinite.
        logit = logit.to(accumulate_dtype(logit.dtype))
        prior = self.prior_logit.value.to(logit)
        return torch.sigmoid(logit) * (logit - prior) + F.softplus(prior) - F.softplus(logit)

    def _of_decisions(self, steps: list[Step], reconstruction: Tensor, costs: list[Tensor]) -> Tensor:
        """0, whose gradient is that of the expectation by the decisions, and of the baseline's error: [B]."""
        total = torch.zeros_like(reconstruction)
        follows = reconstruction.detach()  # what a decision may change: all that is said after it
        for step, cost in zip(reversed(steps), reversed(costs), strict=True):
            follows = follows + cost.detach()
            baseline = self.baseline(step.state.detach()).squeeze(1)
            log_probability = -F.binary_cross_entropy_with_logits(step.logit, step.presence, reduction="none")
            advantage = follows - baseline.detach()
            total = total + step.before * (advantage * log_probability + (follows - baseline).square())
            follows = follows + step.kl_presence.detach()
        return total - total.detach()


_BLACK = -2.0  # what is added to the logits of the pixels of an object, so that they are dark before it has learned


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _draw(posterior: Tensor, noise: bool) -> tuple[Tensor, Tensor]:
    """A sample or the mean of Gaussians, whose parameters are side by side, and their KL: [B, D] and [B]."""
    mu, logvar = posterior.chunk(2, dim=1)
    if noise:
        return fastib.reparameterize_with_kl(mu, logvar, reduction="sample")
    return mu, fastib.gaussian_kl(mu, logvar, reduction="sample")


def _mlp(inputs: int, hidden: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)]


def _resample(images: Tensor, scale: Tensor, centre: Tensor, side: int) -> Tensor:
    """The squares of images that are `scale` times as wide, around `centre`, as side x side pixels; black outside."""
    # As F.affine_grid does by products of matrices, which took as long as the sampling: these maps leave x and y apart.
    across = (2 * torch.arange(side, dtype=scale.dtype, device=scale.device) + 1) / side - 1
    x, y = (scale.view(-1, 1, 1) * across.view(-1, 1) + centre.unsqueeze(1)).unbind(2)
    grid = torch.stack([x.unsqueeze(1).expand(-1, side, -1), y.unsqueeze(2).expand(-1, -1, side)], dim=3)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _check_positive(name: str, value: Any) -> None:
    check_number(name, value, minimum=0.0)
    if value == 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def _check_fraction(name: str, value: Any) -> None:
    check_number(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name} must be in (0, 1), got {value}")
