"""The command ``lightning-freeze cache``: show a cache folder, check it, and remove parts of it."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_freeze.cache.store import folder
from lightning_freeze.cache.store.entry import VERSION, dtype_of, is_sound
from lightning_freeze.cache.store.folder import Namespace
from lightning_freeze.cache.store.lmdb_environment import Environment, Failed, acquire, release
from lightning_freeze.cache.store.lmdb_header import Damaged
from lightning_freeze.cache.store.network_folder import replacement
from lightning_freeze.cache.store.plain_files import is_file
from lightning_freeze.cache.store.sizes import parse_size, show_size
from lightning_freeze.cli.parsing.own_options import CommandParser
from lightning_freeze.errors import ConfigurationError, listing, suggest

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SHOWN = 8
_LONGEST_FIELD = 40


def main(args: Sequence[str]) -> None:
    """Run the command.

    Args:
        args: ``info DIR``, ``verify DIR`` or ``prune DIR`` and its options, or ``fill`` and the options of ``fit``.

    Raises:
        ConfigurationError: If the folder is no cache, or an option cannot be read.
        SystemExit: With code 1 if ``verify`` has found damage.
    """
    if list(args[:1]) == ["fill"]:
        from lightning_freeze.cli.cache_fill import main as fill  # the other commands need no model

        fill(args[1:])
        return
    options = _parser().parse_args(args)
    root = _cache(options.folder)
    {"info": _info, "verify": _verify, "prune": _prune}[options.command](root, options)


def _parser() -> CommandParser:
    parser = CommandParser(
        "lightning-freeze cache", description="Look after a FrozenPrefixCache on disk.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{fill,info,verify,prune}")
    commands.add_parser("fill", help="fill the cache of a fit ahead; takes the options of `lightning-freeze fit`")
    for name, help_text in (
        ("info", "what the folder holds"),
        ("verify", "read every entry; exit code 1 if any is damaged"),
        ("prune", "remove namespaces, least recently used first"),
    ):
        command = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        command.add_argument("folder", metavar="DIR", help="the cache_dir of the runs")
    command.add_argument("--older-than", metavar="AGE", help="those not used for so long: 12h, 30d, 4w")
    command.add_argument("--max-size", metavar="SIZE", help="as many as it takes to get below a size: 10GiB")
    command.add_argument("--namespace", metavar="ID", action="append", help="this one; its first digits are enough")
    command.add_argument("--all", action="store_true", help="all of them")
    return parser


def _cache(name: str) -> Path:
    replaced = replacement(Path(name))
    root = replaced.folder if replaced is not None and replaced.folder is not None else Path(name)
    if not os.path.isdir(root):
        names = _folders(Path(name).parent)
        place = f"{name!r} is on a network file system, and {root} on this machine" if replaced else repr(name)
        raise ConfigurationError(f"{place} does not exist: expected a cache_dir.{suggest(Path(name).name, names)}")
    if not is_file(root / folder.MARKER):
        inside = [child for child in _folders(root) if is_file(root / child / folder.MARKER)]
        hint = f" It contains {listing(sorted(inside))}, which is one." if len(inside) == 1 else ""
        raise ConfigurationError(f"{name!r} is no cache: expected a folder with {folder.MARKER} in it.{hint}")
    return root


def _folders(parent: Path) -> list[str]:
    try:
        return [child.name for child in parent.iterdir() if os.path.isdir(child)]
    except OSError:
        return []


def _check_version(root: Path) -> None:
    version = folder.version_of(root)
    if version != VERSION:
        raise ConfigurationError(
            f"{str(root)!r} is a cache of version {version or '?'}: expected version {VERSION}. `lightning-freeze "
            f"cache prune {root} --all` empties it."
        )


def _info(root: Path, _: argparse.Namespace) -> None:
    _check_version(root)
    held = folder.namespaces(root)
    table = Table("id", "model", "frozen blocks", "dtype", "entries", "size", "last used", box=None, pad_edge=False)
    for namespace in reversed(held):
        info, (count, dtype) = namespace.info, _look(namespace)
        tower = f" ({_field(info, 'tower')})" if info.get("tower") else ""
        blocks = f"{_field(info, 'blocks')} of {_field(info, 'of')}"
        row = (
            namespace.name[:_SHOWN], f"{_field(info, 'model')}{tower}", blocks, dtype, count,
            show_size(namespace.bytes), _ago(time.time() - namespace.used),
        )  # fmt: skip
        # As text, so that nothing in it is taken for markup.
        table.add_row(*map(Text, row))
    if held:
        Console().print(table)
    _report_refused(root)
    print(f"{root}: {_counted(held)}")


def _field(info: dict[str, object], name: str) -> str:
    """A field of info.json, made safe for a terminal: other users may have written the file."""
    value = info.get(name, "?")
    text = str(value) if isinstance(value, str | int | float) else "?"
    shown = "".join(character if character.isprintable() else "?" for character in text[: _LONGEST_FIELD + 1])
    return shown if len(shown) <= _LONGEST_FIELD else shown[: _LONGEST_FIELD - 3] + "..."


def _report_refused(root: Path) -> None:
    for path in folder.refused(root):
        print(f"{path.name[:_SHOWN]}: is not used, because it is a link or no folder")


def _look(namespace: Namespace) -> tuple[str, str]:
    """The number of entries and the dtype of the first one."""
    try:
        # Without the lock file, so that nothing is written.
        with _opened(namespace, lock=False) as environment:
            if environment.is_quick_to_check and environment.problem():
                return "damaged", "?"
            first = next(iter(environment.each()), None)
            return f"{len(environment):,}", dtype_of(first[1]) if first else ""
    except (Failed, Damaged, OSError):
        return "damaged", "?"


def _verify(root: Path, _: argparse.Namespace) -> None:
    _check_version(root)
    sound = damaged = broken = 0
    for namespace in folder.namespaces(root):
        good, bad, problem = _verify_one(namespace)
        sound, damaged, broken = sound + good, damaged + bad, broken + bool(problem)
        if bad or problem:
            print(f"{namespace.name[:_SHOWN]}: {problem or f'{bad:,} of {good + bad:,} entries are damaged'}")
    _report_refused(root)
    print(f"{root}: {sound:,} entries are sound, {damaged:,} are damaged" + f", {broken} unreadable" * bool(broken))
    if damaged or broken:
        print("Runs compute damaged entries again. `lightning-freeze cache prune` removes a namespace as a whole.")
        sys.exit(1)


def _verify_one(namespace: Namespace) -> tuple[int, int, str]:
    """The number of sound and of damaged entries, and what is wrong with the file itself."""
    name = bytes.fromhex(namespace.name)
    good = bad = 0
    try:
        with _opened(namespace, lock=True) as environment:
            problem = environment.problem()
            if problem:
                return 0, 0, problem
            for key, data in environment.each():
                if is_sound(name + key, data):
                    good += 1
                else:
                    bad += 1
    except (Failed, Damaged, OSError) as error:
        return good, bad, f"cannot be read ({error})"
    return good, bad, ""


@contextlib.contextmanager
def _opened(namespace: Namespace, lock: bool) -> Iterator[Environment]:
    environment = acquire(namespace.path, readonly=True, lock=lock)
    try:
        yield environment
    finally:
        release(environment)


def _prune(root: Path, options: argparse.Namespace) -> None:
    held = folder.namespaces(root)
    if not (options.older_than or options.max_size or options.namespace or options.all):
        raise ConfigurationError(
            "prune needs to be told what to remove: expected --older-than, --max-size, --namespace or --all."
        )
    if not options.all:
        _check_version(root)
    doomed = {n.name: n for n in held if options.all}
    for given in options.namespace or ():
        doomed.update({n.name: n for n in _named(given, held)})
    if options.older_than:
        limit = time.time() - _seconds(options.older_than)
        doomed.update({n.name: n for n in held if n.used < limit})
    if options.max_size:
        most = parse_size(options.max_size, "--max-size") or 0
        left = [n for n in held if n.name not in doomed]
        while left and sum(n.bytes for n in left) > most:
            oldest = left.pop(0)
            doomed[oldest.name] = oldest
    try:
        for namespace in doomed.values():
            with contextlib.suppress(FileNotFoundError):  # removed by another process at the same time
                folder.remove(namespace)
        folder.sweep(root)
        if options.all:
            for path in folder.refused(root):
                if path.is_symlink():
                    path.unlink()
            (root / folder.MARKER).unlink()
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        raise ConfigurationError(f"{root} cannot be pruned:{place}: {error.strerror or error}.") from error
    left = [n for n in held if n.name not in doomed]
    print(f"{root}: removed {_counted(doomed.values())}; {_counted(left)} left")


def _named(given: str, held: Sequence[Namespace]) -> list[Namespace]:
    found = [n for n in held if n.name.startswith(given.lower())]
    if len(found) != 1:
        choices = [n.name[:_SHOWN] for n in held]
        many = f"is the beginning of {len(found)} namespaces" if found else "is no namespace of this cache"
        raise ConfigurationError(
            f"--namespace {given!r} {many}: expected one of {listing(choices)}.{suggest(given[:_SHOWN], choices)}"
        )
    return found


def _seconds(age: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhdw])", age.strip().lower())
    if match is None:
        raise ConfigurationError(f"--older-than is {age!r}: expected a number with m, h, d or w, like '30d'.")
    return float(match[1]) * _UNITS[match[2]]


def _ago(seconds: float) -> str:
    for unit, size in reversed(_UNITS.items()):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"


def _counted(held: Iterable[Namespace]) -> str:
    found = list(held)
    return f"{len(found)} namespace{'s' * (len(found) != 1)}, {show_size(sum(n.bytes for n in found))}"
