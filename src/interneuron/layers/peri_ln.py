"""Peri-LN: transformer blocks with a norm before and one after each sublayer, and the meters that show what that keeps.

Paper: Kim, Lee, Park, Oh, Kim, Yoo, Shin, Han, Shin, Yoo: Peri-LN: Revisiting Layer Normalization in the Transformer
    Architecture (2025), https://arxiv.org/abs/2502.02732

Idea: without a norm behind a sublayer nothing bounds what it adds, so the variance of the stream can grow exponentially
    with depth; a norm of the sum holds the variance and shrinks gradients. A norm around the sublayer adds a bounded
    term each time: the variance grows linearly, and weights whose output explodes get smaller gradients.

Equations:
    (1)  pre   x + F(N_in(x))                    (2)  post  N_in(x + F(x))
    (3)  peri  x + N_out(F(N_in(x)))             (4)  out   x + N_out(F(x))
    (5)  peri also normalises the token embedding and the final stream
    (6)  gradient of block l: sqrt(sum of squares of dL/dw over its weights)
    (7)  angular distance of layers: arccos(cos(h_l, h_l+1)) / pi, mean over tokens
    (8)  diverged: the last losses are above the first, or not finite

Shapes: stream [B T D]; profiles have one entry per block, those of the stream one more for its start.

Cost: two more norms per block, no more products. Converting copies the model once.

Departures: `convert_norm_placement` takes Hugging Face decoders whose blocks have Llama's four parts, and makes new
    norms of the kind and eps that the model has. Post-LN drops the final norm: its last block ends in one [inferred].
    Gains start at one; `learn_gains=False` freezes those of N_out. The converted model is no Llama any more: address
    its tensors by module paths, such as `model.layers.0:out` (transformers' own `output_hidden_states` stays empty).

Use:
    model = inn.load("lm")
    peri = inn.wrap(inn.layers.convert_norm_placement(model.module, "peri"), tokenizer=model.tokenizer)
    print(inn.layers.depth_profile(peri, ["she felt happy .", "the lamp was lovely ."]).tables["layers"][-1])
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interneuron.artifacts import Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, UnsupportedModel
from interneuron.model.model import Model
from interneuron.parts.batches import batches
from interneuron.parts.likelihood import token_log_probs
from interneuron.parts.massive_activations import growth_of, streams

CARD = Card(
    id=186,
    slug="peri_ln",
    family="layers",
    kind="layer",
    exports=("PeriLNBlock", "convert_norm_placement", "depth_profile", "gradient_profile", "divergence_rate"),
    paper="Peri-LN: Revisiting Layer Normalization in the Transformer Architecture",
    authors="Kim, Jeonghoon and Lee, Byeongchan and Park, Cheonbok and Oh, Yeontaek and Kim, Beomjun and others",
    year=2025,
    link="https://arxiv.org/abs/2502.02732",
    purpose="Put norms before and after every sublayer of a transformer, so that deep models train without divergence",
    claim="Up to 3.2B parameters: more even variance, steadier gradients, fewer divergences and lower loss than Pre-LN",
)

NormPlacement = Literal["pre", "post", "peri", "out"]
PLACEMENTS = ("pre", "post", "peri", "out")
PARTS = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
HALF_MAX = 65504.0


class PeriLNBlock(nn.Module):
    """A decoder block with its norms in one of four places (eq. 1 to 4); takes the arguments of Llama's.

    self_attn  called with `hidden_states=` and the block's other arguments; returns the output, or a tuple it leads
    mlp        [B T D] -> [B T D]
    norm       builds one norm: `norm() -> nn.Module`
    placement  "pre", "post", "peri" or "out"
    """

    def __init__(self, self_attn: nn.Module, mlp: nn.Module, norm: Any, placement: NormPlacement = "peri") -> None:
        super().__init__()
        _check(placement)
        self.placement = placement
        self.self_attn, self.mlp = self_attn, mlp
        reads, writes = placement != "out", placement in ("peri", "out")
        self.input_layernorm = norm() if reads else nn.Identity()
        self.post_attention_layernorm = norm() if reads else nn.Identity()
        self.attn_out_norm = norm() if writes else nn.Identity()
        self.mlp_out_norm = norm() if writes else nn.Identity()

    def forward(self, hidden_states: Float[Tensor, "B T D"], *args: Any, **kwargs: Any) -> Float[Tensor, "B T D"]:
        """The stream after attention and MLP."""
        x, norm1, norm2 = hidden_states, self.input_layernorm, self.post_attention_layernorm
        if self.placement == "post":
            x = norm1(x + self._attend(x, args, kwargs))  # eq. 2
            return norm2(x + self.mlp(x))
        x = x + self.attn_out_norm(self._attend(norm1(x), args, kwargs))  # eq. 1, 3, 4
        return x + self.mlp_out_norm(self.mlp(norm2(x)))

    def _attend(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        out = self.self_attn(x, *args) if args else self.self_attn(hidden_states=x, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"placement={self.placement!r}"


class NormedEmbedding(nn.Embedding):
    """A token embedding whose vectors are normalised (eq. 5); its table is the given one, so tied heads stay tied."""

    def __init__(self, embedding: nn.Embedding, norm: nn.Module) -> None:
        super().__init__(
            embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx, _weight=embedding.weight.data
        )
        self.weight = embedding.weight
        self.norm = norm

    def forward(self, input: Tensor) -> Tensor:
        """Token ids [B T] -> [B T D]."""
        return self.norm(super().forward(input))


def convert_norm_placement(module: nn.Module, placement: NormPlacement = "peri", learn_gains: bool = True) -> nn.Module:
    """Return a copy of a Pre-LN decoder with its norms elsewhere; the norms are new, all other weights copied.

    The copy computes something else than the model did, so train it; for "pre" it computes the same as a model whose
    gains are one. `learn_gains=False` freezes the gains of N_out.

    Raises:
        InputError: an unknown placement.
        UnsupportedModel: no `model.layers` of blocks with Llama's parts.
    """
    _check(placement)
    decoder = getattr(module, "model", None)
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not all(hasattr(b, part) for b in layers for part in PARTS):
        raise UnsupportedModel(
            f"{type(module).__name__} has no model.layers of blocks with {', '.join(PARTS)}: expected a Pre-LN decoder "
            "like Llama, Mistral or Qwen2. Build its blocks from PeriLNBlock"
        )
    made: Any = copy.deepcopy(module)
    first = made.model.layers[0].input_layernorm

    def norm() -> nn.Module:
        return _like(first)

    blocks = [PeriLNBlock(b.self_attn, b.mlp, norm, placement) for b in made.model.layers]
    if not learn_gains:
        for block in blocks:
            for out in (block.attn_out_norm, block.mlp_out_norm):
                out.requires_grad_(False)
    made.model.layers = nn.ModuleList(blocks).train(module.training)
    if placement == "peri":
        made.model.embed_tokens = NormedEmbedding(made.model.embed_tokens, norm())
    if hasattr(made.model, "norm"):
        made.model.norm = nn.Identity() if placement == "post" else norm()
    return made


def depth_profile(model: Model, inputs: Any, batch_size: int = 64) -> Report:
    """Return what the stream is like before the first and after every layer.

    Table `layers`: mean and largest |h|, variance, values beyond half precision, angular distance to the layer before
    (eq. 7). Numbers: growth of the variance, and the slope of its logarithm over depth.
    """
    paths = _converted(model)
    found = streams(model, inputs, batch_size, [f"{paths[0]}:in", *(f"{p}:out" for p in paths)] if paths else None)
    growth = growth_of(found)
    rows: list[dict[str, Any]] = []
    for i, h in enumerate(found):
        cosine = torch.cosine_similarity(h, found[i - 1], dim=-1).clamp(-1, 1) if i else None
        rows.append(
            {
                "layer": i - 1,
                "variance": float(growth["var"][i]),
                "mean": float(h.abs().mean()),
                "largest": float(growth["absmax"][i]),
                "overflows": int((h.abs() > HALF_MAX).sum()),
                "angle": None if cosine is None else float(cosine.arccos().mean() / math.pi),
            }
        )
    variance = growth["var"].double()
    title = "Variance of the stream"
    return Report(
        title="The stream through depth",
        slug=CARD.slug,
        numbers={
            "growth": float(variance[-1] / variance[0]),
            "slope": _slope(variance.log()),
            "overflows": sum(row["overflows"] for row in rows),
        },
        tables={"layers": rows},
        plots={
            "variance": plots.lines(
                title, [row["layer"] for row in rows], {"variance": variance.tolist()}, x_label="layer"
            )
        },
        fingerprint=model.fingerprint,
    )


def gradient_profile(model: Model, inputs: Any, batch_size: int = 64) -> Report:
    """Return the gradient norm of every block for the next-token loss on texts or token ids (eq. 6).

    Weights and their `.grad` stay as they are. Numbers: loss, and the first block's norm over the last's.

    Raises:
        UnsupportedModel: blocks that cannot be found, or whose weights are all frozen.
    """
    groups = [list(block.parameters()) for block in _blocks(model)]
    kept = [[p for p in group if p.requires_grad] for group in groups]
    if not all(kept):
        raise UnsupportedModel(
            f"{type(model.module).__name__} has blocks with no weight that requires a gradient. Unfreeze the model"
        )
    flat = [p for group in kept for p in group]
    sums: list[Tensor] = [torch.zeros_like(p) for p in flat]
    loss = count = 0.0
    parts = list(batches(model, inputs, batch_size))
    for named, real in parts:
        with torch.enable_grad():
            told = token_log_probs(model(named), named)
            grads = torch.autograd.grad(-told.sum(), flat, allow_unused=True)
        sums = [s if g is None else s + g for s, g in zip(sums, grads, strict=True)]
        loss, count = loss - float(told.detach().sum()), count + int(real[:, 1:].sum())
    squares = iter(float((s / count).square().sum()) for s in sums)
    norms = [math.sqrt(sum(next(squares) for _ in group)) for group in kept]
    names = [str(i) for i in range(len(norms))]
    title = "Gradient norm of every block"
    return Report(
        title=title,
        slug=CARD.slug,
        numbers={"loss": loss / count, "first over last": norms[0] / norms[-1] if norms[-1] else math.inf},
        tables={"layers": [{"layer": i, "gradient": norm} for i, norm in enumerate(norms)]},
        plots={"gradient": plots.bars(title, names, norms, x_label="layer")},
        fingerprint=model.fingerprint,
    )


def divergence_rate(losses: Sequence[Sequence[float]], tail: int = 20, spike: float = 1.0) -> dict[str, float]:
    """Return how many of several runs diverged (eq. 8), as number and share, and their loss spikes.

    losses  training losses of each run
    tail    last steps whose mean is compared with the first loss
    spike   rise in nats over the lowest loss so far that counts as a spike, once until the loss has come back
    """
    if not losses or not all(losses):
        raise InputError("divergence_rate() was given no losses: expected at least one run of at least one step.")
    diverged = sum(_diverged(run, tail) for run in losses)
    return {
        "diverged": float(diverged),
        "rate": diverged / len(losses),
        "spikes": float(sum(_spikes(run, spike) for run in losses)),
    }


def _diverged(run: Sequence[float], tail: int) -> bool:
    last = list(run[-tail:])
    return not all(map(math.isfinite, run)) or sum(last) / len(last) > run[0]


def _spikes(run: Sequence[float], spike: float) -> int:
    lowest, high, found = math.inf, False, 0
    for loss in run:
        above = not math.isfinite(loss) or loss > lowest + spike
        found += above and not high
        high = above
        lowest = min(lowest, loss) if math.isfinite(loss) else lowest
    return found


def _blocks(model: Model) -> list[nn.Module]:
    """The modules whose outputs are the stream after each layer."""
    paths = _converted(model) or [
        model.site(f"layers.{i}.resid_post").path.partition(":")[0] for i in range(model.n_layers)
    ]
    return [model.module.get_submodule(path) for path in paths]


def _converted(model: Model) -> list[str]:
    """Where the blocks made here are; empty for other models."""
    return [path for path, part in model.module.named_modules() if isinstance(part, PeriLNBlock)]


def _like(norm: nn.Module) -> nn.Module:
    """A new norm of the same kind, width and eps, its gain at the neutral value."""
    weight = getattr(norm, "weight", None)
    eps = next((getattr(norm, name) for name in ("variance_epsilon", "eps") if hasattr(norm, name)), None)
    if not isinstance(weight, Tensor) or eps is None:
        raise UnsupportedModel(
            f"the norm {type(norm).__name__} has no weight and eps: expected an RMSNorm or LayerNorm"
        )
    made: nn.Module = type(norm)(weight.shape[0], eps=eps)
    return made.to(device=weight.device, dtype=weight.dtype)


def _slope(y: Tensor) -> float:
    x = torch.arange(len(y), dtype=y.dtype) - (len(y) - 1) / 2
    return float(x @ (y - y.mean()) / x.square().sum())


def _check(placement: str) -> None:
    if placement not in PLACEMENTS:
        raise InputError(f"placement={placement!r} is unknown, expected one of {', '.join(PLACEMENTS)}. Choose one")
