"""Models on the hub: cards, uploads, and heads on an encoder that is not stored again."""

import inspect
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pandas as pd
import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save_file

import probjepa as pj
from probjepa.errors import ArtifactError, ConfigError
from probjepa.loading import is_of_tables
from probjepa.methods import METHODS
from saved_models import FILES, pixels, refused, same, small

SIDE = 16
COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


# --- uploads --------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """Stand in for the hub: what was uploaded, by repository."""
    uploads = {}

    class Made:
        def __init__(self, repo_id):
            self.repo_id = repo_id

    def upload(self, *, repo_id, folder_path, **options):
        uploads[repo_id] = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
        return f"https://huggingface.co/{repo_id}/commit/1"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **options: Made(repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return uploads


def test_push_uploads_the_three_files(hub, tmp_path):
    model = small(df=math.inf)
    url = model.push_to_hub("me/model")
    assert url == "https://huggingface.co/me/model/commit/1"
    assert set(hub["me/model"]) == FILES
    for name, content in hub["me/model"].items():
        (tmp_path / name).write_bytes(content)
    assert same(pj.load(tmp_path), model)


def test_saving_can_push_too(hub, tmp_path):
    assert (
        small()
        .save_pretrained(tmp_path / "digits", push_to_hub=True, repo_id="me/x")
        .endswith("me/x/commit/1")
    )
    small().save_pretrained(tmp_path / "digits", push_to_hub=True)
    assert list(hub) == ["me/x", "digits"]  # the folder's name is the default
    local = {p.name: p.read_bytes() for p in (tmp_path / "digits").iterdir()}
    assert hub["me/x"] == hub["digits"] == local


def test_an_option_that_the_hub_does_not_take_is_named(hub, tmp_path):
    with pytest.raises(ConfigError, match="option of push_to_hub 'privat', did you mean 'private'"):
        small().push_to_hub("me/x", privat=True)
    assert not hub


def test_a_config_of_ones_own_is_refused_and_the_folder_here_has_a_name(hub, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="option of push_to_hub 'config'"):
        small().push_to_hub("me/x", config={"a": 1})
    assert not hub
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    small().save_pretrained(".", push_to_hub=True)
    assert list(hub) == ["here"]
    (tmp_path / "link").symlink_to(tmp_path / "here")
    small().save_pretrained(tmp_path / "link", push_to_hub=True)
    assert list(hub) == ["here", "link"]


def test_a_branch_that_is_not_there_is_among_what_to_check(hub, monkeypatch):
    def missing(self, **options):
        raise ConnectionError("404 Client Error.")

    monkeypatch.setattr(HfApi, "upload_folder", missing)
    with pytest.raises(ArtifactError, match=r"\(404 Client Error\): .* that there is a branch b1, the conn"):
        small().push_to_hub("me/x", branch="b1")
    with pytest.raises(ArtifactError, match="check the name, the connection"):
        small().push_to_hub("me/x")


def test_a_failed_upload_keeps_what_was_saved(hub, tmp_path, monkeypatch):
    def offline(self, **options):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(HfApi, "upload_folder", offline)
    model = small()
    with pytest.raises(ArtifactError, match=r"cannot upload to me/x \(no route\)") as error:
        model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="me/x")
    assert "\n" not in str(error.value)
    assert same(pj.load(tmp_path / "model"), model)


def test_loading_from_the_hub_asks_for_three_files(tmp_path, monkeypatch):
    model = small()
    model.save_pretrained(tmp_path)
    asked = {}

    def download(repo_id, **options):
        asked[repo_id] = options
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert same(pj.load("me/model", revision="v1", local_files_only=True), model)
    assert same(pj.VJE.from_pretrained("me/other", token="t"), model)
    files = {
        "allow_patterns": ["config.json", "model.safetensors", "README.md"]
    }  # no pickle, whatever else is there
    assert asked == {
        "me/model": {**files, "revision": "v1", "local_files_only": True},
        "me/other": {**files, "token": "t"},
    }


