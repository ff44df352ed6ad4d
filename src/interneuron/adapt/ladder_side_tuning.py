"""Ladder side-tuning: train a thin network beside a frozen one, fed by its activations, with no gradient through it.

Paper: Sung, Cho, Bansal: LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning (2022),
    https://arxiv.org/abs/2206.06522.

Idea: adapters and LoRA train few weights, yet their gradients pass through the whole network, whose activations must be
    kept. A side network, r times narrower, that reads the activations of every layer and makes the prediction itself
    needs gradients through nothing but itself.

Equations:
    (1)  s_0 = Down_0(e)                                       e: the embedding,  Down: D -> D/r with bias
    (2)  s_i = Side_i(mu_i s_{i-1} + (1 - mu_i) Down_i(b_i))   b_i: output of layer i of the frozen backbone
    (3)  mu_i = sigmoid(alpha_i / T),  alpha_i = 0 at first,  T = 0.1
    (4)  logits = Head(Up(Norm(s_L)))                          Up: D/r -> D, Head: the backbone's own, frozen
    (5)  rows that Side_i keeps of the backbone's: of the largest q k v o', w_i w_o' (scores I of coupled matrices
         multiplied, summed over the row);  I = mean (d loss / d w)^2, or |w|; the next matrix's columns follow

Shapes: b_i, e [B T D], s_i [B T D/r], logits [B T V] or, for the last token alone, [B V].

Cost: a forward pass of the backbone, and about 1/r of its training in the side network.

Departures: the side network is the backbone's own class with a thinner config, so any decoder of the transformers
    library with `inputs_embeds` serves; encoder-decoders are refused. Every head keeps its K/r best dimensions, so that
    heads stay heads; those of the residual stream are one choice for all layers, by the sum of all scores along it;
    Down and Up begin as that choice when the side network begins from the backbone, else at random [inferred]. Initial
    weights are copied where q, k, v and o are modules of their own; elsewhere `init="random"` is the way.

Use:
    model = inn.load("lm")
    side = inn.adapt.LadderSideNetwork.from_backbone(model, reduction=2, init="magnitude")
    print(side.fit(torch.arange(120).view(4, 30), steps=2), side.artifact().gates)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from interneuron.artifacts import Artifact, Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError, TrainingError, UnsupportedModel, did_you_mean
from interneuron.core.seeds import check_seed, generator
from interneuron.model.edits import Apply, Edit
from interneuron.model.load import wrap
from interneuron.model.model import Model
from interneuron.parts.importance import fisher_diagonal
from interneuron.parts.linear_layers import layer_path
from interneuron.parts.saved_tensors import SavedBytes
from interneuron.parts.width_pruning import Kept, copy_thin, keep_widths, layer_roles

CARD = Card(
    id=53,
    slug="ladder_side_tuning",
    family="adapt",
    kind="model",
    exports=("LadderSideNetwork", "SideNetwork"),
    paper="LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning",
    authors="Sung, Yi-Lin and Cho, Jaemin and Bansal, Mohit",
    year=2022,
    link="https://arxiv.org/abs/2206.06522",
    purpose="Fine-tune without backpropagating through the model: a thin side network that reads its activations",
    claim="Saves 69% of the memory of full fine-tuning, 2.7 times as much as LoRA and adapters, at higher accuracy",
)

T = 0.1
_WIDTHS = ("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "d_ff", "head_dim", "d_kv")
Init = Literal["fisher", "magnitude", "random"]


class SideNetwork(Artifact):
    """The trained weights of a ladder side network, and what it was made with.

    weights    name -> tensor of `LadderSideNetwork.state_dict()`
    gates      mu of every kept layer: the share of the side network's own stream
    """

    weights: dict[str, Tensor]
    gates: list[float]
    reduction: int
    layers: list[int]
    ladders: bool = True

    def plot(self) -> dict[str, Any]:
        """The gate of every layer, as bars."""
        names = [str(layer) for layer in self.layers]
        return plots.bars("Share of the side stream at each layer", names, self.gates, x_label="layer", y_label="mu")


class LadderSideNetwork(nn.Module):
    """A thin network beside a frozen one; made by `from_backbone`. Its parameters are the side network's alone.

    side(inputs) -> logits [B T V];  side(inputs, last=True) -> logits at the last token of each row [B V]
    """

    def __init__(self, model: Model, reduction: int, layers: Sequence[int], ladders: bool, seed: int) -> None:
        super().__init__()
        self.model, self.reduction, self.layers, self.ladders = model, reduction, list(layers), ladders
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(check_seed(seed))
            net = _thin(model, reduction, len(layers))
            d = model.d_model
            self.down = nn.ModuleList(nn.Linear(d, d // reduction) for _ in range(len(layers) + 1))
            self.up = nn.Linear(d // reduction, d)
        self.alpha = nn.Parameter(torch.zeros(len(layers)))
        self.net = net.to(model.device, model.dtype)
        self.down.to(model.device, model.dtype)
        self.up.to(model.device, model.dtype)
        self.alpha.data = self.alpha.data.to(model.device)
        self._wrapped = [wrap(self.net)]
        stem = layer_path(model, 0).removeprefix(f"{model.module.base_model_prefix}.").removesuffix(".0")
        self._places = [f"{stem}.{i}:in" for i in range(len(layers))]

    @classmethod
    def from_backbone(
        cls,
        model: Model,
        reduction: int = 8,
        layers: Sequence[int] | None = None,
        init: Init = "fisher",
        inputs: Any = None,
        ladders: bool = True,
        seed: int = 0,
    ) -> LadderSideNetwork:
        """A side network for a decoder.

        reduction  r, by which all widths are divided
        layers     of the backbone that get a side layer; None: all
        init       weights of the backbone kept by Fisher information on `inputs` or by magnitude, or random ones
        inputs     texts or token ids, needed by "fisher": a few dozen of the new task
        ladders    False: no rungs but the embedding, a baseline

        Raises:
            InputError: layers, widths or inputs that do not fit.
            UnsupportedModel: not a decoder with an output layer, or weights in a form that cannot be cut.
        """
        chosen = list(range(model.n_layers)) if layers is None else list(layers)
        if not chosen or chosen != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < model.n_layers:
            raise InputError(
                f"LadderSideNetwork: layers={layers}, expected rising numbers of 0 to {model.n_layers - 1}. None: all"
            )
        if init not in ("fisher", "magnitude", "random"):
            options = ("fisher", "magnitude", "random")
            raise InputError(
                f"LadderSideNetwork: init={init!r}, expected one of {options}.{did_you_mean(init, options)}"
            )
        if (init == "fisher") != (inputs is not None):
            raise InputError(
                f"LadderSideNetwork: init={init!r} with inputs {'missing' if inputs is None else 'given'}; expected "
                "them with 'fisher' and with nothing else. Pass a few dozen texts as inputs="
            )
        side = cls(model, reduction, chosen, ladders, seed)
        if init != "random":
            side._begin_from_backbone(inputs)
        return side

    @classmethod
    def from_artifact(cls, model: Model, artifact: SideNetwork) -> LadderSideNetwork:
        """The trained side network beside the model it was trained for; FingerprintMismatch beside another one."""
        artifact.check_model(model)
        side = cls(model, artifact.reduction, artifact.layers, artifact.ladders, seed=0)
        side.load_state_dict(artifact.weights)
        return side

    @property
    def gates(self) -> Float[Tensor, " L"]:
        """mu of every kept layer (eq. 3); ones without ladders."""
        return torch.sigmoid(self.alpha / T) if self.ladders else torch.ones_like(self.alpha)

    @property
    def n_parameters(self) -> int:
        """Trained numbers."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def forward(self, inputs: Any, last: bool = False) -> Tensor:
        """Logits for texts or token ids; of the last token of each row alone if `last`."""
        _, given = self.model.prepare(inputs)
        rungs = ["layers.0.resid_pre", *(f"layers.{i}.resid_post" for i in self.layers if self.ladders)]
        with torch.no_grad():
            acts = self.model.run(given, read=rungs).acts
        lowered = [self.down[0](acts[rungs[0]])]  # eq. 1
        lowered += [down(acts[name]) for down, name in zip(list(self.down)[1:], rungs[1:], strict=False)]
        with self._wrapped[0].edit(*self._edits(lowered)):
            kept = {"attention_mask": given["attention_mask"]} if "attention_mask" in given else {}
            stream = self.net(inputs_embeds=lowered[0], use_cache=False, **kept).last_hidden_state
        if last:
            stream = stream[torch.arange(len(stream)), _ends(given, stream)]
        module: Any = self.model.module
        head = module.get_output_embeddings()
        frozen = {name: p.detach() for name, p in head.named_parameters()}
        return torch.func.functional_call(head, frozen, (self.up(stream),))  # eq. 4

    def fit(
        self,
        inputs: Any,
        labels: Tensor | None = None,
        steps: int = 100,
        lr: float = 3e-3,
        batch_size: int = 16,
        seed: int = 0,
    ) -> list[float]:
        """Train the side network with Adam in place and return the loss of every step.

        inputs  texts, or token ids [N T]
        labels  the token each input is to be followed by, [N]; None: every token is the label of the one before

        Raises:
            InputError: no inputs, or another number of labels.
            TrainingError: a loss that is not finite.
        """
        if isinstance(inputs, str) or len(inputs) == 0 or (labels is not None and len(labels) != len(inputs)):
            raise InputError(
                f"LadderSideNetwork.fit: {len(inputs)} inputs ({type(inputs).__name__}) and "
                f"{'no' if labels is None else len(labels)} labels; expected a list or tensor and as many labels"
            )
        rng, found = generator(seed), []
        optimiser = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=lr)
        for step in range(steps):
            rows = torch.randint(len(inputs), (batch_size,), generator=rng)
            batch = inputs[rows] if isinstance(inputs, Tensor) else [inputs[int(i)] for i in rows]
            with torch.enable_grad():
                loss = self.loss(batch, None if labels is None else labels[rows])
            if not bool(torch.isfinite(loss)):
                raise TrainingError(f"LadderSideNetwork.fit: the loss of step {step} is {loss.item()}. Lower lr")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            found.append(float(loss.detach()))
        return found

    def loss(self, inputs: Any, labels: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of the labels after the inputs, or of the tokens of the inputs."""
        if labels is not None:
            return F.cross_entropy(self(inputs, last=True).float(), labels.to(self.model.device))
        _, given = self.model.prepare(inputs)
        ids = given["input_ids"].clone()
        if "attention_mask" in given:
            ids[given["attention_mask"] == 0] = -100
        return F.cross_entropy(self(inputs)[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())

    def memory_report(self, inputs: Any, labels: Tensor | None = None) -> Report:
        """Parameters trained and bytes saved for the backward pass, beside those of training the backbone itself."""
        with torch.enable_grad():
            with SavedBytes(self.net, exclude=[*self.parameters(), *self.model.module.parameters()]) as mine:
                held = self.loss(inputs, labels)
            with SavedBytes(self.model) as full:
                other = self.model(inputs).logits
                other = other.float().log_softmax(-1) if labels is None else other[:, -1].float().log_softmax(-1)
        saved = {"side network": mine.live, "whole backbone": full.live}
        del held, other
        title = "Bytes saved for the backward pass"
        sizes = {"side parameters": self.n_parameters, "backbone parameters": _size(self.model)}
        return Report(
            slug=CARD.slug,
            title=title,
            fingerprint=self.model.fingerprint,
            numbers={**sizes, **saved, "share": saved["side network"] / saved["whole backbone"]},
            plots={"bytes": plots.bars(title, list(saved), [float(v) for v in saved.values()], y_label="bytes")},
        )

    def artifact(self) -> SideNetwork:
        """What was trained, to be saved."""
        return SideNetwork(
            weights={name: value.detach().clone() for name, value in self.state_dict().items()},
            gates=self.gates.tolist(),
            reduction=self.reduction,
            layers=self.layers,
            ladders=self.ladders,
            slug=CARD.slug,
            fingerprint=self.model.fingerprint,
        )

    def _edits(self, lowered: list[Tensor]) -> list[Edit]:
        """Each side layer reads the mixture of eq. 2; the first one mixes s_0 whatever the class made of it."""

        def mix(i: int, own: Tensor) -> Tensor:
            own = lowered[0] if i == 0 else own
            return own if not self.ladders else self.gates[i] * own + (1 - self.gates[i]) * lowered[i + 1]

        return [Apply(place, lambda x, i=i: mix(i, x).to(x.dtype)) for i, place in enumerate(self._places)]

    def _begin_from_backbone(self, inputs: Any) -> None:
        """Weights of the backbone, cut to the widths of the side network (eq. 5)."""
        named = dict(self.model.module.named_parameters())
        roles = [layer_roles(self.model, layer) for layer in self.layers]
        if inputs is None:
            scores = {name: p.detach().abs().float() for name, p in named.items()}
        else:
            scores = fisher_diagonal(self.model, inputs)
            lacking = [path for row in roles for path in row.values() if f"{path}.weight" not in scores]
            if lacking:
                raise InputError(
                    f"LadderSideNetwork: {lacking[0]} takes no gradient, so it has no Fisher information. Call "
                    "requires_grad_(True) on the module, or use init='magnitude'"
                )
        kept = keep_widths(self.model, roles, scores, self.reduction)
        stem = self._places[0].removesuffix(".0:in")
        for i, (layer, row) in enumerate(zip(self.layers, roles, strict=True)):
            copy_thin(self.model.module.get_submodule(layer_path(self.model, layer)),
                      self.net.get_submodule(f"{stem}.{i}"), layer_path(self.model, layer), row, kept[i])  # fmt: skip
        self._choose(kept[0])

    def _choose(self, kept: Kept) -> None:
        """Down and Up begin as the kept dimensions of the residual stream."""
        choice = torch.eye(self.model.d_model)[kept.stream]
        with torch.no_grad():
            for layer in self.down:
                layer.weight.copy_(choice)  # type: ignore[operator, union-attr]
                layer.bias.zero_()  # type: ignore[operator, union-attr]
            self.up.weight.copy_(choice.T)
            self.up.bias.zero_()


def _thin(model: Model, reduction: int, n_layers: int) -> nn.Module:
    """The backbone's own class without its head, `reduction` times narrower, with random weights."""
    module: Any = model.module
    config = getattr(module, "config", None)
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    if config is None or head is None or getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"LadderSideNetwork: {type(module).__name__} is no decoder of the transformers library with an output "
            "layer. Load a language model with its head"
        )
    thin = copy.deepcopy(config)
    for name in _WIDTHS:
        value = getattr(config, name, None)
        if isinstance(value, int):
            if reduction < 2 or value % reduction:
                raise InputError(
                    f"LadderSideNetwork: reduction={reduction} does not divide {name}={value}, expected a number >= 2 "
                    "that divides all widths. Choose another"
                )
            setattr(thin, name, value // reduction)
    thin.num_hidden_layers = n_layers
    if isinstance(getattr(thin, "layer_types", None), list):
        thin.layer_types = thin.layer_types[:n_layers]
    thin.vocab_size, thin.pad_token_id, thin.tie_word_embeddings = 1, None, False
    try:
        net = type(module.base_model)(thin)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise UnsupportedModel(
            f"LadderSideNetwork: {type(module.base_model).__name__} cannot be made {reduction} times narrower "
            f"({str(error).splitlines()[0][:80]}). Try a smaller reduction"
        ) from error
    for name, parameter in net.named_parameters():
        if any(part in name for part in ("embed", "wte", "wpe")):
            parameter.requires_grad_(False)  # embeddings come from the backbone
    return net.train(module.training)


def _ends(given: dict[str, Any], stream: Tensor) -> Tensor:
    mask = given.get("attention_mask")
    if mask is None:
        return torch.full((len(stream),), stream.shape[1] - 1, device=stream.device)
    if not bool(mask.any(1).all()):
        raise ShapeError("LadderSideNetwork: a row without tokens, expected at least one in each. Leave it out")
    return mask.shape[1] - 1 - mask.flip(1).long().argmax(1)


def _size(model: Model) -> int:
    return sum(p.numel() for p in model.module.parameters())
