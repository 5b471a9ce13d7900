"""Nodes mirror classes: same names, types and defaults, checked when a config is composed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, ValidationError

from acestep.config.schema import node


class Taste(Enum):
    sweet = "sweet"
    salty = "salty"


class Sauce(Protocol):
    def __call__(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Tomato:
    heat: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Pesto:
    nuts: int = 3


@dataclass(frozen=True, kw_only=True)
class Dish:
    name: str
    portions: int = 1
    taste: Taste = Taste.salty
    salt: float | None = None
    herbs: tuple[str, ...] = ("basil",)
    inside: Tomato = Tomato(heat=0.7)
    sauce: Sauce = Tomato()

    def __post_init__(self) -> None:
        object.__setattr__(self, "herbs", tuple(self.herbs))


def merged(**values: object) -> object:
    return OmegaConf.merge(OmegaConf.structured(node(Dish)), values)


def test_a_node_builds_the_object_that_the_class_itself_would() -> None:
    assert instantiate(merged(name="soup"), _convert_="all") == Dish(name="soup")


def test_values_of_the_right_type_replace_the_defaults() -> None:
    built = instantiate(
        merged(name="soup", taste="sweet", salt=1, herbs=["a", "b"], inside={"heat": 1}), _convert_="all"
    )
    assert built == Dish(name="soup", taste=Taste.sweet, salt=1.0, herbs=("a", "b"), inside=Tomato(heat=1.0))


@pytest.mark.parametrize(
    "values", [{"portions": "many"}, {"taste": "sour"}, {"salt": "much"}, {"herbs": 3}, {"inside": {"heat": "hot"}}]
)
def test_a_value_of_another_type_is_refused(values: dict) -> None:
    with pytest.raises(ValidationError):
        merged(**values)


@pytest.mark.parametrize("values", [{"portion": 2}, {"inside": {"heta": 1.0}}])
def test_an_unknown_key_is_refused(values: dict) -> None:
    with pytest.raises(ConfigKeyError):
        merged(**values)


def test_a_field_without_default_is_required() -> None:
    with pytest.raises(MissingMandatoryValue):
        _ = OmegaConf.structured(node(Dish)).name


def test_a_protocols_field_takes_another_class_without_the_first_ones_keys() -> None:
    other = {"_target_": f"{Pesto.__module__}.{Pesto.__qualname__}", "nuts": 5}
    assert instantiate(merged(name="soup", sauce=other), _convert_="all").sauce == Pesto(nuts=5)


def test_a_protocols_field_takes_an_interpolation() -> None:
    whole = OmegaConf.merge({"dish": node(Dish), "sauce": node(Pesto)}, {"dish": {"name": "soup", "sauce": "${sauce}"}})
    assert instantiate(whole, _convert_="all")["dish"].sauce == Pesto()