def test_a_model_of_tables_on_the_hub_is_told_from_one_of_images(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    pj.VarTJEPA(dim=8, max_epochs=1, random_state=0).fit(pd.DataFrame({"a": range(40), "b": range(40)})).save(
        folder
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **options: str(folder))
    assert is_of_tables("me/model")
    small().save_pretrained(folder)
    assert not is_of_tables("me/model") and not is_of_tables("hf:me/model")
    monkeypatch.undo()
    assert not is_of_tables("resnet18:weights/file.pt")
    assert not is_of_tables("no-such-run")


@pytest.mark.parametrize("text", ["gone\nfor good", ""])
def test_a_repository_that_cannot_be_had(text, monkeypatch):
    def download(repo_id, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError(text)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    refused("me/model", "no model at me/model, on this disk or on the hub")
    monkeypatch.undo()
    refused("me/mo..del", "no model at me/mo..del")  # no name for a repository


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "refused: check the name, and log in"),
        (403, "refused: log in .* and accept its terms on its page"),
        (404, "refused: check the name and the revision, and log in"),
        (500, "on the hub: refused$"),
    ],
)
def test_a_refused_repository_says_what_to_do(status, says, monkeypatch):
    def download(repo_id, **options):
        response = SimpleNamespace(status_code=status, headers={}, request=None)
        raise huggingface_hub.errors.HfHubHTTPError("refused.", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    refused("me/model", says)


def test_a_download_that_breaks_off_is_one_line(monkeypatch):
    class Cut(Exception):
        """None of Python's and none of the hub's: its HTTP library is httpx or requests, by its version."""

    def download(repo_id, **options):
        raise Cut("peer closed connection without sending complete message body")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    refused("me/model", "no model at me/model, on this disk or on the hub: peer closed")


def test_an_answer_of_something_else_than_the_hub_is_one_line_and_the_cache_stands(tmp_path, monkeypatch):
    model = small()
    cached = {"me/model": tmp_path}
    model.save_pretrained(tmp_path)

    def download(repo_id, local_files_only=False, **options):
        if not local_files_only:
            raise json.JSONDecodeError("Expecting value", "<html>", 0)  # a network's login page
        if repo_id not in cached:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        return str(cached[repo_id])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert same(pj.load("me/model"), model)
    refused("me/other", r"no model at me/other.*the answer is none of the hub's \(Expecting value.*\)")


@pytest.mark.parametrize("config", ['{"model_type": "vit"}', None, "", "[]"])
def test_a_repository_of_another_library_is_named(config, tmp_path, monkeypatch):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
        (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **options: str(tmp_path))
    refused(
        "me/vit", r"me/vit, on the hub, holds no model that probjepa wrote .*: another.*hf:me/vit or timm:"
    )
    if config == '{"model_type": "vit"}':
        refused(
            tmp_path, f"holds no model that probjepa wrote: another library's encoder is hf:{tmp_path} or"
        )


def test_a_repository_without_weights_is_named(tmp_path, monkeypatch):
    small().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **options: str(tmp_path))
    refused("me/model", "holds no model that probjepa wrote")


# --- cards ----------------------------------------------------------------------------------------------


def saved_card(model, folder):
    model.save_pretrained(folder)
    return (folder / "README.md").read_text()


def head(text):
    """What stands between the first two lines of dashes."""
    import yaml

    return yaml.safe_load(text.split("---\n")[1])


def test_a_card_says_what_it_is_and_how_to_use_it(tmp_path):
    text = saved_card(small(), tmp_path / "vje")
    data = head(text)
    assert data["library_name"] == "probjepa" and data["pipeline_tag"] == "image-feature-extraction"
    assert {"vje", "self-supervised-learning"} <= set(data["tags"]) and "base_model" not in data
    assert "arxiv.org/abs/2602.05639" in text and "`convnet`" in text
    assert 'pj.load("owner/name")' in text and "probjepa score owner/name" in text
    for use in ("embed", "score_samples", "uncertainty"):
        assert f"model.{use}(images)" in text
    assert '"hidden_dim"' in text and "## Training" not in text
    text = saved_card(pj.SimSiam("convnet", channels=1, image_size=8), tmp_path / "simsiam")
    assert "model.embed(images)" in text and "uncertainty" not in text and "probjepa embed" in text
    assert head(text)["tags"].count("simsiam") == 1 and "vje" not in head(text)["tags"]


