"""Real weights: a pretrained language model in Hugging Face form, and a plain hand-written CNN."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from interneuron.model.load import load_model, wrap


class Residual(nn.Module):
    """Two convolutions; where the size changes the shortcut strides and pads with zeros."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs)
        self.conv2, self.bn2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False), nn.BatchNorm2d(outs)
        self.stride, self.pad = stride, (outs - ins) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad)))


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = ((16, 16), (16, 32), (32, 64))
        for i, (ins, outs) in enumerate(widths, 1):
            blocks = [Residual(ins if n == 0 else outs, outs, 2 if n == 0 and i > 1 else 1) for n in range(3)]
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x)
        return self.linear(x.mean((2, 3)))


def parameter_gradients(module: nn.Module, loss: Tensor) -> list[Tensor]:
    loss.backward()
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    module.zero_grad(set_to_none=True)
    return grads


def test_tinystories_reads_exactly(shared_data: Path) -> None:
    folder = shared_data / "models" / "tinystories-260k"
    if not folder.is_dir():
        pytest.skip("no tinystories model")
    model = load_model(folder)
    inputs = {
        "input_ids": model.tokenizer(
            "Once upon a time, there was a little girl named Lily.", return_tensors="pt"
        ).input_ids
    }
    assert model.family == "llama"
    errors = model.check(inputs)
    assert len(errors) == 3 * model.n_layers - 1
    module = model.module
    expected = module(**inputs, output_hidden_states=True)
    plain: dict[str, Tensor] = {}
    handles = [
        module.model.layers[i].mlp.down_proj.register_forward_pre_hook(
            lambda _, args, i=i: plain.update({f"{i}": args[0]})
        )
        for i in range(5)
    ]
    with torch.no_grad():
        module(**inputs)
    for handle in handles:
        handle.remove()
    with torch.no_grad(), model.read("*") as acts:
        output = module(**inputs)
    assert torch.equal(output.logits, expected.logits)
    assert all(len(acts.calls(s.name)) == 1 and acts[s.name].ndim == len(s.axes) for s in model.sites())
    for i in range(5):
        assert torch.equal(acts[f"layers.{i}.resid_pre"], expected.hidden_states[i])
        assert torch.equal(acts[f"layers.{i}.mlp.hidden"], plain[str(i)])
    wanted = parameter_gradients(module, expected.logits.pow(2).mean())
    for grad in (False, True):
        with model.read("*", grad=grad):
            got = parameter_gradients(module, module(**inputs).logits.pow(2).mean())
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert torch.equal(module(**inputs).logits, expected.logits)
    eager = load_model(folder, attn_implementation="eager").module
    weights = eager(**inputs, output_attentions=True).attentions
    for i in range(5):
        torch.testing.assert_close(acts[f"layers.{i}.attn.pattern"], weights[i], atol=1e-5, rtol=0)


def images(folder: Path, n: int) -> tuple[Tensor, Tensor]:
    """The first images of a seeded shuffle, normalised as the network was trained, and their labels."""
    with zipfile.ZipFile(folder / "images" / "cifar10-test-2000.npz") as file:
        arrays = {}
        for name in ("images", "labels"):
            with file.open(f"{name}.npy") as entry:
                arrays[name] = np.lib.format.read_array(entry, allow_pickle=False)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))[:n].numpy()
    x = torch.from_numpy(arrays["images"][order]).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean[:, None, None]) / std[:, None, None], torch.from_numpy(arrays["labels"][order]).long()


def test_a_hand_written_cnn_needs_no_map(shared_data: Path) -> None:
    (weights,) = [*(shared_data / "models" / "cifar10-resnet20").glob("*.safetensors")] or [None]
    if weights is None:
        pytest.skip("no ResNet-20 weights")
    module = ResNet20().eval()
    missing = module.load_state_dict(load_file(weights), strict=False)
    assert not missing.missing_keys
    x, labels = images(shared_data, 100)
    with torch.no_grad():
        expected = module(x)
    assert (expected.argmax(1) == labels).float().mean() > 0.7
    model = wrap(module)
    assert model.family is None
    sites = model.sites()
    assert len(sites) == len([n for n, _ in module.named_modules() if n])
    plain: dict[str, Tensor] = {}
    handles = [
        m.register_forward_hook(lambda _, a, out, n=n: plain.update({n: out})) for n, m in module.named_modules()
    ]
    with torch.no_grad():
        module(x)
    for handle in handles:
        handle.remove()
    with torch.no_grad(), model.read("*") as acts:
        assert torch.equal(model(x), expected)
    for site in sites:
        assert torch.equal(acts[site.name], plain[site.name.split(":")[0]])
    wanted = parameter_gradients(module, module(x).logsumexp(1).sum())
    with model.read("*", grad=True) as acts:
        got = parameter_gradients(module, model(x).logsumexp(1).sum())
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert acts.grad["layer3.2:out"].shape == (100, 64, 8, 8)
    with torch.no_grad():
        assert torch.equal(module(x), expected)
