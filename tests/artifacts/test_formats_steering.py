"""Steering vectors and edits of other runtimes: read, written, and the same change to the same model."""

from __future__ import annotations

import json
import struct
from types import SimpleNamespace

import pytest
import torch
from tiny_models import shared, tokens

import interneuron as inn
from interneuron.artifacts import Direction, formats
from interneuron.artifacts.formats import steering_vectors, transformer_lens, vllm_lens
from interneuron.core.errors import ArtifactError, InputError, UnsafeFile
from interneuron.core.seeds import generator

D = 32
SITES = ("layers.0.resid_post", "layers.1.resid_post")


def vectors(n: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, D, generator=generator(seed))


def direction(layers=(1, 2, 5)) -> Direction:
    return Direction(vectors(len(layers)), site=tuple(f"layers.{n}.resid_post" for n in layers))


@pytest.fixture(scope="module")
def model():
    return inn.wrap(shared("llama"))


def logits(model, edits):
    with model.edit(edits):
        return model(tokens(2, 6)).logits


# --- GGUF ---


def test_gguf_holds_the_same_bits_and_the_gguf_package_reads_them(tmp_path):
    gguf = pytest.importorskip("gguf")
    d = direction()
    path = formats.write(d, tmp_path / "v.gguf", "gguf", model_hint="llama", layer_count=8)
    reader = gguf.GGUFReader(str(path))
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.layer_count").contents() == 8
    assert {t.name: (t.tensor_type.name, list(t.shape)) for t in reader.tensors} == {
        f"direction.{n}": ("F32", [D]) for n in (1, 2, 5)
    }
    found = formats.read(path)
    assert torch.equal(found.value.vector, d.vector)
    assert found.value.site == d.site
    assert formats.write(found.value, tmp_path / "w.gguf", "gguf").read_bytes() == path.read_bytes()
    single = Direction(vectors(1)[0], site="layers.3.resid_post")
    assert torch.equal(formats.read(formats.write(single, tmp_path / "s.gguf", "gguf")).value.vector, single.vector)
    half = Direction(vectors(1)[0].bfloat16(), site="layers.3.resid_post")
    assert torch.equal(formats.read(formats.write(half, tmp_path / "h.gguf", "gguf")).value.vector, half.vector.float())


def test_gguf_has_no_block_0_no_other_site_and_no_position(tmp_path):
    pytest.importorskip("gguf")
    path = tmp_path / "v.gguf"
    with pytest.raises(InputError, match=r"direction\.0"):
        formats.write(direction((0, 1)), path, "gguf")
    with pytest.raises(InputError, match="mlp"):
        formats.write(Direction(vectors(1)[0], site="layers.3.mlp.out"), path, "gguf")
    with pytest.raises(InputError, match="positions"):
        formats.write(inn.Add(SITES[1], vectors(1)[0]).at(pos=-1), path, "gguf")
    with pytest.raises(InputError, match="Ablate"):
        formats.write(inn.Ablate(SITES[1]), path, "gguf")
    assert not list(tmp_path.iterdir())


def test_edits_at_one_layer_add_up_in_gguf(tmp_path):
    pytest.importorskip("gguf")
    a, b = vectors(2)
    path = formats.write(inn.Add(SITES[1], a, alpha=2.0) + inn.Add(SITES[1], b), tmp_path / "v.gguf", "gguf")
    torch.testing.assert_close(formats.read(path).value.vector, 2 * a + b)


