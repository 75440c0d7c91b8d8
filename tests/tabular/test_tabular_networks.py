"""Tokens, transformer, and the two networks: what a mask hides, what an order of columns changes."""

import math

import pytest
import torch
from tabular_cases import mixed_table
from torch import nn

from probjepa.distributions.gaussian import kl_diagonal_gaussians
from probjepa.errors import ConfigError
from probjepa.tabular import TableSchema
from probjepa.tabular.masks import Masks, draw_masks
from probjepa.tabular.networks import AttentionPool, Block, Transformer, attend_by_mask
from probjepa.tabular.t_jepa import TJEPANetwork
from probjepa.tabular.tokens import FeatureDecoder, FeatureTokenizer, Layout, Rows
from probjepa.tabular.var_network import VarTJEPANetwork, Weights
from probjepa.training.optim import parameter_groups

SIZES = {"dim": 8, "n_layers": 2, "n_heads": 2, "ff_dim": 16, "dropout": 0.0}
WEIGHTS = Weights(rec=0.3, gen=0.7, sx=0.02, z=0.03, sy=0.05, anneal_epochs=(2, 4, 8))


def rows_of(schema, table):
    return Rows(*(torch.from_numpy(part) for part in schema.encode(table)))


@pytest.fixture
def schema():
    torch.manual_seed(0)
    return TableSchema.infer(mixed_table())


@pytest.fixture
def rows(schema):
    return rows_of(schema, mixed_table())


@pytest.fixture
def network(schema):
    return VarTJEPANetwork(schema.layout, **SIZES, weights=WEIGHTS).eval()


def masks_of(context, targets, n_rows):
    return Masks(torch.tensor([context] * n_rows), torch.tensor([[target] * n_rows for target in targets]))


# --- tokens ---------------------------------------------------------------------------------------------


def test_a_token_is_value_type_and_position(schema, rows):
    tokenizer = FeatureTokenizer(schema.layout, 8)
    tokens = tokenizer(rows)
    assert tokens.shape == (40, 8, 8)
    base = tokenizer.kind[tokenizer.types] + tokenizer.position
    size = rows.numeric[0, 0] * tokenizer.weight[0] + tokenizer.bias[0]
    torch.testing.assert_close(tokens[0, 0], size + base[0])
    torch.testing.assert_close(tokens[1, 0], tokenizer.missing[0] + base[0])
    colour = schema.features[2].categories.index(mixed_table()["colour"][0])
    torch.testing.assert_close(tokens[0, 2], tokenizer.categories[colour] + base[2])
    torch.testing.assert_close(tokens[2, 2], tokenizer.missing[0] + base[2])
    flag = 3 + int(mixed_table()["flag"][0])  # after the three colours
    torch.testing.assert_close(tokens[0, 3], tokenizer.categories[flag] + base[3])


def test_unseen_categories_are_one_token_of_their_own(schema):
    tokenizer = FeatureTokenizer(schema.layout, 8)
    tokenizer.unknown.data.normal_()
    table = mixed_table().assign(colour="violet")
    tokens = tokenizer(rows_of(schema, table))
    base = tokenizer.kind[tokenizer.types] + tokenizer.position
    torch.testing.assert_close(tokens[:, 2], (tokenizer.unknown[0] + base[2]).expand(40, 8))


def test_permuting_columns_permutes_the_tokens_and_nothing_else(schema, rows):
    """A tokenizer of permuted columns that is given the same parameters, each at its column's new place."""
    names = [f.name for f in schema.features]
    table = mixed_table()[["flag", "when", "colour", "count", "size"]]
    permuted = TableSchema.infer(table)
    order = [names.index(f.name) for f in permuted.features]
    numeric = [schema.layout.numeric.index(order[i]) for i in permuted.layout.numeric]
    starts = {"colour": 0, "flag": 3}
    categories = [
        starts[f.name] + k for f in permuted.features if not f.numeric for k in range(len(f.categories))
    ]
    one, other = FeatureTokenizer(schema.layout, 8), FeatureTokenizer(permuted.layout, 8)
    state = dict(one.state_dict())
    state |= {
        "weight": one.weight[numeric],
        "bias": one.bias[numeric],
        "categories": one.categories[categories],
    }
    state["position"] = one.position[order]
    other.load_state_dict(state)
    torch.testing.assert_close(other(rows_of(permuted, table)), one(rows)[:, order])
    assert torch.equal(other.observed(rows_of(permuted, table)), one.observed(rows)[:, order])
    # and the encoder carries the order through
    encoder = Transformer(8, n_layers=2, n_heads=2, ff_dim=16, dropout=0)
    torch.testing.assert_close(encoder(other(rows_of(permuted, table))), encoder(one(rows))[:, order])


