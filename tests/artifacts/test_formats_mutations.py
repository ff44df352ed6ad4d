"""Damaged and mislabelled files: each is refused, or repaired with the reason, and none loads silently wrong.

Every mutation is applied to a sound file whose dictionary explains its activations exactly; the file is then read with
those activations at hand, as a careful user reads it. A mutation passes when reading raises one of the library's
errors, or when what comes back computes what the sound file computes and a note says what was done.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from foreign_cases import SITE, sparse_world, wide

from interneuron.artifacts import formats
from interneuron.core import files
from interneuron.core.errors import InterneuronError
from interneuron.core.seeds import generator

TRUTH, X = sparse_world()
TRUTH = wide(TRUTH)
SQUARE, X_SQUARE = sparse_world(3)
OTHER = sparse_world(9)[1]
NORM = TRUTH.decoder.norm(dim=1)
TOPK, X_TOPK = TRUTH.replace(activation="topk", k=12), X

LENS = ("cfg.json", "sae_weights.safetensors")
SPARSIFY = ("cfg.json", "sae.safetensors")
LEARNING = ("config.json", "ae.pt")


def tensors(change):
    def mutate(folder, weights, config):
        path = folder / weights
        old = torch.load(path, weights_only=True) if path.suffix == ".pt" else files.load_tensors(path)
        new = {k: v for k, v in change(dict(old)).items() if v is not None}
        torch.save(new, path) if path.suffix == ".pt" else files.save_tensors(path, new)

    return mutate


def config(change):
    def mutate(folder, weights, config):
        old = json.loads((folder / config).read_text())
        (folder / config).write_text(json.dumps(change(old)))

    return mutate


def raw(change, which=1):
    def mutate(folder, weights, config):
        path = folder / (config, weights)[which]
        path.write_bytes(change(path.read_bytes()))

    return mutate


def only(name, value):
    return tensors(lambda t: {**t, name: value(t[name]) if callable(value) else value})


def meta(**keys):
    return config(lambda c: {**c, "metadata": {**c["metadata"], **keys}})


def without(name):
    return config(lambda c: {k: v for k, v in c.items() if k != name})


def pickled(folder, weights, config):
    torch.save({"W_enc": torch.zeros(3)}, folder / weights)


def linked(folder, weights, config):
    shutil.move(folder / weights, folder / "elsewhere")
    (folder / weights).symlink_to(folder / "elsewhere")


def dtype(name):
    return tensors(lambda t: {k: v.to(name) for k, v in t.items()})


def scaled(factor):
    return tensors(lambda t: {**t, "W_enc": t["W_enc"] / factor})


BIG = b'{"a":' * 40 + b"1" + b"}" * 40
MUTATIONS = {
    # --- orientation ---
    "encoder transposed": (LENS, only("W_enc", lambda t: t.T.contiguous())),
    "decoder transposed": (LENS, only("W_dec", lambda t: t.T.contiguous())),
    "both transposed": (
        LENS,
        tensors(lambda t: {**t, "W_enc": t["W_enc"].T.contiguous(), "W_dec": t["W_dec"].T.contiguous()}),
    ),
    "square encoder transposed": ("square", only("W_enc", lambda t: t.T.contiguous())),
    "square decoder transposed": ("square", only("W_dec", lambda t: t.T.contiguous())),
    "encoder flattened": (LENS, only("W_enc", lambda t: t.flatten())),
    "encoder and decoder exchanged": (LENS, tensors(lambda t: {**t, "W_enc": t["W_dec"], "W_dec": t["W_enc"]})),
    "square encoder and decoder exchanged": (
        "square",
        tensors(lambda t: {**t, "W_enc": t["W_dec"], "W_dec": t["W_enc"]}),
    ),
    "biases exchanged": (LENS, tensors(lambda t: {**t, "b_enc": t["b_dec"], "b_dec": t["b_enc"]})),
    "bias as a row": (LENS, only("b_dec", lambda t: t[None])),
    # --- where it belongs ---
    "wrong layer": ("sites", meta(hook_name="blocks.2.hook_resid_post")),
    "wrong site": ("sites", meta(hook_name="blocks.1.hook_mlp_out")),
    "hook unknown": (LENS, meta(hook_name="blocks.1.hook_nowhere")),
    "hook a number": (LENS, meta(hook_name=7)),
    "one head only": (LENS, meta(hook_head_index=3)),
    # --- norms, centre, scale ---
    "decoder norms folded into the encoder only": (LENS, only("W_enc", lambda t: t * NORM)),
    "decoder norms lost": (LENS, only("W_dec", lambda t: t / NORM[:, None])),
    "encoder divided by norms": (LENS, only("W_enc", lambda t: t / NORM)),
    "centring forgotten": (LENS, config(lambda c: {**c, "apply_b_dec_to_input": False})),
    "layer norm claimed": (LENS, config(lambda c: {**c, "normalize_activations": "layer_norm"})),
    "constant norm claimed": (LENS, config(lambda c: {**c, "normalize_activations": "constant_norm_rescale"})),
    "scale factor missing": (LENS, config(lambda c: {**c, "normalize_activations": "expected_average_only_in"})),
    "whitening not folded": (LENS, config(lambda c: {**c, "normalize_activations": "covariance_whitening"})),
    "normalisation unknown": (LENS, config(lambda c: {**c, "normalize_activations": "l2"})),
    "encoder ten times too small": (LENS, scaled(10.0)),
    "decoder negated": (LENS, only("W_dec", lambda t: -t)),
    "features shuffled in the decoder": (LENS, only("W_dec", lambda t: t.flip(0))),
    "rescaling claimed for relu": (LENS, config(lambda c: {**c, "rescale_acts_by_decoder_norm": True})),
    # --- kinds of numbers ---
    "half precision": (LENS, dtype(torch.float16)),
    "encoder alone in bfloat16": (LENS, only("W_enc", lambda t: t.bfloat16())),
    "integers": (LENS, only("W_dec", lambda t: (t * 100).to(torch.int32))),
    "bits of float32 read as int32": (LENS, only("W_enc", lambda t: t.view(torch.int32))),
    "bytes swapped": (LENS, only("W_enc", lambda t: torch.from_numpy(t.numpy().byteswap()).nan_to_num(nan=3e38))),
    "NaN": (LENS, only("b_enc", lambda t: t * float("nan"))),
    "dtype unknown": (LENS, config(lambda c: {**c, "dtype": "float12"})),
    # --- architecture ---
    "architecture unknown": (LENS, config(lambda c: {**c, "architecture": "supersae"})),
    "architecture with a loop": (LENS, config(lambda c: {**c, "architecture": "matching_pursuit"})),
    "claims to be jumprelu": (LENS, config(lambda c: {**c, "architecture": "jumprelu"})),
    "claims to be gated": (LENS, config(lambda c: {**c, "architecture": "gated"})),
    "claims to be a transcoder": (LENS, config(lambda c: {**c, "architecture": "transcoder"})),
    "hidden threshold": (LENS, only("threshold", torch.ones(18))),
    "extra tensor": (LENS, only("W_extra", torch.ones(3))),
    "tensor missing": (LENS, only("b_enc", None)),
    "wrong d_sae": (LENS, config(lambda c: {**c, "d_sae": 17})),
    "d_in as text": (LENS, config(lambda c: {**c, "d_in": "12"})),
    "one feature fewer in the decoder": (LENS, only("W_dec", lambda t: t[:-1].contiguous())),
    "finetuning factor": (LENS, config(lambda c: {**c, "finetuning_scaling_factor": True})),
    # --- the file itself ---
    "truncated": (LENS, raw(lambda b: b[:-9])),
    "truncated header": (LENS, raw(lambda b: b[:20])),
    "empty": (LENS, raw(lambda b: b"")),
    "garbage behind": (LENS, raw(lambda b: b + b"\0" * 16)),
    "zip named safetensors": (LENS, pickled),
    "a link": (LENS, linked),
    "configuration truncated": (LENS, raw(lambda b: b[:-4], 0)),
    "configuration a list": (LENS, raw(lambda b: b"[1]", 0)),
    "configuration with a key twice": (LENS, raw(lambda b: b'{"d_in": 3, ' + b[1:], 0)),
    "configuration nested too deep": (LENS, raw(lambda b: BIG, 0)),
    # --- sparsify ---
    "sparsify: encoder transposed": (SPARSIFY, only("encoder.weight", lambda t: t.T.contiguous())),
    "sparsify: decoder transposed": (SPARSIFY, only("W_dec", lambda t: t.T.contiguous())),
    "sparsify: called a transcoder": (SPARSIFY, config(lambda c: {**c, "transcode": True})),
    "sparsify: k missing": (SPARSIFY, without("k")),
    "sparsify: k too large": (SPARSIFY, config(lambda c: {**c, "k": 10**6})),
    "sparsify: k of 1": (SPARSIFY, config(lambda c: {**c, "k": 1})),
    "sparsify: latents of another file": (SPARSIFY, config(lambda c: {**c, "num_latents": 40})),
    "sparsify: norms lost": (SPARSIFY, only("W_dec", lambda t: t / t.norm(dim=1, keepdim=True))),
    "sparsify: unknown activation": (SPARSIFY, config(lambda c: {**c, "activation": "softmax"})),
    "sparsify: truncated": (SPARSIFY, raw(lambda b: b[:-1])),
    # --- dictionary_learning ---
    "learning: encoder transposed": (LEARNING, only("encoder.weight", lambda t: t.T.contiguous())),
    "learning: another class": (
        LEARNING,
        config(lambda c: {**c, "trainer": {**c["trainer"], "dict_class": "AutoEncoderNew"}}),
    ),
    "learning: class unknown": (
        LEARNING,
        config(lambda c: {**c, "trainer": {**c["trainer"], "dict_class": "os.system"}}),
    ),
    "learning: extra key": (LEARNING, only("epoch", torch.ones(1))),
    "learning: a number among the tensors": (LEARNING, only("step", 3)),
    "learning: truncated": (LEARNING, raw(lambda b: b[: len(b) // 2])),
    "learning: no zip": (LEARNING, raw(lambda b: b"\x80\x02}q\x00.")),
    "learning: width of another model": (
        LEARNING,
        config(lambda c: {**c, "trainer": {**c["trainer"], "activation_dim": 768}}),
    ),
}


def sound(kind, folder):
    """Write the sound file of a kind; return the files' names, the activations to check with, and the truth."""
    if kind == "square":
        formats.write(SQUARE, folder, "saelens")
        return LENS, {SITE: X_SQUARE}, SQUARE, X_SQUARE
    if kind == SPARSIFY:
        formats.write(TOPK, folder, "sparsify")
        return SPARSIFY, {SITE: X}, TOPK, X
    if kind == LEARNING:
        formats.write(TRUTH, folder, "dictionary_learning")
        return LEARNING, {SITE: X}, TRUTH, X
    formats.write(TRUTH, folder, "saelens")
    rows = (
        {SITE: X, "layers.2.resid_post": OTHER, "layers.1.mlp.contribution": OTHER * 0.3}
        if kind == "sites"
        else {SITE: X}
    )
    return LENS, rows, TRUTH, X


