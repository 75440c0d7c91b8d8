"""A module that saves itself and loads without pickle, from a folder or the Hugging Face hub."""

from __future__ import annotations

import inspect
import math
import os
import re
from abc import ABCMeta
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor, nn

from probjepa import files, model_files
from probjepa.backbones import names_hub
from probjepa.draws import forked
from probjepa.errors import ArtifactError, ConfigError, unknown_argument, unknown_name
from probjepa.methods import card
from probjepa.registry import LOADERS
from probjepa.typed import check_arguments, check_settings, types_of

T = TypeVar("T")
_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


class _Seeded(ABCMeta):  # no other metaclass is as widely inherited beside
    """Checks the settings' types, and makes a model from the random numbers of its ``seed``, if given one."""

    def __call__(cls: type[T], *args: Any, **kwargs: Any) -> T:
        make: Callable[..., T] = super().__call__  # type: ignore[misc]
        types = {
            name: kind for name, kind in types_of(cls).items() if name != "view_recipe"
        }  # Method says more
        kwargs = check_arguments(kwargs, types)
        try:
            if (seed := kwargs.get("seed")) is None:
                return make(*args, **kwargs)
            with forked(seed=seed):
                return make(*args, **kwargs)
        except TypeError as error:
            other = _UNEXPECTED.search(str(error))
            if other is None or other[1] not in kwargs or other[1] in types:
                raise
            raise unknown_argument(cls.__name__, other[1], types) from error


class _Signature:
    """The constructor's signature, with the parent's arguments in the place of ``**keywords``.

    ``inspect.signature`` and ``help`` read it of the class; an instance is called otherwise, and has none.
    """

    def __get__(self, instance: object, owner: type[Pretrained]) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        return _joined(owner)


