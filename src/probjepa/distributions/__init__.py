"""Likelihoods of embeddings: pure mathematics over torch."""

from probjepa.distributions.student_t import PolarStudentT, TangentStudentT

__all__ = ["PolarStudentT", "TangentStudentT"]
