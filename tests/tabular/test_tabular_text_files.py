"""Tables that are text: what lines of a file may have wrong, and words for missing cells."""

import gzip
import warnings

import pytest

from probjepa.errors import ProbjepaWarning
from probjepa.tabular.files import read_table


def test_separators_at_the_ends_of_rows_are_no_cells(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,x,\n4,y,\n")
    assert read_table(tmp_path / "t.csv").to_dict("list") == {"a": [1, 4], "b": ["x", "y"]}


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv"])
def test_rows_of_fewer_cells_than_names_are_said(tmp_path, ending):
    file = tmp_path / f"t.{ending}"
    sep = "\t" if ending == "tsv" else ","

    def written(text):
        data = text.replace(",", sep).encode()
        file.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
        return read_table(file)

    with pytest.warns(ProbjepaWarning, match="1 row of fewer cells than its 3 names, line 4: the other"):
        frame = written('a,b,c\n1,"x\ny",3\n4,5\n\n')
    assert frame["c"].isna().tolist() == [False, True]
    with pytest.warns(ProbjepaWarning, match="2 rows of fewer .* the first in line 2, the last in line 4:"):
        written("a,b,c\n1,2\n3,4,5\n6\n")
    with warnings.catch_warnings(action="error"):
        written("a,b,c\n1,2,\n3,,5\n")  # missing cells are no fewer


def test_blank_lines_at_the_end_are_no_rows_and_quoted_cells_are(tmp_path):
    (tmp_path / "t.csv").write_text('a\n1\n""\n3\nNA\n\n\n')
    found = read_table(tmp_path / "t.csv")["a"]
    assert found.isna().tolist() == [False, True, False, True] and found.dropna().tolist() == [1, 3]
    for text in ("\n\na\n1\n3\n", "a\n1,\n3,\n", "NA\n1\n3\n"):
        (tmp_path / "t.csv").write_text(text)
        assert read_table(tmp_path / "t.csv").iloc[:, 0].tolist() == [1, 3]


def test_names_may_be_words_for_a_missing_cell(tmp_path):
    (tmp_path / "t.csv").write_text("x,y,z\n1,x,2\n3,4,y\n")
    assert read_table(tmp_path / "t.csv", na_values=["x", "y"]).isna().sum().to_dict() == {
        "x": 0,
        "y": 1,
        "z": 1,
    }
