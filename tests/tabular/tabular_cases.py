"""Tables and settings that several test files share."""

import numpy as np
import pandas as pd

TINY = {
    "dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "ff_dim": 16,
    "max_epochs": 2,
    "batch_size": 16,
    "random_state": 0,
    "device": "cpu",
}


def mixed_table(n=40, seed=0):
    """Every type of column, with missing cells."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "size": rng.normal(5, 2, n),
            "count": rng.integers(0, 9, n),
            "colour": rng.choice(["red", "green", "blue"], n),
            "flag": rng.random(n) < 0.5,
            "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 10_000, n), unit="h"),
        }
    )
    table.loc[1, "size"] = np.nan
    table.loc[2, "colour"] = None
    table.loc[3, "when"] = pd.NaT
    return table


def related_table(n, seed=0):
    """b and k follow from a: what imputation can find; noise stands alone."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    return pd.DataFrame(
        {"a": a, "b": 2 * a + 1, "k": np.where(a > 0, "up", "down"), "noise": rng.normal(size=n)}
    )