def _joined(cls: type[Pretrained]) -> inspect.Signature:
    home: Any = next(kind for kind in cls.__mro__ if "__init__" in vars(kind))
    own = list(inspect.signature(home.__init__).parameters.values())[1:]
    if not own or own[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        return inspect.Signature(own)
    parent = home.__mro__[1]
    names = {parameter.name for parameter in own}
    if parent is Pretrained:  # its own keywords, by their defaults
        keyword = inspect.Parameter.KEYWORD_ONLY
        more = [
            inspect.Parameter(name, keyword, default=value, annotation=type(value).__name__)
            for name, value in home.defaults.items()
        ]
        return inspect.Signature([*own[:-1], *more] if more else own)
    inherited = [
        parameter.replace(
            kind=inspect.Parameter.KEYWORD_ONLY, default=home.defaults.get(parameter.name, parameter.default)
        )
        for parameter in _joined(parent).parameters.values()
        if parameter.name not in names and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    positional = [p for p in own if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    return inspect.Signature([*positional, *inherited, *own[len(positional) : -1]])


class Pretrained(
    nn.Module,
    ModelHubMixin,
    library_name="probjepa",
    tags=["self-supervised-learning"],
    model_card_template=card.TEMPLATE,
    metaclass=_Seeded,
):
    """Base of what can be saved: a module, its registered name, and the settings that make it again.

    The constructor's arguments are recorded here, once for all sub-classes. A sub-class that takes
    ``**keywords`` for its parent's constructor has the parent's arguments in its own signature.

    Attributes
    ----------
    name
        its name in the registry
    recipe
        settings of a training loop (``training.settings.LoopSettings``) that suit it at CIFAR size, batch 256
        and 200 epochs: they stand wherever it is trained, unless others are given
    defaults
        of what a sub-class takes as ``**keywords``, where they are not the parent's
    settings
        the constructor's arguments but ``seed``, defaults among them, as config.json holds them; None for a
        module
    run_record
        what the card says of the training, and config.json keeps: data, settings, last losses; of ``fit``
    card_text
        the text of the model card that it was loaded with, which is saved again; None: one is made
    """

    name: ClassVar[str]
    recipe: ClassVar[Mapping[str, Any]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}
    __signature__ = _Signature()
    settings: dict[str, Any]
    run_record: Mapping[str, Any] = {}
    card_text: str | None = None
    _modules_given: tuple[str, ...]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the arguments before the constructor sees them."""
        model: Self = super().__new__(cls, *args, **kwargs)
        signature = inspect.signature(cls)
        try:
            bound = signature.bind_partial(*args, **kwargs)
        except TypeError:
            return model  # an argument that there is not: the constructor says so
        bound.apply_defaults()
        for parameter in signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments |= bound.arguments.pop(parameter.name)
        given = {name: value for name, value in bound.arguments.items() if name != "seed"}
        model.__dict__["settings"] = {name: _recorded(value) for name, value in given.items()}
        modules = tuple(name for name, value in given.items() if isinstance(value, nn.Module))
        model.__dict__["_modules_given"] = modules
        return model

    @property
    def base_model(self) -> str | None:
        """The repository on the hub that the model stands on, if there is one."""
        return None

    # --- saving -----------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Return what config.json holds of this model: its method, its settings, and which are modules."""
        settings = {k: "inf" if v == math.inf else v for k, v in self.settings.items()}
        return {"method": self.name, "settings": settings, "modules": list(self._modules_given)}

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **hub: Any,
    ) -> str | None:
        """Write model.safetensors, config.json and a model card; each file atomically.

        A model card that is there already, or that the model was loaded with, is kept, whatever
        ``model_card_kwargs`` say. ``push_to_hub=True`` uploads to ``repo_id`` (default: the
        folder's name), that card too, and returns the commit's address. Raises ArtifactError if either fails.
        """
        _check_options(hub)
        folder = Path(save_directory)
        with files.staged_directory(folder) as stage:
            super().save_pretrained(stage, model_card_kwargs=model_card_kwargs)
            if (folder / model_files.CARD).exists():
                (stage / model_files.CARD).unlink()
                self.card_text = _text_of(folder / model_files.CARD)
        if push_to_hub:
            return self.push_to_hub(
                repo_id or Path(os.path.abspath(folder)).name, model_card_kwargs=model_card_kwargs, **hub
            )
        return None

    def push_to_hub(self, repo_id: str, **hub: Any) -> str:
        """Upload to a hub repository, made if needed, and return the commit's address.

        ``hub``: ``private``, ``token``, ``branch``, ``commit_message`` and the like, as huggingface_hub
        takes them. Raises ConfigError for any other, ArtifactError if the upload fails.
        """
        _check_options(hub)
        try:
            return super().push_to_hub(repo_id, **hub)
        except ArtifactError:
            raise
        except Exception as error:  # the HTTP library under the hub's client differs between its versions
            branch = f"that there is a branch {hub['branch']}, " if hub.get("branch") else ""
            raise ArtifactError(
                f"cannot upload to {repo_id} ({files.first_line(error).rstrip('.')}): check the name, "
                f"{branch}the connection and your token (hf auth login)"
            ) from error

    def _save_pretrained(self, save_directory: Path) -> None:
        what = f"the settings of this {type(self).__name__}"
        config, weights = self._saved()
        if self.run_record:
            config["run"] = dict(self.run_record)
        model_files.write_model(save_directory, config, weights, what)
        if self.card_text is not None:
            (save_directory / model_files.CARD).write_text(self.card_text, encoding="utf-8")

    def _saved(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What config.json and model.safetensors hold."""
        return self.config(), self.state_dict()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the card of a model that has none yet."""
        return card.model_card(self, **kwargs)

    # --- loading ----------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **modules: Any) -> Self:
        """Make a model with fresh weights from what ``config`` returned, and its user's own modules by name.

        Raises
        ------
        ConfigError, KeyError, TypeError
            for settings that are none of this class
        """
        settings = {name: value for name, value in config["settings"].items() if name not in modules}
        return cls(**check_settings(settings, types_of(cls)), **modules)

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any], **modules: Any) -> Self:
        """Load a saved model, in evaluation mode; see ``probjepa.load``, which finds the class.

        Raises
        ------
        ArtifactError
            for a damaged file, or a missing module
        """
        try:
            wanted = cls._wanted_modules(folder, config, modules)
        except (KeyError, TypeError, AttributeError) as error:
            raise model_files.damaged(folder, error) from error
        try:
            model = cls.from_config(config, **wanted)
        except ArtifactError as error:
            passed = "" if "backbone" in wanted else " (or pass it yourself: load(…, backbone=module))"
            raise ArtifactError(
                f"{folder} stands on an encoder that cannot be loaded: {error}{passed}"
            ) from error
        except files.DAMAGES as error:
            if wanted and isinstance(error, ConfigError):
                raise  # of the module that was passed
            raise model_files.damaged(folder, error) from error
        model._restore(folder, config)
        model.run_record, model.card_text = (
            card.plain_record(config.get("run")),
            _text_of(folder / model_files.CARD),
        )
        return model.eval()

    def _restore(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Fill the model with the weights of a folder; ArtifactError where they do not fit."""
        model_files.read_weights(folder, self.load_state_dict)

    @classmethod
    def _wanted_modules(
        cls, folder: Path, config: Mapping[str, Any], given: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The given modules, which the saved model was built with or which stand in for an encoder of a hub.

        ArtifactError if one is missing, or has no place.
        """
        settings = config["settings"]
        # older models have no list of them
        old = [name for name in ("backbone", "head") if settings.get(name, "") is None]
        own = list(config.get("modules", old))
        for name in own:
            if name not in given:
                raise ArtifactError(
                    f"{folder} was built on a {name} of its user's own: pass it, load(…, {name}=module)"
                )
        for name in given:
            if name not in inspect.signature(cls).parameters:
                raise model_files.takes_no(folder, cls, name)
            if name not in own and not names_hub(settings.get(name)):
                raise ArtifactError(f"{folder} was built on no {name} of its user's own: leave it out")
        return dict(given)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        backbone: nn.Module | None = None,
        head: nn.Module | None = None,
        **hub: Any,
    ) -> Self:
        """Load from a folder or a hub repository: safetensors and JSON, no pickle.

        Parameters
        ----------
        backbone
            the module to fill, for a model that was built on a backbone of the user's own, or in the place of
            an encoder of a hub
        head
            the module to fill, for an ``IJEPA`` that was built with a head of the user's own
        hub
            ``revision``, ``token``, ``cache_dir``, ``local_files_only``: as huggingface_hub takes them

        Raises
        ------
        ArtifactError
            if there is no model, it is another method's, or another format's
        """
        load = LOADERS["saved model"]
        model = load(pretrained_model_name_or_path, backbone=backbone, head=head, **hub)
        if not isinstance(model, cls):
            raise ArtifactError(
                f"{pretrained_model_name_or_path} holds a {type(model).__name__}, not a {cls.__name__}: "
                "load it with probjepa.load"
            )
        return model


def _check_options(hub: Mapping[str, Any]) -> None:
    # a config of one's own would not be the model's; the mixin's own call gives None
    known = inspect.signature(ModelHubMixin.push_to_hub).parameters.keys() - {"self", "config"}
    given = {name for name, value in hub.items() if (name, value) != ("config", None)}
    if unknown := sorted(given - known):
        raise unknown_name("option of push_to_hub", unknown[0], known)


def _text_of(path: Path) -> str | None:
    """The text of a file, if there is one."""
    try:
        return files.regular(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _recorded(value: Any) -> Any:
    """An argument as config.json holds it."""
    if isinstance(value, nn.Module):
        return None
    if isinstance(value, Mapping):
        return {name: _recorded(part) for name, part in value.items()}
    return [_recorded(part) for part in value] if isinstance(value, tuple | list) else value
