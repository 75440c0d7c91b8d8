"""One conversion at every door of a method: whatever ``fit`` takes is the same images everywhere."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import probjepa as pj
from probjepa.curation import curate
from probjepa.data import ImageSet, StreamedImages, open_images
from probjepa.errors import DataError
from probjepa.evaluation import evaluate
from probjepa.jacobian import singular_vectors
from probjepa.scores import score_set

VIT = {"patch_size": 2, "width": 16, "depth": 1, "heads": 2}
COUNT = 12


def array(seed=0, count=COUNT, side=8):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side), dtype=np.uint8)


def folder(pixels, path):
    path.mkdir()
    for i, row in enumerate(pixels):
        Image.fromarray(row).save(path / f"{i:02d}.png")
    return path


# pixels (N, 8, 8), a path that is free → what may be given
KINDS = {
    "uint8 tensor": lambda x, path: torch.from_numpy(x)[:, None],
    "float tensor": lambda x, path: torch.from_numpy(x)[:, None] / 255,
    "double tensor": lambda x, path: torch.from_numpy(x)[:, None].double() / 255,
    "integer tensor": lambda x, path: torch.from_numpy(x)[:, None].long(),
    "uint8 array": lambda x, path: x,
    "array, channels last": lambda x, path: x[..., None],
    "float array": lambda x, path: x.astype(np.float32) / 255,
    "list of Pillow images": lambda x, path: [Image.fromarray(row) for row in x],
    "list of arrays": lambda x, path: list(x),
    "torch Dataset": lambda x, path: TensorDataset(torch.from_numpy(x)[:, None] / 255, torch.arange(len(x))),
    "images and labels": lambda x, path: (x, np.arange(len(x))),
    "dict": lambda x, path: {"images": x, "labels": np.arange(len(x))},
    "DataFrame": lambda x, path: pd.DataFrame({"image": list(x), "label": range(len(x))}),
    "folder": lambda x, path: str(folder(x, path)),
    "path": lambda x, path: folder(x, path),
    "opened set": lambda x, path: open_images(x),
    "streamed set": lambda x, path: open_images(folder(x, path), memory_limit=0),
}


def build(name):
    torch.manual_seed(0)
    given = {"channels": 1, "image_size": 8, "mean": [0.4], "std": [0.3]}
    if name == "IJEPA":
        return pj.IJEPA(
            backbone_options=VIT, predictor_width=8, predictor_depth=1, predictor_heads=2, **given
        ).eval()
    small = {"projector_dim": 8, "predictor_dim": 8} if name == "VISimSiam" else {}
    return getattr(pj, name)("convnet", backbone_options={"widths": [4, 8]}, **small, **given).eval()


METHODS = {name: build(name) for name in ("VJE", "VISimSiam", "IJEPA", "LeJEPA")}


def doors(method):
    found = {"embed": method.embed, "features": lambda x: method.features(x)["h"]}
    found["jepa_score"] = lambda x: pj.jepa_score(method, x)
    if hasattr(method, "score_samples"):
        found["score_samples"] = method.score_samples
        found["posterior"] = lambda x: method.posterior(x).mean
        found["uncertainty"] = lambda x: method.uncertainty(x)[method.main_uncertainty]
    return found


@cache
def read(name):
    """What every door of a method says of the same images as a tensor."""
    plain = torch.from_numpy(array())[:, None]
    return {door: call(plain) for door, call in doors(METHODS[name]).items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_every_kind_at_every_door(name, kind, tmp_path):
    method, x = METHODS[name], array()
    given = KINDS[kind](x, tmp_path / "files")
    assert (kind == "streamed set") == isinstance(given, StreamedImages)
    for door, call in doors(method).items():
        torch.testing.assert_close(
            call(given), read(name)[door], rtol=1e-6, atol=1e-6, msg=lambda m, d=door: f"{d}: {m}"
        )
    torch.testing.assert_close(
        read(name)["embed"], method.embed(open_images(given, size=8))
    )  # as fit opens it


@pytest.fixture(scope="module")
def met():
    """Two opened sets, and what is said of them together."""
    method = METHODS["VJE"]
    plain, known = (
        ImageSet(torch.from_numpy(array(seed))[:, None], None, list("abcdefghijkl")) for seed in (0, 1)
    )
    return plain, {
        "predictive": method.score_samples(plain, score="predictive", reference=known),
        "knn": score_set(method, plain, "knn", reference=known)[0],
        "ood": evaluate(method, known, plain, {"far": array(2)}, n_bootstrap=5).metrics["ood"],
        "singular": singular_vectors(method, plain, 2),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_where_sets_meet(kind, met, tmp_path):
    method, (x, y) = METHODS["VJE"], (array(), array(1))
    given, reference = KINDS[kind](x, tmp_path / "x"), KINDS[kind](y, tmp_path / "y")
    plain, expected = met
    predictive = {"score": "predictive", "reference": reference}
    torch.testing.assert_close(method.score_samples(given, **predictive), expected["predictive"])
    np.testing.assert_allclose(score_set(method, given, "knn", reference=reference)[0], expected["knn"])
    found = evaluate(method, reference, given, {"far": array(2)}, n_bootstrap=5)
    assert found.metrics["ood"] == expected["ood"]
    with pytest.raises(DataError, match="12 of 12 images to score are in the reference set"):
        method.score_samples(plain, score="predictive", reference=given)
    assert sum(curate(method, given, tmp_path / "out", reference=None).values()) == COUNT
    for ours, theirs in zip(singular_vectors(method, given, 2), expected["singular"], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", METHODS)
def test_normalised_floats_are_for_the_model_itself(name):
    method, x = METHODS[name], torch.from_numpy(array())[:, None]
    prepared = method.preprocess(x)
    assert prepared.min() < 0
    for call in doors(method).values():
        for given in (prepared, prepared.numpy(), x.float(), list(prepared)):
            with pytest.raises(
                DataError, match=r"floats from .* to .*: pass uint8 in 0\.\.255 or floats in \[0, 1\]"
            ) as caught:
                call(given)
            assert "\n" not in str(caught.value)
    torch.testing.assert_close(method(prepared), method.embed(x))
    torch.testing.assert_close(method.encoder(prepared), method.embed(x))
    torch.testing.assert_close(pj.jepa_score(method.encoder, prepared), pj.jepa_score(method, x))


@pytest.mark.parametrize("side", [8, 12])
def test_fit_and_embed_take_the_same_floats_for_the_same_images(side):
    x = torch.from_numpy(array(side=side))[:, None]
    ends = []
    for given in (x, x / 255):
        torch.manual_seed(0)
        method = pj.VJE("convnet", backbone_options={"widths": [4, 8]}, channels=1, image_size=8)
        pj.fit(method, given, epochs=1, batch_size=4, progress=False, device="cpu")
        ends.append(method.embed(given))
    torch.testing.assert_close(*ends, rtol=0, atol=0)


@pytest.mark.parametrize("count", [0, 1])
def test_few_images(count):
    assert METHODS["VJE"].embed(torch.zeros(count, 1, 8, 8, dtype=torch.uint8)).shape == (count, 8)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (torch.full((2, 1, 8, 8), torch.nan), "NaN or Inf"),
        (np.zeros((2, 4)), "no set of images"),
        ("no/such/folder", "no such file or folder"),
        (5, "no data source"),
        (torch.zeros(2, 3, 8, 8), "1-channel images; these have 3"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "1-channel images; these have 3"),
        ([], "holds no images"),
    ],
)
@pytest.mark.parametrize("name", ["VJE", "IJEPA"])
def test_what_is_no_image_is_one_line(name, given, says):
    for call in doors(METHODS[name]).values():
        with pytest.raises(DataError, match=says) as caught:
            call(given)
        assert "\n" not in str(caught.value)
