"""What SAELens has beside linear encoders: matching pursuit, features in time, heads side by side, older files."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from foreign_cases import D, F, random_dictionary, rows
from tiny_models import shared, tokens

import interneuron as inn
from interneuron.artifacts import formats
from interneuron.artifacts.fit_check import check_fit
from interneuron.artifacts.pursuit import matching_pursuit
from interneuron.artifacts.sequence_check import check_sequences, check_sequences_on_model
from interneuron.artifacts.temporal import TemporalDictionary
from interneuron.core import files
from interneuron.core.errors import ArtifactError, InputError, InterneuronError, SelfCheckFailed
from interneuron.core.seeds import generator

FOREIGN = Path(__file__).parent / "foreign" / "saelens"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
KEY = "attn_layers.0.k_ctx"
T = 7


def pursuit(**changes):
    decoder = torch.nn.functional.normalize(torch.randn(F, D, generator=generator(4)), dim=1)
    parts = {"decoder": decoder, "encoder": decoder.T.contiguous(), "encoder_bias": torch.zeros(F), "center": True}
    return random_dictionary("pursuit", **{**parts, "k": 5, **changes})


def temporal(seed=0, **changes):
    """Attention that foretells nothing (values of 0) around a dictionary that explains its activations exactly."""
    rng = generator(seed)
    q = torch.linalg.qr(torch.randn(D, D, generator=rng))[0]
    decoder = torch.cat([q * 2, torch.randn(D, D, generator=rng)])
    encoder = torch.cat([q.T * 2 * D, torch.zeros(D, D)], 1)  # the second half never fires
    shapes = {"query": (F // 2, F), "key": (F // 2, F), "value": (F, F), "out": (F, F)}
    attention = {f"0.{n}.weight": torch.randn(s, generator=rng) * (n in ("query", "key")) for n, s in shapes.items()}
    attention |= {f"0.{n}.bias": torch.zeros(s[0]) for n, s in shapes.items()}
    parts = {
        "encoder": encoder, "decoder": decoder, "decoder_bias": torch.randn(D, generator=rng), "center": True,
        "attention": attention, "n_heads": 2, "activation": "relu", "site": "layers.1.resid_post",
    }  # fmt: skip
    return TemporalDictionary(**{**parts, **changes})


def texts(dictionary, n=12, seed=1):
    """Activations [n T D] that the dictionary explains, sparse in its features."""
    rng = generator(seed)
    codes = torch.rand(n, T, D, generator=rng) * (torch.rand(n, T, D, generator=rng) < 0.3)
    return codes @ dictionary.decoder[:D] + dictionary.decoder_bias


def test_pursuit_by_hand():
    decoder = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    x = torch.tensor([[3.0, 1.0]])  # 3 of the first, then 1 of the third: the second explains 2.6, then 0.8
    assert matching_pursuit(x, decoder).tolist() == [[3.0, 0.0, 1.0]]
    assert matching_pursuit(x, decoder, steps=1).tolist() == [[3.0, 0.0, 0.0]]
    assert matching_pursuit(x, decoder, residual=1.5).tolist() == [[3.0, 0.0, 0.0]]
    assert matching_pursuit(-x, decoder).tolist() == [[0.0, 0.0, 0.0]]


def test_pursuit_leaves_less_at_every_step_and_each_row_for_itself():
    d, x = pursuit(), rows()
    left = [(x - d.replace(k=k).reconstruct(x)).norm(dim=1) for k in range(1, 9)]
    assert all(bool((b <= a + 1e-5).all()) for a, b in pairwise(left))
    torch.testing.assert_close(d.encode(x)[3:4], d.encode(x[3:4]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "value",
    [pursuit(), pursuit(center=False, decoder_bias=torch.zeros(D), k=0, residual=0.3, settles=False), temporal(),
     temporal(scale=0.5), temporal(center=False, activation="topk", k=3), temporal(normalize="layer_norm")],
    ids=lambda v: v.kind,
)  # fmt: skip
def test_the_same_bits_come_back(value, dtype, tmp_path):
    value = value.to(dtype=dtype)
    path = formats.write(value, tmp_path / "x", "saelens")
    found = formats.read(path).value
    assert found.replace(fitted={}).same_bits(value)
    again = formats.write(found, tmp_path / "again", "saelens")
    assert (again / WEIGHTS).read_bytes() == (path / WEIGHTS).read_bytes()
    assert value.save(tmp_path / "own") and inn.load_artifact(tmp_path / "own").same_bits(value)


def test_a_pursuit_that_saelens_cannot_hold_is_refused(tmp_path):
    for wrong in (pursuit(scale=2.0), pursuit(center=False)):
        with pytest.raises(InputError, match="Save"):
            formats.write(wrong, tmp_path / "x", "saelens")
    for name in ("sparsify", "dictionary_learning", "circuit_tracer", "llamascopium"):
        with pytest.raises(InputError):
            formats.write(pursuit(), tmp_path / name, name)


def test_a_pursuit_is_checked_like_any_dictionary():
    q = torch.linalg.qr(torch.randn(D, D, generator=generator(2)))[0]
    good = pursuit(decoder=q, encoder=q.T.contiguous(), encoder_bias=torch.zeros(D), k=0)
    codes = torch.rand(300, D, generator=generator(3)) * (torch.rand(300, D, generator=generator(4)) < 0.25)
    x = codes @ q + good.decoder_bias
    checked, report = check_fit(good, x)
    assert "the declared reading fits" in report.notes
    assert report["fvu"] < 1e-6
    assert checked.activation == "pursuit"
    turned, report = check_fit(good.replace(decoder=q.T.contiguous()), x)
    assert "repaired to decoder transposed" in report.notes
    torch.testing.assert_close(turned.decoder, q)
    assert "repaired" in check_fit(good.replace(center=False), x)[1].notes
    with pytest.raises(SelfCheckFailed):
        check_fit(good.replace(decoder=-q), x)


def test_temporal_features_see_only_what_came_before():
    d = formats.read(FOREIGN / "temporal").value
    x = torch.randn(2, 6, 8, generator=generator(5))
    changed = x.clone()
    changed[:, 4:] += 1
    for ours, theirs in zip(d.split(x), d.split(changed), strict=True):
        torch.testing.assert_close(ours[:, :4], theirs[:, :4])
        assert not torch.allclose(ours[:, 4:], theirs[:, 4:])
    f, foretold = d.split(x)
    torch.testing.assert_close(d.reconstruct(x), d.decode(f + foretold, x))
    assert d.quality(x)["l0"] <= 3


def test_the_order_of_tokens_matters_and_rows_alone_are_refused():
    d = temporal()
    with pytest.raises(InterneuronError, match="tokens of a text in order"):
        d.encode(torch.randn(D))
    with pytest.raises(InputError, match="at least 16"):
        check_sequences(d, torch.randn(1, 5, D))


def test_a_temporal_dictionary_is_checked_and_never_repaired():
    d = temporal()
    x = texts(d)
    checked, report = check_sequences(d, {"layers.1.resid_post": x, "layers.2.resid_post": x.flip(-1) * 2 + 1})
    assert checked.site == d.site
    assert report["fvu"] < 1e-6
    wrong = {
        "centring forgotten": d.replace(center=False), "layer norm claimed": d.replace(normalize="layer_norm"),
        "scaled": d.replace(scale=3.0), "decoder negated": d.replace(decoder=-d.decoder),
        "shuffled": d.replace(decoder=d.decoder.flip(0)), "encoder too small": d.replace(encoder=d.encoder / 10),
        "another place": d.replace(site="layers.2.resid_post"),
    }  # fmt: skip
    for name, bad in wrong.items():
        with pytest.raises(SelfCheckFailed) as caught:
            check_sequences(bad, {"layers.1.resid_post": x, "layers.2.resid_post": x.flip(-1) * 2 + 1})
        assert "\n" not in str(caught.value), name


def test_on_a_model_the_texts_are_read_in_order():
    model = inn.wrap(shared("llama"))
    ids = tokens(4, 9)
    with torch.no_grad(), model.read("layers.1.resid_post") as acts:
        model(ids)
    x = acts["layers.1.resid_post"]
    d = model.d_model
    eye = torch.eye(d)
    f = 2 * d
    zero = {"query": (f // 2, f), "key": (f // 2, f), "value": (f, f), "out": (f, f)}
    attention = {f"0.{n}.weight": torch.zeros(s) for n, s in zero.items()}
    attention |= {f"0.{n}.bias": torch.zeros(s[0]) for n, s in zero.items()}
    perfect = TemporalDictionary(
        encoder=torch.cat([eye, -eye], 1) * 4 * d, decoder=torch.cat([eye, -eye]), decoder_bias=x[:, 1:].mean((0, 1)),
        attention=attention, activation="relu", center=True, site="layers.1.resid_post",
    )  # fmt: skip
    report = check_sequences_on_model(perfect, model, ids)[1]
    assert report["fvu"] < 1e-6
    with pytest.raises(SelfCheckFailed):
        check_sequences_on_model(perfect.replace(encoder=perfect.encoder / 20), model, ids)


def change(folder, tensors=None, **config):
    document = json.loads((folder / CONFIG).read_text())
    document["metadata"] |= config.pop("metadata", {})
    (folder / CONFIG).write_text(json.dumps({**document, **config}))
    if tensors is not None:
        files.save_tensors(folder / WEIGHTS, tensors(dict(files.load_tensors(folder / WEIGHTS))))


def without(name):
    return lambda t: {k: v for k, v in t.items() if k != name}


REFUSED = {
    "temporal: a bias missing": ("temporal", {"tensors": without("attn_layers.0.k_ctx.bias")}),
    "temporal: called tied": ("temporal_untied", {"tied_weights": True}),
    "temporal: called untied": ("temporal", {"tied_weights": False}),
    "temporal: more layers": ("temporal", {"n_attn_layers": 2}),
    "temporal: heads that do not divide": ("temporal", {"n_heads": 3}),
    "temporal: unknown kind": ("temporal", {"sae_diff_type": "gated"}),
    "temporal: no factor": ("temporal_untied", {"activation_normalization_factor": 0}),
    "temporal: k as text": ("temporal", {"kval_topk": "3"}),
    "temporal: k too large": ("temporal", {"kval_topk": 300}),
    "temporal: square out transposed to another width": (
        "temporal", {"tensors": lambda t: {**t, f"{KEY}.weight": t[f"{KEY}.weight"].T.contiguous()}},
    ),
    "temporal: NaN": ("temporal", {"tensors": lambda t: {**t, "b_dec": t["b_dec"] * float("nan")}}),
    "pursuit: with an encoder": ("matching_pursuit", {"tensors": lambda t: {**t, "W_enc": t["W_dec"].T.contiguous()}}),
    "pursuit: called standard": ("matching_pursuit", {"architecture": "standard"}),
    "pursuit: a threshold below 0": ("matching_pursuit", {"residual_threshold": -1.0}),
    "pursuit: steps as text": ("matching_pursuit", {"max_iterations": "5"}),
    "hook_z: of a site without heads": ("standard_hook_z", {"metadata": {"hook_name": "blocks.1.hook_resid_post"}}),
    "hook_z: unknown reshape": ("standard_hook_z", {"reshape_activations": "hook_q"}),
    "head: of a site without heads": ("standard", {"metadata": {"hook_head_index": 1}}),
    "head: no number": ("standard_hook_z", {"metadata": {"hook_head_index": "1"}}),
    "old: another activation": ("topk_before_6", {"metadata": {}, "activation_fn_str": "tanh-relu"}),
    "old: k missing": ("topk_before_6", {"metadata": {}, "activation_fn_kwargs": {}}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_together_is_refused(name, tmp_path):
    source, changes = REFUSED[name]
    folder = tmp_path / "sae"
    shutil.copytree(FOREIGN / source, folder)
    document = json.loads((folder / CONFIG).read_text())
    if "metadata" not in document:
        changes = {k: v for k, v in changes.items() if k != "metadata"}
        (folder / CONFIG).write_text(json.dumps({**document, **changes}))
    else:
        change(folder, **changes)
    formats.read(FOREIGN / source)
    with pytest.raises(InterneuronError) as caught:
        formats.read(folder)
    assert "\n" not in str(caught.value)


def test_heads_come_from_activations_or_an_option():
    z = torch.randn(40, 2, 4, generator=generator(0))
    folder = FOREIGN / "standard_hook_z"
    plain = formats.read(folder)
    assert plain.value.heads == 0
    assert any("pass heads=" in note for note in plain.notes)
    asked = formats.read(folder, heads=2).value
    assert asked.heads == 2
    torch.testing.assert_close(asked.encode(z), plain.value.encode(z.flatten(1)))
    d = plain.value.replace(
        encoder=torch.cat([torch.eye(8), -torch.eye(8)], 1), decoder=torch.cat([torch.eye(8), -torch.eye(8)]),
        encoder_bias=torch.zeros(16), decoder_bias=torch.zeros(8), center=False,
    )  # fmt: skip
    assert check_fit(d, {"layers.1.attn.z": z})[0].heads == 2
    edit = asked.edit(0)
    assert tuple(edit.vector.shape) == (2, 4)


def test_one_head_alone_names_no_site(tmp_path):
    shutil.copytree(FOREIGN / "standard_hook_z", tmp_path / "sae")
    change(tmp_path / "sae", reshape_activations="none", metadata={"hook_head_index": 1})
    found = formats.read(tmp_path / "sae")
    assert found.value.site == ""
    assert any("[..., 1, :]" in note for note in found.notes)


def test_a_file_of_ours_says_which_layout_it_is_in(tmp_path):
    formats.write(random_dictionary(), tmp_path, "saelens")
    metadata = json.loads((tmp_path / CONFIG).read_text())["metadata"]
    assert int(metadata["sae_lens_version"].split(".")[0]) >= 6  # or SAELens drops the hook name


def test_circuit_tracer_has_no_top_k(tmp_path):
    with pytest.raises(InputError, match="relu or jumprelu"):
        formats.write(random_dictionary("topk"), tmp_path / "layer_0.safetensors", "circuit_tracer")
    with pytest.raises(ArtifactError, match="nothing there"):
        formats.read(tmp_path / "layer_0.safetensors")
