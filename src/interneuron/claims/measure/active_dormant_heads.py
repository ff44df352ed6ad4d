"""Active-dormant heads on Bigram-Backcopy: a one-layer model parks its head on the first token between triggers.

GPT-2-class models with one head are trained on the toy: one layer with softmax and with ReLU attention, three layers
with Adam and with SGD. Compared is the attention that plain queries of the one-layer model pay to the first token with
that of its triggers; the control is the model before training. In the second part `lm` reads two domains of Tinyworld,
lists of repeated words and sums.

Weights start as in the paper's code: words and positions from a standard normal distribution, matrices uniform within
one over the root of their inputs. With the small embeddings of GPT-2 the words' vectors outgrow the first token's, and
no residual peak can form. The hidden layer has four times the width, also as in the paper.

In three layers, again as there, matrices have no biases, gradients are not clipped, and the loss covers the whole
sequence (one layer has biases, gradients clipped at 1, and a loss that begins at the second token). These three decide
about the peak: the first token too is trained on the word after it, which is drawn blindly and keeps pushing its
vector, and Adam gives it full steps. On a development seed the peak was 4.7 after 1,000 steps and 7.3 after 2,000; with
biases, clipping and the loss from the second token on it was 3.0 after 1,000 and 3.3 after 3,500. The losses reported
leave the blindly drawn word out, as no model can foretell it.

Deviations from the check, for time. One layer: width 64, sequences of 32 tokens, batches of 32 and 900 steps at a rate
of 0.003 that falls to 0 in the second half, for 256, 256, 512 and 10,000 at 0.0003. Three layers: width 128, batches of
32, 2,400 steps at a constant 0.003 (the paper's too is constant; SGD 0.1 for 0.03), and sequences of 16 tokens, so that
a batch holds more first tokens. Rate times steps is 7.2, the paper's is 3 at twice the width. On development seeds the
peak passed 5 after 750 to 1,250 steps. The logit gap is fitted on log-spaced steps from the 60th on. "Similar loss" is
a difference of at most 0.05 nats, as for ReLU attention.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interneuron.artifacts import Report
from interneuron.claims import Claim, Comparison
from interneuron.core.seeds import generator
from interneuron.loading import load
from interneuron.measure.active_dormant_heads import (
    extreme_token_report,
    fit_log_growth,
    head_dormancy,
    use_relu_attention,
)
from interneuron.model.edits import Ablate
from interneuron.model.load import wrap
from interneuron.model.model import Model
from interneuron.organisms import tinyworld as tw
from interneuron.organisms.toy.bigram_backcopy import BigramBackcopy, make

CLAIM = Claim(
    slug="active_dormant_heads",
    organism="bigram_backcopy",
    paper="sinks, value drains and residual peaks arise in 1-3 layers; ReLU attention and SGD mitigate them",
    better="higher",
    unit="attention on the first token",
    minutes=10.0,
    why=(
        "To be read with it: the rate of SGD was not varied, and the same decay of weights shrinks its weights by "
        "about a fifth over the run, Adam's by next to nothing. In lm heads rest in one domain and not in the "
        "other, but without such a head the loss where it works rises by 0.001 only."
    ),
)


class Setup(NamedTuple):
    """How models of so many layers are trained.

    falls       the rate falls to 0 in the second half of the steps
    biases      matrices have trained biases
    clip        the norm that gradients are cut to, if any
    loss_from   the first token whose successor counts in the loss
    """

    width: int
    length: int
    batch: int
    steps: int
    falls: bool
    biases: bool
    clip: float | None
    loss_from: int


SETUPS = {
    1: Setup(64, 32, 32, 900, falls=True, biases=True, clip=1.0, loss_from=1),
    3: Setup(128, 16, 32, 2400, falls=False, biases=False, clip=None, loss_from=0),
}
RATES = {"adam": 0.003, "sgd": 0.1}
FIRST_MARK, SPACING = 60, 1.25
DOMAINS = ("repeat", "arithmetic")
N_TEXTS, N_WORDS = 24, 23


def claim(seed: int) -> Comparison:
    """Train the four models, read their extreme tokens, and find heads of `lm` that switch between two domains."""
    data = make(seed, length=SETUPS[1].length)
    tokens, triggers = data.batch(64, -1)
    before = extreme_token_report(wrap(_fresh(seed, 1)), tokens, triggers)
    one, curve = _train(data, seed, 1)
    report = extreme_token_report(one, tokens, triggers)
    growth = fit_log_growth([s for s, _ in curve], [gap for _, gap in curve])
    loss = _losses(one, tokens, triggers)
    cut = _losses(one, tokens, triggers, ablate=True)
    relu = _train(data, seed, 1, relu=True)[0]
    relu_sink = extreme_token_report(relu, tokens, triggers, attention="relu")["sink_dormant"]
    relu_loss = _losses(relu, tokens, triggers)
    short = make(seed, length=SETUPS[3].length)  # the same words and triggers in shorter sequences
    three = {rule: _train(short, seed, 3, optimiser=rule)[0] for rule in ("adam", "sgd")}
    held = short.batch(256, -1)
    peak = {rule: extreme_token_report(model, *held)["resid_peak"] for rule, model in three.items()}
    deep = {rule: _losses(model, *held)["all"] for rule, model in three.items()}
    language = head_dormancy(load("lm"), _domains(seed), seed=seed)
    rise = {name: cut[name] - loss[name] for name in loss}
    return Comparison(
        ours=report["sink_dormant"],
        baseline=report["sink_active"],
        control=before["sink_dormant"],
        gates={
            "one layer: dormant queries put >= 0.7 on the first token": report["sink_dormant"] >= 0.7,
            "one layer: triggers put <= 0.3 on it": report["sink_active"] <= 0.3,
            "one layer: its value has <= 0.3 of the length of the others": report["value_ratio"] <= 0.3,
            "without the head the loss after triggers rises by >= 1 nat": rise["trigger"] >= 1,
            "without the head the loss elsewhere rises by <= 0.1 nats": rise["other"] <= 0.1,
            "the logit gap grows with log t: R2 >= 0.9, slope > 0": growth["r2"] >= 0.9 and growth["slope"] > 0,
            "three layers, Adam: residual peak >= 5": peak["adam"] >= 5,
            "three layers, SGD: residual peak <= 0.5 of Adam's at similar loss": peak["sgd"] <= 0.5 * peak["adam"]
            and abs(deep["sgd"] - deep["adam"]) <= 0.05,
            "ReLU attention puts <= 0.3 of softmax's mass on the first token": relu_sink
            <= 0.3 * report["sink_dormant"],
            "ReLU attention's loss is within 0.05 nats of softmax's": abs(relu_loss["all"] - loss["all"]) <= 0.05,
            "lm: a head's sink differs by >= 0.3 between two domains": language["n active-dormant"] >= 1,
        },
        extra={
            "sink, active": report["sink_active"],
            "sink, untrained": before["sink_dormant"],
            "value ratio": report["value_ratio"],
            "loss after triggers": loss["trigger"],
            "loss elsewhere": loss["other"],
            "rise after triggers without the head": rise["trigger"],
            "rise elsewhere without the head": rise["other"],
            "slope of the logit gap": growth["slope"],
            "R2 of the logit gap": growth["r2"],
            "residual peak, Adam": peak["adam"],
            "residual peak, SGD": peak["sgd"],
            "loss of three layers, Adam": deep["adam"],
            "loss of three layers, SGD": deep["sgd"],
            "sink under ReLU attention": relu_sink,
            "loss under softmax": loss["all"],
            "loss under ReLU attention": relu_loss["all"],
            "lm: active-dormant heads": language["n active-dormant"],
            "lm: largest difference": language["largest difference"],
            **_ablated(language),
        },
    )


def example(model: Model) -> Report:
    """Heads that tell a list that repeats from a story."""
    lists = ["cup lamp coin cup lamp coin cup lamp coin .", "lamp book pen lamp book pen lamp book pen ."]
    stories = ["she felt happy . the lamp was lovely today .", "he looked sad . the cup was red today ."]
    return head_dormancy(model, {"list": lists, "story": stories}, k=1)


def _fresh(seed: int, n_layers: int) -> Any:
    """An untrained model of the sizes of `n_layers`, its weights drawn as the paper's code draws them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = SETUPS[n_layers]
    module = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64, n_positions=size.length, n_embd=size.width, n_layer=n_layers, n_head=1,
            n_inner=4 * size.width, activation_function="relu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            tie_word_embeddings=False, bos_token_id=0, eos_token_id=None, pad_token_id=None,
        )
    ).eval()  # fmt: skip
    rng = generator(seed, "weights")
    for name, weight in module.named_parameters():
        if ".wte" in name or ".wpe" in name:
            nn.init.normal_(weight, generator=rng)
        elif weight.ndim == 2:
            fan_in = weight.shape[1] if name.startswith("lm_head") else weight.shape[0]  # the others are [in out]
            nn.init.uniform_(weight, -(fan_in**-0.5), fan_in**-0.5, generator=rng)
        elif not size.biases and name.endswith(".bias") and ".ln_" not in name:
            weight.requires_grad_(False)  # GPT-2 starts with biases of 0
    return module


