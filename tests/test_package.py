"""The package itself: what an import loads, lazy names, docstrings, the registry, the errors."""

import importlib
import inspect
import subprocess
import sys

import pytest

import probjepa
from probjepa.backbones import BACKBONES
from probjepa.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    MissingExtraError,
    ProbjepaError,
    ProbjepaWarning,
    unknown_name,
)
from probjepa.methods import METHODS
from probjepa.registry import Registry

HEAVY = [
    "torch",
    "lightning",
    "kornia",
    "sklearn",
    "matplotlib",
    "pyarrow",
    "PIL",
    "pandas",
    "huggingface_hub",
    "rich",
]
ROOMS = [
    "backbones", "data", "detectors", "distributions", "errors", "heads", "methods", "metrics",
    "data.overlap", "registry", "scores", "training",
]  # fmt: skip


# in this order in one fresh interpreter: none may load what a later one may
USES = {
    "the package": "import probjepa; dir(probjepa); probjepa.__version__",
    "the table of methods": "from probjepa.methods import METHODS; list(METHODS)",
    "the table of backbones": "from probjepa.backbones import BACKBONES; list(BACKBONES)",
    "the table of scores": (
        "from probjepa.scores import SCORES, score_class; assert all(score_class(n).summary for n in SCORES)"
    ),
    "a method": "probjepa.VJE; probjepa.load",
    "the data": "import probjepa.data as d; d.open_images",
    "the metrics": "import probjepa.metrics",
    "the training and the tables": (
        "import probjepa.training as t; t.Interrupted; t.FitSettings; probjepa.VarTJEPA()"
    ),
}


@pytest.fixture(scope="module")
def loaded():
    """Which of the heavy packages a fresh interpreter holds after each use."""
    after = f"print(*[name for name in {HEAVY} if name in sys.modules])"
    code = "\n".join(["import sys", *(f"{use}\n{after}" for use in USES.values())])
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(USES, map(str.split, run.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("use", [use for use in USES if use.startswith(("the package", "the table of"))])
def test_importing_the_package_and_reading_its_tables_loads_nothing_heavy(loaded, use):
    assert loaded[use] == []


def test_a_method_needs_torch_and_the_hubs_client_alone(loaded):
    assert set(loaded["a method"]) <= {"torch", "huggingface_hub"}


def test_importing_the_data_is_light(loaded):
    assert not {"kornia", "sklearn", "pyarrow", "pandas", "matplotlib"} & set(loaded["the data"])


def test_importing_the_metrics_loads_no_scikit_learn(loaded):
    assert "sklearn" not in loaded["the metrics"]


def test_importing_the_training_or_the_tables_does_not_import_lightning(loaded):
    assert "lightning" not in loaded["the training and the tables"]


def test_lazy_names():
    assert set(probjepa._LAZY) <= set(dir(probjepa))
    assert set(probjepa.__all__) <= set(dir(probjepa))
    for name in probjepa.__all__:
        assert getattr(probjepa, name) is getattr(probjepa, name)
    from probjepa.loading import load
    from probjepa.methods.vje import VJE

    assert probjepa.VJE is VJE
    assert probjepa.load is load
    assert probjepa.metrics is importlib.import_module("probjepa.metrics")


@pytest.mark.parametrize("module", ["probjepa", "probjepa.methods"])
def test_unknown_names(module):
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'VJEE'"):
        importlib.import_module(module).VJEE  # noqa: B018


def public(module):
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    return {name: getattr(module, name) for name in names}


@pytest.mark.parametrize("room", ROOMS)
def test_everything_public_is_documented(room):
    module = importlib.import_module(f"probjepa.{room}")
    assert module.__doc__
    things = public(module)
    assert things
    for name, value in things.items():
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        assert "__doc__" not in vars(value) or vars(value)["__doc__"], name
        assert inspect.getdoc(value), name
        if inspect.isclass(value) and value.__module__.startswith("probjepa"):
            for method, function in vars(value).items():
                if not method.startswith("_") and (
                    inspect.isfunction(function) or isinstance(function, property)
                ):
                    assert inspect.getdoc(getattr(value, method)), f"{name}.{method}"


# --- the registry ---------------------------------------------------------------------------------------


def test_registry_is_a_lazy_mapping():
    registry = Registry("thing", {"sqrt": "math:sqrt", "broken": "no_such_module_here:x"})
    assert list(registry) == ["sqrt", "broken"]
    assert len(registry) == 2
    assert "broken" in registry  # asking for the name imports nothing
    assert registry["sqrt"](9) == 3
    with pytest.raises(ModuleNotFoundError):
        registry["broken"]


@pytest.mark.parametrize(
    ("registry", "name", "message"),
    [
        (METHODS, "vje ", "unknown method 'vje ', did you mean 'vje'"),
        (METHODS, "zzzzzz", "unknown method 'zzzzzz' \\(known: .*vje"),
        (BACKBONES, "resnet-18", "did you mean 'resnet18'"),
    ],
)
def test_registry_suggests_the_nearest_name(registry, name, message):
    assert name not in registry
    with pytest.raises(ConfigError, match=message) as error:
        registry[name]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("registry", [METHODS, BACKBONES], ids=lambda r: r.kind)
def test_every_entry_exists(registry):
    for name in registry:
        assert callable(registry[name])


# --- the errors -----------------------------------------------------------------------------------------


def test_errors_are_of_one_family_and_of_pythons_own():
    for kind, builtin in [(DataError, ValueError), (ConfigError, ValueError), (ArtifactError, ValueError)]:
        assert issubclass(kind, ProbjepaError)
        assert issubclass(kind, builtin)
    missing = MissingExtraError("datasets", "hf")
    assert isinstance(missing, ProbjepaError)
    assert isinstance(missing, ImportError)
    assert "pip install 'probjepa[hf]'" in str(missing)
    assert issubclass(ProbjepaWarning, UserWarning)


def test_unknown_name_suggests_only_what_is_near():
    known = ["simsiam", "vje"]
    assert str(unknown_name("method", "simsima", known)) == (
        "unknown method 'simsima', did you mean 'simsiam'? (known: simsiam, vje)"
    )
    assert str(unknown_name("method", "qqq", iter(known))) == "unknown method 'qqq' (known: simsiam, vje)"
