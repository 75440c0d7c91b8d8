"""An interrupted run that is resumed ends exactly like one that was left alone."""

import csv
import os
import random
import signal
import string
import time

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from PIL import Image

from probjepa.data import open_images
from probjepa.errors import ArtifactError, ConfigError, ProbjepaError, ProbjepaWarning
from probjepa.methods.ijepa import IJEPA
from probjepa.methods.vje import VJE
from probjepa.model_files import read_checkpoint, write_checkpoint
from probjepa.training import Interrupted, fit, runs
from processes import forked, wait_for_file

EPOCHS, STEPS = 3, 5


def small_method():
    torch.manual_seed(0)
    options = {"widths": (4, 8)}
    return VJE("convnet", backbone_options=options, channels=1, image_size=8, target="ema")


def images(n=42, seed=0):
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).byte()


def train(out, method=None, data=None, **settings):
    settings = {"epochs": EPOCHS, "batch_size": 8, "progress": False, "device": "cpu"} | settings
    return fit(method or small_method(), images() if data is None else data, out=out, **settings)


def table(out):
    with open(out / "metrics.csv") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same_weights(one, other):
    expected, found = one.state_dict(), other.state_dict()
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, train(out)


class SignalAt(L.Callback):
    """Press Ctrl-C in the middle of a step."""

    def __init__(self, step, times=1, signum=signal.SIGINT):
        self.step, self.times, self.signum = step, times, signum

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.signum)


