"""The model card of a saved model: what it is, how it is used, and the numbers of its run."""

from __future__ import annotations

import copy
import html
import json
import math
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard

from probjepa.errors import short

TEMPLATE = """---
{{ card_data }}
---

# {{ kind }}{% if backbone %} on `{{ backbone }}`{% endif %}

A [probjepa](https://pypi.org/project/probjepa/) model: `probjepa.load("owner/name")` loads it, no pickle.
{% if paper_url %}Its method: {{ paper_url }}{% endif %}

## Use

```python
import probjepa as pj

model = pj.load("owner/name"{% for name in modules %}, {{ name }}=module{% endfor %})
{% for use in uses %}model.{{ use }}(images)
{% endfor %}```

{% if command %}```sh
probjepa {{ command }} owner/name --data FOLDER --out {{ command }}.parquet
```

{% endif %}{% if run %}## Training

| | |
|---|---|
{% for name, value in run.items() %}| {{ name }} | {{ value }} |
{% endfor %}
{% endif %}## Settings

```json
{{ settings }}
```
"""
_USES = ("embed", "posterior", "score_samples", "uncertainty")


def plain_record(run: object) -> dict[str, Any]:
    """Return what a card can show of a run: names → words and numbers; of anything else nothing."""
    items = run.items() if isinstance(run, Mapping) else ()
    return {
        str(name): str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in items
        if isinstance(value, str | int | float)
    }


def model_card(model: Any, **more: Any) -> ModelCard:
    """Return the card of a ``Pretrained``; ``more`` goes to the template."""
    info = model._hub_mixin_info
    data = copy.deepcopy(info.model_card_data)
    data.tags = sorted({*(data.tags or ()), model.name})
    data.base_model = model.base_model
    config = model.config()
    uses = [use for use in _USES if hasattr(model, use)]
    values = {
        "kind": type(model).__name__,
        "backbone": config["settings"].get("backbone"),
        "modules": config["modules"],
        "uses": uses,
        # a model of pairs has no command
        "command": "score" if "score_samples" in uses else "embed" if "preprocess" in config else None,
        "run": {_cell(name): _cell(value) for name, value in model.run_record.items()},
        "settings": json.dumps(config["settings"], indent=2),
        "paper_url": info.paper_url,
    }
    template = info.model_card_template or TEMPLATE
    card: ModelCard = ModelCard.from_template(data, template_str=template, **values | more)
    return card


def _cell(value: object) -> str:
    """A value as a cell of a table: no markup, and no end of the cell."""
    text = f"{value:.4g}" if isinstance(value, float) else short(value, 100)
    return html.escape(text, quote=False).replace("|", "&#124;")
