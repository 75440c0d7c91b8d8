"""Weights that were trained elsewhere: which part of a file fits a backbone is seen by its names."""

from __future__ import annotations

import argparse
import inspect
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probjepa.backbones import BACKBONES, build_backbone
from probjepa.backbones.foreign_names import (
    OWN_VIT,
    RESNETS,
    VITS,
    Fitted,
    Rename,
    State,
    fit_resnet,
    fit_vit,
)
from probjepa.errors import ArtifactError, ConfigError, few, short, warn
from probjepa.files import first_line, regular

Weights = str | Path | Mapping[str, Any]
# of several copies of one network: the averaged one that was published, or the one that was trained
_FIRST = re.compile(r"teacher|target_encoder|state_dict_ema")
_LAST = re.compile(r"student|momentum|encoder_k|target")
# what stands on an encoder, or belongs to its training alone
_HEADS = re.compile(
    r"(fc|heads?|head_dist|linear|classifier|last_linear|mlp|project\w*|predict\w*|prototypes|queue\w*|mask_token"
    r"|decoder\w*|pooler)(\.|$)"
)
_MOST_LISTED = 6
_NO_WEIGHTS = (
    "it is damaged, or neither what torch.save wrote nor safetensors, whose names end in .safetensors"
)


def read_tensors(source: Weights) -> State:
    """Read all tensors of a checkpoint by name, "part.name" where it nests.

    Parameters
    ----------
    source
        a file, safetensors or torch's; or what one holds

    Raises
    ------
    ConfigError
        for what is neither a file nor a mapping
    ArtifactError
        for a file that cannot be read, holds no tensors, or would have to be unpickled
    """
    from safetensors.torch import load_file

    if isinstance(source, Mapping):
        return _named(source, "these weights hold")
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"weights is a {type(source).__name__}: give a file, or a state dict (model.state_dict())"
        )
    try:
        file = regular(source)
        if file.suffix.lower() == ".safetensors":
            return dict(load_file(file))
        with torch.serialization.safe_globals([argparse.Namespace]):  # plain values, in DINO's
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of the reader
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise ArtifactError(
                f"{source} holds more than tensors and plain values ({found[1]}) and would have to be "
                "unpickled, which runs its code: if you trust it, save its state dict alone with torch.save"
            ) from error
        reason = first_line(error)
        if "weights_only" in reason:  # torch advises to unpickle it
            script = "TorchScript" in reason
            reason = "it is a TorchScript program: give its state dict" if script else _NO_WEIGHTS
        raise ArtifactError(f"cannot read the weights {source}: {reason}") from error
    return _named(content, f"{source} holds")


def _named(content: Any, what: str) -> State:
    """All tensors of a content by name; ArtifactError if there are none."""
    tensors = dict(_flat(content, ""))
    if not tensors:
        raise ArtifactError(f"{what} no tensors by name: give a state dict, or a checkpoint with one")
    return tensors


def _flat(content: Any, name: str) -> Iterable[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))


def _found(tensors: State, kinds: Mapping[str, Rename]) -> tuple[str, Rename] | None:
    """The prefix of the encoder's names, the best of several, and what renames the rest of them."""
    for mark, rename in kinds.items():
        prefixes = [name.removesuffix(mark) for name in tensors if f".{name}".endswith(f".{mark}")]
        if prefixes:
            rank = {p: (not _FIRST.search(p), bool(_LAST.search(p)), len(p)) for p in prefixes}
            return min(prefixes, key=rank.__getitem__), rename
    return None


def _listed(names: Iterable[str], prefix: str) -> str:
    """Names by their first parts, with how many there are of each: one line of bounded length."""
    parts = Counter(_group(name, prefix) for name in names)
    return few([f"{short(part)} ({count})" for part, count in parts.items()], _MOST_LISTED)


def _group(name: str, prefix: str) -> str:
    """A name as far as it is the prefix's, and one part more; below none, to its first number."""
    parts = name.split(".")
    both = zip(parts, prefix.split("."), strict=False)
    last = next((index for index, (one, other) in enumerate(both) if one != other), 0)
    if not prefix:
        last = next((index for index, part in enumerate(parts) if part.isdigit()), 0)
    kept = parts[: last + 1]
    return ".".join(kept) + (".*" if len(kept) < len(parts) else "")


