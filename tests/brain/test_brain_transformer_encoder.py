"""Brain encoders: the forward pass in float64 NumPy, symmetries of places, planted routing recovered."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from interneuron.artifacts import load_artifact
from interneuron.brain.brain_transformer_encoder import (
    BrainEncoder,
    RoiAttentionEncoder,
    SpatialFeatureReadout,
    feature_maps,
    sine_code,
)
from interneuron.core.errors import InputError, ShapeError
from interneuron.loading import load
from interneuron.parts.ridge import encoding_score

G = torch.Generator().manual_seed(0)
MEMBERSHIP = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def module(d: int = 8, heads: int = 2) -> RoiAttentionEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = RoiAttentionEncoder(d, MEMBERSHIP, heads)
        for norm in made.layers[0].norms:  # not the identity
            torch.nn.init.normal_(norm.weight)
            torch.nn.init.normal_(norm.bias)
    return made.eval()


def numpy_attention(w: dict[str, np.ndarray], name: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int):
    weights, biases = np.split(w[f"{name}.in_proj_weight"], 3), np.split(w[f"{name}.in_proj_bias"], 3)
    q, k, v = (x @ m.T + b for x, m, b in zip((q, k, v), weights, biases, strict=True))
    width, out, maps = q.shape[-1] // heads, [], []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width)
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        out.append(p @ v[:, part])
        maps.append(p)
    return np.concatenate(out, 1) @ w[f"{name}.out_proj.weight"].T + w[f"{name}.out_proj.bias"], np.mean(maps, 0)


def test_the_forward_pass_in_numpy() -> None:
    made, pos = module(), sine_code(9, 8)
    features = torch.randn(3, 9, 8, generator=G)
    with torch.no_grad():
        pred, attention = made(features, pos)
    w = {name.removeprefix("layers.0."): p.detach().double().numpy() for name, p in made.named_parameters()}

    def norm(x: np.ndarray, i: int) -> np.ndarray:
        z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return z * w[f"norms.{i}.weight"] + w[f"norms.{i}.bias"]

    for n in range(3):
        f, code = features[n].double().numpy(), pos.double().numpy()
        t = w["query"]
        t = t + numpy_attention(w, "among", norm(t, 0), norm(t, 0), norm(t, 0), 2)[0]  # eq. 1
        gathered, maps = numpy_attention(w, "look", norm(t, 1), f + code, f, 2)
        t = t + gathered  # eq. 2
        hidden = np.maximum(norm(t, 2) @ w["feed.0.weight"].T + w["feed.0.bias"], 0)
        t = t + hidden @ w["feed.3.weight"].T + w["feed.3.bias"]  # eq. 3
        y = [w["readout.weight"][v] @ (MEMBERSHIP[v].numpy() @ t) + w["readout.bias"][v] for v in range(3)]  # eq. 4
        np.testing.assert_allclose(pred[n].numpy(), y, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(attention[n].numpy(), maps, atol=1e-6)


def test_places_have_no_order_but_their_code() -> None:
    made, pos, order = module(), sine_code(9, 8), torch.randperm(9, generator=G)
    features = torch.randn(2, 9, 8, generator=G)
    with torch.no_grad():
        pred, attention = made(features, pos)
        moved, moved_attention = made(features[:, order], pos[order])
    torch.testing.assert_close(moved, pred)
    torch.testing.assert_close(moved_attention, attention[..., order])
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2))


def test_the_factorised_readout_is_a_weighted_mean_of_places() -> None:
    made = SpatialFeatureReadout(5, MEMBERSHIP[:2], 4)
    with torch.no_grad():
        made.places.copy_(torch.tensor([[0.0, 0.0, 0.0, 0.0], [9e3, 0.0, 0.0, 0.0]]))
        features = torch.randn(3, 4, 5, generator=G)
        pred, weights = made(features, sine_code(4, 5))
        w, b = made.readout.weight, made.readout.bias
    torch.testing.assert_close(pred[:, 0], features.mean(1) @ w[0] + b[0])
    torch.testing.assert_close(pred[:, 1], features[:, 0] @ w[1] + b[1])
    assert weights[0].tolist() == [[0.25] * 4, [1.0, 0.0, 0.0, 0.0]]


def test_the_code_of_places_by_hand() -> None:
    code = sine_code(9, 8)
    for place in range(9):
        for half, at in ((0, place // 3), (1, place % 3)):
            angle = (at + 1) / 3 * 2 * math.pi
            by_hand = [math.sin(angle), math.cos(angle), math.sin(angle / 100), math.cos(angle / 100)]
            np.testing.assert_allclose(code[place, 4 * half : 4 * half + 4], by_hand, atol=1e-5)
    assert sine_code(4, 5).shape == (4, 5)
    assert len(sine_code(64, 16).unique(dim=0)) == 64


@pytest.fixture(scope="module")
def planted() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A mark stands at a random place of 16; voxels 0-2 follow it, voxels 3-5 look at place 5."""
    g = torch.Generator().manual_seed(4)
    n, d = 400, 8
    features = torch.randn(n, 16, d, generator=g)
    place = torch.randint(16, (n,), generator=g)
    features[..., 0] = 0.3 * features[..., 0]
    features[torch.arange(n), place, 0] += 4
    tuning = torch.randn(6, d - 1, generator=g)
    y = torch.empty(n, 6)
    y[:, :3] = features[torch.arange(n), place, 1:] @ tuning[:3].T
    y[:, 3:] = features[:, 5, 1:] @ tuning[3:].T
    return features, y + 0.3 * torch.randn(n, 6, generator=g), place


