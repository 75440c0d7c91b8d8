"""Tables from files as people have them: kinds of file, ways of writing, the schema that is printed, the traps."""

import os
import re
import shlex

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml

import probjepa as pj
from probjepa.cli import run
from probjepa.cli.settings import parse_assignments
from probjepa.errors import DataError
from probjepa.tabular import VarTJEPA
from probjepa.tabular.files import read_table
from probjepa.tabular.rows import named_rows
from probjepa.tabular.traps import refuse_traps

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
    text.assign(size="2.000,5").to_csv(tmp_path / "t.csv", sep=";", index=False)
    again = [*reading, "--out", str(tmp_path / "s.parquet"), "--overwrite"]
    assert run(["score", str(tmp_path / "run"), *again]) == 0
    said = capsys.readouterr()
    assert "warning: most values of 'size' (100%) are beyond the range of the fit" in said.err
    assert "values beyond the range of the fit: size 100.0%" in said.out.splitlines()


@pytest.mark.parametrize(
    ("column", "said", "reading"),
    [
        (["1", "2", "?", "4"], "holds numbers and was read as text ('?' in row 2): pass --na '?'", []),
        (["1", "2", "-", "4", "missing"], "pass --na - --na missing", []),
        (["1,234", "12", "1,000.5"], "('1,234' in row 0): pass --thousands ',', or", []),
        (["1,5", "2,25", "3"], "pass --decimal ',', or", []),
        (["1", "not known", "1,000", "2"], "pass --na 'not known' --thousands ',', or --na 'not known' --decimal ',' where that is the decimal sign, or pass", []),
        (["0,864", "0,120", "7"], "('0,864' in row 0): pass --decimal ',', or", []),
        (["-0,436", "1,250"], "pass --decimal ',', or", []),
        (["1", " ? ", "3"], "('? ' in row 1): pass --na '? ', or", []),
        (["(12.25)", "7", "3"], "('(12.25)' in row 0): write it without (, or", []),
        (["\N{MINUS SIGN}12.25", "USD 7", "3"], "write it without USD and \N{MINUS SIGN}, or", []),
        (["1.25", "1,25", "3.5", "4,5"], "holds numbers and was read as text ('1,25' in row 1): they are written in several ways: write them in one", []),
        (["2020-01-02", "unknown", "2021-03-04"], "pass --na unknown --set 'column_types={c: datetime}', or", []),
        (["2020-01-02", "2021-03-04 12:00", None], "holds dates and was read as text ('2020-01-02' in row 0): pass --set 'column_types={c: datetime}'", []),
        (["1/2/2020", "31/12/2021"], "holds dates", []),
        (["01.02.2020", "13.02.2020"], "holds dates", ["--decimal", ",", "--thousands", "."]),
        (["4.402", "3.629", "12"], "('4.402' in row 0): pass --thousands '.', or", ["--decimal", ","]),
        (["1.234,5", "2.000", "?"], "pass --na '?',", ["--decimal", ",", "--thousands", "."]),
        (["1.234,5", "2.000", "?"], "pass --na '?' --thousands '.', or", ["--decimal", ","]),
        (["1.234,5", "2.000", "7"], "('1.234,5' in row 0): pass --decimal ',' --thousands '.', or", []),
        (["1 101,50", "12", "-7,5"], "('1 101,50' in row 0): pass --decimal ',' --thousands ' ', or", []),
        (["1'101.50", "12", "7"], """pass --thousands "'", or""", []),
        (["1\u202f101", "2\u202f050"], "pass --thousands ' ', or", []),
        (["12.5%", "7 %", "?"], "holds numbers and was read as text ('12.5%' in row 0): write it without % and pass --na '?', or", []),
        (["1,10,345", "12,34,567", "999"], "('1,10,345' in row 0): pass --thousands ',', or", []),
        (["14:30", "09:15", "?"], "holds times and was read as text ('14:30' in row 0): write it as a number, of hours say, or pass --set", []),
        (["€1,101", "$ 7", "-5 €"], "write it without $ and € and pass --thousands ',', or", []),
        (["5 Jan 2021", "31 December 1999", "1st Feb 2020 12:00"], "holds dates", []),
        (["Tue, March 3, 2021", "Jan 05 2021"], "holds dates", []),
        (["2021-03", "2020-11"], "holds dates", []),
        (["Mar-21", "dec-20", "Sept 99"], "holds dates in words and was read as text ('Mar-21' in row 0): write them as YYYY-MM-DD, or", []),
        (["24. März 2021", "1. mai 1999", "5 de marzo de 2021"], "holds dates in words and was read as text ('24. März 2021' in row 0): write them as YYYY-MM-DD, or", []),
        (["1.2.3", "1.12.0"], None, []),
        (["192.168.1.1", "10.0.0.1"], None, ["--decimal", ",", "--thousands", "."]),
        (["a", "b", "1"], None, []),
        (["1", "2", "3", *"abcdef"], None, []),
        (["7", "8", "9", "9", "9", "9", "9", "9", "A1", "A2", "A3", "A4", "A5", "A6"], None, []),
    ],
)  # fmt: skip
def test_numbers_and_dates_that_were_read_as_text(tmp_path, capsys, column, said, reading):
    pd.DataFrame({"c": column, "other": "x"}).to_csv(tmp_path / "t.csv", index=False)
    command = ["train", "t-jepa", "--data", str(tmp_path / "t.csv"), "--out", str(tmp_path / "run"), *SMALL]
    command += reading
    assert run(command) == (2 if said else 0)
    error = capsys.readouterr().err
    if said:
        assert said in error and len(error.strip().splitlines()) == 1
        assert not (tmp_path / "run").exists()
        assert run([*command, "--set", "column_types={c: categorical}", "-q"]) == 0
        assert "each taken for a category" not in capsys.readouterr().err


