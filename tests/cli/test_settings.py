"""Settings that a user may write: what is wrong with them is one line and exit code 2, within seconds."""

import resource
import time

import numpy as np
import pandas as pd
import pytest
import yaml

from probjepa.cli import run
from probjepa.cli.options import Training
from probjepa.cli.settings import given_settings, parse_assignments, read_config
from probjepa.errors import ConfigError
from test_yaml_files import BOMB


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("settings")
    random = np.random.default_rng(0)
    np.save(root / "images.npy", random.integers(0, 256, (8, 16, 16), dtype=np.uint8))
    pd.DataFrame({"a": random.normal(size=20), "b": list("xy") * 10}).to_csv(root / "table.csv", index=False)
    return root


# (what is written, what the message says of it); "--set" items, or the text or bytes of a config file
EITHER = [
    ("weight_decay: 2026-01-01", "the setting weight_decay takes a number"),
    ("batch_size: 2026-01-01", "the setting batch_size takes a whole number"),
    ("batch_size: " + "9" * 5000, "a number of too many digits"),
    ("batch_size: 0x" + "f" * 5000, "a number of too many digits"),
    ("batch_size: 100000000000000000000", "a number of too many digits"),
    ("batch_size: 1.5", "takes a whole number"),
    ("batch_size: true", "takes a whole number"),
    ("batch_size: {a: 1}", "takes a whole number"),
    ("batch_size: [8]", "takes a whole number"),
    ("batch_size: eight", "takes a whole number"),
    ("batch_size: '8'", "takes a whole number"),
    ("learning_rate: much", "the setting learning_rate takes a number"),
    ("learning_rate: .nan", "takes a finite number"),
    ("learning_rate: .inf", "takes a finite number"),
    ("learning_rate: -.inf", "takes a finite number"),
    ("learning_rate: 1e999", "takes a number"),
    ("learning_rate: false", "takes a number"),
    ("learning_rate: [0.1]", "takes a number"),
    ("learning_rate: " + "x" * 5000, "takes a number"),
    ("batchsize: 8", "did you mean 'batch_size'"),
    ("? " + "z" * 5000 + "\n: 1", "unknown setting 'zzz"),
    ("1: 2", "a setting is a name"),
    ("null: 2", "a setting is a name"),
    ("2026-01-01: 2", "unknown setting '2026-01-01'"),
    ("batch_size: 8\nbatch_size: 9", "the key 'batch_size' stands twice"),
    ("", "holds no settings"),
    ("# nothing", "holds no settings"),
    ("just text", "holds no settings"),
    ("[batch_size, 8]", "holds no settings"),
    ("7", "holds no settings"),
    (BOMB, "the alias *a0 is not taken"),
    ("a: &a [*a]", "the alias *a is not taken"),
    ("x: !!python/object/apply:os.system [ls]", "the tag tag:yaml.org,2002:python/object/apply:os.system is not"),
    ("batch_size: !!int '8'", "is not taken"),
    ("[" * 100_000, "more than settings need"),
    ("a: " * 1, "unknown setting 'a'"),
    ("batch_size: [1", "is not YAML"),
    ("batch_size: 8: 9", "is not YAML"),
    ("\tbatch_size: 8", "is not YAML"),
    ("batch_size: 8\n---\nbatch_size: 9", "is not YAML"),
    (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "it is no text"),
    (b"\x00" * 100, "is not YAML"),
    (b"# " + b"x" * 1_100_000, "larger than a megabyte"),
    ("method: {name: simsiam}", "is a config of 'simsiam'"),
    ("method: simsiam", "is a config of 'simsiam'"),
    ("method: [vje]", "method in .* takes a mapping"),
    ("method: {name: [a, b]}", "is a config of"),
    ("options: 3", "options in .* takes a mapping"),
    ("backbone_options: [8]", "backbone_options in .* takes a mapping"),
    ("method: {backbone_options: 7}", "backbone_options in .* takes a mapping"),
]  # fmt: skip
IMAGES = [
    ("kl_weight: null", "the setting kl_weight takes a number, got 'null'"),
    ("kl_weight: 2026-01-01", "takes a number, got '2026-01-01'"),
    ("df: often", "the setting df takes a number or 'inf'"),
    ("variance: diag", "the setting variance takes 'diagonal' or 'isotropic'"),
    ("directional: 1", "takes true or false"),
    ("image_size: big", "the setting image_size takes a whole number"),
    ("channels: [1]", "the setting channels takes a whole number"),
    ("epochs: {}", "the setting epochs takes a whole number"),
    ("epochs: null", "the setting epochs takes a whole number"),
    ("backbone: [convnet]", "the setting backbone takes a name"),
    ("backbone: 3", "the setting backbone takes a name"),
    ("backbone: convnett", "did you mean 'convnet'"),
    ("method: {backbone: convnet, backbone_options: {widdths: [4]}}", "did you mean 'widths'"),
    ("backbone_options: {widdths: [4]}", "did you mean 'widths'"),
    ("widths: 4", "the setting widths takes a list of whole numbers"),
    ("widths: [4, x]", "the setting widths takes a list of whole numbers"),
    ("widths: []", "widths"),
    ("mean: [0.5, x]", "the setting mean takes a list of numbers or null"),
    ("view_recipe: [a]", "the setting view_recipe takes a name or null"),
    ("optimizer: 3", "the setting optimizer takes a name"),
    ("hidden_dim: -3", "hidden_dim must be a whole number"),
    ("backbone: vit\nwidth: -8", "vje cannot be built with these settings"),
    ("hidden_dim: 4000000000000", "vje cannot be built with these settings"),
    ("batch_size: 8\noptimizer: adam", "did you mean 'adamw'"),
    ("batch_size: 8\nprecision: high", "Lightning cannot train with these settings"),
    ("batch_size: 8\nstrategy: fast", "Lightning cannot train with these settings"),
    ("batch_size: 8\ndevices: -3", "Lightning cannot train with these settings"),
    ("batch_size: 8\nviews: bylo-32", "did you mean 'byol-32'"),
    ("loggers: csv", "unknown logger 'csv' (known: tensorboard)"),
    ("gradient_clip_val: [1]", "the setting gradient_clip_val takes a number or null"),
    ("devices: two", "the setting devices takes"),
    ("strategy: [a]", "the setting strategy takes a name"),
]  # fmt: skip
TABLES = [
    ("dim: wide", "the setting dim takes a whole number or null"),
    ("preset: [small]", "the setting preset takes a name"),
    ("preset: null", "the setting preset takes a name"),
    ("preset: smal", "did you mean 'small'"),
    ("embedding: flat", "the setting embedding takes 'flattened' or 'pooled'"),
    ("context_share: 0.5", "the setting context_share takes a list of 2 numbers or null"),
    ("context_share: [0.5]", "takes a list of 2 numbers or null"),
    ("context_share: [0.1, 0.2, 0.3]", "takes a list of 2 numbers or null"),
    ("context_share: [a, b]", "takes a list of 2 numbers or null"),
    ("anneal_epochs: [1, 2]", "takes a list of 3 numbers or null"),
    ("column_types: [a]", "the setting column_types takes a mapping or null"),
    ("column_types: {a: blue}", "the setting column_types takes a mapping or null"),
    ("numeric_transform: log", "the setting numeric_transform takes 'standard' or 'quantile'"),
    ("alpha_z: .inf", "the setting alpha_z takes a finite number or null"),
    ("dropout: .nan", "the setting dropout takes a finite number or null"),
    ("max_categories: null", "the setting max_categories takes a whole number"),
    ("random_state: x", "the setting random_state takes a whole number or null"),
    ("seed: x", "the setting random_state takes a whole number or null"),
    ("device: 3", "the setting device takes a name"),
    ("verbose: true", "unknown setting 'verbose'"),
    ("method: {name: var-t-jepa, dimm: 8}", "did you mean 'dim'"),
    ("target: [a]", "the setting target takes a name or null"),
    ("dim: -8", "dim is -8: use at least 1"),
    ("n_heads: 3\ndim: 8", "n_heads"),
]  # fmt: skip


