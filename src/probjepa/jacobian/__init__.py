"""JEPA-SCORE: the density that any differentiable encoder has learned, from the spectrum of its Jacobian."""

from probjepa.jacobian.encoders import Encoder, as_encoder
from probjepa.jacobian.score import JepaScores, jacobian_spectrum, jepa_score, jepa_score_details
from probjepa.jacobian.vectors import singular_vectors

__all__ = [
    "Encoder",
    "JepaScores",
    "as_encoder",
    "jacobian_spectrum",
    "jepa_score",
    "jepa_score_details",
    "singular_vectors",
]
