"""gguf: write a control vector as repeng does, or read the one that interneuron wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from common_cases import D, main
from gguf import GGUFReader, GGUFWriter
from safetensors.numpy import load_file, save_file

LAYERS = (1, 2, 5)


def make(folder: Path) -> None:
    rows = {f"direction.{n}": np.random.default_rng(n).standard_normal(D).astype("float32") for n in LAYERS}
    writer = GGUFWriter(str(folder / "control.gguf"), "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(LAYERS))
    for name, row in rows.items():
        writer.add_tensor(name, row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(rows, str(folder / "expected.safetensors"))
    print(f"wrote {folder / 'control.gguf'}")


def check(folder: Path) -> bool:
    reader = GGUFReader(str(folder / "control.gguf"))
    expected = load_file(str(folder / "expected.safetensors"))
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    same = found.keys() == expected.keys() and all(np.array_equal(found[name], row) for name, row in expected.items())
    architecture = reader.get_field("general.architecture").contents()
    print(json.dumps({"file": "control.gguf", "architecture": architecture, "same": same}))
    return same and architecture == "controlvector"


if __name__ == "__main__":
    main(make, check)
