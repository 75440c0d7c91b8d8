"""The sentences of the text benchmark, on text made for it, and its AUROC by pairs."""

import random
import sys
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import jepa_score_text as text

PAGE = """A Heading
*********

The first sentence goes on over
the end of its line. It is short.
Then comes a third, with a comma.

   x = call(1)

The value is 3 of 4 in all. This one has no end
"""


def test_sentences_are_whole_plain_and_of_the_lengths_asked_for():
    assert text.sentences(PAGE + "\n\n" + PAGE, 5, 12) == [
        "The first sentence goes on over the end of its line.",
        "Then comes a third, with a comma.",
    ]
    assert text.sentences(PAGE, 1, 4) == ["It is short."]


def test_a_shuffle_keeps_the_words_and_changes_the_order():
    sentence = "The end of the line."
    for seed in range(20):
        broken = text.shuffled(sentence, random.Random(seed))
        assert broken != sentence and broken.endswith(".")
        assert sorted(broken[:-1].split()) == sorted(sentence[:-1].split())
    assert text.shuffled(sentence, random.Random(3)) == text.shuffled(sentence, random.Random(3))


def test_auroc_within_groups_is_the_mean_of_the_groups_weighted_by_their_pairs():
    generator = torch.Generator().manual_seed(0)
    groups = torch.tensor([0] * 4 + [1] * 9)
    # rounded, so that some tie; the groups lie apart, which a plain AUROC would see
    typical = (torch.randn(13, generator=generator) * 2).round() + 3 * groups
    atypical = (torch.randn(13, generator=generator) * 2).round() + 3 * groups
    expected, pairs = 0.0, 0
    for group in (0, 1):
        of = groups == group
        count = int(of.sum()) ** 2
        truth = [1] * int(of.sum()) + [0] * int(of.sum())
        expected += count * roc_auc_score(truth, torch.cat([typical[of], atypical[of]]))
        pairs += count
    assert text.within_groups(typical, atypical, groups) == pytest.approx(expected / pairs, abs=1e-12)
