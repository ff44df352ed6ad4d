"""Self-normalising networks: an activation that keeps mean and variance through deep plain networks by itself.

Paper: Klambauer, Unterthiner, Mayr, Hochreiter: Self-Normalizing Neural Networks (2017),
    https://arxiv.org/abs/1706.02515.

Idea: with the right slope and saturation, one layer maps the mean and variance of its inputs nearer to a fixed point
    (0, 1), whatever they were; a stack of such layers then needs no normalisation to be trained.

Equations:
    (1)  selu(x) = lambda x  for x > 0,  lambda alpha (e^x - 1)  otherwise
    (2)  z ~ N(m, s^2), m = mu omega, s^2 = nu tau;  omega = sum w, tau = sum w^2 of one unit
         mu' = E selu(z),  nu' = E selu(z)^2 - mu'^2
    (3)  E[z; z>0] = m Phi(m/s) + s phi(m/s),   E[e^{kz}; z<0] = e^{km + k^2 s^2/2} Phi(-(m + k s^2)/s)
    (4)  alpha = s phi(0) / (1/2 - e^{s^2/2} Phi(-s)),  lambda = s / sqrt(E selu_1(z)^2)    fixed point (0, s^2)

Shapes: x [B D_in] -> [B D_out]; moments are tensors of any one shape.

Cost: an exponential per unit, nothing else; no statistics are kept.

Departures: the activation and its dropout are PyTorch's `nn.SELU` and `nn.AlphaDropout`. The second moment is in closed
    form too (eq. 3 with k = 1, 2), where the paper's appendix gives it by other means [inferred]. Weights of the last
    layer start like the others; the paper is silent on it [inferred].

Use:
    net = inn.layers.SNN(in_dim=64, out_dim=10, width=128, depth=8)
    report = inn.layers.moment_profile(net, torch.randn(256, 64, generator=torch.Generator().manual_seed(0)))
    print(report.tables["layers"][-1])
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interneuron.artifacts import Report, plots
from interneuron.core.cards import Card
from interneuron.core.errors import InputError
from interneuron.core.seeds import generator
from interneuron.model.load import wrap

CARD = Card(
    id=184,
    slug="selu",
    family="layers",
    kind="layer",
    exports=("SNN", "lecun_normal_", "selu_constants", "selu_moment_map", "selu_jacobian", "moment_profile"),
    paper="Self-Normalizing Neural Networks",
    authors="Klambauer, Günter and Unterthiner, Thomas and Mayr, Andreas and Hochreiter, Sepp",
    year=2017,
    link="https://arxiv.org/abs/1706.02515",
    purpose="Train deep plain networks without normalisation layers: an activation that keeps mean 0 and variance 1",
    claim="Best average rank among feed-forward networks on 121 UCI tasks; the winning networks are deep",
)

ALPHA = 1.6732632423543772
LAMBDA = 1.0507009873554805


class SNN(nn.Sequential):
    """A plain network of `depth` linear layers with SELU between them, ready to train; inputs should be standardised.

    dropout   rate of the alpha dropout behind every hidden layer; the paper uses 0.05 to 0.10
    seed      of the initial weights
    """

    def __init__(
        self, in_dim: int, out_dim: int, width: int = 256, depth: int = 16, dropout: float = 0.0, seed: int = 0
    ) -> None:
        if depth < 1 or min(in_dim, out_dim, width) < 1:
            raise InputError(
                f"SNN: in_dim={in_dim}, out_dim={out_dim}, width={width}, depth={depth}; expected all >= 1"
            )
        rng, layers = generator(seed), []
        for i in range(depth):
            layer = nn.Linear(width if i else in_dim, width if i < depth - 1 else out_dim, device="meta")
            layers.append(lecun_normal_(layer.to_empty(device="cpu"), rng))
            if i < depth - 1:
                layers += [nn.SELU(), *([nn.AlphaDropout(dropout)] if dropout else [])]
        super().__init__(*layers)


def lecun_normal_(layer: nn.Linear, rng: torch.Generator) -> nn.Linear:
    """Fill a layer with weights N(0, 1/fan_in) and zero biases, in place, and return it."""
    with torch.no_grad():
        layer.weight.normal_(0.0, 1.0 / math.sqrt(layer.in_features), generator=rng)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer


def selu_constants(fixed_var: float = 1.0) -> tuple[float, float]:
    """Return (alpha, lambda) for which mean 0 and variance `fixed_var` are a fixed point (eq. 4).

    Raises:
        InputError: a variance that is not positive.
    """
    if not 0 < fixed_var < math.inf:
        raise InputError(f"selu_constants: fixed_var={fixed_var}, expected a finite number > 0")
    s = math.sqrt(fixed_var)
    below = {k: math.exp(k * k * fixed_var / 2) * _cdf(-k * s) for k in (1, 2)}  # E[e^{kz}; z<0]
    alpha = s / math.sqrt(2 * math.pi) / (0.5 - below[1])
    second = fixed_var / 2 + alpha**2 * (below[2] - 2 * below[1] + 0.5)
    return alpha, s / math.sqrt(second)


def selu_moment_map(
    mu: Float[Tensor, "*N"] | float,
    nu: Float[Tensor, "*N"] | float,
    omega: Float[Tensor, "*N"] | float = 0.0,
    tau: Float[Tensor, "*N"] | float = 1.0,
) -> tuple[Float[Tensor, "*N"], Float[Tensor, "*N"]]:
    """Return mean and variance behind one layer from those before it (eq. 2), in float64.

    mu, nu      mean and variance of the inputs;  omega, tau: sum and sum of squares of a unit's weights

    Raises:
        InputError: a variance or tau that is negative.
    """
    given = [torch.as_tensor(v, dtype=torch.float64) for v in (mu, nu, omega, tau)]
    if bool((given[1] < 0).any()) or bool((given[3] < 0).any()):
        raise InputError("selu_moment_map: a variance nu or tau is negative, expected both >= 0")
    m, variance = given[0] * given[2], given[1] * given[3]
    s = variance.clamp_min(1e-300).sqrt()
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0, validate_args=False)
    above, density = normal.cdf(m / s), normal.log_prob(m / s).exp()
    # e^{km + k^2 s^2/2} overflows long before its product with the tail does: add logarithms
    below = [(k * m + k * k * variance / 2 + torch.special.log_ndtr(-(m + k * variance) / s)).exp() for k in (0, 1, 2)]
    mean = LAMBDA * (m * above + s * density + ALPHA * (below[1] - below[0]))
    square = (m.square() + variance) * above + m * s * density + ALPHA**2 * (below[2] - 2 * below[1] + below[0])
    return mean, LAMBDA**2 * square - mean.square()


def selu_jacobian(mu: float, nu: float, omega: float = 0.0, tau: float = 1.0) -> Float[Tensor, "2 2"]:
    """Return the derivative of (mu', nu') by (mu, nu); below 1 in spectral norm where the map contracts."""
    point = (torch.tensor(mu, dtype=torch.float64), torch.tensor(nu, dtype=torch.float64))

    def moments(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return selu_moment_map(a, b, omega, tau)

    rows = torch.autograd.functional.jacobian(moments, point)
    return torch.stack([torch.stack(list(row)) for row in rows])


@torch.no_grad()
def moment_profile(net: nn.Module, x: Float[Tensor, "B D"]) -> Report:
    """Return mean and variance of the output of every activation of a plain network, in the order of the network.

    Raises:
        InputError: the network holds no activation module.
    """
    kinds = (nn.SELU, nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.Sigmoid)
    names = [name for name, module in net.named_modules() if isinstance(module, kinds)]
    if not names:
        raise InputError(f"moment_profile: {type(net).__name__} holds none of {', '.join(k.__name__ for k in kinds)}")
    acts = wrap(net).run(x, read=[f"{name}:out" for name in names]).acts
    rows = [
        {
            "layer": i,
            "mean": float(acts[f"{n}:out"].double().mean()),
            "variance": float(acts[f"{n}:out"].double().var()),
        }
        for i, n in enumerate(names)
    ]
    title = "Mean and variance behind every activation"
    series = {key: [row[key] for row in rows] for key in ("mean", "variance")}
    return Report(
        slug=CARD.slug,
        title=title,
        numbers={"last mean": rows[-1]["mean"], "last variance": rows[-1]["variance"]},
        tables={"layers": rows},
        plots={"moments": plots.lines(title, range(len(rows)), series, x_label="layer", y_label="")},
    )


def _cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))
