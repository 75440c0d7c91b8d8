"""Where tensors lie, without a GPU: on a device that has no memory, what lies elsewhere cannot mix in."""

import pytest
import torch
from test_method_contract import pixels, small

from probjepa.data.views import views
from probjepa.heads import HEADS
from probjepa.methods import METHODS

# draws directions on its device, which this one cannot
DRAWING = {"lejepa"}
# ask about a value on the way, which nothing has there
ASKING = {"realnvp", "autoregressive"}


@pytest.mark.parametrize("name", [name for name in METHODS if name not in DRAWING])
def test_losses_and_features_stay_where_the_weights_are(name):
    model = small(name).train()
    count = len(views(model.view_recipe, **model.preprocess.config())(pixels(2), 0))
    batch = [torch.zeros(6, 1, 16, 16, device="meta") for _ in range(count)]
    terms = model.to("meta").loss(batch)
    assert {value.device.type for value in terms.values()} == {"meta"}
    with torch.no_grad():
        found = model.eval().features_of(model.encoder(batch[0]))
    assert {value.device.type for value in found.values()} == {"meta"}


@pytest.mark.parametrize("name", [name for name in HEADS if name not in ASKING])
def test_heads_stay_where_their_weights_are(name):
    head = HEADS[name](4, 3).train().to("meta")
    prediction = head(torch.zeros(5, 3, device="meta"))
    assert prediction.loss(torch.zeros(5, 4, device="meta")).device.type == "meta"


def test_what_lies_elsewhere_is_noticed():
    model = small("vje").train().to("meta")
    with pytest.raises(RuntimeError, match="device"):
        model.loss([torch.zeros(6, 1, 16, 16)] * 2)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in DRAWING | {"i-jepa"}])
def test_a_loss_is_one_graph(name):
    """Whatever would break the graph would keep a GPU from replaying a step in one launch."""
    model = small(name).train()
    batch = views(model.view_recipe, **model.preprocess.config())(pixels(), 0)
    torch.manual_seed(1)
    exact = model.loss(batch)["loss"]
    torch.manual_seed(1)
    whole = torch.compile(model.loss, backend="eager", fullgraph=True)(batch)["loss"]
    torch.testing.assert_close(whole, exact, rtol=1e-4, atol=1e-4)
