"""Var-T-JEPA and T-JEPA beside raw features on tables: accuracy, selective prediction, and ambiguity.

"Var-JEPA", arXiv 2603.20111; T-JEPA, arXiv 2410.05016. The encoder is fitted on the training rows alone; the
sources fit it on all rows, the test rows included.
"""

from __future__ import annotations

from probjepa.evaluation.selective import DECODED, LIKELIHOOD, PREDICTIVE, PROBABILITY, UNCERTAINTY
from probjepa_experiments.study import RANDOM, Budget, Column, Finding, Measurement, Published, Row, Study
from probjepa_experiments.table_cells import RAW, run, table_base
from probjepa_experiments.table_sets import SOURCES

BUDGETS = {
    "quick": Budget(
        "quick", "600 training rows, encoders of one layer, 8 epochs, one seed",
        {"max_epochs": 8, "dim": 16, "n_layers": 1, "ff_dim": 32, "device": "cpu"}, seeds=1, rows=600,
    ),
    "small": Budget(
        "small", "all training rows, the preset “small”, three seeds, on a CPU", {"device": "cpu"}, seeds=3
    ),
    "full": Budget("full", "all rows, the published settings, 100 epochs, three seeds, on a GPU"),
}  # fmt: skip
_ALL = ("adult", "electricity", "credit", "bank", "covertype", "sim", "mnist", "digits")
_SHORT = {"logistic regression": "LR", "MLP": "MLP", "XGBoost": "XGB"}
# where uncertainty may come from, as ``evaluation.selective`` names it → as a column does
_SOURCES = {
    UNCERTAINTY: "by σ",
    PREDICTIVE: "by predictive entropy",
    DECODED: "by decoded σ",
    LIKELIHOOD: "by likelihood",
    "kNN distance, embedding": "by kNN",
    "kNN distance, raw": "by kNN on raw",
    "Isolation Forest, raw": "by Isolation Forest",
    PROBABILITY: "by p",
    "random": "at random",
}


def _percent(label: str, figure: str, *, plot: bool = False, brief: bool = False) -> Column:
    return Column(label, f"{{score}}|{figure}", True, "max", plot=plot, brief=brief or plot)


def _correlation(label: str, figure: str, *, plot: bool = False) -> Column:
    return Column(label, f"{{score}}|{figure}", False, "max", plot=plot, limits=(-1, 1), brief=plot)


