"""Every attack on the artifact reader, each a function that turns an honest artifact into a hostile one.

An attack is refused when `load_artifact` raises exactly the error it names, in one line that says the expected words,
within a second, and nothing outside the folder was touched. The honest artifact loads (the control).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import time
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch

from interneuron.artifacts import Direction, load_artifact
from interneuron.core.errors import ArtifactError, InterneuronError, UnsafeFile

ATTACKS: dict[str, tuple[Callable[[Any], None], type[InterneuronError], str]] = {}


def attack(error: type[InterneuronError], words: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        ATTACKS[function.__name__] = (function, error, words)
        return function

    return register


def entry(shape: Any = (4,), dtype: Any = "F32", offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# --- other formats under our name ---


@attack(UnsafeFile, "a pickle, which runs code")
def pickle_named_safetensors(a: Any) -> None:
    canary = a.home.parent / "canary"
    call = b"cposix\nsystem\n(X" + struct.pack("<I", len(f"touch {canary}")) + f"touch {canary}".encode() + b"tR."
    a.plant(b"\x80\x02" + call)


@attack(UnsafeFile, "a pickle, which runs code")
def torch_save_of_old(a: Any) -> None:
    buffer = io.BytesIO()
    torch.save({"vector": torch.ones(4)}, buffer, _use_new_zipfile_serialization=False)
    a.plant(buffer.getvalue())


@attack(UnsafeFile, "bytes declared, the limit is")
def pickle_in_text(a: Any) -> None:
    a.plant(b"cos\nsystem\n(S'touch canary'\ntR.")


@attack(UnsafeFile, "a zip archive")
def torch_save_named_safetensors(a: Any) -> None:
    buffer = io.BytesIO()
    torch.save({"vector": torch.ones(4)}, buffer)
    a.plant(buffer.getvalue())


@attack(UnsafeFile, "a zip archive")
def zip_bomb(a: Any) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("vector", b"\0" * 50_000_000)
    a.plant(buffer.getvalue())


@attack(UnsafeFile, "a gzip file")
def gzip_bomb(a: Any) -> None:
    a.plant(gzip.compress(b"\0" * 10_000_000))


@attack(UnsafeFile, "a NumPy file")
def numpy_of_objects(a: Any) -> None:
    a.plant(b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }")


@attack(UnsafeFile, "an HDF5 file")
def hdf5(a: Any) -> None:
    a.plant(b"\x89HDF\r\n\x1a\n" + bytes(64))


@attack(UnsafeFile, "a GGUF file")
def gguf(a: Any) -> None:
    a.plant(b"GGUF\x03\x00\x00\x00" + bytes(64))


# --- sizes ---


@attack(UnsafeFile, "header of 9,223,372,036,854,775,808 bytes")
def header_of_2_to_63(a: Any) -> None:
    a.plant(struct.pack("<Q", 2**63) + b"{}")


@attack(UnsafeFile, "header of 18,446,744,073,709,551,615 bytes")
def header_of_2_to_64_less_1(a: Any) -> None:
    a.plant(struct.pack("<Q", 2**64 - 1) + b"{}")


@attack(ArtifactError, "the header needs 1,008 bytes")
def header_longer_than_file(a: Any) -> None:
    a.plant(struct.pack("<Q", 1000) + b"{}")


@attack(ArtifactError, "at least 8")
def empty_file(a: Any) -> None:
    a.plant(b"")


@attack(UnsafeFile, "needs 2^63 bytes or more")
def shape_of_2_to_64(a: Any) -> None:
    a.plant_header({"vector": entry([2**32, 2**30])}, bytes(16))


@attack(UnsafeFile, "needs 2^63 bytes or more")
def shape_that_wraps_to_small(a: Any) -> None:
    a.plant_header({"vector": entry([2**62 + 4])}, bytes(16))


@attack(UnsafeFile, "needs 2^63 bytes or more")
def empty_with_endless_strides(a: Any) -> None:
    a.plant_header({"vector": entry([0, 2**62, 2**62], offsets=[0, 0])})


@attack(ArtifactError, "does not fit 64 bits")
def shape_of_5000_digits(a: Any) -> None:
    a.plant_header('{"vector":{"dtype":"F32","shape":[%s],"data_offsets":[0,16]}}' % ("9" * 5000), bytes(16))


@attack(ArtifactError, "needs 4,000,000,000,000 bytes")
def terabytes_declared(a: Any) -> None:
    a.plant_header({"vector": entry([10**12])}, bytes(16))


@attack(UnsafeFile, "limit is 8,589,934,592")
def sparse_file_of_a_terabyte(a: Any) -> None:
    size = 1 << 40
    os.truncate(a.tensor_file, size)
    a.edit(lambda d: d["tensors"].update(bytes=size))


@attack(UnsafeFile, "rank 9")
def rank_9(a: Any) -> None:
    a.plant_header({"vector": entry([4] + [1] * 8)}, bytes(16))


@attack(UnsafeFile, "10,001 tensors")
def ten_thousand_and_one_tensors(a: Any) -> None:
    text = ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(10_001))
    a.plant_header("{" + text + "}")


@attack(UnsafeFile, "bytes, the limit is 1,048,576")
def document_of_two_megabytes(a: Any) -> None:
    a.edit(lambda d: d["fields"]["fitted"].update(x="y" * (2 << 20)))
    a.document.write_text(a.document.read_text() + " " * (2 << 20))


# --- layout ---


@attack(UnsafeFile, "inside the one before it")
def overlapping_tensors(a: Any) -> None:
    a.plant_header({"vector": entry(), "w": entry([2], offsets=[8, 16])}, bytes(16))


@attack(UnsafeFile, "inside the one before it")
def same_bytes_named_a_thousand_times(a: Any) -> None:
    a.plant_header({f"t{i}": entry() for i in range(1000)}, bytes(16))


@attack(ArtifactError, "belong to no tensor")
def hole_between_tensors(a: Any) -> None:
    a.plant_header({"vector": entry(), "w": entry([1], offsets=[24, 28])}, bytes(28))


@attack(ArtifactError, "the tensors declare 16 bytes, the file holds 48")
def program_behind_the_tensors(a: Any) -> None:
    a.plant_header({"vector": entry()}, bytes(16) + b"#!/bin/sh\nrm -rf /\n".ljust(32))


@attack(ArtifactError, "the tensors declare 16 bytes, the file holds 8")
def body_cut_short(a: Any) -> None:
    a.plant_header({"vector": entry()}, bytes(8))


@attack(ArtifactError, "its offsets give -16")
def offsets_reversed(a: Any) -> None:
    a.plant_header({"vector": entry(offsets=[16, 0])}, bytes(16))


@attack(ArtifactError, "has data_offsets [-16, 0]")
def offsets_negative(a: Any) -> None:
    a.plant_header({"vector": entry(offsets=[-16, 0])}, bytes(16))


@attack(ArtifactError, "has shape [-4]")
def shape_negative(a: Any) -> None:
    a.plant_header({"vector": entry([-4])}, bytes(16))


@attack(ArtifactError, "has shape [4.0]")
def shape_of_floats(a: Any) -> None:
    a.plant_header({"vector": entry([4.0])}, bytes(16))


@attack(ArtifactError, "has shape [4, True]")
def shape_of_booleans(a: Any) -> None:
    a.plant_header({"vector": entry([4, True])}, bytes(16))


@attack(ArtifactError, "has dtype 'F4'")
def dtype_unknown(a: Any) -> None:
    a.plant_header({"vector": entry(dtype="F4")}, bytes(16))


@attack(ArtifactError, "has dtype \"['F32']\"")
def dtype_unhashable(a: Any) -> None:
    a.plant_header({"vector": entry(dtype=["F32"])}, bytes(16))


@attack(ArtifactError, "needs exactly dtype, shape and data_offsets")
def tensor_with_an_extra_key(a: Any) -> None:
    a.plant_header({"vector": {**entry(), "__reduce__": "os.system"}}, bytes(16))


@attack(ArtifactError, "not all 0 or 1")
def booleans_of_2(a: Any) -> None:
    a.plant_header({"vector": entry([16], "BOOL")}, b"\x02" * 16)


# --- names ---


@attack(UnsafeFile, "tensor name '../../etc/passwd' is not allowed")
def tensor_name_climbs(a: Any) -> None:
    a.plant_header({"../../etc/passwd": entry()}, bytes(16))


@attack(UnsafeFile, "tensor name 'vector\\x00' is not allowed")
def tensor_name_with_nul(a: Any) -> None:
    a.plant_header({"vector\0": entry()}, bytes(16))


@attack(UnsafeFile, "tensor name '\\x1b[2Jvector' is not allowed")
def tensor_name_writes_to_the_terminal(a: Any) -> None:
    a.plant_header({"\x1b[2Jvector": entry()}, bytes(16))


@attack(UnsafeFile, "is not allowed")
def tensor_name_of_201_letters(a: Any) -> None:
    a.plant_header({"v" * 201: entry()}, bytes(16))


@attack(UnsafeFile, "tensor name 'a..b' is not allowed")
def tensor_name_with_dots(a: Any) -> None:
    a.plant_header({"a..b": entry()}, bytes(16))


# --- JSON ---


@attack(UnsafeFile, "header: JSON nested deeper")
def deep_header(a: Any) -> None:
    a.plant_header("[" * 500_000)


@attack(UnsafeFile, "artifact.json: JSON nested deeper")
def deep_document(a: Any) -> None:
    a.document.write_text('{"a":' * 100_000)


@attack(ArtifactError, "artifact.json: not JSON at line 1")
def unterminated_string_full_of_quotes(a: Any) -> None:
    a.document.write_text('"' + '\\"' * 500_000)


@attack(UnsafeFile, "the key 'vector' occurs twice")
def duplicate_tensor(a: Any) -> None:
    one = json.dumps(entry())
    a.plant_header(f'{{"vector":{one},"vector":{one}}}', bytes(16))


@attack(UnsafeFile, "the key 'kind' occurs twice")
def duplicate_kind(a: Any) -> None:
    a.document.write_text(a.document.read_text().replace('"kind"', '"kind": "report", "kind"', 1))


@attack(ArtifactError, "NaN is not JSON")
def nan_in_header(a: Any) -> None:
    a.plant_header('{"vector":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}', bytes(16))


@attack(ArtifactError, "1e999 does not fit a float64")
def infinity_in_disguise(a: Any) -> None:
    a.plant_header('{"vector":{"dtype":"F32","shape":[1e999],"data_offsets":[0,16]}}', bytes(16))


@attack(ArtifactError, "the header is a list")
def header_is_a_list(a: Any) -> None:
    a.plant_header("[1, 2]")


@attack(ArtifactError, "__metadata__ must map text to text")
def metadata_of_objects(a: Any) -> None:
    a.plant_header({"__metadata__": {"x": {"y": 1}}, "vector": entry()}, bytes(16))


@attack(ArtifactError, "not valid UTF-8 (invalid start byte)")
def header_not_utf8(a: Any) -> None:
    a.plant_header(b'{"\xff\xfe": 1}')


@attack(ArtifactError, "not valid UTF-8 (surrogates not allowed)")
def half_a_character(a: Any) -> None:
    a.plant_header('{"__metadata__": {"a": "\\ud800"}}')


@attack(ArtifactError, "not JSON at line 1, column 1")
def document_is_yaml(a: Any) -> None:
    a.document.write_text("!!python/object/apply:os.system ['touch canary']")


# --- the document ---


@attack(ArtifactError, "do not match the hash recorded in it")
def number_edited_by_hand(a: Any) -> None:
    a.document.write_text(a.document.read_text().replace("mean_difference", "mean_difFerence"))


@attack(ArtifactError, "schema version 2, this release reads 1. Upgrade")
def version_of_the_future(a: Any) -> None:
    a.edit(lambda d: d.update(version=2))


@attack(ArtifactError, "schema version True")
def version_true(a: Any) -> None:
    a.edit(lambda d: d.update(version=True))


@attack(ArtifactError, "not an artifact, expected an object with format")
def another_json(a: Any) -> None:
    a.document.write_text('{"model_type": "gpt2", "auto_map": {"AutoModel": "evil.Model"}}')


@attack(ArtifactError, "the keys ['code'] are missing or unknown")
def document_with_code(a: Any) -> None:
    a.edit(lambda d: d.update(code="import os"))


@attack(ArtifactError, "kind 'os.system' is unknown")
def kind_is_a_function(a: Any) -> None:
    a.edit(lambda d: d.update(kind="os.system"))


@attack(ArtifactError, "kind '__class__' is unknown")
def kind_and_slug_name_a_module(a: Any) -> None:
    a.edit(lambda d: (d.update(kind="__class__"), d["fields"].update(slug="antigravity")))


@attack(ArtifactError, "kind must be text")
def kind_is_a_list(a: Any) -> None:
    a.edit(lambda d: d.update(kind=["direction"]))


@attack(ArtifactError, "field '__class__' is not a plain field of Direction")
def field_replaces_the_class(a: Any) -> None:
    a.edit(lambda d: d["fields"].update(__class__="x"))


@attack(ArtifactError, "field 'save' is not a plain field of Direction")
def field_replaces_a_method(a: Any) -> None:
    a.edit(lambda d: d["fields"].update(save="x"))


@attack(ArtifactError, "field 'slug' of Direction is '[1]'")
def field_of_another_type(a: Any) -> None:
    a.edit(lambda d: d["fields"].update(slug=[1]))


@attack(ArtifactError, "field 'vector' of Direction is missing")
def tensors_left_out(a: Any) -> None:
    a.edit(lambda d: d.update(tensors=None))


@attack(ArtifactError, "field 'vector' is not a plain field")
def tensor_as_text(a: Any) -> None:
    a.edit(lambda d: (d.update(tensors=None), d["fields"].update(vector="x")))


@attack(ArtifactError, "holds a tensor 'weight' that Direction does not declare")
def tensor_of_another_kind(a: Any) -> None:
    a.plant_header({"weight": entry()}, bytes(16))
    a.edit(lambda d: d["tensors"].update(entries={"weight": {"dtype": "F32", "shape": [4]}}))


@attack(ArtifactError, "is no sound direction: Direction.vector holds NaN")
def vector_of_nan(a: Any) -> None:
    a.plant_header({"vector": entry()}, struct.pack("<4f", *[float("nan")] * 4))


@attack(ArtifactError, "is no sound direction: Direction.vector has shape [2, 2] for 1 site")
def vector_of_another_rank(a: Any) -> None:
    a.plant_header({"vector": entry([2, 2])}, bytes(16))
    a.edit(lambda d: d["tensors"].update(entries={"vector": {"dtype": "F32", "shape": [2, 2]}}))


@attack(ArtifactError, "artifact.json records {'vector': {'dtype': 'F32', 'shape': [2, 2]}}")
def shapes_that_disagree(a: Any) -> None:
    a.edit(lambda d: d["tensors"].update(entries={"vector": {"dtype": "F32", "shape": [2, 2]}}))


@attack(ArtifactError, "artifact.json records 9,999")
def size_that_disagrees(a: Any) -> None:
    a.edit(lambda d: d["tensors"].update(bytes=9999))


@attack(ArtifactError, "SHA-256 is")
def one_bit_of_the_body(a: Any) -> None:
    data = bytearray(a.tensor_file.read_bytes())
    data[-1] ^= 1
    a.tensor_file.write_bytes(data)


@attack(ArtifactError, "is missing beside artifact.json")
def tensor_file_of_another_artifact(a: Any) -> None:
    old = a.tensor_file
    Direction(torch.ones(4), site="layers.0.resid_post").save(a.home.parent / "other")
    next((a.home.parent / "other").glob("tensors-*")).rename(a.home / "tensors-0.safetensors")
    old.unlink()


# --- places ---


@attack(UnsafeFile, "the tensor file is called '../../../etc/passwd'")
def path_climbs(a: Any) -> None:
    a.edit(lambda d: d["tensors"].update(file="../../../etc/passwd"))


@attack(UnsafeFile, "the tensor file is called '/etc/passwd'")
def path_absolute(a: Any) -> None:
    a.edit(lambda d: d["tensors"].update(file="/etc/passwd"))


@attack(UnsafeFile, "the tensor file is called 'sub/tensors-")
def path_in_a_folder(a: Any) -> None:
    a.edit(lambda d: d["tensors"].update(file="sub/" + d["tensors"]["file"]))


@attack(UnsafeFile, "the tensor file is called 'http://")
def path_is_an_address(a: Any) -> None:
    a.edit(lambda d: d["tensors"].update(file="http://example.org/x.safetensors"))


@attack(UnsafeFile, ".safetensors: a link")
def tensor_file_is_a_link(a: Any) -> None:
    secret = a.home.parent / "secret"
    a.tensor_file.rename(secret)
    (a.home / json.loads(a.document.read_text())["tensors"]["file"]).symlink_to(secret)


@attack(UnsafeFile, "artifact.json: a link")
def document_is_a_link(a: Any) -> None:
    a.document.rename(a.home.parent / "elsewhere.json")
    a.document.symlink_to(a.home.parent / "elsewhere.json")


@attack(UnsafeFile, "artifact.json: a link")
def document_links_to_endless_zeros(a: Any) -> None:
    a.document.unlink()
    a.document.symlink_to("/dev/zero")


@attack(UnsafeFile, "a folder, pipe or device")
def tensor_file_is_a_pipe(a: Any) -> None:
    path = a.tensor_file
    path.unlink()
    os.mkfifo(path)


@attack(UnsafeFile, "artifact.json: a folder, pipe or device")
def document_is_a_folder(a: Any) -> None:
    a.document.unlink()
    a.document.mkdir()


@attack(ArtifactError, "no artifact here")
def nothing_there(a: Any) -> None:
    a.document.unlink()


def _outside(home: Any) -> dict[str, int]:
    return {str(p): p.lstat().st_mtime_ns for p in home.parent.rglob("*") if home not in p.parents and p != home}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused(attacker: Any, name: str) -> None:
    damage, error, words = ATTACKS[name]
    damage(attacker)
    before = _outside(attacker.home)
    started = time.process_time()
    with pytest.raises(InterneuronError) as caught:
        load_artifact(attacker.home)
    assert time.process_time() - started < 1.0
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert words in message
    assert "\n" not in message
    assert len(message) < 700
    assert _outside(attacker.home) == before


def test_the_honest_artifact_loads(attacker: Any) -> None:
    assert load_artifact(attacker.home).vector.tolist() == [1, 2, 3, 4]
    attacker.edit(lambda document: None)  # sealing again by independent code gives the same seal
    assert load_artifact(attacker.home).slug == "mean_difference"
    attacker.plant_header({"vector": entry()}, struct.pack("<4f", 1, 2, 3, 4))  # and so does planting honest bytes
    assert load_artifact(attacker.home).vector.tolist() == [1, 2, 3, 4]


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) >= 25
