"""The Lightning adapter on a model of pairs: the loader's batches go to the loss as they are."""

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, TensorDataset

import probjepa as pj
from probjepa.training import Module
from probjepa.training.schedules import step_seed


def test_it_trains_a_model_of_pairs():
    torch.manual_seed(0)
    x, y = torch.randn(2, 64, 5)
    settings = {"x_dim": 5, "y_dim": 5, "latent_dim": 2, "z_dim": 2, "hidden": (8,), "anneal": 0.5}
    model = pj.VarJEPA(**settings)
    before = model.score_samples(x, y).mean()
    twin = pj.VarJEPA(**settings)
    twin.load_state_dict(model.state_dict())
    torch.manual_seed(step_seed(step_seed(7, 0), 0))
    expected = {name: value.item() for name, value in twin.loss((x, y)).items()}

    module = Module(model, epochs=20, learning_rate=0.02, optimizer="adamw", seed=7)
    seen = []
    module.on_train_batch_end = lambda *_: seen.append(dict(module.terms))
    trainer = L.Trainer(
        max_epochs=20, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=64))
    # the first step's terms are the loss of the pair itself, under the step's seed
    assert seen[0] == expected
    assert len(seen) == 20
    assert model.anneal_factor == 1
    assert model.score_samples(x, y).mean() > before + 1
