"""The self-check: the right reading is found, and a file that fits nothing is refused with its numbers."""

from __future__ import annotations

import pytest
import torch
from foreign_cases import SITE, D, sparse_world, wide
from tiny_models import shared, tokens

import interneuron as inn
from interneuron.artifacts import Dictionary, formats
from interneuron.artifacts.fit_check import check_fit, check_on_model, loss_recovered
from interneuron.core.errors import InputError, SelfCheckFailed

TRUTH, X = sparse_world()
TRUTH = wide(TRUTH)
NORM = TRUTH.decoder.norm(dim=1)


def test_what_fits_is_kept_bit_for_bit():
    checked, report = check_fit(TRUTH, X)
    assert checked.replace(fitted={}).same_bits(TRUTH)
    assert report["reading"] == "as declared"
    assert report["fvu"] < 1e-9
    assert "declared reading fits" in checked.fitted["notes"][-1]


WRONG = {
    "encoder divided by decoder norms": TRUTH.replace(
        encoder=TRUTH.encoder * NORM, encoder_bias=TRUTH.encoder_bias * NORM
    ),
    "encoder multiplied by decoder norms": TRUTH.replace(
        encoder=TRUTH.encoder / NORM, encoder_bias=TRUTH.encoder_bias / NORM
    ),
    "input centred by the decoder bias": TRUTH.replace(center=False),
    "normalised: none": TRUTH.replace(normalize="layer_norm"),
    "not scaled": TRUTH.replace(scale=7.0),
}


@pytest.mark.parametrize("reading", WRONG)
def test_a_wrong_convention_is_repaired_and_named(reading):
    checked, report = check_fit(WRONG[reading], X)
    # Folding norms into the encoder is undone on either side; both compute the same.
    assert report["reading"] in (reading, "decoder rows divided by their norms")
    assert report["fvu"] < 1e-6
    torch.testing.assert_close(checked.reconstruct(X), X, atol=1e-3, rtol=1e-3)
    assert f"repaired to {report['reading']}" in checked.fitted["notes"][-1]
    with pytest.raises(SelfCheckFailed, match="another would"):
        check_fit(WRONG[reading], X, repair=False)


def test_a_square_encoder_is_turned_the_right_way():
    square, x = sparse_world(3)
    for wrong in (
        square.replace(encoder=square.encoder.T.contiguous()),
        square.replace(encoder=square.encoder.T.contiguous(), center=False),
    ):
        checked, report = check_fit(wrong, x)
        assert "encoder transposed" in report["reading"]
        assert torch.equal(checked.encoder, square.encoder)


def test_another_site_is_found_among_those_given():
    _, other = sparse_world(9)
    wrong = TRUTH.replace(site="layers.2.resid_post")
    checked, report = check_fit(wrong, {"layers.2.resid_post": other, SITE: X})
    assert checked.site == SITE
    assert "at layers.1.resid_post" in report.notes
    with pytest.raises(SelfCheckFailed, match="FVU"):
        check_fit(wrong, {"layers.2.resid_post": other})


def test_raw_output_and_contribution_of_a_transcoder_are_told_apart():
    inputs = sparse_world(1, n=200)[1]
    maps = torch.randn(D, D, generator=torch.Generator().manual_seed(4))
    raw = torch.relu(inputs @ maps) @ maps.T
    contribution = raw / raw.norm(dim=-1, keepdim=True) * 4
    transcoder = Dictionary(
        encoder=maps, decoder=maps.T.contiguous(), encoder_bias=torch.zeros(D), decoder_bias=torch.zeros(D),
        site="layers.0.norm2", target="layers.0.mlp.contribution",
    )  # fmt: skip
    rows = {"layers.0.norm2": inputs, "layers.0.mlp.contribution": contribution, "layers.0.mlp.out": raw}
    checked, report = check_fit(transcoder, rows)
    assert checked.target == "layers.0.mlp.out"
    declared = next(
        row
        for row in report.tables["readings"]
        if row["reading"] == "as declared" and row["target"] == transcoder.target
    )
    assert declared["fvu"] > 1


def test_lost_norms_are_noticed_although_the_fit_looks_fair():
    lost = TRUTH.replace(decoder=TRUTH.decoder / NORM[:, None])
    with pytest.raises(SelfCheckFailed, match="lengths of its decoder rows were lost"):
        check_fit(lost, X, max_fvu=0.9)


def test_noise_and_few_rows_are_refused():
    noise = TRUTH.replace(encoder=torch.randn_like(TRUTH.encoder) * 3)
    with pytest.raises(SelfCheckFailed, match="no reading explains"):
        check_fit(noise, X)
    with pytest.raises(InputError, match="16"):
        check_fit(TRUTH, X[:4])
    with pytest.raises(InputError, match="width 12"):
        check_fit(TRUTH, {SITE: torch.randn(20, 5)})


def test_on_a_model_the_site_is_read_and_the_loss_measured():
    """A dictionary that is the identity on one layer's residual stream: nothing is lost there."""
    model = inn.wrap(shared("llama"))
    d = model.d_model
    eye = torch.eye(d)
    with torch.no_grad(), model.read("layers.0.resid_post") as acts:
        model(tokens(6, 12))
    bias = acts["layers.0.resid_post"].reshape(-1, d).mean(0)
    identity = Dictionary(
        encoder=torch.cat([eye, -eye], 1), decoder=torch.cat([eye, -eye]), encoder_bias=torch.zeros(2 * d),
        decoder_bias=bias,
        center=True, site="layers.0.resid_post",
    )  # fmt: skip
    checked, report = check_on_model(identity, model, tokens(6, 12))
    assert checked.site == identity.site
    assert report["loss_recovered"] == pytest.approx(1.0, abs=1e-4)
    half = identity.replace(decoder=identity.decoder * 0.0)
    assert loss_recovered(model, half, tokens(6, 12))["loss_recovered"] != pytest.approx(1.0, abs=1e-3)


def test_reading_a_file_checks_it_when_there_are_activations(tmp_path):
    formats.write(TRUTH.replace(center=False), tmp_path / "d", "saelens")
    unchecked = formats.read(tmp_path / "d")
    assert any("not checked" in note for note in unchecked.notes)
    checked = formats.read(tmp_path / "d", activations=X)
    assert checked.value.center
    assert any("repaired" in note for note in checked.notes)
    with pytest.raises(InputError, match="inputs"):
        formats.read(tmp_path / "d", model=inn.wrap(shared("llama")))


def test_raw_output_and_contribution_are_said_to_be_untold_where_rows_cannot_tell():
    raw, contribution = "layers.1.mlp.out", "layers.1.mlp.contribution"
    here = TRUTH.replace(site=contribution)
    assert f"pass rows of {raw} too" in check_fit(here, {contribution: X})[1].notes
    assert "told apart" not in check_fit(here, {contribution: X, raw: X * 1.7 + 0.4})[1].notes
    assert "told apart" not in check_fit(TRUTH, X)[1].notes