def test_a_card_has_the_numbers_of_the_run_wherever_it_is_saved_next(tmp_path, hub):
    images, labels = pixels(24), torch.arange(24) % 2
    model = small()
    options = {"batch_size": 8, "knn_every": 1, "learning_rate": 0.01, "progress": False, "device": "cpu"}
    pj.fit(model, (images, labels), val=(pixels(8), labels[:8]), epochs=2, out=tmp_path / "run", **options)
    text = (tmp_path / "run" / "model" / "README.md").read_text()
    columns, *_, last = (line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().split())
    found = dict(zip(columns, last, strict=True))
    assert "## Training" in text and "| images | 24 |" in text and "| epochs | 2 |" in text
    assert "| batch_size | 8 |" in text and "| learning_rate | 0.01 |" in text
    for name in ("train/loss", "val/knn" if "val/knn" in found else "knn"):
        assert f"| {name} | {float(found[name]):.4g} |" in text
    loaded = pj.load(tmp_path / "run")
    loaded.push_to_hub("me/model")
    assert hub["me/model"]["README.md"].decode() == text
    (tmp_path / "run" / "model" / "README.md").unlink()  # as a download has it
    assert saved_card(pj.load(tmp_path / "run"), tmp_path / "again") == text


def test_a_card_that_was_edited_on_the_hub_is_kept_and_pushed(tmp_path, hub, monkeypatch):
    saved_card(small(), tmp_path / "there")
    (tmp_path / "there" / "README.md").write_text("mine\n")

    def download(repo_id, allow_patterns):
        keep = shutil.ignore_patterns(*({p.name for p in (tmp_path / "there").iterdir()} - {*allow_patterns}))
        return str(shutil.copytree(tmp_path / "there", tmp_path / "here", ignore=keep))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    pj.load("me/model").push_to_hub("me/copy")
    assert hub["me/copy"]["README.md"] == b"mine\n"


def test_a_card_that_was_edited_is_kept_and_pushed(tmp_path, hub):
    model = small()
    saved_card(model, tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nnot: [yaml\n---\nmine\n")
    model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="me/a")
    pj.load(tmp_path / "model").push_to_hub("me/b")
    for found in (hub["me/a"]["README.md"], hub["me/b"]["README.md"]):
        assert found == (tmp_path / "model" / "README.md").read_bytes() == b"---\nnot: [yaml\n---\nmine\n"
    pj.fit(model, pixels(8), epochs=1, batch_size=4, out=tmp_path / "run", progress=False, device="cpu")
    assert "## Training" in (tmp_path / "run" / "model" / "README.md").read_text()  # it is another model now


def test_a_card_holds_no_markup_of_names_and_no_place_of_files(tmp_path):
    import numpy as np

    (tmp_path / "secret").mkdir()
    np.save(tmp_path / "secret" / "a|b<i>.npy", pixels(8).squeeze(1).numpy())
    model, data = small(), str(tmp_path / "secret" / "a|b<i>.npy")
    pj.fit(model, data, epochs=1, batch_size=4, out=tmp_path / "run", progress=False, device="cpu")
    text = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "| data | a&#124;b&lt;i&gt;.npy |" in text and "secret" not in text


@pytest.mark.parametrize("run", [None, 3, [1], {"a": [1], "b": {}, "c": None, "d": 1}, "x"])
def test_a_damaged_record_of_the_run_is_left_out(tmp_path, run):
    small().save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run": run}))
    (tmp_path / "a" / "README.md").unlink()
    text = saved_card(pj.load(tmp_path / "a"), tmp_path / "b")
    assert ("| d | 1 |" in text) == isinstance(run, dict)


# --- heads on an encoder of the hub ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A hub's cache with a vision transformer, in two commits."""
    transformers = pytest.importorskip("transformers", reason="transformers (extra 'hf') is not installed")
    root = tmp_path_factory.mktemp("hub")
    repo = root / "models--me--vit"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=SIDE,
        patch_size=8,
    )  # fmt: skip
    processor = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.4] * 3, "image_std": [0.3] * 3,
    }  # fmt: skip
    for seed, commit in enumerate((COMMIT, OTHER)):
        torch.manual_seed(seed)
        transformers.ViTModel(config).save_pretrained(repo / "snapshots" / commit)
        (repo / "snapshots" / commit / "preprocessor_config.json").write_text(json.dumps(processor))
    return root


