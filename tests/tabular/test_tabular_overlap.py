"""Rows that stand in two tables, whatever the types that these were read in, and how many may by chance."""

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probjepa.errors import DataError
from probjepa.evaluation import evaluate_table
from probjepa.tabular.overlap import equal_rows, shared_by_chance

DAYS = ["2020-01-01", "2020-02-01", "2020-03-01"]


@pytest.mark.parametrize(
    ("cells", "known"),
    [
        ([True, False, None], [True, False, False]),
        (pd.array([True, False, None], dtype="boolean"), ["True", "false", "no"]),
        ([True, False, 7], [1.0, 0.0, 2.0]),
        (DAYS, pd.to_datetime([*DAYS[:2], "2021-01-01"])),
        (pd.to_datetime(DAYS), pd.to_datetime([*DAYS[:2], "2021-01-01"]).tz_localize("UTC").as_unit("s")),
        (pd.to_datetime(DAYS).date, [*DAYS[:2], None]),
        (["1", "2", "?"], [1, 2, 3]),
        (["1.50", "2", "?"], [1.5, 2, 3]),
        (np.array([0.1, 0.2, 0.3], np.float32), [0.1, 0.2, 0.4]),
        (["0.1", "0.2", "?"], np.array([0.1, 0.2, 0.4], np.float32)),
        (pd.Categorical([1, 2, 3]), [1.0, 2.0, 4.0]),
        (pd.array([1, 2, None], dtype="Int64"), [1.0, 2.0, -0.5]),
        ([0.0, 1.0, 2.0], [-0.0, 1.0, 3.0]),
        (["x", None, "y"], ["x", np.nan, "z"]),
    ],
)
def test_a_row_is_known_in_any_type(cells, known):
    more = {"of the row": ["a", "b", "c"]}
    rows, others = (pd.DataFrame({"cell": of, **more}) for of in (cells, known))
    assert equal_rows(rows, others)[0].tolist() == [True, True, False]
    assert equal_rows(others, rows)[0].tolist() == [True, True, False]
    assert equal_rows(rows, rows[list(rows)[::-1]][:1])[0].tolist() == [True, False, False]


def test_texts_and_large_numbers_that_differ_are_two():
    for cells, known in (
        (["01", "1"], ["1", "x"]),
        ([1e9, 1e9 + 1], [1e9 + 1, 7.0]),
        ([None, "a"], ["a", "b"]),
    ):
        assert equal_rows(pd.DataFrame({"c": cells}), pd.DataFrame({"c": known}))[0].tolist() == [False, True]


def test_nested_cells_are_one_line():
    with pytest.raises(DataError, match="column 'c' holds nested values"):
        equal_rows(pd.DataFrame({"c": [[1]]}), pd.DataFrame({"c": [[1]]}))[0]


def test_training_rows_are_left_out_of_a_test_file_that_is_read_in_other_types():
    random = np.random.default_rng(0)
    train = pd.DataFrame({"owns": random.random(60) < 0.5, "n": range(60), "y": random.integers(0, 2, 60)})
    test = pd.concat(
        [train.astype({"owns": object}), pd.DataFrame({"owns": [None], "n": [99], "y": [0]})],
        ignore_index=True,
    )
    test = pd.read_csv(io.StringIO(test.to_csv(index=False)))
    assert test["owns"].dtype == object
    found = evaluate_table(None, train, test, "y", predictors=["logistic regression"])
    assert found.metrics["left_out_as_in_train"] == 60 and found.metrics["sets"]["test"]["rows"] == 1


def answers(rows: int, questions: int, seed: int, mood: int = 0) -> pd.DataFrame:
    """Answers from 1 to 5 of people who agree to a degree."""
    likely = np.random.default_rng(mood).dirichlet(np.ones(5), questions)
    random = np.random.default_rng([mood, seed])
    return pd.DataFrame({f"q{i}": random.choice(5, rows, p=p) + 1 for i, p in enumerate(likely)})


def of_chance(rows: pd.DataFrame, held: pd.DataFrame) -> int:
    return shared_by_chance(rows, held, "calibration", "rows to score")


