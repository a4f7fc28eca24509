"""Recipes: which sources a run learns from, and what a wrong one is told."""

from dataclasses import replace
from pathlib import Path

import pytest
from toy import QA

from model_store.task_files import load_tasks
from model_store.training.errors import InvalidOption
from model_store.training.recipe import Source, load_recipe

RECIPES = Path(__file__).parents[2] / "model_store" / "recipes"


def recipe(folder: Path, text: str) -> list[Source]:
    (folder / "mix.toml").write_text(text, encoding="utf-8")
    return load_recipe(folder / "mix.toml", folder, {"qa": QA})


def test_a_recipe_names_its_sources(tmp_path: Path) -> None:
    source = recipe(tmp_path, '[[source]]\npath = "a.txt"\nkind = "cloze"\ntask = "qa"\nshare = 0.5\n')[0]
    assert source == replace(Source(tmp_path / "a.txt"), kind="cloze", task="qa", share=0.5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("share = 2.0", "source 1: share: must be above 0 and at most 1"),
        ('kind = "song"', "source 1: kind: must be one of text, cloze, dialogue, examples"),
        ('kind = "examples"', "source 1: task: is missing"),
        ('kind = "examples"\ntask = "rap"', "source 1: task: 'rap' is not defined"),
        (
            'kind = "dialogue"\ntask = "qa"',
            "task: conversations need the fields history and speaker",
        ),
        ("shares = 1", "source 1: shares: is unknown"),
    ],
)
def test_a_wrong_recipe_is_named_with_place_and_key(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        recipe(tmp_path, f'[[source]]\npath = "a.txt"\n{line}\n')


@pytest.mark.parametrize(
    "name",
    ["pretrain", "questions", "continue", "finetune", "simple/text", "simple/mix", "zh/questions"],
)
def test_the_recipes_that_are_shipped_are_legal(name: str) -> None:
    path = RECIPES / f"{name}.toml"
    assert load_recipe(path, Path("corpus"), load_tasks(path.with_name("tasks.toml")))