def test_a_run_keeps_how_its_text_was_written(tmp_path, capsys):
    sizes = table()["size"].map("{:,.2f}".format).str.translate(str.maketrans(",.", ".,"))
    (tmp_path / "shards").mkdir()
    text = table().assign(size=sizes, y=np.resize(["a", "b", "?"], 30))
    for name in ("t.csv", "shards/part.csv"):
        text.to_csv(tmp_path / name, sep=";", index=False)
    table().to_parquet(tmp_path / "t.parquet")
    reading = ["--sep", ";", "--decimal", ",", "--thousands", ".", "--na", "?"]
    train = ["train", "var-t-jepa", "--data", str(tmp_path / "t.csv"), "--out", str(tmp_path / "run"), *SMALL]
    assert run([*train, *reading, "--target", "y"]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["text"] == {"sep": ";", "decimal": ",", "thousands": ".", "na_values": ["?"]}
    assert run([*train, "--resume"]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["text"] == config["text"]
    tables = {}
    for name, given in {"said": reading, "kept": [], "t.parquet": [], "shards": []}.items():
        data = tmp_path / (name if name in ("t.parquet", "shards") else "t.csv")
        out = tmp_path / ("out" if name == "shards" else f"{name}.out.parquet")
        assert run(["score", str(tmp_path / "run"), "--data", str(data), "--out", str(out), *given]) == 0
        tables[name] = pd.read_parquet(out / "part.parquet" if name == "shards" else out)
    pd.testing.assert_frame_equal(tables["said"], tables["kept"])
    for name in ("t.parquet", "shards"):
        np.testing.assert_allclose(tables[name]["score"], tables["kept"]["score"])
    capsys.readouterr()
    wrong = ["score", str(tmp_path / "run"), "--data", str(tmp_path / "t.csv"), "--sep", ";"]
    assert run([*wrong, "--out", str(tmp_path / "s.parquet")]) == 2  # what is given is all that counts
    half = [
        "evaluate",
        str(tmp_path / "run"),
        "--train",
        str(tmp_path / "t.csv"),
        "--test",
        str(tmp_path / "h.csv"),
    ]
    text.assign(size="2.000,5").to_csv(tmp_path / "h.csv", sep=";", index=False)
    assert run([*half, "--out", str(tmp_path / "e"), "-q"]) == 0


def test_values_that_the_fit_did_not_know_are_said_once(tmp_path, capsys):
    table().to_csv(tmp_path / "t.csv", index=False)
    train = ["train", "var-t-jepa", "--data", str(tmp_path / "t.csv"), "--out", str(tmp_path / "run"), *SMALL]
    assert run(train) == 0
    table().assign(place="nowhere").to_csv(tmp_path / "new.csv", index=False)
    capsys.readouterr()
    score = ["score", str(tmp_path / "run"), "--data", str(tmp_path / "new.csv")]
    assert run([*score, "--out", str(tmp_path / "s.parquet")]) == 0
    assert capsys.readouterr().err.count("most values of") == 1


@pytest.mark.parametrize("name", ["no", "ON", "a: b, c", "x}y", "it's", "größe", "a b", "1", 'q"q', "~", "c"])
def test_what_is_advised_can_be_pasted(name):
    days = pd.DataFrame({name: ["2020-01-02", "2021-03-04"]})
    with pytest.raises(DataError) as error:
        refuse_traps(days, "t.csv")
    words = shlex.split(re.search(r"pass (.*), or pass --set", str(error.value))[1])
    assert words[0] == "--set" and parse_assignments(words[1:]) == {"column_types": {name: "datetime"}}


@pytest.mark.parametrize(
    ("thousands", "cells"), [(" ", "1\u202f101;12\xa0345,5;7"), ("'", "1'101;12’345,5;7")]
)
def test_spaces_and_apostrophes_between_groups_are_of_any_kind(tmp_path, thousands, cells):
    (tmp_path / "t.csv").write_text("\n".join(["a", *cells.split(";")]) + "\n")
    found = read_table(tmp_path / "t.csv", decimal=",", thousands=thousands, sep="|")
    assert found["a"].tolist() == [1101, 12345.5, 7]
    as_target = read_table(tmp_path / "t.csv", "a", decimal=",", thousands=thousands, sep="|")
    assert as_target["a"].tolist() == [1101, 12345.5, 7]


def test_thousands_count_between_groups_of_three_digits(tmp_path):
    text = (
        "d;v;ip;plain;none\n01.02.2020;1.234,5;192.168.1.1;7;\n13.02.2020;-12.234.567;10.0.0.1;1234;\n;;;;\n"
    )
    (tmp_path / "t.csv").write_text(text)
    found = read_table(tmp_path / "t.csv", sep=";", decimal=",", thousands=".")
    assert found["d"].tolist()[:2] == ["01.02.2020", "13.02.2020"]
    assert found["ip"].tolist()[:2] == ["192.168.1.1", "10.0.0.1"]
    assert found["v"].tolist()[:2] == [1234.5, -12234567] and found["v"].isna()[2]
    assert found["plain"].tolist()[:2] == [7, 1234] and found["none"].isna().all()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["01", "1", "2"], ["01", "1", "2"]),
        (["1", "2", ""], [1.0, 2.0, None]),
        (["9007199254740993", "9007199254740995", ""], ["9007199254740993", "9007199254740995", None]),
        (["1.0", "2.0", "1.0"], [1.0, 2.0, 1.0]),
        (["1.5", "1.50", "2"], [1.5, 1.5, 2.0]),  # no classes
        (["True", "False", "True"], [True, False, True]),
        (["a", "1", "a"], ["a", "1", "a"]),
    ],
)
def test_ids_and_classes_are_as_they_are_written(tmp_path, cells, expected):
    pd.DataFrame({"x": [1, 2, 3], "ID": ["0200", "9007199254740993", ""], "y": cells}).to_csv(
        tmp_path / "t.csv", index=False
    )
    found = read_table(tmp_path / "t.csv", "y")
    assert [None if pd.isna(cell) else cell for cell in found["y"]] == expected
    features, rows = named_rows(found, ["x"], "y")
    assert list(features) == ["x"] and rows["id"] == ["0200", "9007199254740993", ""]
    assert read_table(tmp_path / "t.csv", "y", ["ID", "y"])["ID"].dtype.kind == "f"


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("a;b\n1;2\n", "", "has one column, 'a;b': pass --sep ';'"),
        ("a;b\n1,5;2\n", "", "has one column, 'a;b': pass --sep ';'"),
        ("a|b\n1,5|2,5\n", "", "has one column, 'a|b': pass --sep '|'"),
        ("a\tb\n1\t2\n", "", "pass --sep '\\t'"),
        ("a|b\n1|2\n", "", "pass --sep '|'"),
        (",a\n0,1\n1,2\n", "", "the column 'Unnamed: 0', an index that was written along"),
        ("a,b\n1,2\n", "--decimal ,,", "decimal is ',,': give one character"),
        ("a,b\n1,2\n", "--sep ab", "sep is 'ab': give one character"),
        ("a,b\n1.5,2\n", "--thousands .", "decimal and thousands are both '.': give two that differ"),
        ("a;b\n1,5;2\n", "--sep ; --decimal , --thousands ,", "decimal and thousands are both ','"),
        (None, "--sep ;", "is no text: leave --sep out"),
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