def _train(
    data: BigramBackcopy, seed: int, n_layers: int, optimiser: str = "adam", relu: bool = False
) -> tuple[Model, list[tuple[int, float]]]:
    """A trained model, and the logit gap of a one-layer softmax model at log-spaced steps."""
    module, size, rate = _fresh(seed, n_layers), SETUPS[n_layers], RATES[optimiser]
    if relu:
        use_relu_attention(module)
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    rule: torch.optim.Optimizer = torch.optim.SGD(weights, lr=rate, momentum=0.9, weight_decay=1e-4)
    if optimiser == "adam":
        rule = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
    model, watched = wrap(module), data.batch(16, -2)
    marks = {round(FIRST_MARK * SPACING**i) for i in range(20)} if n_layers == 1 and not relu else set()
    curve: list[tuple[int, float]] = []
    rows: tuple[Tensor, ...] = ()
    for step in range(1, size.steps + 1):
        if step % 32 == 1:
            rows = data.batch(32 * size.batch, step)[0].split(size.batch)
        tokens = rows[(step - 1) % 32]
        fall = 2 * (1 - (step - 1) / size.steps) if size.falls else 1.0
        rule.param_groups[0]["lr"] = rate * min(1.0, step / 20, fall)
        logits = module(input_ids=tokens[:, :-1], use_cache=False).logits
        rule.zero_grad()
        F.cross_entropy(logits[:, size.loss_from :].transpose(1, 2), tokens[:, 1 + size.loss_from :]).backward()
        if size.clip is not None:
            torch.nn.utils.clip_grad_norm_(weights, size.clip)
        rule.step()
        if step in marks or (marks and step == size.steps):
            curve.append((step, extreme_token_report(model, *watched)["delta_logit"]))
    return model, curve


