"""Whole experiments: the demo and the papers' tables."""

from __future__ import annotations

from probjepa.registry import Registry

# each a Study, called as (out, *, data_root, budget, cells, seed, overwrite, progress) -> None
EXPERIMENTS = Registry(
    "experiment",
    {
        "ijepa-heads": "probjepa.experiments.ijepa_heads:STUDY",
        "vje-table2": "probjepa.experiments.vje:TABLE2",
        "vje-df-sweep": "probjepa.experiments.vje:DF_SWEEP",
        "vje-loss-ablation": "probjepa.experiments.vje:LOSS_ABLATION",
        "vje-draws": "probjepa.experiments.vje:DRAWS_SWEEP",
        "vje-isotropic": "probjepa.experiments.vje:ISOTROPIC",
        "vje-standard-likelihood": "probjepa.experiments.vje:STANDARD_LIKELIHOOD",
        "vje-ood": "probjepa.experiments.vje_uncertainty:OOD",
        "vje-ood-df": "probjepa.experiments.vje_uncertainty:OOD_DF",
        "vje-geometry": "probjepa.experiments.vje_uncertainty:GEOMETRY",
        "vje-compute": "probjepa.experiments.vje:COMPUTE",
        "var-jepa-simulation": "probjepa.experiments.var_jepa_simulation:STUDY",
        "var-t-jepa": "probjepa.experiments.var_t_jepa:STUDY",
        "jepa-score-gmm": "probjepa.experiments.jepa_score_gmm:STUDY",
    },
    group="probjepa.experiments",
)
