"""Models to train with the losses: one file reads as one paper."""

from torch.utils._pytree import _register_namedtuple

from fastib.models.air import AIR, AIRTerms
from fastib.models.annealed_vae import AnnealedVAE
from fastib.models.beta_tcvae import BetaTCVAE
from fastib.models.beta_vae import BetaVAE
from fastib.models.catch import Catch, CatchTerms
from fastib.models.classifier import Classifier, ClassifierTerms
from fastib.models.information_dropout import AllCNN
from fastib.models.information_in_weights import VariationalClassifier
from fastib.models.model import Model
from fastib.models.multi_entity_vae import MultiEntityVAE, MultiEntityVAETerms
from fastib.models.scene import Entities, SceneModel
from fastib.models.vae import MLPVAE, VAE, ConvVAE
from fastib.models.variational import VariationalConv2d, VariationalLinear
from fastib.models.vib import VIB

__all__ = [
    "AIR",
    "MLPVAE",
    "VAE",
    "VIB",
    "AIRTerms",
    "AllCNN",
    "AnnealedVAE",
    "BetaTCVAE",
    "BetaVAE",
    "Catch",
    "CatchTerms",
    "Classifier",
    "ClassifierTerms",
    "ConvVAE",
    "Entities",
    "Model",
    "MultiEntityVAE",
    "MultiEntityVAETerms",
    "SceneModel",
    "VariationalClassifier",
    "VariationalConv2d",
    "VariationalLinear",
]

# Else torch.export.save refuses a model that returns them.
for _result in (AIRTerms, CatchTerms, ClassifierTerms, MultiEntityVAETerms):
    _register_namedtuple(_result, serialized_type_name=f"fastib.models.{_result.__name__}")
