"""What the commands do with sources: options given twice, chosen columns, and what is left out."""

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from PIL import Image

from probjepa import VJE
from probjepa.cli import run
from probjepa.cli.app import app
from probjepa.yaml_files import read_yaml
from shard_cases import write_numbered

QUICK = ["--set", "batch_size=8", "--set", "backbone=convnet", "--set", "widths=[4,8]", "-q"]
COMMANDS = typer.main.get_command(app).commands
SINGLE = [
    (name, option.opts[0])
    for name, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, typer.core.TyperOption) and not option.multiple and not option.is_flag
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with what is no image in it, a table of the same images, and a model."""
    root = tmp_path_factory.mktemp("sources")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16), dtype=np.uint8)
    for row, image in enumerate(pixels):
        path = root / "set" / "ab"[row % 2] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (root / "set" / "notes.txt").write_text("no image")
    (root / "set" / "a" / "broken.png").write_text("no image")
    files = [f"set/{'ab'[row % 2]}/{row}.png" for row in range(12)]
    columns = {
        "image": [(root / file).read_bytes() for file in files],
        "label": [0] * 12,
        "kind": ["xy"[row % 2] for row in range(12)],
        "file": files,
    }
    pq.write_table(pa.table(columns), root / "x.parquet")
    method = VJE("convnet", channels=1, image_size=16, backbone_options={"widths": (4, 8)})
    method.save_pretrained(root / "model")
    return root


def test_commands_are_known():
    assert {name for name, _ in SINGLE} >= {
        "train",
        "embed",
        "score",
        "evaluate",
        "curate",
        "reproduce",
        "demo",
    }


@pytest.mark.parametrize(("command", "option"), SINGLE)
def test_an_option_given_twice_is_an_error(command, option, capsys):
    needed = ["x" for of in COMMANDS[command].params if isinstance(of, typer.core.TyperArgument)]
    assert run([command, *needed, option, "1", option, "2"]) == 2
    out, error = capsys.readouterr()
    assert error == f"probjepa: {option} is given 2 times: give it once\n" and not out


def test_options_of_many_values_and_flags_may_be_given_again(places, capsys, tmp_path):
    arguments = ["embed", str(places / "model"), "--data", str(places / "x.parquet"), "-q", "-q"]
    assert run([*arguments, "--out", str(tmp_path / "e.parquet")]) == 0
    model = str(places / "model")
    twice = ["--ood", "a=x", "--ood", "a=y", "--train", "t", "--test", "t", "--out", str(tmp_path / "o")]
    assert run(["evaluate", model, *twice]) == 2
    assert "--ood a= is given twice" in capsys.readouterr().err


def test_columns_are_chosen(places, tmp_path):
    out, table = tmp_path / "e.parquet", str(places / "x.parquet")
    choose = ["--labels", "kind", "--ids", "file", "-q"]
    assert run(["embed", str(places / "model"), "--data", table, "--out", str(out), *choose]) == 0
    found = pq.read_table(out).to_pydict()
    assert found["label"] == ["x", "y"] * 6 and found["id"][1] == "set/b/1.png"
    assert (
        run(
            [
                "embed",
                str(places / "model"),
                "--data",
                table,
                "--out",
                str(tmp_path / "n"),
                "--labels",
                "none",
            ]
        )
        == 0
    )
    assert "label" not in pq.read_table(tmp_path / "n").column_names
    run_ = ["--out", str(tmp_path / "run"), "--epochs", "1", "--val", table, *QUICK]
    assert run(["train", "vje", "--data", table, *choose, *run_]) == 0
    sets = ["--train", table, "--test", str(places / "set"), "--ood", f"o={places / 'set'}"]
    assert run(["evaluate", str(places / "model"), *sets, *choose, "--out", str(tmp_path / "ev")]) == 2


def test_tables_have_no_image_columns(tmp_path, capsys):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    for option, *value in (("--labels", "a"), ("--on-error", "skip"), ("--convert",)):
        arguments = ["train", "t-jepa", "--data", str(tmp_path / "x.csv"), "--out", str(tmp_path / "r")]
        assert run([*arguments, option, *value]) == 2
        assert capsys.readouterr().err == f"probjepa: {option}: not for tables, leave it out\n"


def test_what_is_left_out_is_named_everywhere(places, tmp_path, capsys):
    source, model = str(places / "set"), str(places / "model")
    lines = [f"{places / 'set' / name} is " for name in ("notes.txt", "a/broken.png")]
    skip = ["--on-error", "skip", "-q"]
    for number, arguments in enumerate((
        ["embed", model, "--data", source],
        ["score", model, "--data", source],
        ["curate", model, "--data", source],
        ["train", "vje", "--data", source, "--val", source, "--epochs", "1", *QUICK[:-1]],
    )):  # fmt: skip
        out = tmp_path / str(number)
        assert run([*arguments, "--out", str(out), *skip]) == 0
        printed = capsys.readouterr().out
        assert "skipped 2 unreadable files" in printed and all(line in printed for line in lines)
        if out.is_dir():
            page = (out / "report.html").read_text()
            assert all(line in page for line in lines)
    config = read_yaml(tmp_path / "3" / "config.yaml")
    for name in ("data_skipped", "val_skipped"):
        assert len(config[name]) == 2 and config[name][0].startswith(lines[0])
    resumed = [
        "train",
        "vje",
        "--data",
        source,
        "--val",
        source,
        "--out",
        str(tmp_path / "3"),
        "--resume",
        *skip,
    ]
    assert run(resumed) == 0


@pytest.mark.parametrize("asked", [[], ["image_size=16"], ["channels=1"], ["image_size=16", "channels=1"]])
def test_a_streamed_run_is_resumed_whatever_of_its_images_was_asked_for(tmp_path, asked):
    data, out = write_numbered(tmp_path / "shards", (20, 22)), tmp_path / "run"
    command = ["train", "vje", "--data", str(data), "--out", str(out), *QUICK, "--set", "workers=0"]
    command += ["--set", "stream=true", *(word for setting in asked for word in ("--set", setting))]
    assert run([*command, "--epochs", "1"]) == 0
    assert run([*command, "--epochs", "1", "--resume"]) == 0


def test_train_streams_shards_and_goes_on_as_it_was_begun(tmp_path, capsys):
    data, out = write_numbered(tmp_path / "shards", (20, 3, 19), "tar"), tmp_path / "run"
    command = ["train", "vje", "--data", str(data), "--out", str(out), *QUICK, "--set", "workers=0"]
    assert run([*command, "--epochs", "1"]) == 0
    config = read_yaml(out / "config.yaml")
    assert (config["data_images"], config["data_shards"], config["stream_buffer"]) == (42, 3, 4096)
    assert (out / "report.html").is_file()
    assert run(["train", "vje", "--data", str(data), "--out", str(out), "-q", "--resume"]) == 0
    (data / "part-01.tar").write_bytes(b"no tar file")
    capsys.readouterr()
    assert run([*command, "--overwrite"]) == 2
    assert "part-01.tar' cannot be read as .tar" in capsys.readouterr().err
    assert run([*command, "--overwrite", "--epochs", "1", "--on-error", "skip"]) == 0
    assert "part-01.tar" in capsys.readouterr().out
    assert "part-01.tar" in read_yaml(out / "config.yaml")["data_skipped"][0]


def test_train_reads_shards_of_a_store(tmp_path):
    store = fsspec.filesystem("memory")
    for file in write_numbered(tmp_path / "shards", (20, 22)).iterdir():
        store.pipe_file(f"/train-store/{file.name}", file.read_bytes())
    command = ["train", "vje", "--data", "memory://train-store", "--out", str(tmp_path / "run"), *QUICK]
    assert run([*command, "--epochs", "1", "--set", "workers=0"]) == 0
    assert read_yaml(tmp_path / "run" / "config.yaml")["data_shards"] == 2