def gguf_file(path, **wrong):
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(path), wrong.get("architecture", "controlvector"))
    writer.add_uint32("controlvector.layer_count", wrong.get("layer_count", 4))
    for name, row in wrong.get("rows", {"direction.1": np.ones(4, "float32")}).items():
        writer.add_tensor(name, row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_files_that_are_no_control_vectors_are_refused(tmp_path):
    pytest.importorskip("gguf")
    import numpy as np

    one = np.ones(4, "float32")
    for i, (wrong, match) in enumerate([
        ({"architecture": "llama"}, "architecture"),
        ({"rows": {"direction.0": one}}, "N >= 1"),
        ({"rows": {"blk.1.weight": one}}, "N >= 1"),
        ({"rows": {"direction.1": one.astype("float16")}}, "F16"),
        ({"rows": {"direction.1": np.ones((2, 4), "float32")}}, "expected a vector"),
        ({"rows": {"direction.1": one, "direction.2": np.ones(5, "float32")}}, "lengths"),
        ({"rows": {"direction.1": one * np.nan}}, "NaN"),
        ({"rows": {"direction.1": one, "direction.2": one}, "layer_count": 1}, "layer_count"),
    ]):  # fmt: skip
        with pytest.raises(ArtifactError, match=match):
            formats.read(gguf_file(tmp_path / f"{i}.gguf", **wrong))
    good = gguf_file(tmp_path / "good.gguf").read_bytes()
    for n in (3, 10, 40, 100, len(good) - 17):
        (tmp_path / "cut.gguf").write_bytes(good[:n])
        with pytest.raises(ArtifactError):
            formats.read(tmp_path / "cut.gguf", "gguf")
    (tmp_path / "many.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 50, 1) + good[24:])
    with pytest.raises(UnsafeFile, match="claims"):
        formats.read(tmp_path / "many.gguf")


# --- the same change to the same model, through every format that can say it ---


def test_every_runtime_format_gives_the_same_logits(model, tmp_path):
    pytest.importorskip("gguf")
    edits = inn.Add(SITES[1], vectors()[0], alpha=1.5)
    wanted = logits(model, edits)
    assert not torch.equal(wanted, model(tokens(2, 6)).logits)
    for name, file in {
        "gguf": "v.gguf",
        "vllm_lens": "v.json",
        "transformer_lens": "t.json",
        "lm_eval": "s.pt",
        "easysteer": "e.json",
    }.items():
        path = formats.write(edits, tmp_path / file, name)
        found = formats.read(path)
        assert found.format == name
        value = found.value.edit() if isinstance(found.value, Direction) else found.value
        torch.testing.assert_close(logits(model, value), wanted, atol=1e-5, rtol=1e-5)


def test_transformer_lens_ops_and_positions(model, tmp_path):
    v = vectors()[0]
    edits = inn.Edits([
        inn.Ablate("layers.0.mlp.out"), inn.Scale("layers.1.attn.z", 0.5), inn.Replace("layers.1.resid_mid",
        v).at(pos=[1, 2]),
        inn.Add("layers.0.resid_post", v).at(pos=0),
    ])  # fmt: skip
    specs = transformer_lens.to_specs(edits)
    assert {hook: spec["op"] for hook, spec in specs.items()} == {
        "blocks.0.mlp.hook_out": "suppress", "blocks.1.attn.hook_z": "scale", "blocks.1.hook_resid_mid": "set",
        "blocks.0.hook_resid_post": "add",
    }  # fmt: skip
    assert specs["blocks.1.hook_resid_mid"]["pos"] == [1, 2]
    found = formats.read(formats.write(edits, tmp_path / "s.json", "transformer_lens")).value
    assert torch.equal(logits(model, found), logits(model, edits))
    for bad in (
        {"blocks.0.hook_resid_post": {"op": "multiply", "factor": 2}},
        {"blocks.0.hook_resid_post": {"op": "scale"}},
        {"blocks.0.hook_resid_post": {"op": "scale", "factor": 2, "positions": [1]}},
        {"blocks.0.hook_resid_post": {"op": "add", "value": 1.0}},
        {"blocks.0.hook_resid_post": {"op": "add", "value": [1.0, None]}},
        {"blocks.0.hook_resid_post": {"op": "suppress", "pos": -1}},
        {"blocks.0.hook_unknown": {"op": "suppress"}},
    ):
        with pytest.raises(ArtifactError):
            transformer_lens.from_specs(bad)
    with pytest.raises(InputError, match="gate"):
        transformer_lens.to_specs(inn.Ablate("layers.0.mlp.out").when(inn.Above(v)))


def test_vllm_lens_positions_and_what_it_cannot_say(model):
    v = vectors(3)
    edits = inn.Edits([inn.Add(SITES[0], v).at(pos=[0, 2, 3]), inn.Add(SITES[1], v[0], alpha=-2.0)])
    found = vllm_lens.from_extra_args(vllm_lens.to_extra_args(edits))
    assert torch.equal(logits(model, found), logits(model, edits))
    entry = {"activations": v[None], "layer_indices": [0], "scale": 1.0}
    assert [e.selection.get("pos") for e in vllm_lens.from_extra_args({vllm_lens.KEY: [entry]})] == [[0, 1, 2]]
    for wrong in ({"norm_match": True}, {"layer_indices": [0, 1]}, {"position_indices": [1]},
        {"scale": float("nan")}, {"x": 1},
                  {"activations": [[1.0], [1.0, 2.0]]}, {"layer_indices": [-1]}):  # fmt: skip
        with pytest.raises(ArtifactError):
            vllm_lens.from_extra_args({vllm_lens.KEY: [{**entry, **wrong}]})
    with pytest.raises(InputError, match="Scale"):
        vllm_lens.to_extra_args(inn.Scale(SITES[0], 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_vllm_lens_packs_tensors_as_its_own_types_do(dtype, tmp_path):
    """What `SteeringVector.model_validate` takes: base64 of the bytes; bfloat16 travels as int16."""
    v = vectors()[0].to(dtype)
    path = formats.write(inn.Add(SITES[1], v, alpha=2.0), tmp_path / "v.json", "vllm_lens")
    entry = json.loads(path.read_text())[vllm_lens.KEY][0]
    packed = entry["activations"]
    assert packed["original_dtype"] == str(dtype)
    assert packed["dtype"] == ("int16" if dtype == torch.bfloat16 else str(dtype).removeprefix("torch."))
    assert packed["shape"] == [1, D]
    assert torch.equal(formats.read(path).value[0].vector, v)
    as_text = {vllm_lens.KEY: json.dumps([entry])}  # the form of vllm_xargs
    assert torch.equal(vllm_lens.from_extra_args(as_text)[0].vector, v)


def test_vllm_lens_packed_tensors_are_judged_before_they_are_unpacked():
    good = vllm_lens.pack(vectors(1))
    for wrong, error in [
        ({"data": "?"}, ArtifactError), ({"data": good["data"][:-8]}, ArtifactError), ({"data": 3}, ArtifactError),
        ({"dtype": "object"}, ArtifactError), ({"shape": [1, -32]}, ArtifactError), ({"shape": "x"}, ArtifactError),
        ({"shape": [1 << 20, 1 << 20]}, UnsafeFile), ({"compression": "lzma"}, ArtifactError),
        ({"original_dtype": "torch.int64"}, ArtifactError), ({"shape": [2, 32]}, ArtifactError),
    ]:  # fmt: skip
        with pytest.raises(error):
            vllm_lens.unpack({**good, **wrong}, "f")


def test_vllm_lens_compressed_tensors_unpack_to_their_shape_and_no_further():
    import base64

    zstandard = pytest.importorskip("zstandard")
    v = vectors(1)
    good = {**vllm_lens.pack(v), "compression": "zstd"}
    raw = base64.b64decode(good["data"])
    good["data"] = base64.b64encode(zstandard.ZstdCompressor().compress(raw)).decode()
    assert torch.equal(vllm_lens.unpack(good, "f"), v)
    bomb = base64.b64encode(zstandard.ZstdCompressor().compress(bytes(50_000_000))).decode()
    for data in (bomb, base64.b64encode(raw).decode()):
        with pytest.raises(ArtifactError):
            vllm_lens.unpack({**good, "data": data}, "f")


def test_lm_eval_clamps_relative_to_a_bias(model, tmp_path):
    v, bias = vectors(2)
    torch.save(
        {"layers.0": {"steering_vector": v, "steering_coefficient": 3.0, "action": "clamp", "bias": bias}},
        tmp_path / "s.pt",
    )
    found = formats.read(tmp_path / "s.pt").value
    x = torch.randn(5, D, generator=generator(3))
    unit = v / v.norm()
    theirs = (x - bias) + unit * (3.0 - ((x - bias) * unit).sum(-1, keepdim=True)) + bias
    ours = x + unit * (found[0].value - (x @ unit)[:, None])
    torch.testing.assert_close(ours, theirs)
    assert found[0].site == "layers.0.resid_post"
    written = formats.write(inn.Clamp("layers.0.mlp.out", v, 2.0), tmp_path / "w.pt", "lm_eval", model=model)
    assert list(torch.load(written, weights_only=True)) == ["layers.0.mlp"]
    gpt2 = inn.wrap(shared("gpt2"))
    written = formats.write(inn.Add(SITES[1], v), tmp_path / "g.pt", "lm_eval", model=gpt2)
    assert list(torch.load(written, weights_only=True)) == ["h.1"]


def test_lm_eval_refuses_what_it_cannot_take_over(tmp_path):
    v = vectors()[0]
    good = {"steering_vector": v, "steering_coefficient": 1.0, "action": "add", "bias": None}
    for wrong in ({"action": "multiply"}, {"head_index": 2}, {"bias": v}, {"steering_coefficient": "3"}, {"layer": 3},
                  {"steering_vector": v.long()}, {"steering_vector": v * float("nan")}):  # fmt: skip
        torch.save({"layers.0": {**good, **wrong}}, tmp_path / "s.pt")
        with pytest.raises(ArtifactError):
            formats.read(tmp_path / "s.pt", "lm_eval")
    with pytest.raises(InputError, match="several edits"):
        formats.write(inn.Add(SITES[1], v) + inn.Add(SITES[1], v), tmp_path / "x.pt", "lm_eval")


def test_lm_eval_csv_takes_features_of_dictionaries(tmp_path):
    from foreign_cases import random_dictionary

    d = random_dictionary("topk", center=True)
    lines = "loader,action,sparse_model,hookpoint,feature_index,steering_coefficient,head_index,sae_id,description,\n"
    lines += "sparsify,clamp,some/sae,layers.1,3,10.0,,,,\n"
    (tmp_path / "s.csv").write_text(lines)
    found = formats.read(tmp_path / "s.csv", dictionaries={"some/sae/layers.1": d}).value
    unit = d.decoder[3] / d.decoder[3].norm()
    assert found[0].value == pytest.approx(10.0 + float(unit @ d.decoder_bias), rel=1e-5)
    with pytest.raises(InputError, match="some/sae/layers.1"):
        formats.read(tmp_path / "s.csv")


def test_easysteer_specs_name_files_layers_and_phases(tmp_path):
    pytest.importorskip("gguf")
    edits = inn.Edits([
        inn.Add("layers.3.resid_post", vectors()[0], alpha=2.0),
        inn.Add("layers.4.resid_post", vectors()[1], alpha=2.0),
        inn.Add("layers.5.resid_post", vectors()[1]).at(pos=[-1], phase="prompt"),
        inn.Add("layers.6.resid_post", vectors()[1]).at(pos=slice(0, 8), phase="generated"),
    ])  # fmt: skip
    path = formats.write(edits, tmp_path / "spec.json", "easysteer")
    spec = json.loads(path.read_text())
    assert [v["layers"] for v in spec["vectors"]] == [[3, 4], [5], [6]]
    assert [v["apply"] for v in spec["vectors"]] == [
        {"prompt": "all", "generation": "all"},
        {"prompt_positions": [-1]},
        {"generation_window": [0, 8]},
    ]
    found = formats.read(path).value
    assert [(e.site, e.alpha, e.selection.describe()) for e in found] == [
        (e.site, e.alpha, e.selection.describe()) for e in edits
    ]
    assert all(torch.equal(a.vector, b.vector) for a, b in zip(found, edits, strict=True))
    base = spec["vectors"][0]
    for wrong, error in [
        ({"source": "../v.gguf"}, UnsafeFile), ({"source": "/etc/passwd"}, UnsafeFile), ({"algorithm": "erase"},
        ArtifactError),
        ({"normalize": True}, ArtifactError), ({"layers": [9]}, ArtifactError), ({"target_layers": [3]}, ArtifactError),
        ({"apply": {}}, ArtifactError), ({"apply": {"prompt": "all", "exclude_prompt_positions": [0]}}, ArtifactError),
        ({"apply": {"phases": ["prompt"]}}, ArtifactError), ({"apply": {"prompt": "some"}}, ArtifactError),
        ({"apply": {"prompt_positions": [0], "prompt_window": [2, 4]}}, ArtifactError),
        ({"apply": {"generation_positions": [-1]}}, ArtifactError), ({"scale": "2"}, ArtifactError),
    ]:  # fmt: skip
        (tmp_path / "w.json").write_text(json.dumps({"vectors": [{**base, **wrong}], "conflict": "sequential"}))
        with pytest.raises(error):
            formats.read(tmp_path / "w.json", "easysteer")
    (tmp_path / "w.json").write_text(json.dumps({"vectors": [base, base]}))
    with pytest.raises(ArtifactError, match="conflict"):
        formats.read(tmp_path / "w.json")


def test_easysteer_phases_are_independent_and_block_0_has_a_place(tmp_path):
    pytest.importorskip("gguf")
    edits = inn.Add(SITES[0], vectors()[0], alpha=2.0).at(pos=-1, phase="prompt")
    path = formats.write(edits, tmp_path / "spec.json", "easysteer")
    spec = json.loads(path.read_text())
    assert formats.read(path).value[0].site == SITES[0]
    with pytest.raises(ArtifactError, match="first=0"):
        formats.read(tmp_path / spec["vectors"][0]["source"])
    spec["vectors"][0]["apply"]["generation"] = "all"
    path.write_text(json.dumps(spec))
    found = formats.read(path).value
    assert [e.selection.describe() for e in found] == ["pos=[-1], phase='prompt'", "phase='generated'"]
    spec["vectors"].append({**spec["vectors"][0], "apply": {"generation": "all"}})
    path.write_text(json.dumps({**spec, "conflict": "priority"}))
    with pytest.raises(ArtifactError, match="meet at one layer"):
        formats.read(path)
    spec["vectors"][0]["apply"] = {"prompt_positions": [-1]}  # now they do not meet
    path.write_text(json.dumps({**spec, "conflict": "priority"}))
    assert len(formats.read(path).value) == 2
    with pytest.raises(InputError, match="not yet known"):
        formats.write(inn.Add(SITES[1], vectors()[0]).at(pos=-1, phase="generated"), tmp_path / "x.json", "easysteer")


def test_steering_vectors_in_memory():
    rows = {3: vectors()[0], 1: vectors()[1]}
    found = steering_vectors.from_object(SimpleNamespace(layer_activations=rows, layer_type="mlp"))
    assert found.site == ("layers.1.mlp.out", "layers.3.mlp.out")
    assert torch.equal(found.vector, torch.stack([rows[1], rows[3]]))
    for wrong in (SimpleNamespace(), SimpleNamespace(layer_activations={-1: rows[1]}, layer_type="mlp"),
                  SimpleNamespace(layer_activations=rows, layer_type="query")):  # fmt: skip
        with pytest.raises(InputError):
            steering_vectors.from_object(wrong)


# --- latents ---


def latents():
    from interneuron.artifacts.latents import Latents

    rng = generator(4)
    dense = torch.rand(3, 5, 10, generator=rng) * (torch.rand(3, 5, 10, generator=rng) < 0.3)
    places = dense.nonzero()
    site = "layers.3.mlp.out"
    return dense.half(), Latents(
        locations=places,
        activations=dense[tuple(places.T)].half(),
        tokens=torch.arange(15).reshape(3, 5),
        n_features=10,
        site=site,
    )


def test_delphi_latents_in_several_files(tmp_path):
    dense, ours = latents()
    path = formats.write(ours, tmp_path / "layers.3.mlp", "delphi", n_splits=3)
    assert sorted(p.name for p in path.glob("*.safetensors")) == [
        "0_2.safetensors",
        "3_5.safetensors",
        "6_9.safetensors",
    ]
    found = formats.read(path)
    assert found.format == "delphi"
    assert torch.equal(found.value.dense(), dense)
    assert torch.equal(found.value.tokens, ours.tokens)
    assert found.value.site == ours.site
    (path / "3_5.safetensors").unlink()
    with pytest.raises(ArtifactError, match="3 to 5 are missing"):
        formats.read(path)


def test_latents_become_a_store(tmp_path):
    from interneuron.artifacts.formats.activation_stores import store_from_latents

    dense, ours = latents()
    store = store_from_latents(ours, tmp_path / "store")
    assert torch.equal(store["layers.3.mlp.out.latents"][0:15].reshape(3, 5, 10).half(), dense)
