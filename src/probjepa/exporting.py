"""A model as a graph that other runtimes load, ONNX or torch.export, checked against PyTorch when written."""

from __future__ import annotations

import copy
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probjepa import __version__
from probjepa.backbones import names_hub
from probjepa.backbones.frozen import evaluating
from probjepa.distributions.base import unchecked
from probjepa.draws import forked, reseed
from probjepa.errors import ArtifactError, ConfigError, DataError, ProbjepaError, short, unknown_name
from probjepa.files import first_line, refuse_existing, staged_file
from probjepa.loading import load, open_encoder
from probjepa.methods import Method
from probjepa.methods.pretrained import Pretrained
from probjepa.model_files import quiet
from probjepa.registry import required

#: what can be exported → the names of the graph's outputs
OUTPUTS = {
    "embed": ("embeddings",),
    "posterior": ("posterior_mean", "posterior_variance"),
    "likelihood": ("scores",),
}
_TOLERANCE = 1e-4  # of an output's largest value
_BATCHES = (1, 2, 7)
_LARGEST = 2**31 - 2**20  # bytes: protobuf holds no more in one file

Graph = Callable[[Tensor], list[Tensor]]


def export(
    encoder: str | Path | nn.Module, path: str | Path, *, what: str = "embed", overwrite: bool = False
) -> Path:
    """Write a model as a graph: ``.onnx`` (extra 'onnx') or ``.pt2`` (``torch.export.load``), for the CPU.

    Its input "inputs" is uint8 pixels (N, C, S, S), any N: images as ``encoder.open`` gives them, resized
    already to the model's own size; normalisation is inside. (Of a ``VarJEPA``: vectors (N, x_dim).)
    Its outputs are those of ``embed``: "embeddings" (N, D); of ``posterior``: "posterior_mean" and
    "posterior_variance", each (N, K); of ``score_samples``: "scores" (N,). An ONNX graph computes in float32,
    whatever the type of the weights, a .pt2 as the model does. Before it takes its name, the file is loaded
    and compared with the model (in float32, for ONNX) on random batches, to 1e-4 of the largest value.

    Parameters
    ----------
    encoder
        a model, a module as ``open_encoder`` opens it, or a name that ``open_encoder`` or ``load`` takes
    path
        file to write, whose ending says the format
    what
        "embed", "posterior" or "likelihood"
    overwrite
        replace a file that is there

    Raises
    ------
    ConfigError
        for another ending or ``what``, a model of tables, a model that has no such output, or a part of one
        that no graph holds: one that branches on values, or draws random numbers
    ArtifactError
        if the file cannot be written, or does not agree with the model
    MissingExtraError
        without onnx, onnxscript or onnxruntime
    """
    path = Path(path)
    if what not in OUTPUTS:
        raise unknown_name("output", what, OUTPUTS)
    if path.suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"{path} ends neither in .onnx nor in .pt2: give one of the two formats")
    refuse_existing(path, overwrite)
    as_onnx = path.suffix == ".onnx"
    for package in ("onnx", "onnxscript", "onnxruntime") if as_onnx else ():
        required(package, "onnx")
    model = _opened(encoder)
    with evaluating(model):
        graph = _on_cpu(model, single=as_onnx)
        with _quiet():
            program = _traced(graph, what, single=as_onnx)
        with staged_file(path) as stage:
            with _quiet():
                ready = _write_onnx(program, stage, what) if as_onnx else _write_pt2(program, stage)
            _check(graph, what, ready, path)
    return path


def _opened(encoder: str | Path | nn.Module) -> Any:
    if not isinstance(encoder, nn.Module):
        model = open_encoder(encoder) if names_hub(encoder) else load(encoder)
    elif isinstance(encoder, Pretrained):
        model = encoder
    else:
        raise ConfigError("a module of your own: open it first, open_encoder(module, image_size=…)")
    if not hasattr(model, "outputs"):
        raise ConfigError(f"{encoder} is a {type(model).__name__}: models of tables cannot be exported")
    return model


def _on_cpu(model: Any, single: bool) -> Any:
    """The model, or a copy where it is elsewhere, or ``single`` and of other floats than float32."""
    values = (*model.parameters(), *model.buffers())
    other = single and any(v.is_floating_point() and v.dtype != torch.float32 for v in values)
    if model.device.type == "cpu" and not other:
        return model
    copied = copy.deepcopy(model).cpu()
    return copied.float() if single else copied


class _Graph(nn.Module):
    def __init__(self, model: Any, what: str, single: bool) -> None:
        super().__init__()
        self.model, self.what, self.single = model, what, single

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        with _Single() if self.single else nullcontext():
            return tuple(output.detach() for output in self.model.outputs(inputs, self.what))