@pytest.mark.parametrize("questions", [2, 4, 6])
@pytest.mark.parametrize(("rows", "held"), [(60, 40), (500, 500), (2000, 100)])
def test_answers_that_two_samples_share_are_no_fault(questions, rows, held):
    """Of 60 pairs of samples of one survey each, hardly any may be refused."""
    refused, shared = 0, 0
    for mood in range(60):
        try:
            shared += of_chance(answers(rows, questions, 1, mood), answers(held, questions, 2, mood))
        except DataError:
            refused += 1
    assert refused <= 4 and shared > 60


@pytest.mark.parametrize("questions", [6, 12])
def test_rows_that_were_put_into_both_are_refused(questions):
    """The first half of the held-out rows is of those to score, and the rest like them."""
    rows = answers(300, questions, 1)
    held = pd.concat([rows[:150], answers(150, questions, 2)])
    with pytest.raises(DataError, match=r"of 300 rows to score are in the calibration set \(row 0, row 1"):
        of_chance(rows, held)


@pytest.mark.parametrize("questions", [1, 2, 6])
def test_the_same_rows_in_another_order_are_refused(questions):
    rows = answers(200, questions, 1)
    with pytest.raises(DataError, match="200 of 200 rows to score"):
        of_chance(rows.sample(frac=1, random_state=0).astype(float), rows)


@pytest.mark.parametrize(
    ("rows", "held", "leaked"), [(100, 100, 14), (1000, 1000, 15), (2000, 100, 100), (50, 20, 5)]
)
def test_a_row_of_numbers_that_stands_twice_hides_no_other(rows, held, leaked):
    random = np.random.default_rng(0)
    known, new = (
        pd.DataFrame(random.normal(size=(n, 3)), columns=list("abc")) for n in (held, rows - leaked)
    )
    with pytest.raises(DataError, match=f"{leaked} of {rows} rows to score are in the calibration set"):
        of_chance(pd.concat([new, known[:leaked]]), pd.concat([known, known[:1]]))


def money(n, random):
    return pd.DataFrame(np.round(np.exp(random.normal(size=(n, 3))), 2), columns=list("abc"))


