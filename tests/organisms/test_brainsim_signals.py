"""Spikes, calcium and EEG are identifiable: who knows the rule reaches the ceiling, a shuffled truth gives chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from interneuron.core.errors import InputError
from interneuron.organisms.brainsim import calcium, eeg, spikes


def auc(score: Tensor, positive: Tensor) -> float:
    """Chance that a positive outranks a negative."""
    a, b = score[positive], score[~positive]
    return float((a[:, None] > b).float().mean() + 0.5 * (a[:, None] == b).float().mean())


@pytest.fixture(scope="module")
def trains() -> spikes.SpikeTrains:
    return spikes.make(0, steps=1500)


def wires(data: spikes.SpikeTrains, counts: Tensor) -> Tensor:
    """Least-squares weight of every delayed source on every target: Float[N N]."""
    heard = data.delayed()
    rows = []
    for n in range(counts.shape[2]):
        x = heard[:, :, n].reshape(-1, counts.shape[2]).double()
        x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        rows.append(torch.linalg.lstsq(x, counts[..., n].reshape(-1, 1).double()).solution[:-1, 0])
    return torch.stack(rows)


def test_wires_show_in_what_delayed_sources_explain(trains: spikes.SpikeTrains) -> None:
    off = ~torch.eye(10, dtype=torch.bool)
    found = wires(trains, trains.counts)
    edges = trains.truth["adjacency"]
    assert auc(found.abs()[off], edges[off] != 0) > 0.9
    strong = off & (edges != 0) & (found.abs() > 0.05)
    assert strong.sum() > 10
    assert (found[strong].sign() == edges[strong]).float().mean() > 0.95
    shuffled = trains.counts[:, torch.randperm(1500, generator=torch.Generator().manual_seed(0))]
    assert 0.3 < auc(wires(trains, shuffled).abs()[off], edges[off] != 0) < 0.7


def test_true_rates_explain_best_and_states_can_be_decoded(trains: spikes.SpikeTrains) -> None:
    truth = trains.truth
    drive = torch.einsum("knm,rtnm->rtkn", truth["weights"], trains.delayed()) + truth["base"]
    rate = spikes.firing(drive)  # as it would be in each state
    own = rate.gather(2, truth["state"][:, :, None, None].expand(-1, -1, 1, 10))[:, :, 0]
    assert torch.allclose(own, truth["rate"], atol=1e-4)
    wrong = rate.gather(2, ((truth["state"] + 1) % 3)[:, :, None, None].expand(-1, -1, 1, 10))[:, :, 0]
    assert trains.log_likelihood(own) > trains.log_likelihood(wrong) + 0.005
    assert trains.log_likelihood(own) > trains.log_likelihood(trains.counts.mean((0, 1)).expand_as(own)) + 0.02
    evidence = (trains.counts[:, :, None] * rate.log() - rate).sum(-1)
    score, back = evidence[:, 0], []
    for t in range(1, evidence.shape[1]):  # the most likely path
        best, source = (score[:, :, None] + truth["transition"].log()).max(1)
        back.append(source)
        score = best + evidence[:, t]
    now = score.argmax(1)
    path = [now]
    for source in reversed(back):
        now = source.gather(1, now[:, None])[:, 0]
        path.append(now)
    decoded = torch.stack(path[::-1], 1)
    assert (decoded == truth["state"]).float().mean() > 0.85
    stays = (truth["state"][:, 1:] == truth["state"][:, :-1]).float().mean()
    assert stays.item() == pytest.approx(0.995, abs=0.003)


def test_hubs_hear_the_stimulus_and_behaviour_follows_it() -> None:
    data = spikes.make(1, neurons=24, hubs=4, density=0.12, states=1, steps=1000)
    both = torch.cat([data.counts, data.stimulus[..., None]], 2).reshape(-1, 25).T
    link = torch.corrcoef(both)[-1, :-1]
    assert link[:4].min() > 0.25
    assert link[4:].abs().mean() < 0.15
    late = data.stimulus[:, :-4].flatten(), data.behaviour[:, 4:].flatten()
    assert torch.corrcoef(torch.stack(late))[0, 1] > 0.8
    assert torch.equal(spikes.make(1, neurons=24, hubs=4, density=0.12, states=1, steps=1000).counts, data.counts)
    with pytest.raises(InputError, match="hubs"):
        spikes.make(0, hubs=11)


def test_assemblies_glow_in_their_time_and_animals() -> None:
    data = calcium.make(0)
    member, active, present, found = (data.truth[k] for k in ("member", "active", "present", "found"))
    assert torch.equal(torch.isnan(data.traces).any(1), ~found)
    assert 0.05 < float((~found).float().mean()) < 0.3
    shared = (member[0] & member[1]).sum() + (member[1] & member[2]).sum() + (member[0] & member[2]).sum()
    assert 1 <= shared <= 9
    change = (data.traces[:, 1:] - data.traces[:, :-1]).clamp_min(0).nan_to_num(0.0)
    shuffled = member[:, torch.randperm(60, generator=torch.Generator().manual_seed(1))]

    def glow(who: Tensor) -> Tensor:
        """Variance of the members' mean jump, inside and outside the stretch, Float[S A 2]."""
        out = []
        for s in range(5):
            for a in range(3):
                line = change[s][:, who[a] & found[s]].mean(1)
                out.append(torch.stack([line[active[a, 1:]].var(), line[~active[a, 1:]].var()]))
        return torch.stack(out).reshape(5, 3, 2)

    ratio = glow(member)[..., 0] / glow(member)[..., 1]
    assert auc(ratio.flatten(), present.flatten()) > 0.95
    blind = glow(shuffled)[..., 0] / glow(shuffled)[..., 1]
    assert ratio[present].median() > 2 * blind[present].median()


