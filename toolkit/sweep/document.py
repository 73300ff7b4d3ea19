"""The sweep file's fields: what all runs share, the models, targets and recipes they vary, and what to leave out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator

from toolkit.recipe.document import Recipe

__all__ = ["VERSION", "Changes", "Exclusion", "ModelChanges", "Sweep", "Variant"]

VERSION = 1


class Changes(Recipe):
    """Any fields of a recipe but the model."""

    model: str = ""
    targets: tuple[str, ...] = ()

    @field_validator("model")
    @classmethod
    def _no_model(cls, value: str) -> str:
        raise ValueError(f"'{value}' belongs under models")


class Variant(Changes):
    """A recipe of the sweep: its name, and what it changes of what the model and the sweep say."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


class ModelChanges(Recipe):
    """A model of the sweep, with what it changes of what all runs share."""

    targets: tuple[str, ...] = ()


class Exclusion(BaseModel):
    """Runs to leave out: those of which every pattern given here, as `ort-*-int8`, matches."""

    model_config = Recipe.model_config

    model: str = "*"
    target: str = "*"
    recipe: str = "*"


def _named(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


class Sweep(BaseModel):
    """The product of models, recipes and targets. What a recipe says goes before its model's, that before `base`.

    Sections and other mappings are merged key by key, all else is replaced; targets of a recipe or a model stand for
    the sweep's own.
    """

    model_config = Recipe.model_config

    version: Literal[1] = 1
    base: Changes = Changes()
    models: tuple[Annotated[ModelChanges, BeforeValidator(_named)], ...] = Field(min_length=1)
    targets: tuple[str, ...] = ()
    recipes: tuple[Variant, ...] = Field((Variant(name="default"),), min_length=1)
    exclude: tuple[Exclusion, ...] = ()
