"""Likelihoods of embeddings: pure mathematics over torch."""

from probjepa.distributions.mixture import PolarStudentTMixture
from probjepa.distributions.spherical import HypersphericalUniform, PowerSpherical
from probjepa.distributions.student_t import MultivariateStudentT, PolarStudentT, TangentStudentT

__all__ = [
    "HypersphericalUniform",
    "MultivariateStudentT",
    "PolarStudentT",
    "PolarStudentTMixture",
    "PowerSpherical",
    "TangentStudentT",
]
