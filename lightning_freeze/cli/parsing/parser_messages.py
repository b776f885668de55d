"""jsonargparse's message about every type that it tried, as one sentence about the value that is wrong."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass

from lightning_freeze.cli.parsing.known_classes import find_class, import_failure, nearest_class, takes_class
from lightning_freeze.errors import listing, suggest

_KEY = re.compile(r"(?:Parser key|Problem with key) [\"'](?P<key>[^\"']+)[\"']:")
_CLASS = re.compile(r"Problem with given class_path '(?P<name>[^']+)':")
_VALUE = re.compile(r"(?:Given value:|Got value:) (?P<value>.*?)(?:\. Got value:.*)?$")
_NESTED = re.compile(r"NestedArg\(key='[^']*', val=(?P<value>.*)\)$")
_NO_CLASS = re.compile(
    r"Expected a dot import path string: (?P<name>.*)|(?:Import of|Unexpected import path format:) '?(?P<other>[^\s']+)"
)
_NOT_THERE = re.compile(r"^(?:module '[^']*' has no attribute|No module named)")
_REQUIRED = re.compile(r"the following arguments are required: (\w+(?:\.\w+)*(?:, \w+(?:\.\w+)*)*)")
_NO_SUBCLASS = re.compile(
    r"Expected '(?P<name>[^']*)' to be a subclass of <class '(?P<base>[^']*)'>"
    r"|Import path (?P<path>\S+) does not correspond to a subclass of (?P<kind>\w+)"
)
_NO_OPTION = re.compile(
    r"(?:Option|Key|Group key) ['\"](?P<name>[\w.\-]+)['\"] is not (?:accepted|expected)"
    r"|No action for key ['\"](?P<key>[\w.\-]+)"
)
_CLASS_FORM = "{class_path: NAME, init_args: {...}}"
_TYPES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list",
    "dict": "a map", "NoneType": "null", "tuple": "a list",
}  # fmt: skip
_LONGEST_VALUE, _LONGEST = 120, 400
_BASE_CLASSES = ("lightning.Callback", "lightning.pytorch.Callback", "lightning.pytorch.callbacks.Callback")


@dataclass
class _Found:
    """One reason in a message, and where in the config it applies."""

    keys: tuple[str, ...]
    classes: tuple[str, ...]
    text: str

    @property
    def depth(self) -> int:
        return len(self.keys) + len([name for name in self.classes if name not in _BASE_CLASSES])


def shortened(message: str, options: Iterable[str]) -> str:
    """Return a message of the parser in one or two sentences, with the nearest valid choice.

    Args:
        message: What jsonargparse says.
        options: The names of all options, without dashes.
    """
    unknown = re.search(r"unrecognized arguments?: (.*)|Unrecognized arguments?: (.*)", message, re.DOTALL)
    if unknown:
        return _unknown_options((unknown[1] or unknown[2] or "?").split() or ["?"], options)
    if rejected := re.search(r"(Subcommand|Group) '([^']*)' does not accept option '([^']*)'", message):
        name = rejected[3] if rejected[1] == "Subcommand" else f"{rejected[2]}.{rejected[3]}"
        return f"There is no option {_cut(name)}.{_nearest_option(name, options)}"
    if content := re.match(r"Unexpected config:(.*)", message, re.DOTALL):
        what = f"this is {_cut(repr(content[1].strip()))}" if content[1].strip() else "this is empty"
        return f"A config holds options by name, as in 'trainer: {{max_epochs: 3}}': {what}."
    if linked := re.search(r"argument (\S+) --> (\S+):", message):
        return f"{linked[2]} is taken from {linked[1]}: expected it to be left out, or {linked[1]} to be given."
    found = _reasons(message)
    if not found or "Problems parsing config" in message:
        return _one_line(message)
    useful = [reason for reason in found if "<class 'NoneType'>" not in reason.text] or found
    deepest = max(useful, key=lambda reason: reason.depth)
    return _sentence(deepest, [reason for reason in found if reason.keys == deepest.keys], message)


def _reasons(message: str) -> list[_Found]:
    """Read the tree that indentation makes of the lines."""
    found: list[_Found] = []
    stack: list[tuple[int, str, str]] = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        indent = len(line) - len(line.lstrip())
        if not text or text.startswith(("Subtypes:", "Errors:", "Given value type:", "Does not validate against")):
            continue
        while stack and stack[-1][0] >= indent and not text.startswith("Given value"):
            stack.pop()
        for kind, pattern in (("key", _KEY), ("class", _CLASS)):
            for match in pattern.finditer(text):
                stack.append((indent, kind, match[1]))
            text = pattern.sub("", text).strip()
        if text:
            keys = tuple(label for _, kind, label in stack if kind == "key")
            found.append(_Found(keys, tuple(label for _, kind, label in stack if kind == "class"), text))
    return found


def _sentence(reason: _Found, siblings: list[_Found], message: str) -> str:
    option = ".".join(reason.keys)
    place = f"{option}: " if option else ""
    for name in _class_names(reason, option, _value(siblings, message) or ""):
        if failure := import_failure(name):
            return f"{place}{_cut(name)!r} cannot be imported. {failure}."
    for sibling in siblings:
        if needed := _REQUIRED.search(sibling.text):
            owner = sibling.classes[-1].rpartition(".")[2] if sibling.classes else (option or "The command")
            # The options of a subcommand begin with its name.
            names = (
                needed[1] if sibling.classes or option else re.sub(r"\b(fit|validate|test|predict)\.", "", needed[1])
            )
            return f"{place if sibling.classes else ''}{owner} needs {names}."
        if several := re.search(r"Multiple subclasses with name (\w+)\..*ambiguity: (.*)\.$", sibling.text):
            return f"{place}{several[1]} is the name of several classes: expected one of {several[2]}."
        if wrong := _NO_SUBCLASS.search(sibling.text):
            return f"{place}{(wrong['name'] or wrong['path'])!r} is no {wrong['base'] or wrong['kind']}."
        if sibling.classes and _NOT_THERE.search(sibling.text):
            return _no_class(sibling.classes[-1], option, [])
    for sibling in siblings:
        if missing := _NO_OPTION.search(sibling.text):
            argument = missing["name"] or missing["key"]
            if argument == "class_path":
                given = _value(siblings, message)
                return f"{place}{_cut(given or 'a map')} is no class: expected {_CLASS_FORM} and no other keys."
            return place + _no_argument(argument, sibling.classes)
    value = _value(siblings, message)
    expected = [name for sibling in siblings for name in _expected(sibling.text)]
    choices = [name for sibling in siblings for name in _choices(sibling.text)]
    if choices and value is not None:
        return f"{option} is {_cut(value)}: expected one of {listing(choices)}.{suggest(value.strip(chr(39)), choices)}"
    for sibling in siblings:
        if match := _NO_CLASS.search(sibling.text):
            return _no_class((match["name"] or match["other"]).strip(), option, expected)
    if expected and value is not None:
        names = [name for name in dict.fromkeys(expected) if name != "null"]
        if not names:
            names = [_CLASS_FORM if "valid subclass of" in message else "null"]
        hint = ""
        if "text" in names and not value.startswith(("'", '"')) and re.fullmatch(r"[\w.\-]+", value):
            hint = " YAML reads no, off, on and yes as booleans." if value in ("True", "False") else ""
            hint += " Put quotes around it."
        return f"{option or 'A value'} is {_cut(value)}: expected {' or '.join(names)}.{hint}"
    return _one_line(place + reason.text)


def _class_names(reason: _Found, option: str, value: str) -> list[str]:
    """The import paths of the classes that a message may be about."""
    alone = [value.strip("'\"")] if takes_class(option) else []
    names = [*reason.classes[-1:], *re.findall(r"'class_path': '([^']*)'", value), *alone]
    return [name for name in dict.fromkeys(names) if re.fullmatch(r"\w+(\.\w+)+", name)]


def _choices(text: str) -> list[str]:
    """The values that a reason names, in the order that it names them."""
    found = re.search(r"[Ee]xpected an? (?:typing\.)?Literal\[(.*)\]", text)
    return re.findall(r"'([^']*)'", found[1]) if found else []


def _expected(text: str) -> list[str]:
    """What types a reason names, in words."""
    if form := re.search(r"Expected a string with form (.*?) but got", text):
        return [f"text like {form[1]}"]
    names = re.findall(r"[Ee]xpected (?:an? )?(?:<class '([\w.]+)'>|([a-z][\w.]*)\b)", text)
    if sized := re.search(r"Expected a tuple with (\d+) elements", text):
        return [f"a list of {sized[1]}"]
    return [_TYPES[name] for name in ((a or b).rpartition(".")[2] for a, b in names) if name in _TYPES]


def _value(siblings: list[_Found], message: str) -> str | None:
    for text in [sibling.text for sibling in siblings] + message.splitlines():
        if match := _VALUE.search(text):
            value = match["value"].strip()
            nested = _NESTED.search(value)
            return nested["value"] if nested else (value if value[:1] in "'\"[{" or _is_scalar(value) else repr(value))
    return None


def _is_scalar(value: str) -> bool:
    return value in ("True", "False", "None") or bool(re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value))


def _no_class(name: str, option: str, expected: list[str]) -> str:
    kinds = [kind for kind in dict.fromkeys(expected) if kind != "null"]
    place = f"{option}: " if option else ""
    if call := re.fullmatch(r"([\w.]+)\((.*)\)", name):
        return f"{place}{_cut(name)} is no class: expected the form {{class_path: {call[1]}, init_args: {{...}}}}."
    nearest = nearest_class(name, option)
    if kinds and not nearest:
        return f"{option} is {_cut(name)!r}: expected {' or '.join(kinds)}, or a class."
    return f"{place}{_cut(name)!r} is not the name of a class.{nearest}"


def _no_argument(name: str, classes: tuple[str, ...]) -> str:
    known = next((cls for cls in map(find_class, reversed(classes)) if cls is not None), None)
    if known is None:
        return f"there is no option {name!r}."
    arguments = list(inspect.signature(known.__init__).parameters)[1:]  # type: ignore[misc]
    nearest = suggest(name, arguments)
    expected = "." if nearest else f": expected one of {listing(arguments)}." if arguments else ": it takes none."
    return f"{known.__name__} has no argument {name!r}{expected}{nearest}"


def _unknown_options(given: list[str], options: Iterable[str]) -> str:
    name = given[0].partition("=")[0]
    what = "There is no option" if name.startswith("-") else "There is no place for"
    return f"{what} {_cut(name)}.{_nearest_option(name.lstrip('-'), options)}"


def _nearest_option(name: str, options: Iterable[str]) -> str:
    names = sorted(set(options))
    begun = [option for option in names if option.startswith(name)]
    if name and len(begun) == 1:
        return suggest(begun[0], begun)
    return suggest(name, names) or suggest(name.rpartition(".")[2], [n.rpartition(".")[2] for n in names])


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def _cut(value: str) -> str:
    return value if len(value) <= _LONGEST_VALUE else value[: _LONGEST_VALUE - 3] + "..."