def fails(data, tmp_path, capfd, method, written, says, as_config=True):
    source = data / ("table.csv" if method == "var-t-jepa" else "images.npy")
    command = ["train", method, "--data", str(source), "--out", str(tmp_path / "run"), "-q"]
    if as_config:
        config = tmp_path / "config.yaml"
        config.write_bytes(written if isinstance(written, bytes) else written.encode())
        command += ["--config", str(config)]
    else:
        command += ["--set", written.replace(": ", "=", 1)]
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert run(command) == 2
    assert time.process_time() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kilobytes
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    first, _, last = says.partition(" .* ")
    assert first in error[0] and last in error[0]
    assert len(error[0].replace(str(tmp_path), "")) < 900
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["vje", "var-t-jepa"])
@pytest.mark.parametrize(("written", "says"), EITHER)
def test_a_wrong_config_of_either_kind_is_one_line(data, tmp_path, capfd, method, written, says):
    fails(data, tmp_path, capfd, method, written, says)


@pytest.mark.parametrize(("written", "says"), IMAGES)
def test_a_wrong_config_of_images_is_one_line(data, tmp_path, capfd, written, says):
    fails(data, tmp_path, capfd, "vje", written, says)


@pytest.mark.parametrize(("written", "says"), TABLES)
def test_a_wrong_config_of_tables_is_one_line(data, tmp_path, capfd, written, says):
    fails(data, tmp_path, capfd, "var-t-jepa", written, says)


