"""A flow whose parameters are the fields of a config model, flat, so that each has its own form field and `-p` flag."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

Function = TypeVar("Function", bound=Callable[..., Any])


def _extra(field: FieldInfo) -> dict[str, Any]:
    own = field.json_schema_extra
    return {"title": field.title, **(own if isinstance(own, dict) else {})}


def with_fields_as_parameters(model: type[BaseModel]) -> Callable[[Function], Function]:
    """Gives a function of `**parameters` the signature that the model's fields make.

    Prefect reads the signature for its run form and checks what is given against it. It sets each field's title to
    the parameter's name and its description from the docstring's `Args`; only a title in `json_schema_extra` is left
    alone (measured with 3.8.8).

    Args:
        model: Its fields become keyword parameters, with their types, defaults, titles and bounds.
    """

    def decorate(function: Function) -> Function:
        parameters, lines = [], []
        for name, field in model.model_fields.items():
            default = field.get_default(call_default_factory=True)
            parameters.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=default,
                    annotation=Annotated[field.rebuild_annotation(), Field(json_schema_extra=_extra(field))],
                )
            )
            lines.append(f"    {name}: {field.description}")
        returns = inspect.signature(function).return_annotation
        function.__signature__ = inspect.Signature(parameters, return_annotation=returns)  # type: ignore[attr-defined]
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nArgs:\n" + "\n".join(lines)
        return function

    return decorate