@pytest.mark.parametrize(("rows", "held"), [(15_000, 3_000), (3_000, 15_000), (2_000, 2_000)])
def test_rows_that_were_put_into_both_are_refused_where_others_repeat(rows, held):
    random = np.random.default_rng(0)
    new, known = (
        pd.concat([table, table[: len(table) // 100]]) for table in (money(rows, random), money(held, random))
    )
    of_chance(new, known)
    with pytest.raises(DataError, match="are in the calibration set"):
        of_chance(pd.concat([new, known[-held // 20 :]]), known)


def test_a_row_that_repeats_much_hides_no_copies():
    random = np.random.default_rng(0)

    def answered(n):
        cells = random.integers(1, 6, (n, 14))
        cells[: n // 100] = 3
        return pd.DataFrame(cells, columns=list("abcdefghijklmn"))

    new, known = answered(3000), answered(15_000)
    new.iloc[-1500:] = known.sample(1500, random_state=0).to_numpy()
    with pytest.raises(DataError, match="are in the calibration set"):
        of_chance(new, known)


@pytest.mark.parametrize("times", [2, 3, 20])
def test_repeated_rows_that_are_dealt_to_both_may_be_chance(times):
    refused = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        table = money(3000, random)
        table = pd.concat([table, *[table[:60]] * (times - 1)]).sample(frac=1, random_state=seed)
        try:
            of_chance(table[:2500], table[2500:])
        except DataError:
            refused += 1
    assert refused <= 1


def test_rows_that_drifted_to_a_few_kinds_are_no_leak():
    """Hardly anyone says yes any more."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        new, held = (
            pd.DataFrame(random.random((n, 8)) < yes, columns=list("abcdefgh"))
            for n, yes in ((200, 0.02), (60, 0.3))
        )
        of_chance(new, held)


def test_a_few_equal_rows_of_small_samples_are_no_leak():
    refused = 0
    for mood in range(40):
        random = np.random.default_rng(mood)
        rows, held = (pd.DataFrame(random.integers(0, 4, (30, 5)), columns=list("abcde")) for _ in range(2))
        try:
            of_chance(rows, held)
        except DataError:
            refused += 1
    assert refused <= 1


def amounts(random, rows):
    return pd.DataFrame({"kind": random.integers(0, 10, rows), "amount": random.integers(0, 40, rows)})


def prices(random, rows):
    return pd.DataFrame({"kind": random.integers(0, 3, rows), "price": random.normal(170, 8, rows).round(1)})


def days(random, rows):
    day = pd.Timestamp("2020-01-01") + pd.to_timedelta(random.integers(0, 2000, rows), "D")
    return pd.DataFrame({"day": day, "shop": random.integers(0, 10, rows)})


def standardised_ages(random, rows):
    age = (random.integers(18, 80, rows) - 49) / 17.9
    return pd.DataFrame({"age": age, "sex": random.integers(0, 2, rows)})


def kilograms(random, rows):
    pounds = random.normal(170, 25, rows).round()
    return pd.DataFrame({"kg": (pounds * 0.45359237).astype(np.float32), "sex": random.integers(0, 2, rows)})


def incomes(random, rows):
    cents, hundreds = (random.lognormal(8, 0.5, rows).round(digits) for digits in (2, -2))
    income = np.where(random.random(rows) < 0.1, cents, hundreds)
    return pd.DataFrame({"income": income, "sex": random.integers(0, 2, rows)})


def names(random, rows):
    return pd.DataFrame({"name": [f"n{of}" for of in random.integers(0, 60, rows)]})


def spent(random, rows):
    amount = np.where(random.random(rows) < 0.7, 0, random.lognormal(3, 1, rows).round(1))
    return pd.DataFrame({"spent": amount, "kind": random.integers(0, 3, rows)})


@pytest.mark.parametrize(
    "table", [amounts, prices, days, standardised_ages, kilograms, incomes, names, spent]
)
@pytest.mark.parametrize(("rows", "held"), [(30, 30), (50, 50), (300, 60)])
def test_samples_that_were_drawn_alike_are_no_leak(table, rows, held):
    random, calls = np.random.default_rng(0), 150
    alarms = sum(not equal_rows(table(random, rows), table(random, held))[1] for _ in range(calls))
    assert alarms <= 2  # each of them at a chance of some 1e-3


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_one_row_of_an_amount_that_is_mostly_zero_is_known(scale, kind):
    random = np.random.default_rng(0)
    if kind == "float32":
        scale = scale**0.1
    rows, held = (
        pd.DataFrame({"spent": np.where(random.random(n) < 0.7, 0, random.normal(size=n) * scale)})
        for n in (200, 40)
    )
    rows, held = rows.astype(kind), held.astype(kind)
    held.iloc[0] = rows[rows["spent"] != 0].iloc[0]
    seen, chance = equal_rows(rows, held)
    assert not chance and seen.sum() > 1  # zeros among them


@pytest.mark.parametrize("rows", [30, 1000])
def test_one_row_of_a_text_that_none_repeats_is_known(rows):
    random = np.random.default_rng(0)
    new, held = (
        pd.DataFrame({"mail": [random.bytes(8).hex() for _ in range(n)], "kind": random.integers(0, 3, n)})
        for n in (rows, 50)
    )
    assert of_chance(new, held) == 0
    new.iloc[3] = held.iloc[5]
    with pytest.raises(DataError, match=f"1 of {rows} rows to score are in the calibration set"):
        of_chance(new, held)


@pytest.mark.filterwarnings("error")
def test_cells_of_any_size_are_compared_in_silence():
    rows = pd.DataFrame({"a": [1e308, 0.5, 3.0] * 10, "b": [np.nan] * 30})
    held = pd.DataFrame({"a": [1e308, 2.5] + [5e-324, 1e17] * 20, "b": [np.nan] * 42})
    assert of_chance(rows, held) == 10


@given(st.integers(0, 2**16), st.integers(1, 20))
def test_one_row_of_numbers_in_both_is_refused(seed, place):
    random = np.random.default_rng(seed)
    rows, held = (pd.DataFrame(random.normal(size=(n, 2)), columns=["a", "b"]) for n in (30, 50))
    assert of_chance(rows, held) == 0
    rows.iloc[place] = held.iloc[0]
    with pytest.raises(DataError, match=rf"1 of 30 rows to score are in the calibration set \(row {place}\)"):
        of_chance(rows, held)


def test_nothing_shared_is_nothing():
    assert of_chance(pd.DataFrame({"a": [1, 1, 2]}), pd.DataFrame({"a": [3, 3]})) == 0