SET = [
    (w, s)
    for w, s in EITHER
    if isinstance(w, str) and w.startswith(("batch_size: ", "learning_rate")) and "\n" not in w
]


@pytest.mark.parametrize("method", ["vje", "var-t-jepa"])
@pytest.mark.parametrize(
    ("written", "says"),
    [*SET[:12], ("batch_size: &a [*a]", "alias"), ("a", "key=value"), (": 1", "key=value")],
)
def test_a_wrong_set_is_one_line(data, tmp_path, capfd, method, written, says):
    fails(data, tmp_path, capfd, method, written, says, as_config=False)


@pytest.mark.parametrize("method", ["vje", "var-t-jepa"])
def test_a_config_that_is_no_file(data, tmp_path, capfd, method):
    source = str(data / ("table.csv" if method == "var-t-jepa" else "images.npy"))
    command = ["train", method, "--data", source, "--out", str(tmp_path / "run"), "-q", "--config"]
    for config, says in (
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
        ("/dev/zero", "no regular file"),
    ):
        assert run([*command, str(config)]) == 2
        error = capfd.readouterr().err.strip().splitlines()
        assert len(error) == 1 and says in error[0]


def test_what_is_given_to_set_is_read_as_yaml_reads_it():
    items = ["a=1e-3", "b=inf", "c=[0.5, 1]", "d=null", "e=polar", "f={g: 1}"]
    read = {"a": "1e-3", "b": "inf", "c": [0.5, 1], "d": None, "e": "polar", "f": {"g": 1}}
    assert parse_assignments(items) == read


@pytest.mark.parametrize("method", ["vje", "var-t-jepa"])
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--set", "batch_size=8", "--set", "batch_size=8"], "--set batch_size= is given twice"),
        (["--set", "learning_rate=1", "--set", " learning_rate =2"], "--set learning_rate= is given twice"),
        (["--set", "device=cpu", "--device", "cpu"], "device is given by an option and by --set"),
    ],
)
def test_a_setting_given_twice_is_an_error(data, tmp_path, capsys, method, given, says):
    source = str(data / ("table.csv" if method == "var-t-jepa" else "images.npy"))
    assert run(["train", method, "--data", source, "--out", str(tmp_path / "run"), *given]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--set", "seed=1", "--seed", "2"], "random_state is given by an option and by --set"),
        (["--set", "random_state=1", "--seed", "2"], "random_state is given by an option and by --set"),
        (["--set", "max_epochs=1", "--epochs", "2"], "max_epochs is given by an option and by --set"),
        (["--set", "target=y", "--target", "z"], "target is given by an option and by --set"),
        (["--set", "seed=1", "--set", "random_state=2"], "seed and random_state are one setting"),
    ],
)
def test_a_setting_of_tables_given_under_two_names_is_an_error(data, tmp_path, capsys, given, says):
    source, out = str(data / "table.csv"), tmp_path / "run"
    assert run(["train", "t-jepa", "--data", source, "--out", str(out), *given]) == 2
    assert says in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("assigned", ["seed=4", "random_state=4"])
@pytest.mark.parametrize("filed", ["seed: 3", "random_state: 3"])
def test_set_goes_before_a_config_file_under_either_name(tmp_path, filed, assigned):
    path = tmp_path / "c.yaml"
    path.write_text(filed)
    options = Training(out=tmp_path / "run", config=path, settings=[assigned])
    assert given_settings("t-jepa", options, {"seed": "random_state"}) == {"random_state": 4}


def test_a_run_s_own_config_and_a_flat_one(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({
        "method": {"name": "vje", "df": 2.0, "backbone": "vit", "backbone_options": {"depth": 1}},
        "data": "x", "data_images": 8, "epochs": 3, "options": {"compile": False}, "hardware": "cpu",
    }))  # fmt: skip
    assert read_config(path, "vje") == {
        "epochs": 3,
        "compile": False,
        "df": 2.0,
        "backbone": "vit",
        "depth": 1,
    }
    with pytest.raises(ConfigError, match="a config of 'vje', not of 'byol'"):
        read_config(path, "byol")
    path.write_text("epochs: 3\ndf: 1e-3\n")
    assert read_config(path, "byol") == {"epochs": 3, "df": "1e-3"}