def foreign_encoder(
    name: str,
    weights: Weights,
    options: Mapping[str, Any],
    *,
    channels: int = 3,
    image_size: int | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the backbone that a checkpoint's shapes describe, and load the encoder's weights.

    Parameters
    ----------
    name
        a key of ``BACKBONES``
    weights
        see :func:`read_tensors`; the encoder is found in it under any prefix
    options
        the backbone's settings, which stand before what the shapes say
    channels, image_size
        see ``build_backbone``; None: as far as the shapes say it, the size that they were trained on

    Returns
    -------
    tuple
        the encoder, and all its options, ``image_size`` among them

    Warns
    -----
    ProbjepaWarning
        names what was left out: heads, other copies, the state of an optimiser

    Raises
    ------
    ArtifactError
        for a file that cannot be read
    ConfigError
        that lists what is missing, unknown or of another shape, where it does not fit
    """
    what = f"the weights {weights}" if isinstance(weights, str | Path) else "these weights"
    known = {"image_size", *inspect.signature(BACKBONES[name]).parameters}
    tensors = read_tensors(weights)
    given, (marks, fit, own) = set(options), _kind(name, options)
    prefix, state, heads = _encoder_in(name, tensors, marks, own, what)
    size = {} if image_size is None else {"image_size": image_size}
    state, said, done = fit(state, {**options, **size})
    options = {key: value for key, value in said.items() if key in known or key in options}
    encoder = build_backbone(name, channels=channels, **options)
    _check(encoder.state_dict(), state, f"{what} do not fit '{name}'")
    encoder.load_state_dict(state)
    notes = [done] if done else []
    if f"{prefix}{OWN_VIT}" in tensors and "heads" not in given:
        notes.append(
            f"{options['heads']} attention heads, as published transformers of its width have: for others "
            "give backbone_options={'heads': …}"
        )
    left = [key for key in tensors if not key.startswith(prefix)]
    if left:
        notes.append(f"the encoder is '{prefix}*'")
    if heads or left:
        notes.append(f"left out: {_listed(heads + left, prefix)}")
    if notes:
        warn(f"{what}: {'; '.join(notes)}")
    return encoder, options


def _kind(
    name: str, options: Mapping[str, Any]
) -> tuple[Mapping[str, Rename], Callable[[State, Mapping[str, Any]], Fitted], Collection[str]]:
    """The marks of a backbone's kind, what reads its options, and its tensors that may look like a head's."""
    if name.startswith("resnet"):
        return RESNETS, fit_resnet, ()
    if name == "vit":
        return VITS, fit_vit, ()
    own = build_backbone(name, **options).state_dict()  # under its own names
    return {next(iter(own), ""): str}, lambda state, given: (state, {"image_size": 32, **given}, ""), own


def _encoder_in(
    name: str, tensors: State, marks: Mapping[str, Rename], own: Collection[str], what: str
) -> tuple[str, State, list[str]]:
    """The prefix of the encoder's tensors, these by our names, and the names of heads among them."""
    found = _found(tensors, marks)
    if found is None:
        raise ConfigError(
            f"{what} are none of a '{name}': no tensor is called {' or '.join(marks)}, and there are "
            f"{_listed(tensors, '')}"
        )
    prefix, rename = found
    inside = {key: rename(key.removeprefix(prefix)) for key in tensors if key.startswith(prefix)}
    heads = [key for key, ours in inside.items() if _HEADS.match(ours) and ours not in own]
    return prefix, {ours: tensors[key] for key, ours in inside.items() if key not in heads}, heads


def _plain(value: Tensor) -> bool:
    """Whether a tensor holds float numbers, which whole ones of a quantised layer are not."""
    return value.is_floating_point() and value.layout == torch.strided and not value.is_meta


def _check(own: State, given: State, fault: str) -> None:
    """Raise ConfigError that lists all differences, by block."""
    # checkpoints from before PyTorch 0.4.1 have no batch counters; batch norm fills them in
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    unknown = [name for name in given if name not in own]
    reshaped = [
        f"{name} {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in given and own[name].shape != given[name].shape
    ]
    odd = [
        name for name in own if name in given and own[name].is_floating_point() and not _plain(given[name])
    ]
    problems = [
        f"{len(names)} tensors {kind}: {_listed(names, '')}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("that are no plain floats", odd))
        if names
    ]
    if reshaped:
        problems.append(f"{len(reshaped)} of another shape: {'; '.join(reshaped[:_MOST_LISTED])}")
    if problems:
        raise ConfigError(f"{fault}: {'. '.join(problems)}")
