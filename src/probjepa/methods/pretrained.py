"""A module that saves itself and loads without pickle, from a folder or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import ModelHubMixin
from torch import nn

from probjepa import artifacts
from probjepa.errors import ArtifactError

_MODEL_CARD = """---
{{ card_data }}
---

A [probjepa](https://pypi.org/project/probjepa/) model: `probjepa.load("owner/name")` loads it, no pickle.
{% if paper_url %}Its method: {{ paper_url }}{% endif %}
"""


class Pretrained(
    nn.Module,
    ModelHubMixin,
    library_name="probjepa",
    tags=["self-supervised-learning"],
    model_card_template=_MODEL_CARD,
):
    """Base of what can be saved: a module, its registered name, and the settings that make it anew.

    Attributes
    ----------
    name
        its name in the registry
    recipe
        keywords of ``fit`` that suit it at CIFAR size, batch 256 and 200 epochs: ``probjepa train`` and the
        experiments take them as defaults, ``fit`` itself does not
    settings
        keywords of the constructor, as config.json holds them
    """

    name: ClassVar[str]
    recipe: ClassVar[Mapping[str, Any]] = {}
    settings: dict[str, Any]

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

        A model card that is there already is kept. ``push_to_hub=True`` uploads to ``repo_id`` (default: the
        folder's name) and returns the commit's address. Raises ArtifactError if either fails.
        """
        folder = Path(save_directory)
        with artifacts.staged_directory(folder) as stage:
            super().save_pretrained(stage, model_card_kwargs=model_card_kwargs)
            if (folder / "README.md").exists():
                (stage / "README.md").unlink()
        if push_to_hub:
            return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **hub)
        return None

    def push_to_hub(self, repo_id: str, **hub: Any) -> str:
        """Upload to a hub repository, made if needed, and return the commit's address.

        ``hub``: ``private``, ``token``, ``branch``, ``commit_message`` and the like, as huggingface_hub
        takes them. Raises ArtifactError if the upload fails.
        """
        try:
            return super().push_to_hub(repo_id, **hub)
        except ArtifactError:
            raise
        except Exception as error:  # the HTTP library under the hub's client differs between its versions
            raise ArtifactError(
                f"cannot upload to {repo_id} ({artifacts.first_line(error)}): check the name, "
                "the connection and your token (hf auth login)"
            ) from error

    def _save_pretrained(self, save_directory: Path) -> None:
        artifacts.write_model(self, save_directory)

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
            the module to fill, for a model that was built on a backbone of the user's own
        head
            the module to fill, for an ``IJEPA`` that was built with a head of the user's own
        hub
            ``revision``, ``token``, ``cache_dir``, ``local_files_only``: as huggingface_hub takes them

        Raises
        ------
        ArtifactError
            if there is no model, it is another method's, or another format's
        """
        model = artifacts.load(pretrained_model_name_or_path, backbone=backbone, head=head, **hub)
        if not isinstance(model, cls):
            raise ArtifactError(
                f"{pretrained_model_name_or_path} holds a {type(model).__name__}, not a {cls.__name__}: "
                "load it with probjepa.load"
            )
        return model
