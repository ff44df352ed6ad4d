"""The conformance suite: what every method must do, per kind, checked by running it.

For this package's own methods the tests run it over all cards. A plug-in tests its methods with

    import pytest
    from interneuron.testing import assert_conforms, cards_of

    @pytest.mark.parametrize("card", cards_of("my_package"), ids=lambda card: card.slug)
    def test_conformance(card):
        assert_conforms(card)

A method offers itself for checking through its claim file: `CLAIM`, `claim(seed)`, `example(model)` (or `example()`
when it needs no model) and, where it works on tensors, `tensors(n, width, seed)` and `apply(**tensors)`.
"""

from interneuron.testing.conformance import assert_conforms, cards_of, findings

__all__ = ["assert_conforms", "cards_of", "findings"]
