"""Tables from files as people have them: kinds of file, ways of writing, the schema that is printed, the traps."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from probjepa.cli import run
from probjepa.errors import DataError
from probjepa.tabular import VarTJEPA
from probjepa.tabular.files import read_table

SMALL = ["--epochs", "1", "--device", "cpu"]
for _setting in ("dim=8", "n_layers=1", "n_heads=2", "ff_dim=8"):
    SMALL += ["--set", _setting]


def table(n=30):
    return pd.DataFrame({
        "size": np.arange(n) / 4 + 1000, "place": np.resize(["here", "there"], n), "flat": 1, "name": [f"n{i}" for i in range(n)],
        "none": np.nan,
    })  # fmt: skip


def _stream(t, path):
    arrow = pa.Table.from_pandas(t)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, arrow.schema) as writer:
        writer.write_table(arrow)


WRITERS = {
    "t.csv": lambda t, path: t.to_csv(path, index=False),
    "t.CSV": lambda t, path: t.to_csv(path, index=False),
    "t.tsv": lambda t, path: t.to_csv(path, index=False, sep="\t"),
    "t.csv.gz": lambda t, path: t.to_csv(path, index=False),
    "t.tsv.gz": lambda t, path: t.to_csv(path, index=False, sep="\t"),
    "t.parquet": lambda t, path: t.to_parquet(path, index=False),
    "t.feather": lambda t, path: t.to_feather(path),
    "t.arrow": lambda t, path: t.to_feather(path, compression="uncompressed"),
    "stream.arrow": _stream,
}


@pytest.mark.parametrize("name", WRITERS)
def test_kinds_of_file(tmp_path, name):
    WRITERS[name](table(), tmp_path / name)
    pd.testing.assert_frame_equal(read_table(tmp_path / name), table(), check_dtype=False)
    (tmp_path / f"bad{name}").write_bytes(b"\x00\xff")
    with pytest.raises(DataError) as error:
        read_table(tmp_path / f"bad{name}")
    assert "\n" not in str(error.value)


def test_how_a_text_is_written_and_what_it_is_read_as(tmp_path, capsys):
    text = table().assign(
        size=lambda t: t["size"].map("{:,.2f}".format).str.translate(str.maketrans(",.", ".,"))
    )
    text.loc[3, "size"] = "?"
    text.to_csv(tmp_path / "t.csv", sep=";", index=False)
    reading = [
        "--data",
        str(tmp_path / "t.csv"),
        "--sep",
        ";",
        "--decimal",
        ",",
        "--thousands",
        ".",
        "--na",
        "?",
    ]
    assert run(["train", "var-t-jepa", *reading, "--out", str(tmp_path / "run"), *SMALL]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:6] == [
        "30 rows, 5 columns: 3 numeric, 2 categorical",
        "  size: numeric, 3.3% missing",
        "  place: categorical, 2 categories",
        "  flat: numeric, constant",
        "  name: categorical, 30 categories, another value in every row, as an id has: leave it out if it is one",
        "  none: numeric, empty",
    ]
    model = VarTJEPA.load(tmp_path / "run" / "model")
    size = next(feature for feature in model.schema_.features if feature.name == "size")
    assert (size.low, size.high) == (1000, 1007.25)
    text.assign(place=["nowhere"] * 3 + ["here"] * 27).to_csv(tmp_path / "t.csv", sep=";", index=False)
    assert run(["score", str(tmp_path / "run"), *reading, "--out", str(tmp_path / "s.parquet")]) == 0
    assert "values that the fit did not know: place 10.0%" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (["1", "2", "?", "4"], "holds numbers and was read as text ('?' in row 2): pass --na '?'"),
        (["1", "2", "-", "4", "missing"], "pass --na '-' --na 'missing'"),
        (["1,234", "12", "1,000.5"], "('1,234' in row 0): pass --thousands ,"),
        (["1,5", "2,25", "3"], "pass --decimal ,"),
        (["1", "not known", "1,000", "2"], "pass --na 'not known' --thousands ,"),
        (["2020-01-02", "2021-03-04 12:00", None], "holds dates and was read as text ('2020-01-02' in row 0): pass --set 'column_types={c: datetime}'"),
        (["1/2/2020", "31/12/2021"], "holds dates"),
        (["a", "b", "1"], None),
        (["1", "2", "3", *"abcdef"], None),
        (["7", "8", "9", "9", "9", "9", "9", "9", "A1", "A2", "A3", "A4", "A5", "A6"], None),
    ],
)  # fmt: skip
def test_numbers_and_dates_that_were_read_as_text(tmp_path, capsys, column, said):
    pd.DataFrame({"c": column, "other": "x"}).to_csv(tmp_path / "t.csv", index=False)
    command = ["train", "t-jepa", "--data", str(tmp_path / "t.csv"), "--out", str(tmp_path / "run"), *SMALL]
    assert run(command) == (2 if said else 0)
    error = capsys.readouterr().err
    if said:
        assert said in error and len(error.strip().splitlines()) == 1
        assert not (tmp_path / "run").exists()
        assert run([*command, "--set", "column_types={c: categorical}", "-q"]) == 0


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("a;b\n1;2\n", "", "has one column, 'a;b': pass --sep ';'"),
        ("a\tb\n1\t2\n", "", "pass --sep '\\t'"),
        ("a|b\n1|2\n", "", "pass --sep '|'"),
        (",a\n0,1\n1,2\n", "", "the column 'Unnamed: 0', an index that was written along"),
        ("a,b\n1,2\n", "--decimal ,,", "decimal is ',,': give one character"),
        ("a,b\n1,2\n", "--sep ab", "sep is 'ab': give one character"),
        ("a,b\n1.5,2\n", "--thousands .", "decimal and thousands are both '.': give two that differ"),
        ("a;b\n1,5;2\n", "--sep ; --decimal , --thousands ,", "decimal and thousands are both ','"),
        (None, "--sep ;", "is no text: leave sep out"),
    ],
)
def test_traps_of_files(tmp_path, capsys, text, arguments, said):
    path = tmp_path / ("t.csv" if text else "t.parquet")
    if text:
        path.write_text(text)
    else:
        table().to_parquet(path)
    command = ["train", "var-t-jepa", "--data", str(path), "--out", str(tmp_path / "run"), *SMALL]
    assert run([*command, *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("option", ["--sep ;", "--decimal ,", "--thousands .", "--na ?"])
def test_images_have_no_separators(tmp_path, capsys, option):
    command = ["train", "vje", "--data", "sklearn:digits", "--out", str(tmp_path / "run")]
    assert run([*command, *option.split()]) == 2
    assert "are for tables, and vje is of images: leave them out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("größe,b,y\n1,2,a\n".encode("cp1252"), "another encoding than UTF-8: save it as UTF-8"),
        (b"age;income, in EUR;town\n1;2;a\n", "has 2 columns with ';' in each, 'age;income': pass --sep ';'"),
        (
            b"age,,town\n3,1.5,a\n4,,b\n4,2.5,a\n",
            "has a column without a name, read as 'Unnamed: 1': give it one",
        ),
        (b",age,town\n0,3,a\n1,4,b\n2,4,a\n", "has the column 'Unnamed: 0', an index that was written along"),
    ],
)
def test_what_a_text_is_not_is_one_line(tmp_path, capsys, content, says):
    (tmp_path / "t.csv").write_bytes(content)
    arguments = [
        "train",
        "var-t-jepa",
        "--data",
        str(tmp_path / "t.csv"),
        "--out",
        str(tmp_path / "run"),
        "-q",
    ]
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said
