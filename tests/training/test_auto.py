"""What "auto" means for a run: by the processor, confirmed by timed steps, once, and remembered."""

import threading

import pytest
import torch
import yaml
from test_fit_resume import SignalAt, assert_same_weights, images, small_method, table, train

import probjepa as pj
from probjepa import provenance
from probjepa.errors import ConfigError
from probjepa.training import Interrupted, Module, auto

CPU = torch.device("cpu")
PLAIN, LAST, HALF, HALF_LAST = (
    ("32-true", False), ("32-true", True), ("bf16-mixed", False), ("bf16-mixed", True),
)  # fmt: skip


@pytest.fixture
def processor(monkeypatch):
    """Say which units the processor has, how many threads torch has, and how long each kind of step takes."""

    def set_up(flags=(), threads=1, seconds=None):
        steps = []

        def step_seconds(trial, batch, option):
            steps.append((*option, torch.get_num_threads()))
            return seconds(*option, torch.get_num_threads())

        monkeypatch.setattr(provenance, "cpu_flags", lambda: [*flags])
        monkeypatch.setattr(auto, "threads_that_fit", lambda: threads)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if seconds is not None:
            monkeypatch.setattr(auto, "step_seconds", step_seconds)
        return steps

    return set_up


def choose(precision="auto", channels_last="auto", steps=100_000, device=CPU):
    module = Module(small_method(), epochs=1)
    return auto.choose(module, lambda: images(8), device, precision, channels_last, steps)


def never(*args):
    raise AssertionError("a step is timed")


@pytest.mark.parametrize(
    ("flags", "given", "wanted"),
    [
        ((), {}, PLAIN),
        (("avx2", "avx512f"), {}, PLAIN),
        (("avx512_bf16",), {}, HALF_LAST),
        (("avx2", "amx_bf16"), {}, HALF_LAST),
        (("amx_bf16",), {"precision": "32-true"}, PLAIN),
        (("amx_bf16",), {"precision": "64-true"}, ("64-true", False)),
        (("amx_bf16",), {"channels_last": False}, HALF),
        ((), {"channels_last": True}, LAST),
        ((), {"precision": "bf16-mixed"}, HALF),
    ],
)
@pytest.mark.parametrize("steps", [149, None])
def test_a_run_too_short_to_measure_goes_by_the_processor(processor, flags, given, wanted, steps):
    processor(flags, seconds=never)
    found = choose(**given, steps=steps)
    assert (found.precision, found.channels_last) == wanted
    assert "by the processor" in found.why
    assert ("too few" in found.why) == (steps is not None and "64-true" not in given.values())


@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_is_not_measured(processor, monkeypatch, bf16):
    processor(seconds=never)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    found = choose(device=torch.device("cuda"))
    assert (found.precision, found.channels_last) == ("bf16-mixed" if bf16 else "32-true", True)


@pytest.mark.parametrize(
    ("flags", "given", "seconds", "wanted"),
    [
        (("amx_bf16",), {}, {PLAIN: 2.8, LAST: 2.5, HALF: 1.3, HALF_LAST: 1.0}, HALF_LAST),
        (("amx_bf16",), {}, {PLAIN: 2.8, LAST: 2.5, HALF: 1.0, HALF_LAST: 1.3}, HALF),
        (("avx512_bf16",), {}, {PLAIN: 1.0, LAST: 1.1, HALF: 3.0, HALF_LAST: 4.0}, PLAIN),
        (("avx2",), {}, {PLAIN: 1.0, LAST: 0.8}, LAST),
        (("avx2",), {}, {PLAIN: 1.0, LAST: 0.97}, PLAIN),  # no more than a measurement can tell
        (("amx_bf16",), {"precision": "32-true"}, {PLAIN: 1.0, LAST: 0.8}, LAST),
        (("avx2",), {"precision": "bf16-mixed"}, {HALF: 1.0, HALF_LAST: 0.8}, HALF_LAST),
        (("amx_bf16",), {"channels_last": True}, {LAST: 1.0, HALF_LAST: 0.8}, HALF_LAST),
    ],
)
def test_the_fastest_of_what_the_processor_can_is_chosen(processor, flags, given, seconds, wanted):
    steps = processor(flags, seconds=lambda precision, last, _: seconds[precision, last])
    found = choose(**given)
    assert (found.precision, found.channels_last, found.threads) == (*wanted, 1)
    assert {step[:2] for step in steps} == set(seconds)  # bf16 is not even tried where there are no units
    assert found.why.startswith(f"{seconds[wanted]:.3g} s a step (")


def test_what_is_given_is_not_measured(processor):
    processor(("amx_bf16",), threads=4, seconds=never)
    assert choose("32-true", True)[:3] == ("32-true", True, 4)
    processor(("avx2",), seconds=never)
    assert choose(channels_last=True) == ("32-true", True, 1, "by the processor (no bf16 units)")


@pytest.mark.parametrize(
    ("threads", "steps", "one", "wanted"),
    [
        (2, 100_000, 0.5, 1),
        (2, 100_000, 1.9, 2),
        (2, 100_000, 0.97, 2),
        (1, 100_000, 1.0, 1),
        (64, 100_000, 0.1, 1),
        (64, 5_000, 0.1, 64),  # one thread may take 64 times as long, and 5,000 steps do not win that back
    ],
)
def test_one_thread_is_tried_where_that_is_cheap(processor, threads, steps, one, wanted):
    processor(threads=threads, seconds=lambda p, last, count: one if count == 1 else 1.0)
    before = torch.get_num_threads()
    assert choose(steps=steps).threads == wanted
    assert torch.get_num_threads() == before