def test_planted_routing_is_recovered(planted) -> None:
    features, y, place = planted
    areas = torch.tensor([0, 0, 0, 1, 1, 1])
    ours = BrainEncoder(n_heads=2, epochs=25, lr=3e-3, dropout=0.0, seed=0).fit(features[:320], y[:320], areas)
    rival = BrainEncoder("factorised", epochs=25, lr=3e-2, clip=0.0).fit(features[:320], y[:320], areas)
    ours_r, rival_r = (encoding_score(m.predict(features[320:]), y[320:]) for m in (ours, rival))
    assert float(ours_r[:3].mean()) > 0.7
    assert float(rival_r[:3].mean()) < 0.5
    assert float(rival_r[3:].mean()) > 0.8
    attention = ours.attention(features[320:])
    on_mark = attention[torch.arange(80), 0, place[320:]]
    assert float(on_mark.mean()) > 4 / 16
    linear = BrainEncoder("linear", epochs=10, lr=1e-2, clip=0.0).fit(features[:320], y[:320], areas)
    assert float(encoding_score(linear.predict(features[320:]), y[320:])[3:].mean()) > 0.5
    assert linear.n_parameters == 6 * (16 * 8 + 1)


def test_seed_files_and_generators(planted, tmp_path) -> None:
    features, y, _ = planted
    areas = torch.tensor([0, 0, 0, 1, 1, 1])
    before = torch.get_rng_state()
    one, two = (BrainEncoder(n_heads=4, epochs=1).fit(features[:40], y[:40], areas) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert one.same_bits(two)
    one.predict(features[:3])
    assert torch.equal(before, torch.get_rng_state())
    loaded = load_artifact(one.save(tmp_path / "encoder"))
    assert torch.equal(loaded.predict(features[40:50]), one.predict(features[40:50]))
    assert np.array(one.plot()["values"]).shape == (4, 8)
    overlapping = torch.cat([torch.nn.functional.one_hot(areas), torch.ones(6, 1, dtype=torch.long)], 1)
    both = BrainEncoder(n_heads=4, epochs=1).fit(features[:40], y[:40], overlapping)
    assert both.attention(features[:2]).shape == (2, 3, 16)


def test_maps_of_a_model_leave_the_class_token_out() -> None:
    model = load("vit")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sites = ["layers.0.resid_post", "layers.1.resid_post"]
    with torch.no_grad():
        acts = model.run(images, read=sites).acts
    maps = feature_maps(model, images, sites, batch_size=2)
    torch.testing.assert_close(maps, torch.cat([acts[site][:, 1:] for site in sites], -1), atol=1e-4, rtol=1e-4)
    convolutions = feature_maps(load("cnn"), images, ["layers.0.resid_post", "layers.1.resid_post"])
    assert convolutions.shape[:2] == (3, 64)


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_taught(planted) -> None:
    features, y, _ = planted
    areas = torch.zeros(6, dtype=torch.long)
    with pytest.raises(ShapeError, match="16 heads do not divide the width 9"):
        BrainEncoder(epochs=1).fit(torch.ones(4, 4, 9), y[:4], areas)
    with pytest.raises(ShapeError, match="square grid"):
        BrainEncoder().fit(features[:, :15], y, areas)
    with pytest.raises(ShapeError, match="one entry a voxel"):
        BrainEncoder().fit(features, y, areas[:5])
    with pytest.raises(ShapeError, match="one row a map"):
        BrainEncoder().fit(features, y[:5], areas)
    with pytest.raises(InputError, match="NaN"):
        BrainEncoder().fit(features, y * math.nan, areas)
    with pytest.raises(InputError, match="readout='lineer' is unknown"):
        BrainEncoder("lineer", epochs=1).fit(features, y, areas)
    fitted = BrainEncoder(n_heads=2, epochs=1).fit(features[:16], y[:16], areas)
    with pytest.raises(ShapeError, match="they were fitted on"):
        fitted.predict(torch.ones(2, 9, 8))
    with pytest.raises(ShapeError, match="expected tokens"):
        feature_maps(load("vit"), torch.zeros(1, 3, 32, 32), "layers.0.attn.z")