COLUMNS = (
    _percent("best of 3, %", "best", plot=True),
    *(_percent(f"{short}, %", f"accuracy/{name}", brief=name == "MLP") for name, short in _SHORT.items()),
    *(
        _percent(f"{short} {score}, %", f"{score}/{name}", brief=False)
        for score in ("macro F1", "weighted F1")
        for name, short in _SHORT.items()
    ),
    Column("XGB beside raw, McNemar's p", "{score}|mcnemar p/XGBoost", limits=(0, 1), p_value=True),
    _percent("MLP, half coverage by σ, %", f"half/MLP/{UNCERTAINTY}", plot=True),
    _percent("XGB, half coverage by σ, %", f"half/XGBoost/{UNCERTAINTY}"),
    _percent("MLP, half coverage by p, %", f"half/MLP/{PROBABILITY}"),
    *(
        Column(f"AURC {how}, MLP", f"{{score}}|aurc/MLP/{source}", better="min", limits=(0, 1),
               brief=source in (UNCERTAINTY, PROBABILITY))
        for source, how in _SOURCES.items()
    ),
    _correlation("ρ of σ with error, MLP", f"error/MLP/{UNCERTAINTY}"),
    _correlation("ρ of σ with u", f"spearman/{UNCERTAINTY}", plot=True),
    Column("AUC of σ, most ambiguous fifth", f"{{score}}|auc/{UNCERTAINTY}", better="max", limits=(0, 1),
           brief=False),
    _correlation("ρ of predictive entropy with u", f"spearman/{PREDICTIVE}", plot=True),
    _correlation("ρ of likelihood with u", f"spearman/{LIKELIHOOD}"),
    _correlation("ρ of MLP's p with u", f"spearman/{PROBABILITY}"),
    Column("effective rank", "{score}|effective rank", limits=(0, None)),
    Column("std of ‖h‖-normed features", "{score}|std", limits=(0, None), brief=False),
)  # fmt: skip
_ROWS = ("raw features", "T-JEPA", "Var-T-JEPA")  # of which figures are published
PUBLISHED: dict[tuple[str, str, str], float] = {
    **{
        (table, row, "best of 3, %"): value
        for table, values in {
            "adult": (0.864, 0.854, 0.855), "electricity": (0.917, 0.860, 0.888),
            "credit": (0.820, 0.817, 0.818), "bank": (0.901, 0.898, 0.904),
            "covertype": (0.807, 0.807, 0.809), "sim": (0.962, 0.851, 0.945), "mnist": (0.881, 0.871, 0.885),
        }.items()
        for row, value in zip(_ROWS, values, strict=True)
    },
    **{
        (table, row, "MLP, %"): value
        for table, values in {
            "adult": (0.849, 0.849, 0.852), "electricity": (0.781, 0.627, 0.790),
            "credit": (0.816, 0.774, 0.818), "bank": (0.898, 0.616, 0.900),
        }.items()
        for row, value in zip(_ROWS, values, strict=True)
    },
    **{
        (table, "Var-T-JEPA", "MLP, half coverage by σ, %"): value
        for table, value in {
            "adult": 0.921, "electricity": 0.804, "credit": 0.841, "bank": 0.921,
        }.items()
    },
    ("adult", "Var-T-JEPA", "XGB, half coverage by σ, %"): 0.928,
    ("electricity", "Var-T-JEPA", "XGB, half coverage by σ, %"): 0.891,
    ("bank", "Var-T-JEPA", "XGB, half coverage by σ, %"): 0.921,
}  # fmt: skip
FINDINGS = (
    Finding("Var-T-JEPA is above T-JEPA, by the best classifier",
            lambda r: r("Var-T-JEPA", "best of 3, %") > r("T-JEPA", "best of 3, %")),
    Finding("Var-T-JEPA is not below T-JEPA, by logistic regression",
            lambda r: r("Var-T-JEPA", "LR, %") >= r("T-JEPA", "LR, %")),
    Finding("Var-T-JEPA is not below T-JEPA, by the MLP",
            lambda r: r("Var-T-JEPA", "MLP, %") >= r("T-JEPA", "MLP, %")),
    Finding("Var-T-JEPA is not below T-JEPA, by XGBoost",
            lambda r: r("Var-T-JEPA", "XGB, %") >= r("T-JEPA", "XGB, %")),
    Finding("Var-T-JEPA is within one point of raw features, or above them, by the MLP",
            lambda r: r("Var-T-JEPA", "MLP, %") > r("raw features", "MLP, %") - 0.01),
    Finding("training pays: Var-T-JEPA is above its random initialisation, by the best classifier",
            lambda r: r("Var-T-JEPA", "best of 3, %") > r(RANDOM, "best of 3, %")),
    Finding("training pays: σ orders the MLP's errors better than that of a random initialisation",
            lambda r: r("Var-T-JEPA", "AURC by σ, MLP") < r(RANDOM, "AURC by σ, MLP")),
    Finding("XGBoost is not below raw features when embeddings are added to them, by McNemar's test at 5 %",
            lambda r: r("raw + Var-T-JEPA", "XGB, %") >= r("raw features", "XGB, %")
            or r("raw + Var-T-JEPA", "XGB beside raw, McNemar's p") >= 0.05),
    Finding("half coverage by σ raises the MLP's accuracy",
            lambda r: r("Var-T-JEPA", "MLP, half coverage by σ, %") > r("Var-T-JEPA", "MLP, %")),
    Finding("half coverage by σ raises it by four points or more",
            lambda r: r("Var-T-JEPA", "MLP, half coverage by σ, %") >= r("Var-T-JEPA", "MLP, %") + 0.04),
    Finding("σ orders errors better than the MLP's own probability does",
            lambda r: r("Var-T-JEPA", "AURC by σ, MLP") < r("Var-T-JEPA", "AURC by p, MLP")),
    Finding("σ rises with ambiguity: Spearman's ρ with u is above 0.3",
            lambda r: r("Var-T-JEPA", "ρ of σ with u") > 0.3),
    Finding("predictive entropy rises with ambiguity: Spearman's ρ with u is 0.4 or above",
            lambda r: r("Var-T-JEPA", "ρ of predictive entropy with u") >= 0.4),
    Finding("T-JEPA has not collapsed: its effective rank is above 2",
            lambda r: r("T-JEPA", "effective rank") > 2),
)  # fmt: skip
STUDY = Study(
    name="var-t-jepa",
    title="Var-T-JEPA and T-JEPA on tables",
    paper="Var-JEPA, arXiv 2603.20111; T-JEPA, arXiv 2410.05016",
    question="Are embeddings of tables worth more than raw features, and does their uncertainty find errors "
    "and ambiguity?",
    measurement=Measurement(run, table_base, SOURCES, seeded_data=True),
    rows=(
        Row("raw features", RAW, score="raw"),
        Row(RANDOM, "var-t-jepa", task="random-init", score="embedding"),
        Row("T-JEPA", "t-jepa", score="embedding"),
        Row("Var-T-JEPA", "var-t-jepa", score="embedding"),
        Row("raw + T-JEPA", "t-jepa", score="raw + embedding"),
        Row("raw + Var-T-JEPA", "var-t-jepa", score="raw + embedding"),
    ),
    columns=COLUMNS,
    budgets=BUDGETS,
    data={"quick": ("sim", "wine", "breast-cancer"), "small": _ALL, "full": _ALL},
    findings=FINDINGS,
    published=Published(
        "five seeds, the best over six predictors; the encoder is fitted on all rows, the test rows included",
        PUBLISHED,
    ),
    about="Macro F1 is the mean of the classes' F1, weighted F1 weights it by their sizes; the paper's "
    "“macro F1” is weighted F1. Var-T-JEPA and T-JEPA differ in more than the loss: with the preset “small” "
    "Var-T-JEPA's tokens of numbers have 16 bins, its fit takes 400 to 3,500 steps, cuts gradients off "
    "at norm 10 and keeps the epoch that is best on a held-out tenth of the rows; T-JEPA's tokens are "
    "linear, its fit takes 20 epochs, however many steps they are, cuts gradients off at norm 1 and "
    "keeps the last epoch, of all rows. McNemar's p is of XGBoost's answers to the same rows with and "
    "without the embedding (exact, two-sided), one p a seed. Covertype is the class-balanced sample of "
    "15,120 rows, the published one another of 10,000. Random initialisation is Var-T-JEPA's network as it "
    "was drawn. Bank reads tabular/bank-full.csv (UCI), and MNIST tabular/mnist.parquet (784 pixels and "
    "“label”), under the data root. scikit-learn's 1,797 digits of 64 pixels are a stand-in for MNIST: their "
    "figures do not compare with its published ones.",
)