# --- networks -------------------------------------------------------------------------------------------


def test_a_block_is_torchs_pre_norm_layer():
    ours = Block(8, 2, 16, 0.0)
    theirs = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": ours.qkv.weight,
            "self_attn.in_proj_bias": ours.qkv.bias,
            "self_attn.out_proj.weight": ours.proj.weight,
            "self_attn.out_proj.bias": ours.proj.bias,
            "linear1.weight": ours.wide.weight,
            "linear1.bias": ours.wide.bias,
            "linear2.weight": ours.narrow.weight,
            "linear2.bias": ours.narrow.bias,
            "norm1.weight": ours.norm1.weight,
            "norm1.bias": ours.norm1.bias,
            "norm2.weight": ours.norm2.weight,
            "norm2.bias": ours.norm2.bias,
        }
    )
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(ours(x, None), theirs(x))


def test_tokens_that_are_not_kept_might_as_well_not_be_there():
    torch.manual_seed(0)
    net, pool = Transformer(8, n_layers=2, n_heads=2, ff_dim=16, dropout=0), AttentionPool(8)
    x = torch.randn(4, 6, 8)
    keep = torch.tensor([True, False, True, True, False, True]).expand(4, 6)
    short = net(x[:, keep[0]])
    masked = net(x, keep.unsqueeze(1))
    torch.testing.assert_close(masked[:, keep[0]], short)
    torch.testing.assert_close(pool(masked, keep), pool(short))


def test_one_pass_over_all_masks_is_a_pass_for_each():
    torch.manual_seed(0)
    net = Transformer(8, n_layers=3, n_heads=2, ff_dim=16, dropout=0)
    context, targets = torch.randn(4, 3, 8), torch.randn(4, 5, 2, 8)
    together = net(torch.cat([context, targets.flatten(1, 2)], 1), attend_by_mask(3, 5, 2, context.device))
    for k in range(5):
        alone = net(torch.cat([context, targets[:, k]], 1), attend_by_mask(3, 1, 2, context.device))
        torch.testing.assert_close(together[:, 3 + 2 * k : 5 + 2 * k], alone[:, 3:])