def test_processes_that_torchrun_started_are_told_that_a_table_needs_one(tmp_path, capsys, monkeypatch):
    table().to_csv(tmp_path / "t.csv", index=False)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        command = ["train", "t-jepa", "--data", str(tmp_path / "t.csv"), "--out", str(tmp_path / "run")]
        assert run([*command, *SMALL]) == 2
        assert "t-jepa trains in one process" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_is_meant_as_a_category_keeps_its_digits(tmp_path):
    (tmp_path / "t.csv").write_text("code,n\n" + "00123,1\n123,2\n007,3\n" * 4)
    command = ["train", "t-jepa", "--data", str(tmp_path / "t.csv"), "--out", str(tmp_path / "run"), *SMALL]
    assert run([*command, "--set", "column_types={code: categorical}", "-q"]) == 0
    code = pj.load(tmp_path / "run").schema_.features[0]
    assert set(code.categories) == {"00123", "123", "007"}


def test_numbers_with_leading_zeros_are_told(tmp_path, capsys):
    rows = ["01234,7,0.5,2,0930", "90210,12,-0.25,0,", ",3,00.5,5,1745"]
    (tmp_path / "t.csv").write_text("\n".join(["zip,n,x,zero,at", *rows * 4]) + "\n")
    command = ["train", "t-jepa", "--data", str(tmp_path / "t.csv"), "--out", str(tmp_path / "run"), *SMALL]
    assert run(command) == 0
    advice = "--set 'column_types={zip: categorical, at: categorical}'"
    told = f"as codes are: 'zip' ('01234'), 'at' ('0930'). If they are codes, pass {advice}"
    assert told in capsys.readouterr().err
    assert not pj.load(tmp_path / "run").schema_.features[0].categories
    assert run([*command, "--overwrite", *shlex.split(advice)]) == 0
    assert "leading zeros" not in capsys.readouterr().err
    zip_codes = next(of for of in pj.load(tmp_path / "run").schema_.features if of.name == "zip")
    assert set(zip_codes.categories) == {"01234", "90210"}


