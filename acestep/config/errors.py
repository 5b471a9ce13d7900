"""Hydra's, OmegaConf's and our own errors as one sentence: key, value, rule, remedy."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Sequence

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from acestep.config.aliases import KEYS

KEY = re.compile(r"(?:Could not override|Could not append value to config\.) '?([\w./@-]+)")
OPTION = re.compile(r"Could not find '([\w/.-]+)'")
FULL_KEY = re.compile(r"full_key: (\S+)")
UNKNOWN = re.compile(r"Key '(\w+)' (?:is not in struct|not in '\w+')")
VALUE = re.compile(r"Value '(.*?)' of type '\w+' could not be converted to (\w+)")
ENUM = re.compile(r"Invalid value '(.*?)', expected one of (\[.*?\])")
WORKER = re.compile(r"Caught \w+ in DataLoader worker process \d+\..*^[\w.]+: (.*)", re.DOTALL | re.MULTILINE)
"""Torch's message for an error in a loader process: its traceback, and at the end the error itself."""


def user_errors() -> tuple[type[BaseException], ...]:
    """Errors that a user's input can cause; any other is a fault of the program, and keeps its traceback."""
    # A program that did not load Lightning, which takes seconds, cannot have misconfigured it.
    lightning = sys.modules.get("lightning.pytorch.utilities.exceptions")
    more = [lightning.MisconfigurationException] if lightning else []
    return (HydraException, OmegaConfBaseException, ValueError, OSError, *more)


def error_sentence(error: BaseException, config_name: str, arguments: Sequence[str]) -> str:
    """What is wrong and what to do, in one line."""
    chain = list(_chain(error))
    text = "\n".join(str(link) for link in chain)
    if unknown := _unknown(text, config_name, arguments):
        return unknown
    if any(isinstance(link, MissingMandatoryValue) for link in chain):
        key = FULL_KEY.search(text) or re.search(r"Missing mandatory value: (\S+)", text)
        return f"{key[1]}: not given; add {key[1]}=..." if key else _first_line(text)
    if isinstance(error, InstantiationException):
        key, argument = FULL_KEY.search(text), re.search(r"unexpected keyword argument '(\w+)'", text)
        return f"{key[1]}.{argument[1]}: no such key" if key and argument else _first_line(str(chain[-1]))
    return _wrong_value(text) or _first_line(str(chain[-1] if isinstance(error, HydraException) else error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, then its causes, down to the root."""
    while error is not None:
        yield error
        error = error.__cause__


def _unknown(text: str, config_name: str, arguments: Sequence[str]) -> str | None:
    """The sentence for a key or an option that does not exist, with the nearest that does."""
    if missing := OPTION.search(text):
        group, _, option = missing[1].rpartition("/")
        options = re.search(r"Available options in '.*?':\n((?:\t.*\n?)+)", text)
        names = [name for name in options[1].split() if not name.endswith("_schema")] if options else []
        return f"{group}={option}: no such option; {_nearest(option, names)}there are {', '.join(names) or 'none'}"
    named, full = KEY.search(text), FULL_KEY.search(text)
    key = full[1] if full and full[1] else named[1] if named else ""
    if key and UNKNOWN.search(text):
        if key in KEYS:
            return f"{key}: has a new name; use {KEYS[key]}"
        return f"{key}: no such key; {_nearest(key, _keys(config_name, arguments))}--help lists them"
    if named and "No match in the defaults list" in text:
        return f"{named[1]}: no such key; {_nearest(named[1], _keys(config_name, arguments))}--help lists them"
    return None


def _wrong_value(text: str) -> str | None:
    key = FULL_KEY.search(text)
    if not key:
        return None
    if wrong := VALUE.search(text):
        article = "an" if wrong[2][0] in "aeiouAEIOU" else "a"
        return f"{key[1]}={wrong[1]}: not {article} {wrong[2].lower()}"
    if wrong := ENUM.search(text):
        return f"{key[1]}={wrong[1]}: need one of {wrong[2]}"
    return f"{key[1]}: {_first_line(text)}"


def _keys(config_name: str, arguments: Sequence[str]) -> list[str]:
    """Every key that the config has under the options which ``arguments`` choose."""
    chosen = [str(override.input_line) for override in _overrides(arguments) if _is_option(override)]
    try:
        cfg = compose(config_name, chosen)
    except HydraException:
        cfg = compose(config_name)
    return list(_paths(cfg))


def _overrides(arguments: Sequence[str]) -> list[Override]:
    words = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    return OverridesParser.create().parse_overrides(words)


def _is_option(override: Override) -> bool:
    return "." not in override.key_or_group and not override.is_add()


def _paths(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in cfg:
        yield f"{prefix}{key!s}"
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing() or node._is_interpolation()):
            yield from _paths(node, f"{prefix}{key!s}.")


def _nearest(word: str, words: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]}? " if nearest else ""


def _first_line(text: str) -> str:
    if found := WORKER.match(text):
        text = found[1]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "unknown error"