@torch.no_grad()
def _losses(model: Model, tokens: Tensor, triggers: Tensor, ablate: bool = False) -> dict[str, float]:
    """Loss after triggers, after other tokens, and over all (the second token, which is drawn blindly, left out)."""
    with model.edit(*([Ablate("layers.0.attn.z").at(head=0)] if ablate else [])):
        logits = model(tokens[:, :-1]).logits
    each = F.cross_entropy(logits[:, 1:].transpose(1, 2), tokens[:, 2:], reduction="none")
    at = triggers[:, 1:-1]
    return {"trigger": float(each[at].mean()), "other": float(each[~at].mean()), "all": float(each.mean())}


def _domains(seed: int) -> dict[str, Tensor]:
    """The beginnings of documents of two kinds, long enough that nothing is padded."""
    found: dict[str, list[Tensor]] = {name: [] for name in DOMAINS}
    for document in tw.corpus(tokens=1e6, seed=10_000 + seed):
        rows = found.get(document.kind)
        if rows is not None and len(rows) < N_TEXTS and len(document.words) >= N_WORDS:
            rows.append(torch.tensor(tw.encode(" ".join(document.words[:N_WORDS]))))
        if all(len(rows) == N_TEXTS for rows in found.values()):
            break
    return {name: torch.stack(rows) for name, rows in found.items()}


def _ablated(report: Report) -> dict[str, float]:
    """Loss change without the head of largest difference, where it works and where it rests, and its control's."""
    numbers: dict[str, float] = {}
    for row in report.tables["ablation"][: len(DOMAINS)]:
        word = "active" if row["domain"] == report["active in"] else "dormant"
        numbers[f"lm: loss change where {word}"] = row["loss change"]
        numbers[f"lm: loss change where {word}, control"] = row["control's"]
    return numbers
