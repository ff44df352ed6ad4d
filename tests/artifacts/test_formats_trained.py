"""Mutations of a dictionary that was really trained: the right one loads, no wrong one does without a word.

`trained/lm_resid` is a batch top-k dictionary of the residual stream behind layer 2 of the organism `lm`, made by
benchmarks/foreign/train_fixture.py. Neighbouring layers are the hard case: it explains them almost as well.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import interneuron as inn
from interneuron import organisms
from interneuron.artifacts import formats
from interneuron.artifacts.fit_check import check_fit, check_on_model
from interneuron.core import files
from interneuron.core.errors import InterneuronError, SelfCheckFailed
from interneuron.core.seeds import generator

TRAINED = Path(__file__).parent / "trained" / "lm_resid"
SITE = "layers.2.resid_post"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
POINTS = ("resid_post", "resid_mid", "mlp.out", "attn.out", "norm2")


@pytest.fixture(scope="module")
def model():
    return inn.load("lm")


@pytest.fixture(scope="module")
def ids(model):
    words: list[int] = []
    for document in organisms.tinyworld.corpus(tokens=900, seed=5, mixture="lm"):
        words += model.tokenizer(f"<bos> {document.text}", add_special_tokens=False)["input_ids"]
    return torch.tensor(words[: len(words) // 64 * 64]).reshape(-1, 64)


@pytest.fixture(scope="module")
def rows(model, ids):
    sites = [f"layers.{i}.{point}" for i in range(model.n_layers) for point in POINTS]
    with torch.no_grad():
        acts = model.run(ids, read=sites).acts
    return {site: acts[site][:, 1:].flatten(0, 1) for site in sites}


@pytest.fixture(scope="module")
def truth():
    return formats.read(TRAINED).value


def test_it_is_small():
    assert sum(path.stat().st_size for path in TRAINED.iterdir()) <= 200_000


def test_the_right_one_loads(rows, model, ids):
    found = formats.read(TRAINED, activations=rows)
    assert "the declared reading fits" in found.notes[-1]
    assert found.value.site == SITE
    on_model = formats.read(TRAINED, model=model, inputs=ids).value
    assert on_model.replace(fitted={}).same_bits(found.value.replace(fitted={}))


def test_the_loss_recovered_is_measured_with_it(model, ids, truth):
    report = check_on_model(truth, model, ids)[1]
    assert report["fvu"] < 0.2
    assert report["loss_recovered"] > 0.8


def moved(site):
    hook = f"blocks.{site.split('.')[1]}.{HOOKS[site.split('.', 2)[2]]}"
    return config(lambda c: {**c, "metadata": {**c["metadata"], "hook_name": hook}})


HOOKS = {
    "resid_post": "hook_resid_post", "resid_mid": "hook_resid_mid", "mlp.out": "mlp.hook_out",
    "attn.out": "attn.hook_out",
}  # fmt: skip


def config(change):
    def mutate(folder):
        path = folder / CONFIG
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return mutate


def tensors(change):
    def mutate(folder):
        path = folder / WEIGHTS
        files.save_tensors(path, change(dict(files.load_tensors(path))))

    return mutate


def raw(change):
    def mutate(folder):
        path = folder / WEIGHTS
        path.write_bytes(change(path.read_bytes()))

    return mutate


NORMS = torch.exp(0.5 * torch.randn(256, generator=generator(0))).half()


def with_norms(part):
    """The same map with decoder rows of unequal lengths, and then one part of it forgotten."""

    def change(t):
        out = {**t, "W_enc": t["W_enc"] / NORMS, "b_enc": t["b_enc"] / NORMS, "threshold": t["threshold"] / NORMS}
        out["W_dec"] = t["W_dec"] * NORMS[:, None]
        for name in part:
            out[name] = t[name]
        return out

    return tensors(change)


def pickled(folder):
    torch.save({"W_enc": torch.zeros(3)}, folder / WEIGHTS)


def bits(t):
    return t.view(torch.bfloat16)


MUTATIONS = {
    "one layer below": moved("layers.1.resid_post"),
    "one layer above": moved("layers.3.resid_post"),
    "two layers above": moved("layers.4.resid_post"),
    "the last layer": moved("layers.5.resid_post"),
    "before the mlp": moved("layers.2.resid_mid"),
    "output of the mlp": moved("layers.2.mlp.out"),
    "output of the attention": moved("layers.2.attn.out"),
    "encoder transposed": tensors(lambda t: {**t, "W_enc": t["W_enc"].T.contiguous()}),
    "decoder transposed": tensors(lambda t: {**t, "W_dec": t["W_dec"].T.contiguous()}),
    "encoder taken from the decoder": tensors(lambda t: {**t, "W_enc": t["W_dec"].T.contiguous() * 0.2}),
    "norms folded into the encoder only": with_norms(("W_enc", "b_enc", "threshold")),
    "norms folded into the encoder without its bias": with_norms(("W_enc", "threshold")),
    "threshold not folded": with_norms(("threshold",)),
    "norms lost": with_norms(("W_dec",)),
    "centring forgotten": config(lambda c: {**c, "apply_b_dec_to_input": False}),
    "layer norm claimed": config(lambda c: {**c, "normalize_activations": "layer_norm"}),
    "constant norm claimed": config(lambda c: {**c, "normalize_activations": "constant_norm_rescale"}),
    "whitening claimed": config(lambda c: {**c, "normalize_activations": "covariance_whitening"}),
    "scale not folded": tensors(
        lambda t: {**t, "W_enc": t["W_enc"] * 3, "W_dec": t["W_dec"] / 3, "b_dec": t["b_dec"] / 3}
    ),
    "called standard": config(lambda c: {**c, "architecture": "standard"}),
    "called a transcoder": config(lambda c: {**c, "architecture": "jumprelu_transcoder"}),
    "decoder negated": tensors(lambda t: {**t, "W_dec": -t["W_dec"]}),
    "features shuffled": tensors(lambda t: {**t, "W_dec": t["W_dec"].flip(0).contiguous()}),
    "bits read as bfloat16": tensors(lambda t: {k: bits(v) for k, v in t.items()}),
    "encoder read as bfloat16": tensors(lambda t: {**t, "W_enc": bits(t["W_enc"])}),
    "encoder as integers": tensors(lambda t: {**t, "W_enc": (t["W_enc"] * 100).to(torch.int16)}),
    "widened to float32": tensors(lambda t: {k: v.float() for k, v in t.items()}),
    "extra key": tensors(lambda t: {**t, "W_skip": t["W_dec"]}),
    "bias missing": tensors(lambda t: {k: v for k, v in t.items() if k != "b_dec"}),
    "half the features": tensors(lambda t: {**t, "W_dec": t["W_dec"][:128].contiguous()}),
    "truncated": raw(lambda b: b[:-64]),
    "cut in the header": raw(lambda b: b[:100]),
    "a pickle": pickled,
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_no_mutation_of_it_loads_without_a_word(name, rows, truth, tmp_path):
    folder = tmp_path / "sae"
    shutil.copytree(TRAINED, folder)
    MUTATIONS[name](folder)
    sound = formats.read(TRAINED, activations=rows).notes
    refused = ""
    try:
        found = formats.read(folder, activations=rows)
    except InterneuronError as error:
        refused = str(error)
    if refused:
        assert "\n" not in refused
        return
    news = [note for note in found.notes if note not in sound]
    assert found.value.site == SITE
    x = rows[SITE]
    assert found.value.quality(x)["fvu"] < 1.1 * truth.quality(x)["fvu"] + 0.003 or "do not exclude" in news[-1], news
    assert any(word in " ".join(news) for word in ("repaired", "transposed", "kept as stored", "do not exclude")), news


@pytest.mark.parametrize("n", [64, 200, 600])
def test_it_is_accepted_on_any_rows_and_never_at_a_neighbour(n, rows, truth):
    for start in range(0, len(rows[SITE]) - n, 211):
        some = {site: x[start : start + n] for site, x in rows.items()}
        assert check_fit(truth, some)[0].site == SITE
        for layer in (1, 3):
            try:
                checked, report = check_fit(truth.replace(site=f"layers.{layer}.resid_post"), some)
            except SelfCheckFailed:
                continue
            assert checked.site == SITE or "do not exclude" in report.notes


def test_raw_output_and_what_a_norm_behind_it_leaves(rows):
    """Gemma-like blocks have a norm behind the mlp; a dictionary of one side fits the other far worse."""
    raw_rows = rows["layers.2.mlp.out"]
    gain = 0.5 + torch.rand(160, generator=generator(3))
    contribution = raw_rows / raw_rows.square().mean(-1, keepdim=True).sqrt() * gain
    basis = torch.linalg.svd(raw_rows - raw_rows.mean(0), full_matrices=False)[2][:48]
    dictionary = formats.read(TRAINED).value.replace(
        encoder=torch.cat([basis, -basis]).T.contiguous(), decoder=torch.cat([basis, -basis]),
        encoder_bias=torch.zeros(96), decoder_bias=raw_rows.mean(0), activation="relu", threshold=None, center=True,
        scale=1.0, site="layers.2.mlp.contribution",
    )  # fmt: skip
    sites = {"layers.2.mlp.contribution": contribution, "layers.2.mlp.out": raw_rows}
    checked, report = check_fit(dictionary, sites)
    assert checked.site == "layers.2.mlp.out"
    assert "at layers.2.mlp.out" in report.notes
    alone = check_fit(dictionary, {"layers.2.mlp.contribution": raw_rows * 1.001})[1]
    assert alone["fvu"] > report["fvu"]
