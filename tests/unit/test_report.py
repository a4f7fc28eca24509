"""Reports, cards and recorded figures: what a manager is sent, and what stays with a version."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from store_models import write_checkpoint
from toy import QA
from typer.testing import CliRunner

from model_store.card import model_card
from model_store.cli import app
from model_store.entry import ModelEntry
from model_store.errors import StoreError
from model_store.figures import read_figures, record_figures
from model_store.importer import import_model
from model_store.manifest import Draft
from model_store.store import Store
from model_store.task import Task
from model_store.training.judged import Item, Judged, judge
from model_store.training.judged_words import compared, verdict
from model_store.training.measures import difference
from model_store.training.report_html import comparison, report
from model_store.training.report_svg import Bar, bars

MOOD = Task("mood", "choice", "{text}", document="text", labels=("good", "bad"))
FIGURES = {
    "mood: a.csv": {"count": 10, "accuracy": 91.25, "main": "accuracy", "intervals": {"accuracy": [85, 97]}}
}


def moods(right: int, of: int = 40) -> Judged:
    items = [
        Item({"text": f"text <{n}> & so on"}, (("good", "bad")[n % 2],), f"a.csv, line {n}")
        for n in range(of)
    ]
    said = [item.references[0] if n < right else "good" for n, item in enumerate(items)]
    return judge(MOOD, items, said)


def svgs(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


# --- the page


def test_a_report_needs_nothing_from_elsewhere() -> None:
    page = report("mood@1", {"mood: a.csv": moods(36)}, [("licence", "MIT")], [])
    assert not re.search(r"<(script|link|img|iframe)|url\(|src=", page) and len(svgs(page)) == 2


def test_a_report_shows_figures_labels_and_the_worst_answers() -> None:
    page = report("mood@1", {"mood: a.csv": moods(36)}, [("licence", "MIT")], [])
    for shown in (
        "95.0 of 100",
        "the model is clearly better",
        "a.csv, line 37",
        "The 2 worst answers",
        "MIT",
    ):
        assert shown in page, shown
    assert "text &lt;37&gt; &amp; so on" in page and "text <37>" not in page


def test_a_report_without_a_wrong_answer_says_so() -> None:
    assert "every answer is wholly right" in report("m", {"x": moods(40)}, [], [])


def test_a_report_draws_the_curve_of_the_run() -> None:
    curve = [{"tokens": str(n * 100), "loss": str(3 - n / 10), "valid_loss": ""} for n in range(5)]
    assert "How it learned" in report("m", {"x": moods(36)}, [], curve)
    assert len(svgs(report("m", {"x": moods(36)}, [], curve))) == 3


def test_a_bar_is_as_long_as_its_figure() -> None:
    (picture,) = svgs(bars([Bar("a", 25, 20, 30), Bar("b", 50, 45, 55)], "two"))
    widths = [float(each.attrib["width"]) for each in picture.iter() if each.tag.endswith("rect")]
    assert widths[1] == pytest.approx(2 * widths[0])


def test_a_page_on_two_models_shows_where_they_differ() -> None:
    first, second = moods(20), moods(38)
    differences = [difference(*pair) for pair in zip(first.measures, second.measures, strict=True)]
    page = comparison("m@1", "m@2", {"mood: a.csv": (first, second, differences)})
    assert "m@2 is clearly better, by 22.5" in page and "good (100)" not in page and "bad (100)" in page


# --- sentences


def test_a_model_that_is_no_better_than_the_baseline_is_told_as_such() -> None:
    assert "always saying 'good' gets 50.0: not clearly different" in verdict(moods(2))


def test_a_difference_that_may_be_chance_is_told_as_such() -> None:
    found = difference(moods(36).measures[0], moods(38).measures[0])
    assert compared(found, "a", "b").endswith("the difference may be chance.")


# --- the store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", builtin=None)


@pytest.fixture
def entry(store: Store, tmp_path: Path) -> ModelEntry:
    return import_model(store, str(write_checkpoint(tmp_path / "tiny")), "tiny")


def shown(store: Store, *arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--store", str(store.root)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_figures_are_kept_beside_a_version_which_stays_whole(store: Store, entry: ModelEntry) -> None:
    record_figures(store.root, entry, FIGURES)
    record_figures(store.root, entry, {"qa: b": {"f1": 3.0}})
    assert read_figures(store.root, "tiny", "1") == {**FIGURES, "qa: b": {"f1": 3.0}}
    assert store.resolve("tiny@1").warnings == ()


def test_list_show_and_card_tell_the_figures(store: Store, entry: ModelEntry) -> None:
    record_figures(store.root, entry, FIGURES)
    assert "mood: a.csv accuracy 91.2" in shown(store, "list")
    assert json.loads(shown(store, "list", "--json"))[0]["figures"] == FIGURES
    line = "mood: a.csv: count 10, accuracy 91.25 (85.0 to 97.0)"
    assert line in shown(store, "show", "tiny@1") and line in shown(store, "card", "tiny@1")
    assert json.loads(shown(store, "show", "tiny@1", "--json"))["figures"] == FIGURES


def test_figures_go_with_their_version(store: Store, entry: ModelEntry) -> None:
    path = record_figures(store.root, entry, FIGURES)
    store.remove("tiny@1", is_forced=True)
    assert not path.exists()


def test_broken_figures_are_named(store: Store, entry: ModelEntry) -> None:
    record_figures(store.root, entry, FIGURES).write_text("[", encoding="utf-8")
    with pytest.raises(StoreError, match=r"1\.json is not JSON: .*; delete it and measure again"):
        read_figures(store.root, "tiny", "1")


# --- the card


def test_a_card_tells_data_licence_command_curve_and_figures(tmp_path: Path) -> None:
    (tmp_path / "loss.csv").write_text("step,loss\n1,3.5\n2,3.25\n", encoding="utf-8")
    draft = Draft(
        {"qa": QA}, {"n_layer": 2}, 39_168, "CC0-1.0", ("a.csv: 3 bytes, sha256 abc",), command="textgen x"
    )
    card = model_card("mood@1", draft, tmp_path, FIGURES)
    for told in (
        "# mood@1",
        'license: "CC0-1.0"',
        "a.csv: 3 bytes, sha256 abc",
        "textgen x",
        "| 2 | 3.25 |",
        "39,168",
    ):
        assert told in card, told
    assert (
        "- mood: a.csv: count 10, accuracy 91.25 (85.0 to 97.0)" in card
        and QA.template.split("\n")[0] in card
    )


def test_a_card_does_not_make_up_what_is_not_known() -> None:
    card = model_card("m", Draft())
    assert "license:" not in card and "Licence: not given" in card and "Not measured yet" in card