def test_a_number_of_threads_that_the_user_gave_stays(processor, monkeypatch):
    processor(threads=2, seconds=lambda p, last, count: count)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv(provenance.OWN_THREADS, raising=False)  # of a command that ran in this process
    assert choose().threads == 2
    monkeypatch.setenv(provenance.OWN_THREADS, "1")  # it was the command that gave it, for a quota
    assert choose().threads == 1


def test_threads_fit_the_machine_unless_they_are_given(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(auto, "usable_cpus", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert auto.threads_that_fit() == 64
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert auto.threads_that_fit() == 2


@pytest.mark.parametrize("own_views", [False, True])
def test_timing_leaves_no_trace(monkeypatch, own_views):
    class Counting(torch.nn.Module):
        calls = 0

        def forward(self, batch, seed):
            self.calls += 1
            return [batch / 255 + torch.rand(()), batch / 255]

    views = Counting() if own_views else None
    monkeypatch.setattr(provenance, "cpu_flags", lambda: ["amx_bf16"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    method = small_method().eval()
    method.encoder.train()
    module = Module(method, epochs=1, views=views)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    modes = [m.training for m in method.modules()]
    state, threads, filled = torch.get_rng_state(), torch.get_num_threads(), [*vars(method)]
    found = auto.choose(module, lambda: images(8), CPU, "auto", "auto", 100_000)
    assert " s a step" in found.why
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert value.stride() == before[name].stride()
    assert [m.training for m in method.modules()] == modes and [*vars(method)] == filled
    assert all(p.grad is None for p in method.parameters())
    assert views is None or views.calls == 0


def test_what_cannot_be_copied_goes_by_the_processor(processor):
    processor(("amx_bf16",), seconds=never)
    method = small_method()
    method.lock = threading.Lock()
    found = auto.choose(Module(method, epochs=1), lambda: images(8), CPU, "auto", "auto", 100_000)
    assert found[:2] == HALF_LAST


@pytest.fixture
def fast(processor, monkeypatch):
    """A processor with bf16 units, on which one thread of bf16, channels-last, is the fastest."""
    monkeypatch.setattr(auto, "LEAST_SHARE", 0)
    order = {PLAIN: 3.0, LAST: 2.5, HALF: 2.0, HALF_LAST: 1.0}
    return processor(("amx_bf16",), 2, lambda precision, last, count: order[precision, last] * count)


def recorded(out):
    return yaml.safe_load((out / "config.yaml").read_text())


def test_a_run_records_what_was_chosen_says_it_once_and_resumes_with_it(fast, tmp_path, monkeypatch, capsys):
    before = torch.get_num_threads()
    whole = train(tmp_path / "whole", progress=True)
    assert capsys.readouterr().err.count("auto: bf16-mixed channels-last, 1 thread, 1 s a step") == 1
    config = recorded(tmp_path / "whole")
    assert config["precision"] == "bf16-mixed"
    assert (config["auto"]["channels_last"], config["auto"]["threads"]) == (True, 1)
    assert config["hardware"].endswith(", 1 thread")
    assert config["auto"]["why"].endswith(
        "(2 threads: 32-true 6, 32-true channels-last 5, bf16-mixed 4, bf16-mixed channels-last 2)"
    )
    convolution = next(p for p in whole.encoder.parameters() if p.ndim == 4 and p.shape[1] > 1)
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    assert torch.get_num_threads() == before
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(out, callbacks=[SignalAt(4)])
    monkeypatch.setattr(auto, "step_seconds", never)
    monkeypatch.setattr(provenance, "cpu_flags", lambda: [])  # another machine
    assert_same_weights(whole, train(out, resume=True))
    assert table(out) == table(tmp_path / "whole")
    assert recorded(out)["auto"] == config["auto"]


def test_what_is_given_to_a_resume_is_heeded(fast, tmp_path):
    train(tmp_path / "run")
    with pytest.raises(pj.errors.ArtifactError, match="precision=bf16-mixed, this run has 32-true"):
        train(tmp_path / "run", resume=True, precision="32-true")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("threads", "two", r"the setting threads in .*config\.yaml takes a whole number, got 'two'"),
        ("threads", 0, r"the setting threads in .*config\.yaml takes a whole number from 1 to "),
        ("threads", 10**9, r"the setting threads in .*config\.yaml takes a whole number from 1 to "),
        ("channels_last", 3, r"the setting channels_last in .*config\.yaml takes true or false, got '3'"),
        ("why", None, r"the setting why in .*config\.yaml takes a name, got 'null'"),
        (None, None, "auto in .*config.yaml takes a mapping, got 'fast'"),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path, key, value, message):
    out = tmp_path / "run"
    train(out)
    config = recorded(out)
    config["auto"][key] = value
    if key is None:
        config["auto"] = "fast"
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=message) as caught:
        train(out, resume=True)
    assert "\n" not in str(caught.value)


def test_several_processes_and_kept_views_are_not_measured(processor, tmp_path, monkeypatch):
    processor(seconds=never)
    monkeypatch.setattr(auto, "LEAST_SHARE", 0)
    frozen = pj.VJE(
        "convnet", backbone_options={"widths": (4, 8)}, channels=1, image_size=8, freeze=True, seed=0
    )
    train(tmp_path / "kept", frozen, cache_views=2)
    assert recorded(tmp_path / "kept")["auto"]["why"].startswith("by the processor")