@pytest.mark.parametrize("cells", [["1", "2", "3"], ["1.0", "2.0", ""], ["1", "2 ", "1.0"]])
def test_codes_that_are_numbers_are_alike_in_all_kinds_of_file(tmp_path, cells):
    (tmp_path / "t.csv").write_text("code,n\n" + "".join(f"{cell},{i}\n" for i, cell in enumerate(cells)) * 4)
    command = ["train", "t-jepa", "--data", str(tmp_path / "t.csv"), "--out", str(tmp_path / "run"), *SMALL]
    assert run([*command, "--set", "column_types={code: categorical}", "-q"]) == 0
    schema = pj.load(tmp_path / "run").schema_
    codes = [[1, 2], [1.0, 2.0], ["1", "2"]]
    for i, values in enumerate(codes):
        pd.DataFrame({"code": values, "n": 1}).to_parquet(tmp_path / f"{i}.parquet")
        pd.DataFrame({"code": values, "n": 1}).to_csv(tmp_path / f"{i}.csv", index=False)
        for name in (f"{i}.parquet", f"{i}.csv"):
            read = read_table(tmp_path / name, features=schema.columns, texts=schema.texts)
            assert schema.unknown_shares(schema.encode(read)).get("code", 0) == 0


def test_words_for_missing_cells_are_told_and_may_be_categories(tmp_path, capsys):
    cells = [f"{i},{('NA', 'DE', 'None')[i % 3]},{('', 'x')[i % 2]}" for i in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(["n,country,blank", *cells]) + "\n")
    command = ["train", "t-jepa", "--data", str(tmp_path / "t.csv"), "--out", str(tmp_path / "run"), *SMALL]
    assert run([*command, "-q"]) == 0
    told = (
        "words that are taken for missing cells: 'NA' (10), 'None' (10), in 'country'. If they are categories"
    )
    assert told in capsys.readouterr().err
    assert run([*command, "-q", "--overwrite", "--na", "NA", "--na", "None"]) == 0
    assert run([*command, "-q", "--overwrite", "--na-only"]) == 0
    assert "warning" not in capsys.readouterr().err
    schema = pj.load(tmp_path / "run").schema_
    countries = next(feature for feature in schema.features if feature.name == "country")
    assert set(countries.categories) == {"NA", "DE", "None"}
    # what follows reads as the run did: no value is new
    assert run(["embed", str(tmp_path / "run"), *command[2:4], "--out", str(tmp_path / "s.parquet")]) == 0
    assert "did not know" not in capsys.readouterr().out
    # what is typed as dates has none, what is typed as categories has, and so has the target
    (tmp_path / "t.csv").write_text("when,code,y\n" + "2021-01-02,1,NA\nNA,2,a\n2021-03-04,NA,b\n" * 9)
    types = ["--set", "column_types={when: datetime, code: categorical}"]
    assert run([*command, "-q", "--overwrite", *types, "--target", "y"]) == 0
    assert "missing cells: 'NA' (18), in 'code', 'y'. If they" in capsys.readouterr().err
    # a number's missing cell is named then
    (tmp_path / "t.csv").write_text("n\n1\nNA\n2.5\n" * 9)
    assert run([*command, "--overwrite", "--na-only"]) == 2
    assert "('NA' in row 1): pass --na NA" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--sep ;", "--decimal ,", "--thousands .", "--na ?", "--na-only"])
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
        (
            b"age,town\n0,3,a\n1,4,b\n",
            "has 2 names in its first line and more cells in a row: name each column",
        ),
        (
            b"age,town\n3,a,9\n4,b\n",
            "has 2 names in its first line and more cells in a row: name each column",
        ),
        (b"# of 2021\nage,town\n3,a\n4,b\n", "has 1 name in its first line and more cells in a row"),
        (b"age,town,age\n3,a,4\n4,b,5\n", "has several columns of one name: 'age': rename them"),
        (b"age\n3\n\n4\n", "has one column and lines without a cell: write NA for a missing one"),
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