def test_there_are_at_least_forty():
    assert len(MUTATIONS) >= 40


@pytest.mark.parametrize("name", MUTATIONS)
def test_no_mutation_loads_silently_wrong(name, tmp_path):
    kind, mutate = MUTATIONS[name]
    folder = tmp_path / "layers.1"
    (config_name, weights), rows, truth, x = sound(kind, folder)
    before = formats.read(folder, activations=rows)
    assert "declared reading fits" in before.notes[-1]
    mutate(folder, weights, config_name)
    try:
        found = formats.read(folder, activations=rows)
    except InterneuronError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert "\n" not in refused
        return
    torch.testing.assert_close(found.value.reconstruct(x).float(), truth.reconstruct(x), atol=0.05, rtol=0.02)
    assert found.value.site == SITE
    news = [note for note in found.notes if note not in before.notes]
    assert news, "loaded without a word"


def test_noise_of_every_size_is_refused_or_harmless(tmp_path):
    """Flips of single bits anywhere in the tensor file: refused, or the reading still explains the activations."""
    formats.write(TRUTH, tmp_path, "saelens")
    path = tmp_path / LENS[1]
    good = path.read_bytes()
    rng = generator(0)
    for _ in range(60):
        place = int(torch.randint(len(good), (1,), generator=rng))
        bad = bytearray(good)
        bad[place] ^= 1 << int(torch.randint(8, (1,), generator=rng))
        path.write_bytes(bytes(bad))
        try:
            found = formats.read(tmp_path, activations=X)
        except InterneuronError:
            continue
        assert found.value.fitted["self_check"]["fvu"] < 0.6
