"""Whole experiments: the demo and the papers' tables."""

from __future__ import annotations

from probjepa.registry import Registry

# each: (out, *, data_root, budget, cells, seed, overwrite, progress) -> None
EXPERIMENTS = Registry(
    "experiment",
    {
        "jepa-score-gmm": "probjepa.experiments.jepa_score_gmm:reproduce",
        "var-jepa-simulation": "probjepa.experiments.var_jepa_simulation:reproduce",
        "ijepa-heads": "probjepa.experiments.ijepa_heads:EXPERIMENT",
        "var-t-jepa": "probjepa.experiments.var_t_jepa:reproduce",
        "vje-table2": "probjepa.experiments.vje_table2:EXPERIMENT",
        "vje-df-sweep": "probjepa.experiments.vje_df_sweep:EXPERIMENT",
        "vje-loss-ablation": "probjepa.experiments.vje_loss_ablation:EXPERIMENT",
        "vje-draws": "probjepa.experiments.vje_draws:EXPERIMENT",
        "vje-isotropic": "probjepa.experiments.vje_isotropic:EXPERIMENT",
        "vje-standard-likelihood": "probjepa.experiments.vje_standard_likelihood:EXPERIMENT",
        "vje-ood": "probjepa.experiments.vje_ood:EXPERIMENT",
        "vje-ood-df": "probjepa.experiments.vje_ood_df:EXPERIMENT",
        "vje-geometry": "probjepa.experiments.vje_geometry:EXPERIMENT",
        "vje-compute": "probjepa.experiments.vje_compute:EXPERIMENT",
    },
)
