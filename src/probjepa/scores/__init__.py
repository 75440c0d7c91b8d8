"""Scores of whole image sets under a trained model: higher = more typical, everywhere."""

from probjepa.scores.sets import DETECTORS, SCORES, encode, knn_neighbour, score_set

__all__ = ["DETECTORS", "SCORES", "encode", "knn_neighbour", "score_set"]
