"""Dictionaries through every format that can hold them: the same bits back, and the same features to 1e-6."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from foreign_cases import SITE, D, F, random_dictionary, rows

from interneuron.artifacts import Dictionary, formats
from interneuron.artifacts.formats import circuit_tracer
from interneuron.artifacts.formats.tensors import fold_norms
from interneuron.core import files
from interneuron.core.errors import ArtifactError, InputError, InterneuronError, UnsafeFile
from interneuron.core.seeds import generator

MLP_IN, MLP_OUT = "layers.1.norm2", "layers.1.mlp.out"


def transcoder(activation: str = "relu", skip: bool = False, width: int = D) -> Dictionary:
    rng = generator(8)
    return random_dictionary(
        activation, site=MLP_IN, target=MLP_OUT, decoder=torch.randn(F, width, generator=rng),
        decoder_bias=torch.randn(width, generator=rng), skip=torch.randn(D, width, generator=rng) if skip else None,
    )  # fmt: skip


def shared_threshold(**changes: object) -> Dictionary:
    return random_dictionary("jumprelu", threshold=torch.full((F,), 0.3), center=True, k=4, **changes)


CASES = [
    *[("saelens", random_dictionary(a)) for a in ("relu", "gated", "topk", "abstopk", "jumprelu")],
    *[("saelens", random_dictionary(a, center=True)) for a in ("relu", "topk")],
    *[("saelens", random_dictionary("relu", normalize=n)) for n in ("layer_norm", "constant_norm")],
    *[("saelens", transcoder(a, skip, 7)) for a in ("relu", "jumprelu") for skip in (False, True)],
    ("sparsify", random_dictionary("topk", center=True)),
    ("sparsify", random_dictionary("groupmax", center=True)),
    ("sparsify", transcoder("topk")),
    ("sparsify", transcoder("topk", skip=True)),
    ("dictionary_learning", random_dictionary("relu", center=True)),
    ("dictionary_learning", random_dictionary("relu")),
    ("dictionary_learning", random_dictionary("gated", center=True)),
    ("dictionary_learning", random_dictionary("jumprelu")),
    ("dictionary_learning", random_dictionary("topk", center=True)),
    ("dictionary_learning", shared_threshold()),
    ("circuit_tracer", transcoder("relu")),
    ("circuit_tracer", transcoder("jumprelu", skip=True)),
    ("llamascopium", random_dictionary("relu")),
    ("llamascopium", random_dictionary("topk")),
]
EXACT = ("encoder", "decoder", "encoder_bias", "decoder_bias", "threshold", "gate_bias", "gate_scale", "skip")


def place(name: str, folder, dictionary: Dictionary):
    """Where this format wants to lie: names of folders and files carry the site in two of them."""
    if name == "sparsify":
        return folder / ("layers.1.mlp" if dictionary.target else "layers.1")
    return folder / "layer_1.safetensors" if name == "circuit_tracer" else folder / "here"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "dictionary"), CASES, ids=[f"{n}-{d.activation}-{i}" for i, (n, d) in enumerate(CASES)]
)
def test_the_same_bits_come_back(name, dictionary, dtype, tmp_path):
    dictionary = dictionary.to(dtype=dtype)
    options = {"output_hook": "mlp.hook_out"} if name == "circuit_tracer" else {}
    path = formats.write(dictionary, place(name, tmp_path, dictionary), name)
    found = formats.read(path, **options)
    assert found.format == name
    for part in EXACT:
        ours, theirs = getattr(dictionary, part), getattr(found.value, part)
        assert (ours is None) == (theirs is None), part
        assert ours is None or (ours.dtype == theirs.dtype and torch.equal(ours, theirs)), part
    x = rows().to(dtype)
    torch.testing.assert_close(found.value.encode(x), dictionary.encode(x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.value.reconstruct(x), dictionary.reconstruct(x), atol=1e-6, rtol=1e-6)
    assert (found.value.site, found.value.target) == (dictionary.site, dictionary.target)
    again = formats.write(found.value, place(name, tmp_path / "again", dictionary), name)
    assert weights(again) == weights(path)


def weights(path):
    """The bytes of the tensor files below a path; a pickle's by its tensors, as zip archives carry their own name."""
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".safetensors", ".pt"))
    return [torch.load(p, weights_only=True).__repr__() if p.suffix == ".pt" else p.read_bytes() for p in found]