def two_class(feature: Tensor, y: Tensor) -> float:
    """Accuracy of a threshold half-way between the class means of the first half, on the second."""
    half = len(y) // 2
    low, high = (feature[:half][y[:half] == c].mean() for c in (0, 1))
    guess = ((feature[half:] > (low + high) / 2) == (high > low)).long()
    return float((guess == y[half:]).float().mean())


def unmixed(data: eeg.EEG) -> Tensor:
    return torch.einsum("sc,nct->nst", torch.linalg.pinv(data.truth["lead"]), data.x)


def test_rotation_shows_in_lagged_and_not_in_plain_covariances() -> None:
    data = eeg.make(0)
    s = unmixed(data)
    assert two_class((s[:, 0, 1:] * s[:, 1, :-1] - s[:, 1, 1:] * s[:, 0, :-1]).mean(1), data.y) > 0.95
    centred = data.x - data.x.mean(2, keepdim=True)
    plain = centred @ centred.transpose(1, 2) / data.x.shape[2]
    rows, columns = torch.triu_indices(8, 8)
    scores = [two_class(plain[:, i, j], data.y) for i, j in zip(rows.tolist(), columns.tolist(), strict=True)]
    assert abs(np.mean(scores) - 0.5) < 0.05
    shuffled = data.y[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    assert two_class((s[:, 0, 1:] * s[:, 1, :-1] - s[:, 1, 1:] * s[:, 0, :-1]).mean(1), shuffled) < 0.65


def test_power_pairs_and_latency_carry_their_class() -> None:
    data = eeg.make(1, kind="power")
    assert two_class(unmixed(data)[:, 0].var(1).log(), data.y) > 0.9
    assert two_class(unmixed(data)[:, 1].var(1).log(), data.y) < 0.65
    data = eeg.make(1, kind="pairs", n=600)
    power = unmixed(data).var(2).log()
    product = (power[:, 0] - power[:, 1]) * (power[:, 2] - power[:, 3])
    assert two_class(product, data.y) > 0.85
    assert max(two_class(power[:, s], data.y) for s in range(4)) < 0.6
    data = eeg.make(1, kind="erp")
    late = data.truth["latency"][:, 1]
    assert late[data.y == 1].mean() - late[data.y == 0].mean() > 0.06
    mean = [data.truth["sources"][data.y == c, 1].mean(0).argmax() / data.fs for c in (0, 1)]
    assert float(mean[0]) == pytest.approx(0.40, abs=0.04)
    assert float(mean[1]) == pytest.approx(0.48, abs=0.04)


def test_the_network_of_a_cascade_is_found_by_regression_and_not_in_shuffled_trials() -> None:
    data = eeg.make(0, kind="network", coupling=1.0, n=200, seconds=4.0)
    s = data.truth["sources"]
    past = torch.cat([s[:, :, 1:-1], s[:, :, :-2]], 1).transpose(1, 2).reshape(-1, 8).double()

    def weights(target: Tensor) -> Tensor:
        now = target[:, :, 2:].transpose(1, 2).reshape(-1, 4).double()
        return torch.linalg.lstsq(past, now).solution.T.reshape(4, 2, 4).transpose(0, 1)

    assert (weights(s) - data.truth["coupling"]).abs().max() < 0.05
    edges = [(i % 2, i + 1, i) for i in range(3)]
    assert min(float(weights(s)[e]) for e in edges) > 0.35
    assert max(abs(float(weights(s.roll(1, 0))[e])) for e in edges) < 0.15
    assert (s.std((0, 2)) < 40).all()
    quiet = eeg.make(0, kind="network", coupling=0.0, n=4).truth["coupling"]
    assert (quiet - torch.diag_embed(quiet.diagonal(dim1=1, dim2=2))).abs().max() == 0


def test_artefacts_lie_where_and_when_they_do_and_leave_the_clean_signal() -> None:
    plain = eeg.make(2, channels=16)
    front, side = plain.positions[:, 1], plain.positions[:, 0]
    for name in eeg.ARTEFACTS:
        dirty = eeg.make(2, channels=16, artefacts=(name,))
        assert torch.equal(dirty.truth["clean"], plain.truth["clean"])
        extra = dirty.x - plain.x
        size = extra.std((0, 2))
        assert extra.std() > 0.2 * plain.truth["clean"].std()
        if name == "blink":
            assert torch.corrcoef(torch.stack([size, front]))[0, 1] > 0.95
        if name == "muscle":
            assert size[side < 0].max() < 1e-3
            power = torch.fft.rfft(extra).abs().square().mean((0, 1))
            assert power[torch.fft.rfftfreq(256, 1 / 128) > 15].sum() / power.sum() > 0.9
        if name == "line":
            assert torch.fft.rfft(extra).abs().mean((0, 1)).argmax() == 100  # 50 Hz in 2 s
        if name == "saccade":
            left, right = (extra[:, (front > front.median()) & mask].mean(1) for mask in (side < 0, side > 0))
            assert (left * right).sum() < 0
    with pytest.raises(InputError, match="Did you mean 'blink'"):
        eeg.make(0, artefacts=("blnk",))
    with pytest.raises(InputError, match="Did you mean 'erp'"):
        eeg.make(0, kind="erq")


def test_bold_follows_the_power_of_its_sources_seconds_later() -> None:
    data = eeg.make(3, kind="power", seconds=60.0, n=8)
    slow, weights = eeg.bold(data)
    assert slow.shape == (8, 4, 60)
    power = torch.nn.functional.avg_pool1d(data.truth["sources"].square(), 128, 128)
    drive = torch.einsum("rs,nst->nrt", weights, power)
    lags = [
        float(torch.corrcoef(torch.stack([drive[..., : 60 - k].flatten(), slow[..., k:].flatten()]))[0, 1])
        for k in range(12)
    ]
    assert 3 <= int(np.argmax(lags)) <= 7
    assert math.isfinite(lags[0])
