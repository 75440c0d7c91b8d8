"""The papers' tables and figures: declarations and one runner.

Beside the library, which knows them by the entry points of the group ``probjepa.experiments``, as it knows
those of any other package. Each is a :class:`~probjepa_experiments.study.Study`, called as
``(out, *, data_root, budget, cells, seed, overwrite, progress) -> None``.
"""