@pytest.fixture
def encoders(cache, tmp_path, monkeypatch):
    """The hub, of which only a cache can be had: its folder of the repository."""
    shutil.copytree(cache, tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache" / "models--me--vit"


def colours(n=4):
    return torch.randint(0, 256, (n, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).byte()


def stored(folder):
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


ON_A_VIT = [name for name in METHODS if name != "i-jepa"]  # which needs tokens of some of the patches


@pytest.mark.parametrize("name", ON_A_VIT)
def test_a_head_is_stored_without_its_encoder(encoders, tmp_path, name):
    takes = inspect.signature(METHODS[name]).parameters
    narrow = {key: 16 for key in ("projector_dim", "predictor_dim", "hidden_dim") if key in takes}
    model = METHODS[name]("hf:me/vit", freeze=True, seed=0, **narrow)
    fit = {"batch_size": 2, "learning_rate": 0.01, "progress": False, "device": "cpu"}
    pj.fit(model, colours(), epochs=1, out=tmp_path / "run", **fit)
    weights, config = stored(tmp_path / "run" / "model")
    assert config["settings"]["backbone"] == f"hf:me/vit@{COMMIT}"
    assert not [key for key in weights if "model.embeddings" in key or "module.model" in key]
    assert head((tmp_path / "run" / "model" / "README.md").read_text())["base_model"] == "me/vit"
    (encoders / "refs" / "main").write_text(OTHER)  # the hub moves on
    loaded = pj.load(tmp_path / "run")
    assert same(loaded, model) and torch.equal(loaded.embed(colours()), model.embed(colours()))
    loaded.save_pretrained(tmp_path / "again")
    again, _ = stored(tmp_path / "again")
    assert again.keys() == weights.keys() and same(pj.load(tmp_path / "again"), model)
    if (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file():  # of a resume, which needs no hub
        kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert len(kept) == len(model.state_dict())


def test_a_head_with_an_averaged_encoder_is_stored_without_both(encoders, tmp_path):
    model = pj.VJE("hf:me/vit", freeze=True, target="ema", seed=0)
    model.after_step(1, 10)
    model.eval().save_pretrained(tmp_path)
    assert not [key for key in stored(tmp_path)[0] if "embeddings" in key]
    assert same(pj.load(tmp_path), model)


@pytest.mark.parametrize("given", ["name", "revision", "opened", "model"])
def test_an_encoder_is_known_however_it_is_given(encoders, tmp_path, given):
    commit = OTHER if given == "revision" else COMMIT
    backbone = {"name": "hf:me/vit", "revision": f"hf:me/vit@{OTHER}"}.get(given)
    if backbone is None:
        backbone = pj.open_encoder("hf:me/vit")
    if given == "model":
        pj.VJE(backbone, freeze=True).save_pretrained(tmp_path / "first")
        backbone = tmp_path / "first"
    model = pj.VJE(backbone, freeze=True, seed=0).eval()
    model.save_pretrained(tmp_path / "model")
    weights, config = stored(tmp_path / "model")
    assert config["settings"]["backbone"] == f"hf:me/vit@{commit}"
    assert not [key for key in weights if key.startswith("encoder.")]
    assert same(pj.load(tmp_path / "model"), model)


def tuned():
    trained = pj.VJE("hf:me/vit", seed=0)
    with torch.no_grad():
        next(trained.encoder.parameters()).add_(1)
    return pj.VJE(trained.eval(), freeze=True, seed=0)


def edited():
    model = pj.VJE("hf:me/vit", freeze=True, seed=0)
    with torch.no_grad():
        next(model.encoder.parameters()).add_(1)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: pj.VJE("hf:me/vit", seed=0),
        tuned,
        edited,
        lambda: pj.VJE("hf:me/vit", freeze=True, seed=0).reinitialised(),
        lambda: pj.VJE(
            f"hf:{constants.HF_HUB_CACHE}/models--me--vit/snapshots/{COMMIT}", freeze=True, seed=0
        ),
    ],
    ids=["trained on", "frozen after it was", "edited", "random", "a folder"],
)
def test_any_other_encoder_is_stored_whole(encoders, tmp_path, make):
    model = make().eval()
    model.save_pretrained(tmp_path)
    weights, config = stored(tmp_path)
    assert weights.keys() == model.state_dict().keys()
    modules = {"backbone": model.plain_encoder} if config["modules"] else {}
    wanted = model.embed(colours())
    shutil.rmtree(encoders)  # what is stored needs neither the hub nor a folder of somebody's machine
    loaded = pj.load(tmp_path, **modules)
    assert same(loaded, model) and torch.equal(loaded.embed(colours()), wanted)
    loaded.save_pretrained(tmp_path / "again")
    again = stored(tmp_path / "again")
    assert again[1] == config and again[0].keys() == weights.keys()
    assert torch.equal(pj.load(tmp_path / "again", **modules).embed(colours()), wanted)
    if not modules:
        fresh, other = loaded.reinitialised(seed=1), loaded.reinitialised(seed=2)
        assert not torch.equal(fresh.embed(colours()), other.embed(colours()))


@pytest.mark.parametrize("pooling", [None, "mean"])
def test_an_opened_encoder_is_stored_whole(encoders, tmp_path, pooling):
    model = pj.open_encoder("hf:me/vit", pooling=pooling, image_size=SIDE)
    model.save_pretrained(tmp_path)
    wanted = model.embed(colours())
    shutil.rmtree(encoders)
    loaded = pj.load(tmp_path)
    assert torch.equal(loaded.embed(colours()), wanted)
    assert loaded.settings == model.settings and loaded.preprocess.config() == model.preprocess.config()
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(pj.load(tmp_path / "again").embed(colours()), wanted)


def test_an_encoder_without_a_processor_is_stored_whole(encoders, tmp_path):
    (encoders / "snapshots" / COMMIT / "preprocessor_config.json").unlink()
    model = pj.VICReg("hf:me/vit", image_size=SIDE, seed=0).eval()
    model.save_pretrained(tmp_path)
    shutil.rmtree(encoders)
    loaded = pj.load(tmp_path)
    assert same(loaded, model) and torch.equal(loaded.embed(colours()), model.embed(colours()))


def changed(folder, **architecture):
    config = json.loads((folder / "config.json").read_text())
    config["architecture"]["transformers"] |= architecture
    (folder / "config.json").write_text(json.dumps(config))


def test_an_architecture_that_is_not_known_is_opened_by_its_name_or_given(encoders, tmp_path):
    model = pj.VJE("hf:me/vit", seed=0).eval()
    model.save_pretrained(tmp_path)
    backbone, wanted = pj.open_encoder("hf:me/vit"), model.embed(colours())
    changed(tmp_path, model_type="vit-of-the-future")
    assert torch.equal(pj.load(tmp_path).embed(colours()), wanted)
    shutil.rmtree(encoders)
    refused(tmp_path, r"no model 'hf:me/vit'.*pass it yourself: load\(…, backbone=module\)\)$")
    assert torch.equal(pj.load(tmp_path, backbone=backbone).embed(colours()), wanted)


@pytest.mark.parametrize(
    "more",
    [
        {"attn_implementation": "evil/kernel"},
        {"auto_map": {"AutoModel": "evil--model.Model"}},
        {"model_type": "timm_wrapper", "architecture": "hf-hub:evil/model"},
        {"model_type": "timm_backbone", "backbone": "resnet18"},
        {"quantization_config": {"quant_method": "evil"}},
        {"vision_config": {"model_args": {"checkpoint_path": "/etc/passwd"}}},
        {"parts": [{"use_pretrained_backbone": True}]},
    ],
)
def test_an_architecture_that_names_something_else_builds_nothing(encoders, tmp_path, monkeypatch, more):
    transformers = pytest.importorskip("transformers")
    pj.VJE("hf:me/vit", seed=0).save_pretrained(tmp_path)
    shutil.rmtree(encoders)
    changed(tmp_path, **more)

    def build(*_, **__):
        raise AssertionError("it was asked to build it")

    monkeypatch.setattr(transformers.AutoConfig, "for_model", build)
    refused(tmp_path, "no model 'hf:me/vit'")


def test_an_architecture_beside_another_backbone_is_not_read(encoders, tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architecture"] = {"pooling": None, "transformers": {"model_type": "vit"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert same(pj.load(tmp_path), model)


def test_only_what_can_be_built_again_is_kept_as_an_architecture(encoders, tmp_path, monkeypatch):
    model = pj.VJE("hf:me/vit", seed=0).eval()
    monkeypatch.setattr("probjepa.backbones.architecture.built", lambda architecture: None)
    model.save_pretrained(tmp_path)
    assert "architecture" not in stored(tmp_path)[1]
    assert same(pj.load(tmp_path), model)


def test_what_is_kept_names_no_place_of_this_machine(encoders, tmp_path):
    pj.VJE("hf:me/vit", seed=0).save_pretrained(tmp_path)
    kept = stored(tmp_path)[1]["architecture"]["transformers"]
    assert str(encoders) not in json.dumps(kept) and not kept.keys() & {"_name_or_path", "id2label"}


@pytest.mark.parametrize("freeze", [True, False])
def test_a_stand_in_is_pooled_and_sized_as_the_encoder_was(encoders, tmp_path, freeze):
    options = {"backbone_options": {"pooling": "mean"}, "freeze": freeze, "seed": 0}
    model = pj.VJE("hf:me/vit", **options).eval()
    opened = pj.open_encoder("hf:me/vit", pooling="mean")
    model.save_pretrained(tmp_path / "model")
    opened.save_pretrained(tmp_path / "opened")
    backbone = pj.open_encoder("hf:me/vit")  # by its class token
    wanted = model.embed(colours()), opened.embed(colours())
    assert not torch.equal(backbone.embed(colours()), wanted[1])
    if freeze:
        fresh = model.reinitialised(seed=1)
        assert fresh.settings["backbone_options"] == {"pooling": "mean"}
        assert fresh.plain_encoder.pooling == "mean"
    shutil.rmtree(encoders)
    for given in (backbone, backbone.plain_encoder, backbone.plain_encoder.model):
        loaded = pj.load(tmp_path / "model", backbone=given)
        assert torch.equal(loaded.embed(colours()), wanted[0])
        assert {**loaded.settings, "backbone": "hf:me/vit"} == model.settings
        assert torch.equal(pj.load(tmp_path / "opened", backbone=given).embed(colours()), wanted[1])


def test_a_module_stands_in_for_an_encoder_of_the_hub(encoders, tmp_path):
    model = pj.VJE("hf:me/vit", freeze=True, seed=0).eval()
    model.save_pretrained(tmp_path / "model")
    backbone = pj.open_encoder("hf:me/vit")
    other = pj.open_encoder(f"hf:me/vit@{OTHER}")
    wanted = model.embed(colours())
    shutil.rmtree(encoders)
    refused(tmp_path / "model", r"no model 'hf:me/vit.*\(or pass it yourself: load\(…, backbone=module\)\)$")
    for given in (backbone, backbone.plain_encoder):
        loaded = pj.load(tmp_path / "model", backbone=given)
        assert torch.equal(loaded.embed(colours()), wanted)
        assert loaded.settings["backbone"].startswith("hf:me/vit") and loaded.config()["modules"] == []
    with pytest.raises(ArtifactError, match="was trained on other weights of 'hf:me/vit"):
        pj.load(tmp_path / "model", backbone=other)
    small().save_pretrained(tmp_path / "own")
    refused(tmp_path / "own", "was built on no backbone of its user's own: leave it out", backbone=backbone)


def test_an_encoder_that_cannot_be_had_is_one_line(encoders, tmp_path):
    model = pj.VJE("hf:me/vit", freeze=True, seed=0)
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(encoders / "snapshots" / COMMIT)
    refused(tmp_path / "model", f"model stands on an encoder.*no model 'hf:me/vit@{COMMIT}'.*on the hub")


def test_an_encoder_of_other_weights_is_one_line(encoders, tmp_path):
    model = pj.VJE("hf:me/vit", freeze=True, seed=0)
    model.save_pretrained(tmp_path / "model")
    path = encoders / "snapshots" / COMMIT / "model.safetensors"
    weights = load_file(path)
    weights[next(iter(weights))] += 1
    save_file(weights, path, metadata={"format": "pt"})
    refused(tmp_path / "model", "was trained on other weights of 'hf:me/vit")


def test_a_head_alone_is_pushed_and_loaded(encoders, hub, tmp_path):
    model = pj.VJE("hf:me/vit", freeze=True, seed=0).eval()
    model.push_to_hub("me/head")
    assert set(hub["me/head"]) == FILES
    for name, content in hub["me/head"].items():
        (tmp_path / name).write_bytes(content)
    assert not [key for key in stored(tmp_path)[0] if key.startswith("encoder.")]
    assert torch.equal(
        pj.VJE.from_pretrained(tmp_path).score_samples(colours()), model.score_samples(colours())
    )