def test_jumprelu_thresholds_go_through_llamascopium_as_logarithms(tmp_path):
    dictionary = random_dictionary("jumprelu")
    found = formats.read(formats.write(dictionary, tmp_path / "x", "llamascopium")).value
    torch.testing.assert_close(found.threshold, dictionary.threshold, rtol=1e-6, atol=1e-7)
    assert torch.equal(found.encoder, dictionary.encoder)


def test_a_scale_is_folded_where_a_format_has_no_place_for_it(tmp_path):
    dictionary = random_dictionary("topk", center=True, scale=2.5)
    x = rows()
    for name in ("saelens", "sparsify", "dictionary_learning", "llamascopium"):
        found = formats.read(formats.write(dictionary, tmp_path / name / "layers.1", name)).value
        assert found.scale == 1
        torch.testing.assert_close(found.encode(x), dictionary.encode(x), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(found.reconstruct(x), dictionary.reconstruct(x), atol=2e-5, rtol=1e-5)


def test_top_k_that_rescales_by_decoder_norms_chooses_what_its_owner_chooses(tmp_path):
    dictionary = random_dictionary("topk")
    formats.write(dictionary, tmp_path, "saelens")
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "rescale_acts_by_decoder_norm": True}))
    found = formats.read(tmp_path)
    x, norm = rows(), dictionary.decoder.norm(dim=1)
    h = torch.relu((x @ dictionary.encoder + dictionary.encoder_bias) * norm)
    top = h.topk(4)
    f = torch.zeros_like(h).scatter(1, top.indices, top.values)
    torch.testing.assert_close(found.value.encode(x), f, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.value.reconstruct(x), f / norm @ dictionary.decoder + dictionary.decoder_bias)
    assert any("rescale" in note for note in found.notes)


def test_folding_norms_keeps_the_map():
    for activation in ("relu", "jumprelu", "gated"):
        dictionary, x = random_dictionary(activation), rows()
        folded = fold_norms(dictionary)
        torch.testing.assert_close(folded.decoder.norm(dim=1), torch.ones(F))
        torch.testing.assert_close(folded.reconstruct(x), dictionary.reconstruct(x), atol=1e-5, rtol=1e-5)


def test_circuit_tracer_stores_the_transpose_of_saelens(tmp_path):
    dictionary = transcoder("relu")
    path = formats.write(dictionary, tmp_path / "layer_1.safetensors", "circuit_tracer")
    theirs = files.load_tensors(path)["W_enc"]
    formats.write(dictionary, tmp_path / "lens", "saelens")
    assert torch.equal(theirs.T, files.load_tensors(tmp_path / "lens" / "sae_weights.safetensors")["W_enc"])


def test_a_set_of_transcoders_and_its_hooks(tmp_path):
    members = {
        f"layers.{i}": transcoder("relu").replace(site=f"layers.{i}.resid_mid", target=f"layers.{i}.mlp.contribution")
        for i in range(3)
    }
    fitted = {"foreign": {"format": "circuit_tracer", "hooks": ["hook_resid_mid", "hook_mlp_out"]}}
    formats.write({name: member.replace(fitted=fitted) for name, member in members.items()}, tmp_path, "circuit_tracer")
    found = formats.read(tmp_path).value
    assert list(found) == list(members)
    for name, member in members.items():
        assert found[name].replace(fitted={}).same_bits(member)
    (tmp_path / "layer_1.safetensors").unlink()
    with pytest.raises(ArtifactError, match="without a gap"):
        formats.read(tmp_path)


def test_cross_layer_transcoders(tmp_path):
    rng = generator(2)
    n = 3
    ours = circuit_tracer.CrossLayerTranscoder(
        encoders={str(i): torch.randn(D, F, generator=rng) for i in range(n)},
        encoder_biases={str(i): torch.randn(F, generator=rng) for i in range(n)},
        decoders={str(i): torch.randn(F, n - i, D, generator=rng) for i in range(n)},
        decoder_biases={str(i): torch.randn(D, generator=rng) for i in range(n)},
        thresholds={str(i): torch.rand(F, generator=rng) for i in range(n)},
        site=tuple(f"layers.{i}.norm2" for i in range(n)),
        targets=tuple(f"layers.{i}.mlp.contribution" for i in range(n)),
    )  # fmt: skip
    found = formats.read(formats.write(ours, tmp_path / "clt", "circuit_tracer")).value
    assert found.replace(fitted={}).same_bits(ours)
    x = [rows(seed=i) for i in range(n)]
    f = [
        torch.where(
            (h := x[i] @ ours.encoders[str(i)] + ours.encoder_biases[str(i)]) > ours.thresholds[str(i)], h, 0 * h
        )
        for i in range(n)
    ]
    by_hand = f[0] @ ours.decoders["0"][:, 2] + f[1] @ ours.decoders["1"][:, 1] + f[2] @ ours.decoders["2"][:, 0]
    torch.testing.assert_close(found.reconstruct(x)[2], by_hand + ours.decoder_biases["2"])
    assert found.save(tmp_path / "native")


