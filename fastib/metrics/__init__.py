"""What a trained model is measured by, over a whole data set and without gradients."""

from fastib.metrics.codes import active_units, gaussian_total_correlation
from fastib.metrics.disentanglement import (
    DCI,
    MutualInformationGap,
    SeparatedAttributePredictability,
    dci,
    factor_vae_score,
    mutual_information_gap,
    sap,
)
from fastib.metrics.exact import exact_elbo_decomposition
from fastib.metrics.pac_bayes import pac_bayes_bound
from fastib.metrics.probes import ProbeResult, probe

__all__ = [
    "DCI",
    "MutualInformationGap",
    "ProbeResult",
    "SeparatedAttributePredictability",
    "active_units",
    "dci",
    "exact_elbo_decomposition",
    "factor_vae_score",
    "gaussian_total_correlation",
    "mutual_information_gap",
    "pac_bayes_bound",
    "probe",
    "sap",
]