def test_a_folder_of_tables_trains_and_is_evaluated(tmp_path, capsys):
    rows = table().assign(y=np.resize(["a", "b"], 30))
    for name, part in {"one/a.csv": rows[:20], "one/b.parquet": rows[20:], "test/c.csv": rows[::3]}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        part.assign(none=1.0, size=part["size"] + 40 * ("test" in name)).pipe(
            lambda t, name=name: (
                t.to_csv(tmp_path / name, index=False)
                if name.endswith("csv")
                else t.to_parquet(tmp_path / name, index=False)
            )
        )
    command = ["train", "var-t-jepa", "--data", str(tmp_path / "one"), "--out", str(tmp_path / "run"), *SMALL]
    assert run([*command, "--target", "y"]) == 0
    assert capsys.readouterr().out.startswith("30 rows, 5 columns")
    assert run([*command, "--target", "y", "--resume"]) == 0
    score = [
        "score",
        str(tmp_path / "run"),
        "--data",
        str(tmp_path / "test"),
        "--out",
        str(tmp_path / "s.parquet"),
    ]
    for name in ("score", "embed"):
        assert run([name, *score[1:-1], str(tmp_path / "test" / "s.parquet")]) == 2
        assert "lies in --data" in capsys.readouterr().err
    alone = [*score[:3], str(tmp_path / "one" / "b.parquet"), "--out"]
    before = (tmp_path / "one" / "b.parquet").read_bytes()
    os.symlink(tmp_path / "one" / "b.parquet", tmp_path / "link.parquet")
    for name in ("one/b.parquet", "link.parquet"):
        for more in ([], ["--score", "knn", "--reference", str(tmp_path / "one" / "a.csv")]):
            assert run([*alone, str(tmp_path / name), "--overwrite", *more]) == 2
            assert "is --data" in capsys.readouterr().err
    knn = ["--score", "knn", "--reference", str(tmp_path / "one" / "b.parquet"), "--overwrite"]
    test = [*score[:3], str(tmp_path / "test" / "c.csv"), "--out"]
    assert run([*test, str(tmp_path / "one" / "b.parquet"), *knn]) == 2
    assert "is --reference" in capsys.readouterr().err
    assert (tmp_path / "one" / "b.parquet").read_bytes() == before
    (tmp_path / "other").write_bytes(b"of another kind")
    assert run([*test, str(tmp_path / "other"), "--overwrite"]) == 2
    assert "other is there, and is no table in parquet" in capsys.readouterr().err
    (tmp_path / "held").mkdir()
    rows.assign(none=1.0, size=rows["size"] + 0.125).to_csv(tmp_path / "held" / "d.csv", index=False)
    assert run([*score, "--calibration", str(tmp_path / "held"), "--fdr", "0.1"]) == 0
    assert pd.read_parquet(tmp_path / "s.parquet")["id"].tolist() == [str(row) for row in range(10)]
    known = ["--train", str(tmp_path / "one"), "--test", str(tmp_path / "test")]
    assert run(["evaluate", str(tmp_path / "run"), *known, "--out", str(tmp_path / "e"), "-q"]) == 0


