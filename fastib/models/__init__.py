"""Models to train with the losses. The losses are not in them."""

from fastib.models.vae import ConvVAE

__all__ = ["ConvVAE"]