def test_sparsify_folders_of_many_hook_points(tmp_path):
    members = {f"layers.{i}.mlp": random_dictionary("topk", center=True, site=f"layers.{i}.mlp.out") for i in (0, 10)}
    formats.write(members, tmp_path, "sparsify")
    found = formats.read(tmp_path).value
    assert {name: d.site for name, d in found.items()} == {
        "layers.0.mlp": "layers.0.mlp.out",
        "layers.10.mlp": "layers.10.mlp.out",
    }


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    for name, dictionary in [
        ("sparsify", random_dictionary("gated")), ("sparsify", random_dictionary("topk")),
        ("sparsify", transcoder("topk", width=5)), ("saelens", random_dictionary("groupmax")),
        ("saelens", transcoder("topk")), ("dictionary_learning", transcoder()),
        ("dictionary_learning", random_dictionary("jumprelu", center=True, k=3)),
        ("circuit_tracer", random_dictionary("gated")), ("llamascopium", random_dictionary("gated")),
        ("gguf", random_dictionary()),
    ]:  # fmt: skip
        with pytest.raises(InterneuronError):
            formats.write(dictionary, tmp_path / name, name)
        assert not list((tmp_path / name).glob("*.safetensors")) if (tmp_path / name).exists() else True


def test_a_pickle_that_would_run_code_is_refused_and_does_not(tmp_path):
    formats.write(random_dictionary("relu", center=True), tmp_path, "dictionary_learning")
    mark = tmp_path / "ran"

    class Bad:
        def __reduce__(self):
            return (open, (str(mark), "w"))

    torch.save({"encoder.weight": Bad()}, tmp_path / "ae.pt")
    with pytest.raises(UnsafeFile, match="could run code"):
        formats.read(tmp_path)
    assert not mark.exists()
    torch.save({"bias": [1, 2]}, tmp_path / "ae.pt")
    with pytest.raises(UnsafeFile, match="expected a tensor"):
        formats.read(tmp_path, "dictionary_learning")


def test_names_suggest_and_unknown_files_are_not_guessed(tmp_path):
    with pytest.raises(InputError, match="Did you mean 'saelens'"):
        formats.read(tmp_path, "saelen")
    with pytest.raises(ArtifactError, match="not recognised"):
        formats.read(tmp_path)
    with pytest.raises(ArtifactError, match="nothing there"):
        formats.read(tmp_path / "absent")
    formats.write(random_dictionary(), tmp_path / "x", "saelens")
    with pytest.raises(InputError, match="hokpoint"):
        formats.read(tmp_path / "x", hokpoint="y")
    seen = formats.inspect(tmp_path / "x")
    assert seen["format"] == "saelens"
    assert seen["tensors"]["W_enc"] == {"dtype": "F32", "shape": [D, F]}
    assert SITE.split(".")[1] in seen["config"]["cfg.json"]["metadata"]["hook_name"]


def test_a_batch_top_k_dictionary_takes_its_k_as_an_option(tmp_path):
    trained = formats.read(Path(__file__).parent / "trained" / "lm_resid").value
    with pytest.raises(InputError, match="option k="):
        formats.write(trained, tmp_path / "none", "dictionary_learning")
    found = formats.read(formats.write(trained, tmp_path / "dl", "dictionary_learning", k=16)).value
    x = torch.randn(20, 160, generator=generator(0))
    torch.testing.assert_close(found.encode(x),
                               trained.encode(x), atol=0.02, rtol=0.02)  # fmt: skip


@pytest.mark.parametrize(("d", "f"), [(12, 24), (49, 7), (49, 100), (107, 321), (160, 256)])
def test_llamascopium_recomputes_the_number_of_features(d, f, tmp_path):
    dictionary = random_dictionary(
        encoder=torch.randn(d, f), decoder=torch.randn(f, d), encoder_bias=torch.zeros(f), decoder_bias=torch.zeros(d)
    )
    folder = formats.write(dictionary, tmp_path / "x", "llamascopium")
    config = json.loads((folder / "config.json").read_text())
    assert int(config["d_model"] * config["expansion_factor"]) == f
    assert formats.read(folder).value.n_features == f
