"""YAML that users write: plain values, and everything else one line, quickly and in little memory."""

import resource
import time

import pytest
import yaml

from probjepa.errors import ConfigError
from probjepa.yaml_files import parse_yaml, read_mapping, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: [0.5, true, null]\nc: {d: text, e: -.inf}\n",
        "'2026-01-01'", "0x1F", "1_000", "-7", "[]", "", "a: &anchor 1", "x: |\n  two\n  lines\n",
    ],
)  # fmt: skip
def test_plain_values_are_read_as_pyyaml_reads_them(text):
    assert parse_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize("text", ["[]", "", "7", "- a: 1\n"])
def test_settings_are_a_mapping(text, tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\n")
    assert read_mapping(tmp_path / "config.yaml") == {"a": 1}
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml holds no settings"):
        read_mapping(tmp_path / "config.yaml")


def test_a_date_stays_text():
    assert parse_yaml("a: 2026-01-01\nb: 2026-01-01 10:00:00\n") == {
        "a": "2026-01-01",
        "b": "2026-01-01 10:00:00",
    }


REFUSED = [
    (BOMB, "the alias \\*a0 is not taken"),
    ("a: &a [*a]", "alias"),
    ("a: 1\nb: 2\na: 3\n", "the key 'a' stands twice in line 3"),
    ("a: {b: 1, b: 2}", "the key 'b' stands twice"),
    ("a: " + "9" * 5000, "too many digits"),
    ("a: 0x" + "f" * 100_000, "too many digits"),
    ("a: 1" + ":59" * 100_000, "too many digits"),
    ("a: 1" + ":59" * 200 + ".5", "too many digits"),
    ("a: 100000000000000000000", "too many digits"),
    ("[" * 100_000, "more than settings need"),
    ("a: " + "{b: " * 60 + "1" + "}" * 60, "more than settings need"),
    ("[" + "1," * 200_000 + "]", "more than settings need"),
    ("!!python/object/apply:os.system ['true']", "the tag .* is not taken"),
    ("!!bool maybe", "is not taken"),
    ("!!float ''", "is not taken"),
    ("!mine 1", "is not taken"),
    ("a: [1", "in line 2"),
    ("a: b: c", "in line 1"),
    ("? [a]\n: 1", "unhashable"),
    ("a: 1\n---\nb: 2", "document"),
    ("\0", "character"),
    ("%YAML 9.9\n--- 1", "line 1"),
]


@pytest.mark.parametrize(("text", "says"), REFUSED)
def test_what_is_refused_is_one_short_line_and_costs_little(text, says):
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ConfigError, match=says) as error:
        parse_yaml(text)
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_files(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\n")
    assert read_yaml(path) == {"a": 1}
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(ConfigError, match="it is no text"):
        read_yaml(path)
    path.write_text("# " + "x" * 1_000_000)
    with pytest.raises(ConfigError, match="larger than a megabyte"):
        read_yaml(path)
    with pytest.raises(ConfigError, match="Is a directory"):
        read_yaml(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="no regular file"):
        read_yaml("/dev/zero")