class _Single(TorchFunctionMode):
    """Float32 in the place of float64, and what ONNX lacks in terms of what it has."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.double:
            return args[0].float()
        if func is torch.hypot:
            sides = [side.abs() for side in args]
            longer, shorter = torch.maximum(*sides), torch.minimum(*sides)
            return longer * (1 + (shorter / longer).square()).sqrt()
        if func in (torch.log1p, torch.Tensor.log1p):  # ONNX's log(1 + x) loses a small x
            x = args[0]
            small = x.abs() < 0.5
            near = torch.where(small, x, 0.0)
            return torch.where(
                small, 2 * torch.atanh(near / (2 + near)), torch.where(small, 1.0, 1 + x).log()
            )
        if func in (torch.lgamma, torch.Tensor.lgamma):  # Stirling's series, from 8 on
            y = args[0] + 8
            series = (y - 0.5) * y.log() - y + math.log(2 * math.pi) / 2 + 1 / (12 * y) - 1 / (360 * y**3)
            return series - torch.stack([args[0] + k for k in range(8)]).log().sum(0)
        return func(*args, **(kwargs or {}))


def _traced(model: Any, what: str, single: bool) -> Any:
    """Trace a model's outputs as a program with a free batch size."""
    example = model.example_batch(2, torch.Generator().manual_seed(0))
    with _running(model) as parts:
        try:
            program = torch.export.export(
                _Graph(model, what, single), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
            )
        except ProbjepaError:
            raise
        except Exception as error:  # what a module of anybody's makes of tracing
            raise _refusal(model, what, parts, error) from error
    graph = program.module()
    with forked():
        found = []
        for seed in (0, 1):
            reseed(seed)
            found.append(graph(example))
    if not all(bool(output.isfinite().all()) for output in found[0]):
        raise DataError(f"{what} of this {type(model).__name__} is NaN or Inf: check its weights")
    if not all(map(torch.equal, *found)):
        raise ConfigError(
            f"{what} of this {type(model).__name__} cannot be exported: it draws random numbers, and a graph "
            "gives the same each time"
        )
    return program


def _refusal(model: Any, what: str, parts: list[str], error: BaseException) -> ConfigError:
    while error.__cause__ is not None:
        error = error.__cause__
    part = f"its part '{parts[-1]}' ({type(model.get_submodule(parts[-1])).__name__})" if parts else "it"
    return ConfigError(
        f"{what} of this {type(model).__name__} cannot be exported: {part} holds what no graph does "
        f"({short(first_line(error), 150)}); rewrite it without branches on values, with x.shape[0] for "
        "len(x)"
    )


@contextmanager
def _running(model: nn.Module) -> Iterator[list[str]]:
    """Yield the names of a model's parts that run at the moment, the innermost last."""
    running: list[str] = []
    handles: list[Any] = []

    def watch(name: str, part: nn.Module) -> None:
        handles.append(part.register_forward_pre_hook(lambda *_: running.append(name)))
        handles.append(part.register_forward_hook(lambda *_: running.__delitem__(-1)))

    for name, part in model.named_modules():
        if name and not isinstance(part, torch.jit.ScriptModule):  # which takes no hooks
            watch(name, part)
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def _write_pt2(program: Any, stage: Path) -> Graph:
    # through memory: on a full disk torch's writer ends the process
    whole = io.BytesIO()
    torch.export.save(program, whole)
    stage.write_bytes(whole.getbuffer())
    loaded = torch.export.load(whole).module()
    return lambda inputs: list(loaded(inputs))


def _write_onnx(program: Any, stage: Path, what: str) -> Graph:
    import onnxruntime

    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    if size > _LARGEST:
        raise ConfigError(f"its weights take {size / 1e9:.1f} GB, and one .onnx file holds 2: write a .pt2")
    try:
        graph = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["inputs"], output_names=list(OUTPUTS[what]),
            dynamic_shapes=({0: "batch"},),
        )  # fmt: skip
        assert graph is not None
        graph.model.metadata_props["probjepa"] = f"{what}, written by probjepa {__version__}"
        graph.save(stage, external_data=False)
        session = onnxruntime.InferenceSession(stage.read_bytes(), providers=["CPUExecutionProvider"])
    except OSError:
        raise
    except Exception as error:  # its errors have no common base
        while error.__cause__ is not None:
            error = error.__cause__  # type: ignore[assignment]
        raise ConfigError(
            f"{what} of this model cannot be written as ONNX ({short(first_line(error), 150)}): write a .pt2"
        ) from error
    return lambda inputs: [torch.from_numpy(out) for out in session.run(None, {"inputs": inputs.numpy()})]


def _check(model: Any, what: str, graph: Graph, path: Path) -> None:
    """Raise ArtifactError unless a graph's outputs on random batches are the model's own."""
    generator = torch.Generator().manual_seed(1)
    for count in _BATCHES:
        inputs = model.example_batch(count, generator)
        for name, found, wanted in zip(
            OUTPUTS[what], graph(inputs), _expected(model, what, inputs), strict=True
        ):
            if found.shape != wanted.shape:
                raise ArtifactError(
                    f"{path} was not written: its {name} of {count} inputs is {tuple(found.shape)}, and "
                    f"PyTorch's {tuple(wanted.shape)}"
                )
            wanted = wanted.double()
            far = float((found.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
            if not far <= _TOLERANCE:
                raise ArtifactError(
                    f"{path} was not written: its {name} differs from PyTorch's by {far:.1e} of the largest "
                    f"value, more than {_TOLERANCE:g}"
                )


def _expected(model: Any, what: str, inputs: Tensor) -> list[Tensor]:
    with model._encoding_in("float32") if isinstance(model, Method) else nullcontext():  # as the graph's
        if what == "embed":
            return [model.embed(inputs)]
        if what == "likelihood":
            return [model.score_samples(inputs)]
        posterior = model.posterior(inputs)
        return [posterior.mean, posterior.variance]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' notes, and the checks of torch's distributions, which branch on values."""
    refused = quiet("torch._subclasses.fake_tensor", least=logging.CRITICAL)  # with its C++ stack
    with quiet("torch.onnx"), refused, unchecked(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
