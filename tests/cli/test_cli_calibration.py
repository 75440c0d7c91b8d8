"""``score --calibration``: p-values and flags beside the scores, of images, tables and JEPA-SCORE."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.stats import false_discovery_control

import probjepa as pj
from probjepa.cli import run
from probjepa.scores import jepa_parts


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("calibration")
    random = np.random.default_rng(0)
    for name, count in (("data", 9), ("calibration", 40), ("reference", 30)):
        (root / name).mkdir()
        for i in range(count):
            pixels = random.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    method = pj.VJE("convnet", channels=1, image_size=16, backbone_options={"widths": (8, 12)}, seed=0)
    method.eval().save_pretrained(root / "model")
    for name, count in (("table", 60), ("rows", 12), ("held", 25)):
        frame = pd.DataFrame({"a": random.standard_normal(count), "b": random.choice(list("xyz"), count)})
        frame.to_parquet(root / f"{name}.parquet")
    torch.manual_seed(0)
    estimator = pj.VarTJEPA(max_epochs=1, dim=8, n_layers=1, n_heads=2, ff_dim=8, random_state=0)
    estimator.fit(pd.read_parquet(root / "table.parquet")).save(root / "table-model")
    return root


def of_images(places, out, *more):
    arguments = ["score", str(places / "model"), "--data", str(places / "data"), "--out", str(out), "-q"]
    return run([*arguments, *map(str, more)])


def of_tables(places, out, *more):
    model, data = places / "table-model", places / "rows.parquet"
    return run(["score", str(model), "--data", str(data), "--out", str(out), "-q", *map(str, more)])


KINDS = {
    "likelihood": (of_images, "calibration", ()),
    "radial": (of_images, "calibration", ("--score", "radial")),
    "knn": (of_images, "calibration", ("--score", "knn", "--reference", "REFERENCE")),
    "knn, of the rows themselves": (of_images, "calibration", ("--score", "knn", "--reference", "DATA")),
    "fisher": (of_images, "calibration", ("--score", "fisher", "--reference", "REFERENCE")),
    "jepa": (of_images, "calibration", ("--score", "jepa")),
    "jepa, reference": (
        of_images,
        "calibration",
        ("--score", "jepa", "--latent", "reference", "--reference", "REFERENCE"),
    ),
    "tables": (of_tables, "held.parquet", ()),
    "tables, knn": (of_tables, "held.parquet", ("--score", "knn", "--reference", "REFERENCE")),
    "tables, knn, of the rows themselves": (
        of_tables,
        "held.parquet",
        ("--score", "knn", "--reference", "DATA"),
    ),
    "tables, fisher": (of_tables, "held.parquet", ("--score", "fisher", "--reference", "REFERENCE")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_p_values_and_flags_are_those_of_the_scores(places, tmp_path, capsys, kind):
    score, calibration, more = KINDS[kind]
    names = ("reference", "data") if score is of_images else ("table.parquet", "rows.parquet")
    sets = dict(zip(("REFERENCE", "DATA"), names, strict=True))
    more = [places / sets[x] if x in sets else x for x in more]
    out, alone, of_calibration = (tmp_path / f"{name}.parquet" for name in ("out", "alone", "calibration"))
    assert score(places, out, *more, "--calibration", places / calibration, "--alpha", 0.2) == 0
    said = capsys.readouterr().out
    assert score(places, alone, *more) == 0
    assert score(places, of_calibration, *more, "--data", places / calibration) == 2  # given twice
    table = pq.read_table(out).to_pydict()
    scores = pq.read_table(alone).to_pydict()
    assert not {"p_value", "q_value", "flagged"} & set(scores)
    assert {name: table[name] for name in scores} == scores
    model = "table-model" if score is of_tables else "model"
    arguments = ["score", str(places / model), "--data", str(places / calibration), "-q"]
    assert run([*arguments, "--out", str(of_calibration), *map(str, more)]) == 0
    known = pq.read_table(of_calibration)["score"].to_numpy()
    np.testing.assert_array_equal(table["p_value"], pj.conformal_p_values(table["score"], known))
    flagged = np.asarray(table["score"]) < pj.threshold(known, 0.2)
    assert table["flagged"] == flagged.tolist()
    assert f"{flagged.sum()} flagged at alpha = 0.2" in said
    np.testing.assert_array_equal(table["q_value"], false_discovery_control(table["p_value"]))


def test_alpha_is_a_twentieth_by_default(places, tmp_path, capsys):
    out = tmp_path / "x.parquet"
    assert of_images(places, out, "--calibration", places / "calibration") == 0
    assert "flagged at alpha = 0.05" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["likelihood", "jepa", "tables"])
def test_a_list_may_be_flagged_by_its_false_discoveries(places, tmp_path, capsys, kind):
    score, calibration, more = KINDS[kind]
    out = tmp_path / "x.parquet"
    assert score(places, out, *more, "--calibration", places / calibration, "--fdr", 0.5) == 0
    table = pq.read_table(out).to_pydict()
    assert table["flagged"] == [q <= 0.5 for q in table["q_value"]]
    assert f"{sum(table['flagged'])} flagged at fdr = 0.5" in capsys.readouterr().out


def test_a_stopped_jepa_score_goes_on_with_its_calibration_rows(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jepa_parts, "_ROWS_A_PART", 8)
    more = ("--score", "jepa", "--calibration", places / "calibration")
    whole, stopped = tmp_path / "whole.parquet", tmp_path / "stopped.parquet"
    assert of_images(places, whole, *more) == 0
    details, calls = jepa_parts.jepa_score_details, []

    def interrupted(encoder, images, **options):
        calls.append(len(images))
        if len(calls) == 7:  # five parts of the calibration rows, one of the data
            raise KeyboardInterrupt
        return details(encoder, images, **options)

    monkeypatch.setattr(jepa_parts, "jepa_score_details", interrupted)
    assert of_images(places, stopped, *more) == 130
    monkeypatch.setattr(jepa_parts, "jepa_score_details", details)
    capsys.readouterr()
    assert of_images(places, stopped, *more) == 0
    assert "8 of them by an earlier run" in capsys.readouterr().out
    assert pq.read_table(whole).equals(pq.read_table(stopped))


@pytest.mark.parametrize("score", [of_images, of_tables])
@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--alpha", "0.1"), "--alpha goes with --calibration"),
        (("--fdr", "0.1"), "--fdr goes with --calibration"),
        (("--calibration", "CALIBRATION", "--alpha", "0.1", "--fdr", "0.1"), "give one of them"),
        (("--calibration", "CALIBRATION", "--fdr", "0.01"), "too few for fdr = 0.01: give at least 99"),
        (("--calibration", "CALIBRATION", "--alpha", "0"), "alpha is 0"),
        (("--calibration", "CALIBRATION", "--alpha", "nan"), "alpha is nan"),
        (("--calibration", "CALIBRATION", "--alpha", "1.5"), "alpha is 1.5"),
        (("--calibration", "CALIBRATION", "--alpha", "0.01"), "too few for alpha = 0.01: give at least 99"),
        (("--calibration", "DATA", "--alpha", "0.2"), "to score are in the calibration set"),
        (("--calibration", "no-such"), "no-such"),
        (("--score", "knn", "--reference", "REFERENCE", "--calibration", "REFERENCE"), "are"),
    ],
)
def test_what_cannot_be_used_is_one_line(places, tmp_path, capsys, score, more, says):
    if score is of_images:
        names = {"CALIBRATION": "calibration", "DATA": "data", "REFERENCE": "reference"}
    else:
        names = {"CALIBRATION": "held.parquet", "DATA": "rows.parquet", "REFERENCE": "table.parquet"}
    out = tmp_path / "x.parquet"
    assert score(places, out, *(places / names[x] if x in names else x for x in more)) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.strip().splitlines()) == 1 and "Traceback" not in error
    assert not out.exists()


@pytest.mark.parametrize("of", [of_images, of_tables])
@pytest.mark.parametrize(
    "more",
    [
        ("--estimator", "sketch"), ("--tolerance", "0.1"), ("--rank", "3"), ("--latent", "normal"),
        ("--size", "24"), ("--size", "0"),
    ],
)  # fmt: skip
def test_an_option_that_the_score_does_not_take_is_one_line(places, tmp_path, capsys, of, more):
    assert of(places, tmp_path / "s.parquet", *more) == 2
    error = capsys.readouterr().err
    assert more[0].replace("--size", "size") in error and error.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_rows_of_few_values_may_equal_calibration_rows(tmp_path, capsys):
    """People who gave the same answers are not one person: such a row is scored, in a file and in a shard."""
    random = np.random.default_rng(0)
    sets = {
        name: random.integers(1, 4, (rows, 3)) for name, rows in (("known", 60), ("held", 40), ("new", 50))
    }
    (tmp_path / "new").mkdir()
    for name, cells in sets.items():
        place = tmp_path / ("new" if name == "new" else ".") / f"{name}.csv"
        pd.DataFrame(cells, columns=list("abc")).to_csv(place, index=False)
    pj.VarTJEPA(max_epochs=1, dim=8, n_layers=1, n_heads=2, ff_dim=8, random_state=0).fit(
        pd.read_csv(tmp_path / "known.csv")
    ).save(tmp_path / "model")

    def score(data, out, held="held.csv"):
        options = ["--calibration", tmp_path / held, "--alpha", 0.1, "--out", tmp_path / out]
        return run(["score", *map(str, [tmp_path / "model", "--data", tmp_path / data, *options])])

    assert score("new/new.csv", "one.parquet") == 0
    shared = sum(row in sets["held"].tolist() for row in sets["new"].tolist())
    assert shared > 10
    assert (
        f"{shared} of 50 rows equal a calibration row, as few values may by chance" in capsys.readouterr().out
    )
    assert score("new", "many") == 0
    one, many = (pq.read_table(tmp_path / name) for name in ("one.parquet", "many/new.parquet"))
    assert one["p_value"].to_pylist() == many["p_value"].to_pylist()
    capsys.readouterr()
    for out, data in (("two.parquet", "new/new.csv"), ("more", "new")):
        assert score(data, out, held="new/new.csv") == 2
        said = capsys.readouterr().err
        assert "is in the calibration set" in said or "50 of 50 rows to score are in the" in said
