"""Global concept activation vectors: the concept vectors of all layers fused into one that decodes back to each layer.

Paper: GCAV: A Global Concept Activation Vector Framework for Cross-Layer Consistency in Interpretability (2025),
    https://github.com/Zhenghao-He/GCAV. TCAV: Kim and others (2018), https://arxiv.org/abs/1711.11279.

Idea: the concept vectors (CAV) of one concept at different layers are fitted apart, so their TCAV scores disagree.
    Encoding them into one space, aligning them there by contrast and fusing them by attention gives one vector g; what
    it decodes to at each layer keeps the concept's meaning and scores alike everywhere.

Equations:
    (1)  TCAV_l(v) = share of class examples n with grad_{l,n} . v > 0
    (2)  e_l = enc_l(v_l / |v_l|),  loss 1 - cos(dec_l(e_l), v_l), on the vectors and noisy copies of them
    (3)  z_l = A(e_l),  loss InfoNCE(z_l, z_m; tau) + lambda [(1 - cos(z_l, e_l)) + (1 - cos(z_m, e_m))]
         against CAVs of other concepts; A is learned for each concept by itself, (4) for each of its random sets
    (4)  g = W mean_l Attention(z_1 + p_1, ..., z_L + p_L)_l
    (5)  loss gamma Var_l TCAV_l(dec_l(g)) + mean_l (1 - cos(dec_l(g), dec_l(z_l)))
    (6)  straight through: the forward pass of (1) as it is, the backward pass of mean_n sigmoid(T cos(grad_n, v))
    (7)  each network f is used as (f(x) - f(-x)) / 2, so that -v, the CAV of random against concept, gives -g

Shapes: CAVs of a concept {site: [R D]}, R random sets; gradients {site: [N D]}; g [R E]; scores [R L]. D may differ
    from site to site. An image stands for itself by its mean over positions.

Cost: one forward pass per image, one backward pass per class example, then some thousand steps of small networks:
    about half a minute for six sites, four concepts and ten random sets.

Departures: hidden width and E are 128 and 64 by default where the paper takes 4096 and 2048 for far wider layers. CAVs
    are those of activations averaged over positions, by exact logistic regression. The noise is 0.1 times the standard
    deviation of each coordinate, T starts at 1, negatives are CAVs of other concepts at any site [inferred]. CAVs of
    one random set against the next always join as the concept "random". Eq. 7 is not in the paper: without it the
    decoders lean towards the mean of the CAVs they were trained on, and whatever is fused, random CAVs too, gets the
    signs of the concepts that matter. Each random set has a fusion of its own: the test of significance takes the sets
    for independent runs, and one fusion for all gives them one score even where they had none in common. It takes 120
    steps at 2e-3, where the wider one of the paper takes 90 at 5e-4; gamma is 0 in the first half of them, so that
    vectors keep to what they fuse before their scores are made alike.

Use:
    model, x = inn.load("cnn"), torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    gcav = inn.direction.GCAV(epochs=1, steps=5, n_sets=2, sites=("layers.0.resid_post", "layers.2.resid_post")).fit(
        model, {"dark": 0.3 * x[:8]}, random=x[8:24], inputs=x[24:], cls=0)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from interneuron.artifacts import Artifact, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError, ShapeError, did_you_mean
from interneuron.core.seeds import generator
from interneuron.model.model import Model
from interneuron.parts.cav import class_gradients, fit_cav, pooled_rows, tcav_scores
from interneuron.parts.odd_networks import (
    Weights,
    applied,
    frozen,
    linear,
    odd,
    odd_mlp,
    step,
    trainable,
    two_ways,
)

CARD = Card(
    id=161,
    slug="gcav",
    family="direction",
    kind="fitter",
    exports=("GCAV", "GlobalCAV", "tcav", "tgcav"),
    paper="GCAV: A Global Concept Activation Vector Framework for Cross-Layer Consistency in Interpretability",
    year=2025,
    link="https://github.com/Zhenghao-He/GCAV",
    purpose="How much a class depends on a concept, by one concept vector that scores alike at every layer",
    claim="Much lower variance of TCAV scores over layers at preserved relevance; robust to perturbed concept vectors",
)

Cavs = Mapping[str, Tensor]


class GlobalCAV(Artifact):
    """Global vectors of several concepts and the networks that make and decode them.

    concepts  names, K of them      g        [K R E], one vector per concept and random set
    before    [K R L] TCAV scores of the separate CAVs on the examples of the fit;  after: of the decoded ones
    decoded   {site: [K R D]} unit CAVs decoded from g;  averaged: from the mean of the aligned vectors (a baseline)
    weights   parameters of encoders, decoders, alignment and fusion
    """

    concepts: tuple[str, ...]
    g: Tensor
    before: Tensor
    after: Tensor
    decoded: dict[str, Tensor]
    averaged: dict[str, Tensor]
    weights: dict[str, Tensor]

    def decode(self, site: str, concept: str) -> Float[Tensor, "R D"]:
        """The unit CAVs of `concept` at `site`, one per random set.

        Raises:
            InputError: an unknown site or concept.
        """
        for name, known in ((site, self.sites), (concept, self.concepts)):
            if name not in known:
                raise InputError(f"GlobalCAV: {name!r} is none of {', '.join(known)}.{did_you_mean(name, known)}")
        return self.decoded[site][self.concepts.index(concept)]

    def fuse(self, concept: str, cavs: Cavs) -> dict[str, Float[Tensor, "R D"]]:
        """What other CAVs {site: [R D]} of `concept` become: encoded, fused and decoded by the networks of their set.

        Raises:
            InputError: an unknown concept, or a site is missing.
            ShapeError: R or a width differs from that of the fit.
        """
        missing = [site for site in self.sites if site not in cavs]
        if missing:
            raise InputError(f"GlobalCAV.fuse: no CAVs at {', '.join(missing)}, expected all sites. Pass them")
        for site in self.sites:
            got, expected = list(cavs[site].shape), list(self.decode(site, concept).shape)
            if got != expected:
                raise ShapeError(f"GlobalCAV.fuse: {site}: CAVs {got}, expected {expected}. Pass one per random set")
        with torch.no_grad():
            k = self.concepts.index(concept)
            g = _fused(self.weights, k, _aligned(self.weights, k, [cavs[site].float() for site in self.sites]))
            return {site: F.normalize(odd_mlp(self.weights, f"dec{i}", g), dim=-1) for i, site in enumerate(self.sites)}

    def plot(self) -> plots.Plot:
        """TCAV scores over the sites, of separate and of global vectors."""
        series = {}
        for i, concept in enumerate(self.concepts):
            series[f"{concept}, separate"] = self.before[i].mean(0).tolist()
            series[f"{concept}, global"] = self.after[i].mean(0).tolist()
        sites = range(len(self.sites))
        return plots.lines("TCAV scores at each site", sites, series, x_label="site", y_label="TCAV score")


@dataclass(frozen=True)
class GCAV:
    """Global concept activation vectors.

    sites      where the concept vectors are; two or more
    dim        width E of the shared space;  hidden: of encoders and decoders
    n_sets     R, disjoint sets the random inputs are cut into;  alpha: L2 penalty of the CAV's classifier
    epochs     of the autoencoders;  copies, noise: noisy copies of each CAV, noise in standard deviations
    steps      of the alignment;  fusion_epochs, fusion_lr: of the fusion
    tau, align_weight, variance_weight  constants of eq. 3 and 5
    """

    sites: tuple[str, ...] = ()
    dim: int = 64
    hidden: int = 128
    n_sets: int = 10
    alpha: float = 0.1
    epochs: int = 30
    copies: int = 100
    noise: float = 0.1
    dropout: float = 0.5
    steps: int = 1000
    fusion_epochs: int = 120
    tau: float = 0.1
    align_weight: float = 3.0
    variance_weight: float = 3.0
    lr: float = 1e-3
    fusion_lr: float = 2e-3
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.sites) < 2 or self.n_sets < 2 or self.dim % 4 or self.dim < 4:
            raise InputError(
                f"GCAV: sites={self.sites}, n_sets={self.n_sets}, dim={self.dim}; expected two or more sites "
                "and random sets, and a dim divisible by 4, the heads of the fusion. Pass sites=(...)"
            )

    def fit(self, model: Model, concepts: Mapping[str, Tensor], random: Tensor, inputs: Tensor, cls: int) -> GlobalCAV:
        """Return the global vectors of concepts given by images.

        concepts  name -> images that show it;  random: images that need not, cut into `n_sets` parts
        inputs    images of the class;  cls: its number

        Raises:
            InputError: a group is empty, fewer random images than sets, or no such class.
            SiteNotFound: a site the model does not have.
        """
        sites = tuple(model.site(name).name for name in self.sites)
        if len(random) < self.n_sets or "random" in concepts or not concepts:
            raise InputError(
                f"GCAV.fit: {len(random)} random images, concepts {list(concepts)}; expected at least {self.n_sets} "
                "images, one per set, and a concept or more, none called 'random'"
            )
        rows = {name: pooled_rows(model, images, sites) for name, images in concepts.items()}
        pool = pooled_rows(model, random, sites)
        size = len(random) // self.n_sets
        sets = {site: [x[i * size : (i + 1) * size] for i in range(self.n_sets)] for site, x in pool.items()}
        cavs = {
            name: {site: torch.stack([fit_cav(x[site], r, self.alpha) for r in sets[site]]).float() for site in sites}
            for name, x in rows.items()
        }
        cavs["random"] = {
            site: torch.stack([fit_cav(a, b, self.alpha) for a, b in zip(x, x[1:] + x[:1], strict=True)]).float()
            for site, x in sets.items()
        }
        found = self.fit_cavs(cavs, class_gradients(model, inputs, cls, sites))
        return found.replace(site=sites, fingerprint=model.fingerprint, fitted={**found.fitted, "cls": cls})

    def fit_cavs(self, cavs: Mapping[str, Cavs], gradients: Cavs) -> GlobalCAV:
        """Return the global vectors of given CAVs {concept: {site: [R D]}} and logit gradients {site: [N D]}.

        Raises:
            InputError: fewer than two concepts (contrast needs another, e.g. random against random), or a zero CAV.
            ShapeError: shapes that do not agree.
        """
        sites = tuple(gradients)
        v = _stacked(cavs, sites)
        for x, site in zip(v, sites, strict=True):
            tcav_scores(gradients[site], x)  # widths and emptiness are checked here
        k, r = v[0].shape[:2]
        rng = generator(self.seed, CARD.slug, "autoencoders")
        w: Weights = {}
        for i, x in enumerate(v):
            w |= self._autoencoder(i, x.flatten(0, 1), rng)
        slopes = [gradients[site].float() for site in sites]
        made: list[tuple[Tensor, Tensor]] = []
        for i, name in enumerate(cavs):
            rng = generator(self.seed, CARD.slug, name)
            w |= self._alignment(w, v, i, rng)
            w |= self._fusion(w, [x[i] for x in v], i, slopes, rng)
            with torch.no_grad():
                z = _aligned(w, i, [x[i] for x in v])
                made.append((_fused(w, i, z), z.mean(1)))
        g, mean = (torch.cat(parts) for parts in zip(*made, strict=True))
        with torch.no_grad():
            decoded = [F.normalize(odd_mlp(w, f"dec{i}", g), dim=-1).reshape(x.shape) for i, x in enumerate(v)]
            averaged = [F.normalize(odd_mlp(w, f"dec{i}", mean), dim=-1).reshape(x.shape) for i, x in enumerate(v)]
        return GlobalCAV(
            concepts=tuple(cavs),
            g=g.reshape(k, r, -1),
            before=torch.stack([tcav_scores(s, x) for s, x in zip(slopes, v, strict=True)], -1),
            after=torch.stack([tcav_scores(s, x) for s, x in zip(slopes, decoded, strict=True)], -1),
            decoded=dict(zip(sites, decoded, strict=True)),
            averaged=dict(zip(sites, averaged, strict=True)),
            weights={name: value.detach() for name, value in w.items()},
            site=sites,
            slug=CARD.slug,
            fitted=asdict(self),
        )

    def _autoencoder(self, i: int, x: Float[Tensor, "N D"], rng: torch.Generator) -> Weights:
        """Encoder and decoder of one site (eq. 2)."""
        shape = {"enc": (x.shape[1], self.hidden, self.dim), "dec": (self.dim, self.hidden, x.shape[1])}
        w: Weights = {}
        for part, (d_in, middle, d_out) in shape.items():
            w |= linear(f"{part}{i}.0", d_in, middle, rng) | linear(f"{part}{i}.1", middle, d_out, rng)
        noise = torch.randn(self.copies, *x.shape, generator=rng) * self.noise * x.std(0)
        rows = torch.cat([x[None], x + noise]).flatten(0, 1)
        optimiser = trainable(torch.optim.Adam, w, lr=self.lr)

        def drop(h: Tensor) -> Tensor:
            keep = torch.rand(h.shape, generator=rng) >= self.dropout
            return h * keep / (1 - self.dropout)

        for _ in range(self.epochs):
            order = torch.randperm(len(rows), generator=rng)
            for chosen in order.split(self.batch_size):
                e = odd_mlp(w, f"enc{i}", rows[chosen], drop)
                loss = (1 - F.cosine_similarity(odd_mlp(w, f"dec{i}", e, drop), rows[chosen])).mean()
                step(optimiser, loss)
        return frozen(w)

    def _alignment(self, w: Weights, cavs: list[Tensor], k: int, rng: torch.Generator) -> Weights:
        """The network A that brings the layers of concept `k` together (eq. 3)."""
        d, new = self.dim, {}
        for name in ("0", "1", "2", "skip"):
            new |= linear(f"align{k}.{name}", d, d, rng)
        with torch.no_grad():
            e = torch.stack([odd_mlp(w, f"enc{i}", x) for i, x in enumerate(cavs)], 2)  # [K R L E]
        mine, others = e[k], torch.cat([e[:k], e[k + 1 :]]).flatten(0, 2)
        optimiser = trainable(torch.optim.AdamW, new, lr=self.lr, weight_decay=0.01)
        r, n_layers = mine.shape[:2]
        rows = torch.arange(r)
        for _ in range(self.steps):
            first = torch.randint(n_layers, (r,), generator=rng)
            second = (first + torch.randint(1, n_layers, (r,), generator=rng)) % n_layers
            a, p = mine[rows, first], mine[rows, second]
            negatives = others[torch.randint(len(others), (4 * r,), generator=rng)]
            za, zp, zn = _align(new, k, torch.cat([a, p, negatives])).split([r, r, 4 * r])
            near = (za * zp).sum(-1, keepdim=True) / self.tau
            contrast = (torch.logsumexp(torch.cat([near, za @ zn.T / self.tau], 1), 1) - near[:, 0]).mean()
            keep = (1 - F.cosine_similarity(za, a)) + (1 - F.cosine_similarity(zp, p))
            step(optimiser, contrast + self.align_weight * keep.mean())
        return frozen(new)

    def _fusion(self, w: Weights, cavs: list[Tensor], k: int, slopes: list[Tensor], rng: torch.Generator) -> Weights:
        """The attention that makes one vector of all layers of concept `k` (eq. 4 to 6)."""
        d, r = self.dim, len(cavs[0])
        new = {f"fuse{k}.place": 0.02 * torch.randn(r, len(cavs), d, generator=rng)}
        for name, d_out, d_in in (("qkv", 3 * d, d), ("out", d, d), ("up", 2 * d, d), ("down", d, 2 * d), ("g", d, d)):
            each = [linear(f"fuse{k}.{name}", d_in, d_out, rng) for _ in range(r)]
            new |= {key: torch.stack([one[key] for one in each]) for key in each[0]}
        with torch.no_grad():
            z = _aligned(w, k, cavs)
            target = [odd_mlp(w, f"dec{i}", z[:, i]) for i in range(len(cavs))]
        optimiser = trainable(torch.optim.Adam, new, lr=self.fusion_lr)
        units = [F.normalize(s, dim=-1) for s in slopes]
        sharp = 1.0
        for epoch in range(self.fusion_epochs):
            weight = self.variance_weight if 2 * epoch >= self.fusion_epochs else 0.0
            g = _fused(new, k, z)
            made = [odd_mlp(w, f"dec{i}", g) for i in range(len(cavs))]
            scores = torch.stack([_soft_tcav(u, v, sharp) for u, v in zip(units, made, strict=True)], 1)
            far = torch.stack([1 - F.cosine_similarity(v, t) for v, t in zip(made, target, strict=True)], 1)
            # a sum over sets, each of which has its own network: none feels the others
            step(optimiser, (weight * scores.var(1, correction=0) + far.mean(1)).sum())  # eq. 5
            sharp = min(1.2 * sharp, 1000.0) if weight else sharp
        return frozen(new)


def tcav(model: Model, cav: Float[Tensor, " D"], site: str, inputs: Tensor, cls: int) -> float:
    """Return the share of `inputs` whose logit of class `cls` grows along `cav` at `site` (eq. 1)."""
    name = model.site(site).name
    return float(tcav_scores(class_gradients(model, inputs, cls, [name])[name], cav))


def tgcav(model: Model, gcav: GlobalCAV, concept: str, inputs: Tensor, cls: int) -> Float[Tensor, "R L"]:
    """Return TCAV scores of the vectors decoded from the global one, per random set and site."""
    gcav.check_model(model)
    slopes = class_gradients(model, inputs, cls, gcav.sites)
    return torch.stack([tcav_scores(slopes[site], gcav.decode(site, concept)) for site in gcav.sites], -1)


def _stacked(cavs: Mapping[str, Cavs], sites: tuple[str, ...]) -> list[Float[Tensor, "K R D"]]:
    """Unit CAVs per site."""
    if len(cavs) < 2 or len(sites) < 2:
        raise InputError(
            f"GCAV: {len(cavs)} concepts at {len(sites)} sites, expected two or more of each. Add CAVs of random "
            "against random inputs as a concept"
        )
    shapes = {(name, tuple(site_cavs)): None for name, site_cavs in cavs.items() if set(site_cavs) != set(sites)}
    if shapes:
        raise InputError(f"GCAV: CAVs of {next(iter(shapes))}, expected the sites of the gradients, {sites}")
    found = []
    for site in sites:
        rows = [c[site] for c in cavs.values()]
        if len({tuple(x.shape) for x in rows}) > 1 or rows[0].dim() != 2:
            raise ShapeError(f"GCAV: {site}: CAVs {[list(x.shape) for x in rows]}, expected [R D] alike. Refit them")
        x = torch.stack(rows).detach().float()
        if not torch.isfinite(x).all() or bool((x.norm(dim=-1) == 0).any()):
            raise InputError(f"GCAV: {site}: a CAV is zero or not finite, expected a direction. Use unlike groups")
        found.append(F.normalize(x, dim=-1))
    return found


def _align(w: Weights, k: int, e: Tensor) -> Tensor:
    h = e = two_ways(e)
    for j in range(2):
        h = F.gelu(F.layer_norm(applied(w, f"align{k}.{j}", h), h.shape[-1:]))
    return F.normalize(odd(applied(w, f"align{k}.2", h) + applied(w, f"align{k}.skip", e)), dim=-1)


def _aligned(w: Weights, k: int, cavs: list[Tensor]) -> Float[Tensor, "R L E"]:
    return torch.stack([_align(w, k, odd_mlp(w, f"enc{i}", F.normalize(x, dim=-1))) for i, x in enumerate(cavs)], 1)


def _fused(w: Weights, k: int, z: Float[Tensor, "R L E"]) -> Float[Tensor, "R E"]:
    """One self-attention layer of four heads over the sites, mean, and a linear map (eq. 4), one of each per set."""

    def each(name: str, x: Tensor) -> Tensor:
        return torch.baddbmm(w[f"fuse{k}.{name}.bias"][:, None], x, w[f"fuse{k}.{name}.weight"].transpose(1, 2))

    def network(z: Tensor) -> Tensor:
        n, n_layers, d = z.shape
        x = z + w[f"fuse{k}.place"]
        query, key, value = each("qkv", x).reshape(n, n_layers, 3, 4, d // 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(n, n_layers, d)
        x = F.layer_norm(x + each("out", mixed), (d,))
        x = F.layer_norm(x + each("down", torch.relu(each("up", x))), (d,))
        return each("g", x.mean(1, keepdim=True))[:, 0]

    return (network(z) - network(-z)) / 2  # eq. 7


def _soft_tcav(units: Float[Tensor, "N D"], cavs: Float[Tensor, "B D"], sharp: float) -> Float[Tensor, " B"]:
    cosines = F.normalize(cavs, dim=-1) @ units.T
    soft = torch.sigmoid(sharp * cosines)
    return ((cosines > 0).float() + soft - soft.detach()).mean(1)  # eq. 6
