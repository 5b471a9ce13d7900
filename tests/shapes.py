"""What jaxtyping's import hook calls around every function of ours in tests: tensors must have the annotated shape.

Only tensor annotations are checked. A full type checker would also refuse what Python duck-types on purpose.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, get_args

from jaxtyping import AbstractArray
from torch import Tensor


def shapes_checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, refusing tensors of another shape or kind than it says, as argument or result."""
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            _check(name, value, signature.parameters[name].annotation)
        result = function(*args, **kwargs)
        _check("the result", result, signature.return_annotation)
        return result

    return checked


def _check(name: str, value: Any, hint: Any) -> None:
    hints = [part for part in (hint, *get_args(hint)) if inspect.isclass(part) and issubclass(part, AbstractArray)]
    if isinstance(value, Tensor) and hints and not any(isinstance(value, part) for part in hints):
        raise TypeError(f"{name}: {tuple(value.shape)} {value.dtype} is not {hint}")
