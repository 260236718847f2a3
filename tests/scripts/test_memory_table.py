"""The memory model against what others measured, and the tables of the document."""

from __future__ import annotations

import memory_table
import published_memory
import pytest
from published_memory import Published


@pytest.mark.parametrize("figure", published_memory.published(), ids=lambda figure: figure.run)
def test_the_model_is_within_15_percent_of_what_others_measured(figure: Published) -> None:
    assert abs(figure.deviation) < 0.15, f"{figure.predicted / 1e9:.1f} GB"


def test_the_published_figures_are_of_models_of_7_13_and_70_billion_parameters() -> None:
    sizes = {round(figure.shape.parameters / 1e9) for figure in published_memory.published()}
    assert sizes == {7, 8, 13, 14, 71, 72}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Llama 3.2 1B", 1_235_814_400),
        ("Llama 2 7B", 6_738_415_616),
        ("Llama 3.1 8B", 8_030_261_248),
        ("Llama 2 13B", 13_015_864_320),
        ("Llama 3.1 70B", 70_553_706_496),
    ],
)
def test_the_shapes_have_as_many_parameters_as_the_models(name: str, parameters: int) -> None:
    assert published_memory.MODELS[name].parameters == parameters


def test_the_tables_of_the_document_are_what_the_model_says() -> None:
    text = memory_table.DOCUMENT.read_text()
    assert memory_table.written(text) == text, "run `make generate`"