def test_a_column_of_ids_is_named_once(tmp_path, capsys):
    names = [f"{row:03}" for row in range(30)]
    (tmp_path / "months").mkdir()
    rows = table().drop(columns="name").assign(customer=names, y=np.resize(["a", "b"], 30))
    for name in ("t.csv", "months/one.csv"):
        rows.to_csv(tmp_path / name, index=False)
    rows.drop(columns="customer").assign(id=range(30)).to_csv(tmp_path / "other.csv", index=False)
    rows.assign(size=rows["size"] + 40).to_csv(tmp_path / "test.csv", index=False)
    train = ["train", "var-t-jepa", "--data", str(tmp_path / "t.csv"), "--out", str(tmp_path / "run"), *SMALL]
    train += ["--target", "y"]
    assert run([*train, "--ids", "customer"]) == 0
    assert "customer" not in capsys.readouterr().out.replace("without y and customer", "")
    assert run([*train, "--resume", "-q"]) == 0

    def ids(data, out, *more):
        command = [
            "embed",
            str(tmp_path / "run"),
            "--data",
            str(tmp_path / data),
            "--out",
            str(tmp_path / out),
        ]
        assert run([*command, "-q", *more]) == 0
        found = tmp_path / out
        return pd.read_parquet(found / "one.parquet" if found.is_dir() else found)["id"].tolist()

    assert ids("t.csv", "a.parquet") == names
    assert ids("months", "shards") == names
    assert ids("other.csv", "b.parquet") == [str(row) for row in range(30)]
    known = ["--train", str(tmp_path / "t.csv"), "--test", str(tmp_path / "test.csv")]
    assert run(["evaluate", str(tmp_path / "run"), *known, "--out", str(tmp_path / "e"), "-q"]) == 0
    assert pd.read_parquet(tmp_path / "e" / "scores.parquet")["id"].tolist() == names
    found = pj.evaluate(tmp_path / "run", tmp_path / "t.csv", tmp_path / "test.csv", target="y")
    assert found.arrays["rows"]["id"].to_pylist() == names
    rows.rename(columns={"customer": "client"}).to_csv(tmp_path / "months" / "one.csv", index=False)
    score = ["score", str(tmp_path / "run"), "--data", str(tmp_path / "test.csv"), "--ids", "customer"]
    held = pd.read_csv(tmp_path / "other.csv")
    held.assign(size=held["size"] + 0.125).to_csv(tmp_path / "held.csv", index=False)
    score += ["--calibration", str(tmp_path / "held.csv"), "--out", str(tmp_path / "s.parquet"), "-q"]
    assert run(score) == 0
    assert ids("months", "more", "--ids", "client") == names
    capsys.readouterr()
    for data, name, says in (
        ("t.csv", "client", "has no column 'client' of ids (columns: 'size', 'place',"),
        ("t.csv", "y", "--ids y: that column is a feature or the target"),
        ("t.csv", "size", "--ids size: that column is a feature or the target: name another"),
    ):
        command = ["embed", str(tmp_path / "run"), "--data", str(tmp_path / data), "--ids", name]
        assert run([*command, "--out", str(tmp_path / "x.parquet")]) == 2
        assert says in (error := capsys.readouterr().err) and error.count("\n") == 1
    train[3] = str(tmp_path / "other.csv")
    assert run([*train, "--resume"]) == 2
    assert "has no column 'customer' of ids" in capsys.readouterr().err
    assert run([*train, "--overwrite", "--ids", "y"]) == 2
    assert "--ids y" in capsys.readouterr().err
