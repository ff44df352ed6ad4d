"""Cards are read as text, found by search, and turned into lazy names; plug-ins join through an entry point."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import interneuron as inn
from interneuron.core import cards
from interneuron.core.cards import Card, all_cards, find_card, read_card
from interneuron.core.errors import InputError, MethodNotFound
from interneuron.core.search import search_cards, words

GOOD = '''"""Title."""

import does_not_exist

CARD = Card(
    slug="{slug}",
    family="steer",
    kind="metric",
    exports=("Thing", "thing_of"),
    paper="A (long) paper, with brackets)",
    year=2024,
    purpose="Measure a thing",{more}
)

x = 1 / 0
'''


def write(folder: Path, slug: str = "thing", more: str = "", text: str = GOOD) -> Path:
    path = folder / f"{slug}.py"
    path.write_text(text.replace("{slug}", slug).replace("{more}", more))
    return path


def test_a_card_is_read_without_running_the_file(tmp_path: Path) -> None:
    card = read_card(write(tmp_path, more='\n    needs=("ot",),'))
    assert card is not None
    assert (card.slug, card.entry, card.needs, card.paper) == (
        "thing",
        "Thing",
        ("ot",),
        "A (long) paper, with brackets)",
    )


def test_a_file_without_a_card_has_none(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("x = 1\n")
    assert read_card(tmp_path / "plain.py") is None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("year=2024", 'year=int("2024")'), "year of CARD is not a literal"),
        (("year=2024", "jear=2024"), r"no field 'jear'. Did you mean 'year'\?"),
        (('    purpose="Measure a thing",{more}\n', ""), "incomplete.*purpose"),
        (('family="steer"', 'family="ster"'), r"family='ster' is unknown. Did you mean 'steer'\?"),
        (('kind="metric"', 'kind="metrics"'), "kind='metrics' is unknown. Did you mean 'metric'"),
        (('slug="{slug}"', 'slug="other"'), "must be the file's name, 'thing'"),
        (('"Thing", "thing_of"', '"thing",'), "would be hidden by the module"),
        (('"Thing", "thing_of"', '"Thing"'), r"exports='Thing' is not a tuple. Write \('Thing',\)"),
        (("purpose=", "purpose=\n"), None),
        (("    year=2024,", "    2024,"), "cannot be read"),
    ],
)
def test_a_wrong_card_teaches(tmp_path: Path, change: tuple[str, str], message: str | None) -> None:
    path = write(tmp_path, text=GOOD.replace(*change))
    if message is None:
        assert read_card(path) is not None
        return
    with pytest.raises(InputError, match=message) as caught:
        read_card(path)
    assert "\n" not in str(caught.value)


def test_two_hundred_cards_are_read_quickly(tmp_path: Path) -> None:
    body = "\n" + "def f(x):\n    return [(i, x) for i in range(10)]\n\n" * 60
    for i in range(200):
        write(tmp_path, slug=f"m{i}", text=GOOD + body)
    start = time.process_time()
    assert sum(read_card(path) is not None for path in tmp_path.glob("*.py")) == 200
    assert time.process_time() - start < 1.0


def test_the_facade_lists_finds_and_cites() -> None:
    assert "mean_difference" in [card.slug for card in inn.methods()]
    assert find_card("MeanDifference").slug == "mean_difference"
    assert inn.cite("mean_difference").startswith("@misc{mean_difference,\n  title  = {{Steering Llama 2")
    with pytest.raises(MethodNotFound, match=r"no method 'mean_diference' among \d+. Did you mean 'mean_difference'"):
        inn.cite("mean_diference")
    with pytest.raises(MethodNotFound, match=r"no family 'ster'. Did you mean 'steer'"):
        all_cards("ster")


def test_lazy_names_import_only_their_file() -> None:
    code = (
        "import sys, interneuron as inn\n"
        "assert 'MeanDifference' in dir(inn.steer)\n"
        "assert 'torch' not in sys.modules and 'interneuron.steer.mean_difference' not in sys.modules\n"
        "first = inn.steer.MeanDifference\n"
        "assert first is inn.steer.MeanDifference and first.__module__ == 'interneuron.steer.mean_difference'\n"
        "import interneuron.steer.mean_difference as m; assert inn.steer.mean_difference is m\n"
        "assert find('mean_difference').load() is first\n"
    )
    subprocess.run([sys.executable, "-c", "from interneuron.core.cards import find_card as find\n" + code], check=True)


def test_an_unknown_lazy_name_suggests() -> None:
    with pytest.raises(AttributeError, match=r"no method 'MeanDiference'. Did you mean 'MeanDifference'"):
        _ = inn.steer.MeanDiference


def card(slug: str, purpose: str, exports: tuple[str, ...] = ("X",)) -> Card:
    return Card(slug=slug, family="measure", kind="metric", exports=exports, paper="P", year=2020, purpose=purpose)


def test_search_puts_the_fitting_method_first() -> None:
    known = [
        card("a", "Sparse masks for the columns of linear layers"),
        card("b", "Steer a language model with the difference of two means", ("MeanDifference",)),
        card("c", "Language of latent thoughts in multilingual models"),
    ]
    assert [c.slug for c in search_cards("steering by mean differences", known)] == ["b"]
    assert search_cards("language models", known)[0].slug in {"b", "c"}
    assert search_cards("sparsely masked", known)[0].slug == "a"
    assert search_cards("volcano", known) == []
    assert search_cards("", known) == []
    assert words("MeanDifference steers the activations") == ["mean", "differenc", "steer", "activ"]


def plugin(folder: Path, text: str) -> None:
    package = folder / "my_methods"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('a plug-in is not imported to list it')\n")
    write(package, "novel", text=text)
    info = folder / "my_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[interneuron.methods]\nmine = my_methods\n")


def test_plugins_are_listed_without_importing_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path, GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = find_card("novel")
    assert (found.module, found.family) == ("my_methods.novel", "steer")
    assert "Thing" in dir(inn.steer)
    assert found.claim_module == "my_methods.novel_claim"


def test_a_broken_plugin_is_left_out_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path, GOOD.replace('kind="metric"', 'kind="magic"'))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(RuntimeWarning, match="plug-in 'my_methods' is left out: .*kind='magic'"):
        known = all_cards()
    assert "novel" not in [c.slug for c in known]
    assert "mean_difference" in [c.slug for c in known]


def test_two_methods_of_one_name_are_refused() -> None:
    found = {"a": replace(card("a", "p"), path="one/a.py")}
    with pytest.raises(InputError, match=r"two methods are called 'a': one/a.py and two/a.py"):
        cards._add(found, replace(card("a", "q"), path="two/a.py"))