class Pace(L.Callback):
    """Give a killer time to aim."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        time.sleep(0.05)


def test_metrics_and_files_of_a_run(whole):
    out, method = whole
    rows = table(out)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["step"] for row in rows] == ["5", "10", "15"]
    for row in rows:
        parts = sum(float(row[f"train/{name}"]) for name in ("directional", "radial", "kl"))
        assert float(row["train/loss"]) == pytest.approx(parts, rel=1e-5)
        assert float(row["effective_rank"]) > 0
        assert float(row["mean_variance"]) > 0
    assert not method.training
    assert (out / "model" / "model.safetensors").is_file()
    assert sorted(p.name for p in out.iterdir()) == ["checkpoints", "config.yaml", "metrics.csv", "model"]
    assert os.listdir(out / "checkpoints") == ["last.ckpt"]


# in an epoch, in its last step (4), in the first of an epoch (5), in the last but one of the run
@pytest.mark.parametrize("step", [2, 4, 5, 13])
def test_ctrl_c_finishes_the_step_and_resuming_is_exact(tmp_path, whole, step, capfd):
    out = tmp_path / "run"
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=rf"interrupted after step {step + 1}: go on .*--resume") as caught:
        train(out, callbacks=[SignalAt(step)])
    assert "\n" not in str(caught.value)
    assert "press Ctrl-C again" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (out / "model").exists()
    method = train(out, resume=True)
    assert_same_weights(whole[1], method)
    assert table(out) == table(whole[0])


def test_a_termination_is_as_graceful_as_ctrl_c(tmp_path, whole):
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match="interrupted after step 8"):
        train(out, callbacks=[SignalAt(7, signum=signal.SIGTERM)])
    assert_same_weights(whole[1], train(out, resume=True))


def test_a_second_ctrl_c_stops_at_once_and_resuming_is_exact(tmp_path, whole):
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped at once in step 7"):
        train(out, callbacks=[SignalAt(7, times=2)])
    assert_same_weights(whole[1], train(out, resume=True))
    assert table(out) == table(whole[0])


def train_slowly(out, threads):
    torch.set_num_threads(threads)
    train(out, callbacks=[Pace()], checkpoint_seconds=0)


def test_a_killed_run_resumes_exactly(tmp_path, whole):
    out = tmp_path / "run"
    process = forked(tmp_path / "said.txt", {}, train_slowly, out, torch.get_num_threads())
    try:
        wait_for_file(out / "checkpoints" / "last.ckpt", process)
        time.sleep(random.Random().uniform(0, 0.5))  # a moment between the first step and about the tenth
    finally:
        process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    checkpoint = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert 0 < checkpoint["global_step"] < EPOCHS * STEPS
    assert_same_weights(whole[1], train(out, resume=True))
    assert table(out) == table(whole[0])
    assert os.listdir(out / "checkpoints") == ["last.ckpt"]


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path, whole):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(out, callbacks=[SignalAt(0, times=2)])
    assert not (out / "checkpoints").exists()
    assert_same_weights(whole[1], train(out, resume=True))


def test_resuming_a_finished_run_changes_nothing(whole):
    out, method = whole
    before = (out / "metrics.csv").read_bytes()
    assert_same_weights(method, train(out, resume=True))
    assert (out / "metrics.csv").read_bytes() == before


def test_gradient_accumulation_resumes_exactly(tmp_path):
    expected = train(tmp_path / "whole", accumulate_grad_batches=2)
    with pytest.raises(Interrupted):
        train(tmp_path / "run", accumulate_grad_batches=2, callbacks=[SignalAt(4)])
    resumed = train(tmp_path / "run", accumulate_grad_batches=2, resume=True)
    assert_same_weights(expected, resumed)
    assert table(tmp_path / "run") == table(tmp_path / "whole")
    assert [row["step"] for row in table(tmp_path / "run")] == ["3", "6", "9"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 16}, "batch_size=8, this run has 16"),
        ({"epochs": 9}, "epochs=3, this run has 9"),
        ({"data": images(seed=1)}, "data_sha256="),
        ({"data": images(n=43)}, "data_images=42, this run has 43"),
        ({"channels_last": True}, "channels_last=auto, this run has True"),
        ({"compile": True}, "compile=False, this run has True"),
        ({"val": images(seed=1)}, "val_images=None, this run has 42"),
    ],
)
def test_resuming_with_other_data_or_settings_is_refused(whole, change, message):
    with pytest.raises(ArtifactError, match=message) as caught:
        train(whole[0], resume=True, **change)
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path):
    """The images as a folder of files."""
    (tmp_path / "images").mkdir()
    for name, pixels in zip(string.ascii_letters, images(), strict=False):
        Image.fromarray(pixels[0].numpy()).save(tmp_path / "images" / f"{name}.png")
    return tmp_path / "images"


def other_row(folder):
    """Change one image that is not among the sixteen that are looked at closely."""
    row = next(row for row in range(42) if row not in torch.linspace(0, 41, 16).round().tolist())
    file = sorted(folder.iterdir())[row]
    Image.new("L", (8, 8)).save(file)


@pytest.mark.parametrize("memory_limit", [None, 0], ids=["in memory", "streamed"])
def test_a_resume_sees_one_changed_image(tmp_path, folder, memory_limit):
    def opened():
        return open_images(str(folder), memory_limit=memory_limit)

    out = tmp_path / "run"
    train(out, data=opened(), epochs=1, workers=0)
    train(out, data=opened(), epochs=1, workers=0, resume=True)
    other_row(folder)
    with pytest.raises(ArtifactError, match="data_files=" if memory_limit == 0 else "data_pixels="):
        train(out, data=opened(), epochs=1, workers=0, resume=True)


def test_a_resume_says_what_it_did_not_compare(tmp_path, folder, monkeypatch):
    streamed, loaded = open_images(str(folder), memory_limit=0), open_images(str(folder))
    out = tmp_path / "run"
    train(out, data=streamed, epochs=1, workers=0)
    with pytest.warns(ProbjepaWarning, match="of the 42 images 16 are compared .* are in memory now"):
        train(out, data=loaded, epochs=1, resume=True)
    monkeypatch.setattr(runs, "_HASHED_BYTES", 1000)
    out = tmp_path / "other"
    train(out, data=streamed, epochs=1, workers=0)
    with pytest.warns(ProbjepaWarning, match=r"of the 42 images the first \d+ are compared"):
        train(out, data=streamed, epochs=1, workers=0, resume=True)


def test_a_run_without_a_checkpoint_is_started_afresh_with_what_it_is_given(tmp_path, whole):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(out, callbacks=[SignalAt(0, times=2)], data=images(seed=1), epochs=2)
    with pytest.warns(ProbjepaWarning, match="run has no checkpoint to go on from: the run begins again"):
        again = train(out, resume=True)
    assert_same_weights(whole[1], again)
    config = [(folder / "config.yaml").read_text() for folder in (out, whole[0])]
    assert config[0] == config[1]


@pytest.mark.parametrize("odd", [[], "x", None, -1, 1.5], ids=repr)
def test_a_count_that_is_none_is_seen_before_a_step(odd, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(out, callbacks=[SignalAt(2)], epochs=2)
    place = out / "checkpoints" / "last.ckpt"
    content = read_checkpoint(place, "")
    loops = content["loops"]["fit_loop"]
    loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"] = odd
    write_checkpoint(place, content)
    with pytest.raises(ArtifactError, match=r"does not fit this run \(ValueError: the count completed is "):
        train(out, epochs=2, resume=True)


class Fails(L.Callback):
    def on_train_start(self, trainer, pl_module):
        raise ValueError("a bug of my own")


def test_an_error_of_a_callback_is_not_the_checkpoints(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path / "run", callbacks=[SignalAt(2)], epochs=2)
    with pytest.raises(ValueError, match=r"^a bug of my own$"):
        train(tmp_path / "run", callbacks=[Fails()], epochs=2, resume=True)


class Best(L.Callback):
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"best": [self.value]}


def test_numbers_of_numpy_in_a_callbacks_state_are_kept_and_objects_refused_at_once(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path / "run", callbacks=[Best(np.float64(0.5)), SignalAt(2)], epochs=2)
    train(tmp_path / "run", callbacks=[Best(np.float64(0.5))], epochs=2, resume=True)
    with pytest.raises(ArtifactError, match="cannot hold what is neither a tensor nor a plain value"):
        train(tmp_path / "other", callbacks=[Best(object())], epochs=1)


@pytest.mark.parametrize("precision", [32, "32-true"])
def test_a_precision_that_is_a_number_is_resumed(tmp_path, precision):
    with pytest.raises(Interrupted):
        train(tmp_path / "run", callbacks=[SignalAt(2)], epochs=2, precision=precision)
    train(tmp_path / "run", epochs=2, precision=precision, resume=True)


@pytest.mark.parametrize("option", [{"limit_train_batches": 2}, {"gradient_clip_algorithm": "value"}])
def test_a_resume_without_an_option_of_the_trainer_is_refused(tmp_path, option):
    with pytest.raises(Interrupted):
        train(tmp_path / "run", callbacks=[SignalAt(2)], **option)
    with pytest.raises(ArtifactError, match=f"was made with {next(iter(option))}="):
        train(tmp_path / "run", resume=True)
    train(tmp_path / "run", resume=True, **option)


def test_an_interruption_in_the_last_step_is_told_once_the_run_is_complete(tmp_path, whole):
    with pytest.raises(Interrupted, match="the run is complete"):
        train(tmp_path / "run", callbacks=[SignalAt(EPOCHS * STEPS - 1)])
    assert_same_weights(whole[1], VJE.from_pretrained(tmp_path / "run" / "model"))


@pytest.mark.parametrize("dtype", ["bf16-true", "64-true"])
def test_constants_of_an_averaged_encoder_are_those_of_a_run_without_a_break(tmp_path, dtype):
    def method():
        torch.manual_seed(0)
        sizes = {"patch_size": 8, "width": 24, "depth": 1, "heads": 2}
        predictor = {"predictor_width": 24, "predictor_depth": 1, "predictor_heads": 2}
        return IJEPA("vit", backbone_options=sizes, channels=1, image_size=32, **predictor)

    data = torch.randint(0, 256, (24, 1, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    kept = train(None, method(), data, precision=dtype)
    with pytest.raises(Interrupted):
        train(tmp_path / "run", method(), data, precision=dtype, callbacks=[SignalAt(4)])
    assert_same_weights(kept, train(tmp_path / "run", method(), data, precision=dtype, resume=True))
    for mine, plain in zip(kept.teacher.module.buffers(), method().encoder.buffers(), strict=True):
        assert torch.equal(mine, plain.to(mine.dtype))


def test_an_existing_run_is_not_overwritten_unasked(tmp_path, whole):
    with pytest.raises(ArtifactError, match="exists and is not empty"):
        train(whole[0])
    with pytest.raises(ArtifactError, match="holds no run to resume"):
        train(tmp_path / "none", resume=True)
    with pytest.raises(ConfigError, match="pass one of them"):
        train(whole[0], resume=True, overwrite=True)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="no training run and is not overwritten"):
        train(tmp_path, overwrite=True)


def test_overwrite_starts_afresh_and_keeps_what_is_not_the_runs(tmp_path):
    out = tmp_path / "run"
    train(out, epochs=2)
    (out / "notes.txt").write_text("mine")
    train(out, epochs=1, overwrite=True)
    assert len(table(out)) == 1
    assert (out / "notes.txt").is_file()
    with pytest.raises(ConfigError, match="is more than the 42 images"):
        train(out, batch_size=64, overwrite=True)
    assert len(table(out)) == 1


class DrawsAnywhere(VJE):
    """Its loss draws from the generators of Python and NumPy."""

    def loss(self, batch):
        terms = super().loss(batch)
        drawn = random.random() + np.random.rand()  # noqa: NPY002
        return terms | {"loss": terms["loss"] * (1 + drawn)}


def test_draws_of_python_and_numpy_are_seeded_resumed_and_the_callers_left(tmp_path):
    def own():
        return DrawsAnywhere("convnet", backbone_options={"widths": (4,)}, channels=1, image_size=8, seed=0)

    def states():
        return random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = states()
    whole = train(tmp_path / "whole", own())
    assert before == states()
    with pytest.raises(Interrupted):
        train(tmp_path / "run", own(), callbacks=[SignalAt(STEPS + 2)])
    assert_same_weights(whole, train(tmp_path / "run", own(), resume=True))
    assert table(tmp_path / "run") == table(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore:StochasticWeightAveraging")
def test_the_rate_in_the_table_is_the_steps_and_not_what_an_averaging_sets_after_it(tmp_path):
    def averaged():
        return [L.callbacks.StochasticWeightAveraging(1e-3, swa_epoch_start=1)]

    train(tmp_path / "whole", callbacks=averaged())
    with pytest.raises(Interrupted):
        train(tmp_path / "run", callbacks=[*averaged(), SignalAt(STEPS + 2)])
    train(tmp_path / "run", callbacks=averaged(), resume=True)
    assert table(tmp_path / "run") == table(tmp_path / "whole")
    rates = [float(row["learning_rate"]) for row in table(tmp_path / "whole")]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0  # of the epoch that averaging adds, after the schedule's end


def test_without_out_nothing_is_written_and_the_callers_generator_is_untouched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    method = small_method()
    before = torch.random.get_rng_state()
    train(None, method=method, epochs=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Interrupted, match="nothing was saved"):
        train(None, callbacks=[SignalAt(1)])


def test_wrong_settings_are_one_line_errors(tmp_path):
    for settings, message in [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be"),
        ({"warmup_epochs": 3}, r"\[0, 3\), got 3"),
        ({"learning_rat": 1.0}, "did you mean 'learning_rate'"),
        ({"max_epochs": 1}, "set by epochs"),
        ({"device": "gpu0"}, "unknown device"),
        ({"loggers": ["tensorbord"]}, "did you mean 'tensorboard'"),
        ({"knn_every": 1}, "knn_every needs val"),
        ({"resume": True}, "give its path as out"),
    ]:
        with pytest.raises(ConfigError, match=message) as caught:
            train(None, **settings)
        assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_stops_the_run_before_the_step(tmp_path):
    with pytest.raises(ProbjepaError, match="lower the learning rate") as caught:
        train(tmp_path / "run", learning_rate=1e30, warmup_epochs=0)
    assert "\n" not in str(caught.value)


def test_lightning_is_silent(capfd, recwarn):
    train(None, epochs=1)
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn] == []
