"""llama.cpp: convert a Llama to GGUF, steer it there with our control vector, and compare logits with ours.

    python benchmarks/foreign/llama_cpp_logits.py make FOLDER MODEL     # in our environment; MODEL a folder or organism
    FOREIGN/bin/python benchmarks/foreign/llama_cpp_logits.py check FOLDER

`make` writes the weights as GGUF (float32, token ids only: no vocabulary), three control vectors by
`formats.write(..., "gguf")`, and the logits of every position. `check` loads both in llama.cpp and exits with status 1
when a logit is off by more than 1e-2, or when steering changed nothing.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFWriter
from safetensors.numpy import load_file, save_file

TOLERANCE = 1e-2
NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def convert(module: Any, path: Path) -> None:
    """A `LlamaForCausalLM` as GGUF. Rotary pairs lie half a head apart in transformers and side by side there."""
    config = module.config
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")

    def add(name: str, tensor: Any, heads: int = 0) -> None:
        rows = tensor.detach().float().numpy()
        if heads:
            rows = rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(rows))

    add("token_embd", module.model.embed_tokens.weight)
    add("output_norm", module.model.norm.weight)
    add("output", module.lm_head.weight)
    for i, block in enumerate(module.model.layers):
        for theirs, ours in NAMES.items():
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(ours, 0)
            add(f"blk.{i}.{ours}", block.get_submodule(theirs).weight, heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(folder: Path, name: str) -> None:
    import torch

    import interneuron as inn
    from interneuron.artifacts import Direction, formats

    model = inn.load(name)
    folder.mkdir(parents=True, exist_ok=True)
    convert(model.module, folder / "model.gguf")
    rng = torch.Generator().manual_seed(0)
    n, d = model.n_layers, model.d_model
    ids = torch.randint(3, model.module.config.vocab_size, (1, 12), generator=rng)
    ids[0, 0] = 1
    expected = {"ids": ids[0].numpy().astype("int32")}
    with torch.no_grad():
        size = float(model.run(ids, read=[f"layers.{n // 2}.resid_post"]).acts[f"layers.{n // 2}.resid_post"].norm())
        size /= ids.shape[1] ** 0.5
        expected["plain"] = model(ids).logits[0].numpy()
        for case, layers in {"first": [1], "middle": [n // 2], "several": list(range(1, n))}.items():
            rows = torch.randn(len(layers), d, generator=rng) / d**0.5 * size / len(layers)
            sites = tuple(f"layers.{i}.resid_post" for i in layers)
            direction = Direction(rows if len(layers) > 1 else rows[0], site=sites if len(layers) > 1 else sites[0])
            formats.write(direction, folder / f"{case}.gguf", "gguf", model_hint="llama", layer_count=n)
            with model.edit(direction.edit()):
                expected[case] = model(ids).logits[0].numpy()
    save_file({k: np.ascontiguousarray(v) for k, v in expected.items()}, str(folder / "expected.safetensors"))
    print(f"wrote model.gguf and {len(expected) - 2} control vectors to {folder}")


def control(path: Path, n_layers: int, width: int) -> Any:
    """The buffer llama.cpp's own loader makes of the file: `direction.N` at row N - 1, zeros elsewhere."""
    data = np.zeros((n_layers - 1, width), dtype="float32")
    for tensor in GGUFReader(str(path)).tensors:
        data[int(tensor.name.removeprefix("direction.")) - 1] = tensor.data
    return data


def logits(llama: Any, model: Any, ids: np.ndarray, vector: np.ndarray | None) -> np.ndarray:
    """[T V] of a fresh context, all in float32."""
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 64, 1, 1
    params.type_k = params.type_v = 0  # GGML_TYPE_F32
    params.flash_attn_type = 0  # disabled
    context = llama.llama_init_from_model(model, params)
    if vector is not None:
        data = vector.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        assert llama.llama_set_adapter_cvec(context, data, vector.size, vector.shape[1], 1, len(vector)) == 0
    batch = llama.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, True
        batch.seq_id[i][0] = 0
    assert llama.llama_decode(context, batch) == 0
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    out = np.stack([
        np.ctypeslib.as_array(llama.llama_get_logits_ith(context, i), shape=(vocabulary,)).copy()
        for i in range(len(ids))
    ])  # fmt: skip
    llama.llama_free(context)
    return out


def check(folder: Path) -> bool:
    import llama_cpp

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        str(folder / "model.gguf").encode(), llama_cpp.llama_model_default_params()
    )
    n, width = llama_cpp.llama_model_n_layer(model), llama_cpp.llama_model_n_embd(model)
    expected = load_file(str(folder / "expected.safetensors"))
    good = True
    for case in ("plain", *sorted(expected.keys() - {"plain", "ids"})):
        vector = None if case == "plain" else control(folder / f"{case}.gguf", n, width)
        found = logits(llama_cpp, model, expected["ids"], vector)
        gap = float(np.abs(found - expected[case]).max())
        effect = float(np.abs(expected[case] - expected["plain"]).max())
        same = gap <= TOLERANCE and (case == "plain" or effect > 10 * TOLERANCE)
        print(json.dumps({"case": case, "gap": gap, "effect": effect, "same": same}))
        good &= same
    return good


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "make":
        make(Path(sys.argv[2]), sys.argv[3])
    elif len(sys.argv) == 3 and sys.argv[1] == "check":
        sys.exit(0 if check(Path(sys.argv[2])) else 1)
    else:
        sys.exit(f"usage: {sys.argv[0]} make FOLDER MODEL | check FOLDER")
