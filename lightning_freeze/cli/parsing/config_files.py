"""Config files in YAML, read as they are meant: no key twice, ``4:8`` is text, a number where text is expected is text.

YAML 1.1 reads ``4:8`` as 248 (a number to the base of 60) and ``no`` as false. Nobody means the first, so it is text
here. The second is what many write for false, so it stays a boolean; where text is expected, a message asks for quotes.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from jsonargparse import set_loader

from lightning_freeze.cli.parsing.expected_text import SECTIONS, numbers_as_text

#: What was wrong with lists and maps that could not be read, by their text, for messages: the parser takes such a
#: value for text.
problems: dict[str, str] = {}

#: Name of this way of reading for jsonargparse (``parser_mode``).
MODE = "lightning_freeze_yaml"

_INT = re.compile(r"^(?:[-+]?0b[01_]+|[-+]?0x[0-9a-fA-F_]+|[-+]?(?:0|[1-9][0-9_]*))$")
_FLOAT = re.compile(
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_TAG = "tag:yaml.org,2002:"
_REPLACED = {f"{_TAG}int", f"{_TAG}float", f"{_TAG}timestamp"}


class ConfigLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A safe loader that refuses a key that stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping.

        Raises:
            yaml.YAMLError: If a key stands in it twice.
        """
        seen: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                line = key.start_mark.line + 1
                if key.value in seen:
                    raise yaml.YAMLError(
                        f"the key {key.value!r} stands twice, in lines {seen[key.value]} and {line}: expected it once"
                    )
                seen[key.value] = line
        return dict(super().construct_mapping(node, deep=deep))


ConfigLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
ConfigLoader.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
ConfigLoader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))


def load_yaml(text: str) -> Any:
    """Read a config file, or a value from the command line.

    Raises:
        yaml.YAMLError: If it is no YAML, a key stands twice, or text is expected where something else stands.
    """
    try:
        return _load(text)
    except RecursionError:
        raise yaml.YAMLError("the nesting is too deep") from None
    except yaml.YAMLError as error:
        if text.lstrip()[:1] in ("{", "["):
            problems[text.strip()] = " ".join(str(error).split())
        raise


def _load(text: str) -> Any:
    try:
        value = yaml.load(text, Loader=ConfigLoader)
    except (ValueError, OverflowError, TypeError) as error:  # for example an integer of 5,000 digits
        raise yaml.YAMLError(str(error)) from None
    if isinstance(value, dict) and value and all(item is None for item in value.values()):
        # `2:` and `{a, b}` on the command line are text.
        inside = text.strip().strip("{}").replace(" ", "")
        if inside == ",".join(map(str, value)) or (inside == f"{next(iter(value))}:" and "\n" not in text):
            return text
    if isinstance(value, dict) and "\n" in text:
        # A section of a file whose options are all commented out says nothing.
        value = {name: item for name, item in value.items() if item is not None or name not in SECTIONS}
    return numbers_as_text(value)


set_loader(MODE, load_yaml, exceptions=(yaml.YAMLError,))
