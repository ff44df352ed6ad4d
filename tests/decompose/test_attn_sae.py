"""Attention SAE: attribution over heads and sources sums to the feature's input, and edits reach the heads."""

from __future__ import annotations

import pytest
import torch

import interneuron as inn
from interneuron.artifacts import Dictionary
from interneuron.core.errors import InputError, ShapeError
from interneuron.core.seeds import generator
from interneuron.decompose.attn_sae import AttentionSAE, ablate_features, direct_feature_attribution, head_attribution
from interneuron.model.model import Model
from interneuron.parts.activation_rows import recovered, token_rows

pytest.importorskip("numba")
IDS = torch.tensor([[1, 20, 31, 44, 50, 20, 31], [1, 33, 21, 60, 42, 33, 21]])
SITE = "layers.1.attn.z"


@pytest.fixture(scope="module")
def model() -> Model:
    return inn.load("lm-small")


@pytest.fixture(scope="module")
def found(model: Model) -> Dictionary:
    return AttentionSAE(expansion=2, k=6, steps=8, batch_size=8, skip=1).fit(model, IDS, layer=1)


def test_fit_knows_its_heads(model: Model, found: Dictionary) -> None:
    heads = model.module.config.num_attention_heads
    assert (found.site, found.heads, found.slug) == (SITE, heads, "attn_sae")
    x = token_rows(model, IDS, SITE, skip=1)
    assert x.shape == (12, found.d_in)
    with torch.no_grad():
        z = model.run(IDS, read=[SITE]).acts[SITE]
    assert torch.allclose(found.encode(z)[:, 1:].flatten(0, 1), found.encode(x), atol=1e-5)


@pytest.mark.parametrize("pos", [0, 3, -1])
def test_attribution_sums_to_the_input(model: Model, found: Dictionary, pos: int) -> None:
    with torch.no_grad():
        z = model.run(IDS[:1], read=[SITE]).acts[SITE].flatten(2)[0, pos].double()
    for feature in (0, 5):
        brought, constant = direct_feature_attribution(model, found, feature, IDS[0], pos)
        inputs = (z * found.scale - found.decoder_bias) @ found.encoder[:, feature].double()
        total = float(brought.double().sum()) + constant
        assert total == pytest.approx(float(inputs + found.encoder_bias[feature]), abs=1e-4)
        last = pos % IDS.shape[1]
        assert not brought[:, last + 1 :].any()  # nothing comes from tokens behind


def test_head_attribution_by_hand(found: Dictionary) -> None:
    decoder = torch.tensor([[3.0, 4.0, 0.0, 5.0]])
    d = Dictionary(
        encoder=decoder.T, decoder=decoder, encoder_bias=torch.zeros(1), decoder_bias=torch.zeros(4), heads=2
    )
    assert head_attribution(d).tolist() == [[0.5, 0.5]]
    assert torch.allclose(head_attribution(found).sum(1), torch.ones(found.n_features), atol=1e-5)
    with pytest.raises(InputError, match="3 heads"):
        head_attribution(d, n_heads=3)
    with pytest.raises(ShapeError, match="heads=3"):
        d.replace(heads=3)


def test_ablation_subtracts_the_feature(model: Model, found: Dictionary) -> None:
    with torch.no_grad():
        z = model.run(IDS, read=[SITE]).acts[SITE]
        f = found.encode(z)
        feature = int(f.amax((0, 1)).argmax())
        edited = model.run(IDS, read=[SITE], edit=[ablate_features(found, feature)]).acts[SITE]
        pushed = model.run(IDS, read=[SITE], edit=[found.edit(feature, alpha=2.0)]).acts[SITE]
    wanted = z.flatten(2) - f[..., feature, None] * found.decoder[feature] / found.scale
    assert torch.allclose(edited.flatten(2), wanted, atol=1e-5)
    assert torch.allclose(pushed.flatten(2), z.flatten(2) + 2 * found.decoder[feature] / found.scale, atol=1e-5)
    with pytest.raises(InputError, match="no feature"):
        ablate_features(found, found.n_features)
    with pytest.raises(InputError, match=r"expected a site \.\.\.attn\.z"):
        ablate_features(found.replace(site="layers.0.resid_post"), 0)


def test_splicing_the_identity_recovers_everything(model: Model) -> None:
    whole = recovered(model, IDS, SITE, lambda x: x, skip=1)
    assert whole["recovered"] == pytest.approx(1.0, abs=1e-5)
    assert recovered(model, IDS, SITE, torch.zeros_like, skip=1)["recovered"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_rows_must_be_a_matrix() -> None:
    with pytest.raises(ShapeError, match="heads side by side"):
        AttentionSAE().fit_activations(torch.randn(2, 3, 4, generator=generator(0)))