@pytest.mark.parametrize("length", [2, 40])
def test_masks_of_many_tokens_are_encoded_as_in_one_sequence(length):
    """Wide tables: the same tokens and gradients as where a mask forbids the pairs."""
    torch.manual_seed(0)
    net = Transformer(8, n_layers=3, n_heads=2, ff_dim=16, dropout=0)
    context = torch.randn(4, 50, 8, requires_grad=True)
    targets = torch.randn(4, 5 * length, 8, requires_grad=True)
    weight, inputs = torch.randn(4, 5 * length, 8), (context, targets, *net.parameters())
    allow = attend_by_mask(50, 5, length, context.device)
    plain = net(torch.cat([context, targets], 1), allow)[:, 50:]
    found = net.asked(context, targets, 5)
    torch.testing.assert_close(found, plain)
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((plain * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [{"n_heads": 3}, {"n_layers": 0}, {"ff_dim": 0}])
def test_bad_sizes(schema, sizes):
    with pytest.raises(ConfigError, match="heads that divide dim"):
        VarTJEPANetwork(schema.layout, **SIZES | sizes, weights=WEIGHTS)


# --- Var-T-JEPA -----------------------------------------------------------------------------------------


def without_noise(monkeypatch):
    monkeypatch.setattr("probjepa.tabular.var_network.draw", lambda mean, log_variance, noise: mean)


def test_loss_against_its_definition_mask_by_mask_and_feature_by_feature(network, rows, monkeypatch):
    without_noise(monkeypatch)
    context, targets = [0, 2, 6], [[1, 4], [5, 7], [3, 1]]
    found = network.loss(rows, masks_of(context, targets, 40), epoch=3)
    tokens, observed = network.tokenizer(rows), network.tokenizer.observed(rows)
    x_mean, x_log = network.encode_context(tokens[:, context])
    pooled = network.pool(x_mean)
    z_mean, z_log = network.auxiliary(pooled)
    y_mean, y_log = network.encode_target(tokens, pooled, z_mean)
    kl_sy = []
    for target in targets:
        hidden = torch.zeros(40, 8, dtype=torch.bool)
        hidden[:, [i for i in range(8) if i not in context]] = True
        # the predictor on this mask alone
        place = network.predictor_position
        shown = network.predictor_from_context(x_mean) + place[[0, *(i + 1 for i in context)]]
        asked = network.mask_token + place[[i + 1 for i in target]].expand(40, -1, -1)
        x = torch.cat([shown, asked], 1) + network.predictor_from_z(z_mean).unsqueeze(1)
        p = network.predictor_head(network.predictor(x, attend_by_mask(4, 1, 2, x.device))[:, 4:])
        kl_sy.append(kl_diagonal_gaussians(y_mean[:, target], y_log[:, target], *p).mean())
    decoded = torch.zeros_like(tokens)
    decoded[:, context] = x_mean[:, 1:]
    rec = network.context_decoder.surprise(network.context_decoder(decoded), rows)[:, context]
    gen = network.target_decoder.surprise(network.target_decoder(y_mean), rows)
    expected = {
        "rec": rec[observed[:, context]].mean(),
        "gen": gen[observed].mean(),
        "kl_sx": kl_diagonal_gaussians(x_mean, x_log).mean(),
        "kl_z": kl_diagonal_gaussians(z_mean, z_log).mean(),
        "kl_sy": torch.stack(kl_sy).mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    alphas = {"rec": 0.3, "gen": 0.7, "kl_sx": 0.02, "kl_z": 0.03 * 3 / 4, "kl_sy": 0.05 * 3 / 8}
    torch.testing.assert_close(found["loss"], sum(alphas[name] * expected[name] for name in alphas))


def test_the_bound_is_the_sum_of_its_terms(network, rows):
    context, target = [4, 1, 6], [0, 2, 3, 5, 7]
    found = network.bound(rows, masks_of(context, [target], 40), torch.zeros_like)
    tokens, observed = network.tokenizer(rows), network.tokenizer.observed(rows)
    x_mean, x_log = network.encode_context(tokens[:, context])
    pooled = network.pool(x_mean)
    z_mean, z_log = network.auxiliary(pooled)
    y_mean, y_log = network.encode_target(tokens, pooled, z_mean)
    hidden = torch.zeros(40, 8, dtype=torch.bool)
    hidden[:, target] = True
    p_mean, p_log = network.predict_latents(rows, hidden)
    decoded = torch.zeros_like(tokens)
    decoded[:, context] = x_mean[:, 1:]
    rec = network.context_decoder.surprise(network.context_decoder(decoded), rows) * observed
    gen = network.target_decoder.surprise(network.target_decoder(y_mean), rows) * observed

    def normal(mean, log_variance):
        return torch.distributions.Normal(mean, (0.5 * log_variance).exp())

    standard = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence
    expected = (
        -rec[:, context].sum(1)
        - gen[:, target].sum(1)
        - kl(normal(x_mean, x_log), standard).sum((1, 2))
        - kl(normal(z_mean, z_log), standard).sum(1)
        - kl(normal(y_mean, y_log), normal(p_mean, p_log))[:, target].sum((1, 2))
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_every_parameter_is_trained(network, rows):
    masks = draw_masks(
        40, 8, context_share=(0.4, 0.4), target_share=(0.4, 0.4), n_targets=2,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    network.train().loss(rows, masks)["loss"].backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None]
    assert not idle


def test_what_is_hidden_does_not_reach_the_prediction(network, schema, rows):
    hidden = torch.zeros(40, 8, dtype=torch.bool)
    hidden[:, [0, 2]] = True
    changed = mixed_table()
    changed["size"] = 1000.0
    changed["colour"] = "green"
    one, other = (
        network.predict_latents(rows, hidden),
        network.predict_latents(rows_of(schema, changed), hidden),
    )
    torch.testing.assert_close(one[0][:, [0, 2]], other[0][:, [0, 2]])
    changed["count"] = 50
    third = network.predict_latents(rows_of(schema, changed), hidden)
    assert (third[0][:, 0] - one[0][:, 0]).abs().max() > 1e-4


def test_prediction_is_the_predictor_that_the_loss_trains(network, rows, monkeypatch):
    """With all features outside the context in the one target mask, both are the same prior."""
    without_noise(monkeypatch)
    context, target = [4, 1, 6], [0, 2, 3, 5, 7]
    hidden = torch.zeros(40, 8, dtype=torch.bool)
    hidden[:, target] = True
    p_mean, p_log = network.predict_latents(rows, hidden)
    tokens = network.tokenizer(rows)
    pooled = network.pool(network.encode_context(tokens[:, context])[0])
    y = network.encode_target(tokens, pooled, network.auxiliary(pooled)[0])
    expected = kl_diagonal_gaussians(*(part[:, target] for part in (*y, p_mean, p_log))).mean()
    found = network.loss(rows, masks_of(context, [target], 40))["kl_sy"]
    torch.testing.assert_close(found, expected)


def test_the_bound_is_below_the_evidence():
    """One numeric feature without context: p(y) under z's prior is a mixture, whose density quadrature has."""
    torch.manual_seed(0)
    import pandas as pd

    schema = TableSchema.infer(pd.DataFrame({"v": [0.0, 1.0, 2.0, 5.0]}))
    weights = Weights(rec=0, gen=1, sx=1, z=1, sy=1, anneal_epochs=(0, 0, 0))
    network = VarTJEPANetwork(schema.layout, **SIZES, weights=weights).eval()
    rows = rows_of(schema, pd.DataFrame({"v": [0.5]})).at(
        torch.zeros(4000, dtype=torch.long), torch.device("cpu")
    )
    masks = Masks(torch.zeros(4000, 0, dtype=torch.long), torch.zeros(1, 4000, 1, dtype=torch.long))
    with torch.no_grad():
        elbo = -network.loss(rows, masks)["loss"]
        bounds = network.bound(rows, masks, torch.randn_like)
        # log p(y) by draws from the priors of s_x (the CLS token alone) and z, s_y integrated out
        n = 4000
        s_x, z = torch.randn(n, 1, 8), torch.randn(n, 8)
        place, from_z = network.predictor_position, network.predictor_from_z(z).unsqueeze(1)
        shown = network.predictor_from_context(s_x) + from_z + place[:1]
        asked = network.mask_token + from_z + place[1:]
        x = torch.cat([shown, asked], 1)
        mean, log_variance = network.predictor_head(
            network.predictor(x, attend_by_mask(1, 1, 1, x.device))[:, 1:]
        )
        cells = network.target_decoder(mean, log_variance.exp())
        log_p = -network.target_decoder.surprise(cells, rows)[:, 0]
        evidence = log_p.logsumexp(0) - torch.tensor(float(n)).log()
    assert elbo < evidence
    assert bounds.mean() == pytest.approx(float(elbo), abs=5 * float(bounds.std()) / math.sqrt(2000))


# --- T-JEPA ---------------------------------------------------------------------------------------------


@pytest.fixture
def baseline(schema):
    torch.manual_seed(0)
    return TJEPANetwork(schema.layout, **SIZES, n_reg=3, ema_momentum=0.9)


def test_t_jepa_loss_is_the_squared_distance_to_the_averaged_encoder(baseline, rows):
    for p in baseline.target.parameters():  # another encoder than the online one
        p.data += 0.1 * torch.randn_like(p)
    context, targets = [0, 2], [[1, 4], [5, 7]]
    found = baseline.loss(rows, masks_of(context, targets, 40))["loss"]
    shown = (
        baseline.from_context(baseline.encoder(rows, torch.tensor([context] * 40)))
        + baseline.position[context]
    )
    distances = []
    for target in targets:
        asked = (baseline.mask_token + baseline.position[target]).expand(40, -1, -1)
        x = torch.cat([shown, asked], 1)
        assert x.shape[1] == 4  # no REG token in it
        predicted = baseline.to_latent(baseline.predictor(x, attend_by_mask(2, 1, 2, x.device))[:, 2:])
        distances.append((predicted - baseline.target(rows)[:, target]).square().mean())
    torch.testing.assert_close(found, torch.stack(distances).mean())
    found.backward()
    assert all(p.grad is None for p in baseline.target.parameters())
    assert all(
        p.grad is not None
        for p in baseline.encoder.parameters()
        if p is not baseline.encoder.tokenizer.unknown
    )


def test_reg_tokens_are_seen_by_every_context_and_dropped(baseline, rows):
    shown = torch.tensor([[0, 2]] * 40)
    one = baseline.encoder(rows, shown)
    assert one.shape == (40, 2, 8)
    assert baseline.encoder(rows).shape == (40, 8, 8)
    baseline.encoder.reg.data.normal_()
    assert (baseline.encoder(rows, shown) - one).abs().max() > 1e-3


def test_the_target_follows(baseline, rows):
    before = baseline.target.module.reg.clone()
    baseline.encoder.reg.data += 1
    baseline.after_step(0, 10)
    torch.testing.assert_close(baseline.target.module.reg, before + 0.1)


def test_embeddings_are_mean_and_standard_deviation_of_the_features_own_tokens(network, rows):
    """With a transformer that does nothing and a known head: token i in, N(token i, e^0.6) out, in order."""
    network.target_encoder = nn.Identity()
    network.target_head.forward = lambda x: (x, torch.full_like(x, 0.6))
    mean, std = network.embed(rows)
    torch.testing.assert_close(mean, network.tokenizer(rows))
    torch.testing.assert_close(std, torch.full_like(mean, math.exp(0.3)))


# --- weight decay ---------------------------------------------------------------------------------------


def test_what_decays_is_what_decays_in_the_public_code(schema, network):
    """T-JEPA's rule: what has one dimension or "bias" in its name does not; embeddings, positions, tokens do."""
    for net in (network, TJEPANetwork(schema.layout, **SIZES, n_reg=1, ema_momentum=0.9)):
        trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
        decayed = {id(p) for p in parameter_groups(net, 0.01)[0]["params"]}
        found = {name for name, p in trained.items() if id(p) in decayed}
        assert found == {name for name, p in trained.items() if "bias" not in name and p.ndim > 1}
        tokenizer = "tokenizer" if net is network else "encoder.tokenizer"
        assert {"mask_token", f"{tokenizer}.position", f"{tokenizer}.categories"} <= found
        assert f"{tokenizer}.bias" not in found


@pytest.mark.parametrize("layers", [0, 1001, 2**70])
def test_a_number_of_layers_that_would_be_built_for_ever_is_refused(layers):
    with pytest.raises(ConfigError, match="at most 1000 layers"):
        Transformer(8, n_layers=layers, n_heads=2, ff_dim=8, dropout=0.0)


def test_features_that_are_decoded_together_are_decoded_as_each_alone():
    cardinalities = (2, 7, 1, 3, 40, 6)
    layout = Layout((1, 4), (0, 2, 3, 5, 6, 7), cardinalities, (1, 0, 1, 1, 0, 1, 1, 1))
    torch.manual_seed(0)
    decoder = FeatureDecoder(layout, 5, per_column=True)
    assert len(decoder.buckets) < len(cardinalities)
    latent, variance = torch.randn(9, 8, 5), torch.rand(9, 8, 5)
    codes = torch.stack([torch.randint(0, n + 2, (9,)) for n in cardinalities], 1)
    rows = Rows(torch.randn(9, 2), torch.rand(9, 2) < 0.3, codes)
    for spread in (None, variance):
        cells = decoder(latent, spread)
        start = 0
        for k, i in enumerate(layout.categorical):
            own = slice(start, start + cardinalities[k] + 1)
            logit = latent[:, i] @ decoder.class_weight[own].T + decoder.class_bias[own]
            if spread is not None:
                of = spread[:, i] @ decoder.class_weight[own].square().T
                logit = logit / (1 + math.pi / 8 * of).sqrt()
            torch.testing.assert_close(cells.logits[k], logit)
            start = own.stop
        torch.testing.assert_close(decoder.loss(rows, latent, spread), decoder.surprise(cells, rows))
    decoder.loss(rows, latent).sum().backward()
    assert all(of.grad is None or of.grad.isfinite().all() for of in decoder.parameters())
