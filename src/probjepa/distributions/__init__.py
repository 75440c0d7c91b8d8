"""Likelihoods of embeddings: pure mathematics over torch."""

from probjepa.distributions.student_t import MultivariateStudentT, PolarStudentT, TangentStudentT

__all__ = ["MultivariateStudentT", "PolarStudentT", "TangentStudentT"]
