"""Reads gin files and `--gin.NAME=VALUE` flags, and refuses what would change nothing.

What each of them reaches is found by `reach`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import io
import os
import pathlib
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config as gin_config
from gin import config_parser
from pit_jax import reach
from pit_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
_WHOLE = """\
# The whole configuration of a run, its command line included. It starts the same run again:
# python -m pit_jax run --gin_file=THIS_FILE
# Commonly overridden: MODEL_DIR.

"""
_ERRORS = (
    ValueError,
    TypeError,
    RuntimeError,
    SyntaxError,
    NameError,
    AttributeError,
    tokenize.TokenError,
    ImportError,
    OSError,
    KeyError,
)


def take_out(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Takes `--gin.NAME=VALUE` and `--gin.NAME VALUE` out of the arguments.

    Returns:
      the other arguments, and (name, value) of each binding; `parse` refuses empty ones.
    """
    todo, rest, flags = list(argv), [], []
    while todo:
        argument = todo.pop(0)
        if not argument.startswith("--gin."):
            rest.append(argument)
            continue
        name, equals, value = argument.removeprefix("--gin.").partition("=")
        if not equals and todo and not todo[0].startswith("--"):
            value = todo.pop(0)
        flags.append((name.strip(), value.strip()))
    return rest, flags


def parse(
    files: Sequence[str],
    search_paths: str,
    flags: Sequence[tuple[str, str]],
    roots: Sequence[type],
    takes_stage: bool = True,
    text: str = "",
    more: str = "",
) -> None:
    """Sets up gin with files, then flags.

    Args:
      files: gin files; each is looked for here, in the search paths and beside the package.
      search_paths: folders, separated by commas, in which included files are looked for too.
      flags: (name, value) of each flag.
      roots: the configurations that the command is going to make.
      takes_stage: whether the command does something with STAGE.
      text: the content of a gin file that comes before the files; all of it has an effect.
      more: that of one that comes after the flags, likewise.

    Raises:
      UserError: for what can't be read, isn't there, or would change nothing. A file's own
        bindings are judged, not those of the files that it includes; what a later file or flag
        puts out of use is no mistake of an earlier one, nor are settings of a stage that this run
        leaves out.
    """
    folders = [str(ROOT), *filter(None, map(os.path.expanduser, search_paths.split(",")))]
    for folder in folders:
        gin.add_config_file_search_path(folder)
    gin.clear_config()
    gin.parse_config(text)
    given: list[reach.Binding] = []
    used: set[reach.Key] = set()
    for file in files:
        given += _parse_file(file, folders)
        used |= reach.find(roots).used
    flagged = [_bind(name, value, roots) for name, value in flags]
    found = reach.find(roots)
    for binding in given:
        key = binding.key
        if key not in used and key.scope != reach.STAGE and not reach.is_left_out(key, found):
            reach.judge(binding, found, used)
    for binding in flagged:
        if binding.key == reach.Key(reach.STAGE, reach.MACRO, "value"):
            if not takes_stage:
                raise UserError(
                    f"{binding.place}={binding.value} has no effect: this command is about all "
                    "stages, and train about one"
                )
        else:
            reach.judge(binding, found, used)
    gin.parse_config(more)
    _settle_imports()
    with errors():
        gin.finalize()


def _settle_imports() -> None:
    """Keeps one import of each module: of several, gin writes any, another in the next process."""
    kept: dict[str, Any] = {}
    for each in sorted(gin_config._IMPORTS, key=lambda e: (e.module, not e.is_from, e.alias or "")):
        kept.setdefault(each.module, each)
    gin_config._IMPORTS.intersection_update(kept.values())


def configured(cls: type) -> Any:
    """Returns an instance of a configuration class with its bindings."""
    with errors():
        return gin.get_configurable(cls)()


def read(file: str, roots: Sequence[type]) -> list[Any]:
    """Returns the configurations that a gin file makes, and leaves gin as it was.

    Args:
      file: a gin file, such as `whole` makes it.
      roots: the configurations.

    Raises:
      UserError: for what `parse` refuses.
    """
    with _kept():
        parse([file], "", (), roots, takes_stage=False)
        return [configured(root) for root in roots]


def read_part(file: str, field: str, roots: Sequence[type]) -> Any:
    """Returns a part of a configuration that a gin file makes, and leaves gin as it was.

    Args:
      file: a gin file of the whole configuration, or of the part alone.
      field: the field of the whole that has the part.
      roots: the whole configuration; what is made if the file doesn't bind the field; and what else
        the file may bind.

    Raises:
      UserError: for what `parse` refuses.
    """
    with _kept():
        parse([file], "", (), roots, takes_stage=False)
        with errors(file):
            is_whole = field in gin.get_bindings(roots[0], resolve_references=False)
            return getattr(configured(roots[0]), field) if is_whole else configured(roots[1])


def over(text: str, flags: Sequence[tuple[str, str]], cls: type) -> dict[str, Any]:
    """Returns the fields of a configuration that a gin text binds, with flags on top.

    Args:
      text: binds some fields of the configuration, and what they are made of.
      flags: (name, value) of each flag.
      cls: the configuration; it isn't made.

    Raises:
      UserError: for a flag that `parse` refuses.
    """
    with _kept():
        parse((), "", flags, (cls,), takes_stage=False, text=text)
        with errors():
            return dict(gin.get_bindings(cls))


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Brings all that gin knows of configurations back to what it is now."""
    tables = (gin_config._CONFIG, gin_config._OPERATIVE_CONFIG)
    before = [{key: dict(values) for key, values in table.items()} for table in tables]
    others = (gin_config._IMPORTS, gin_config._SINGLETONS, gin_config._LOCATION_PREFIXES)
    imports, singletons, prefixes = map(copy.copy, others)
    locked = gin.config_is_locked()
    try:
        with gin.config_scope(None):
            yield
    finally:
        gin.clear_config()
        for table, values in zip(tables, before, strict=True):
            table.update(values)
        gin_config._IMPORTS.update(imports)
        gin_config._SINGLETONS.update(singletons)
        gin_config._LOCATION_PREFIXES[:] = prefixes
        gin_config._set_config_is_locked(locked)


def stage(names: Iterable[str], needed: bool = True) -> str:
    """Returns the stage that STAGE names; gin/ sets none, so that none is trained unasked.

    Args:
      names: of the stages that there are.
      needed: whether it is a mistake that STAGE isn't set; if not, the name is then empty.

    Raises:
      UserError: if it isn't a name.
    """
    choices = ", ".join(names)
    try:
        found = gin.query_parameter(f"%{reach.STAGE}")
    except ValueError:
        if not needed:
            return ""
        raise UserError(
            f"no stage given, expected --gin.STAGE=NAME with one of {choices}"
        ) from None
    if not isinstance(found, str):
        raise UserError(f"STAGE: got {found!r}, expected one of {choices}")
    return found


def operative() -> str:
    """Returns every setting that was used, those by default included."""
    return gin.operative_config_str()


def whole(roots: Sequence[type]) -> str:
    """Returns all that is bound with effect, flags included, as a gin file that includes no other.

    Bindings stay as they were given. gin's operative configuration would repeat for each stage what
    all stages share, and a later `--gin.LoopConfig.log_every=5` would change none of them. STAGE is
    left out: it says what to do with a run, and is no part of one.
    """
    bound: dict[tuple[str, str], dict[str, Any]] = {}
    for key in reach.find(roots).used:
        bound.setdefault(key[:2], {})[key.parameter] = gin_config._CONFIG[key[:2]][key.parameter]
    return _WHOLE + gin_config._config_str(bound)


def written(fields: Mapping[tuple[type, str], Any]) -> str:
    """Writes values of fields as a gin file, configurations in them with all of their own fields.

    Args:
      fields: (configuration, field) -> its value. A configuration in it that has a `name` is made
        in the scope of this name.
    """
    modules: dict[str, str] = {}
    lines: list[str] = []

    def called(cls: type) -> str:
        alias = "_".join(cls.__module__.split(".")[1:])
        modules[cls.__module__] = alias
        return f"{alias}.{cls.__name__}"

    def value_of(value: Any, scope: str) -> str:
        if isinstance(value, tuple):
            parts = [value_of(part, f"{scope}_{n}") for n, part in enumerate(value)]
            return f"({', '.join(parts)}{',' * (len(parts) == 1)})"
        if not dataclasses.is_dataclass(value):
            return repr(value)
        scope, cls = getattr(value, "name", scope), type(value)
        for field in dataclasses.fields(value):
            part = value_of(getattr(value, field.name), f"{scope}/{field.name}")
            lines.append(f"{scope}/{called(cls)}.{field.name} = {part}")
        return f"@{scope}/{called(cls)}()"

    for (cls, name), value in fields.items():
        text = value_of(value, name)
        lines.append(f"{called(cls)}.{name} = {text}")
    imports = [
        f"from {module.rpartition('.')[0]} import {module.rpartition('.')[2]} as {alias}"
        for module, alias in modules.items()
    ]
    return "\n".join(["from __gin__ import dynamic_registration", *imports, *lines, ""])


# --- reading ----------------------------------------------------------------------------------


def _opened(path: str) -> io.StringIO:
    """Opens an included file as one that is given: at home for `~`, without a byte order mark."""
    try:
        return _named(path, pathlib.Path(os.path.expanduser(path)))
    except UnicodeDecodeError:
        raise UserError(f"{path}: can't be read, expected UTF-8 text") from None


gin_config._FILE_READERS[:] = [(_opened, lambda path: os.path.isfile(os.path.expanduser(path)))]


class _Named(io.StringIO):
    """A text that gin takes for the file of its name."""

    name = ""


def _named(name: str, path: pathlib.Path) -> _Named:
    source = _Named(path.read_text(encoding="utf-8-sig"))
    source.name = name
    return source


def _parse_file(file: str, folders: Iterable[str]) -> list[reach.Binding]:
    """Parses a file; returns its own bindings, without those of the files that it includes."""
    wanted = os.path.expanduser(file)
    paths = [pathlib.Path(folder) / wanted for folder in (".", *folders)]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise UserError(f"--gin_file: {file} not found{_nearest_file(paths[1])}")
    with errors(file, is_file=True):
        source = _named(file, path)
        gin.parse_config(source)
    text = source.getvalue()
    with gin_config._parse_scope() as context:
        own = list(reach.own_bindings(file, text, context))
    last = {binding.key: (binding, value) for binding, value in own}
    for binding, value in last.values():
        now = gin_config._CONFIG[binding.key[:2]][binding.key.parameter]
        if value != now:
            raise UserError(
                f"{binding.place} = {value!r} has no effect: a file that is included after it sets "
                f"{now!r}; includes come first"
            )
    return [binding for binding, _ in own]


def _nearest_file(path: pathlib.Path) -> str:
    """A hint at the gin file that may have been meant."""
    stems = {each.stem: each for each in path.parent.glob("*.gin")}
    close = difflib.get_close_matches(path.stem, stems, n=1)
    return f"; did you mean {_shown(stems[close[0]])}?" if close else ""


def _shown(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _bind(name: str, value: str, roots: Sequence[type]) -> reach.Binding:
    """Binds what a flag says."""
    place = f"--gin.{name}"
    if not re.fullmatch(r"[\w./]+", name):
        raise UserError(f"{place}: got the name {name!r}, expected --gin.NAME=VALUE")
    if not value:
        raise UserError(f"{place}: got no value, expected {place}=VALUE")
    scope, selector, parameter = config_parser.parse_binding_key(name)
    try:
        key = reach.key_of(scope, selector, parameter)
    except _ERRORS:
        wanted = reach.nearest(name, reach.find(roots).settable())
        raise UserError(f"{place}: there is no such setting{wanted}") from None
    with errors(f"{place}={value}"):
        gin.bind_parameter(tuple(key), _value(value))
    return reach.Binding(key, place, " ".join(value.split()))


def _value(text: str) -> Any:
    """The value that a text means to gin; a text without quotes that means none is that text."""
    try:
        parser = config_parser.ConfigParser(f"value = {text}", gin_config.ParserDelegate())
        (statement,) = parser
        return statement.value
    except _ERRORS:
        if text[0] in "'\"([{@%":
            raise
        return text


# --- errors -----------------------------------------------------------------------------------

# What gin says -> what its user reads.
_PLAINLY = (
    (r".*Failed to parse token '(.*)'.*", r"got \1, expected a value; text stands in quotes"),
    (
        r"(?:No bindings specified for '(\w+)/gin\.macro'|(\w+)/macro\.value set to `%gin\.RE).*",
        r"\1\2 isn't set, expected --gin.\1\2=VALUE",
    ),
    (r"(\S+) set to `%gin\.REQUIRED`.*", r"\1 isn't set, expected --gin.\1=VALUE"),
    (r"(\w+)\.__init__\(\) missing .*?: (.*?) No values.*", r"\1 has no value for \2"),
    (r"'utf-8' codec can't decode.*", "can't be read, expected UTF-8 text"),
    (r"Couldn't resolve selector (\S+); .*? has no attribute (\w+)\..*", r"\1: there is no \2"),
)


@contextlib.contextmanager
def errors(source: str = "", is_file: bool = False) -> Iterator[None]:
    """Makes one line of what gin raises for a user's configuration.

    Args:
      source: the file or flag that is being read; it opens the message.
      is_file: whether gin tells of a line of it.
    """
    try:
        yield
    except UserError as error:
        raise UserError(_scoped(str(error))) from error
    except RecursionError:  # whose text is too deep to be made
        where = f"{source}: " if source else ""
        raise UserError(f"gin: {where}a macro or an include leads back to itself") from None
    except _ERRORS as error:
        text, place = " ".join(str(error).partition(" in config string")[0].split()), source
        if isinstance(error, SyntaxError) and error.lineno:
            text = error.msg.splitlines()[-1].strip()
            place = f"{error.filename}:{error.lineno}"
        elif found := re.search(r' In file "([^"]*)", line (\d+) ', text):
            text, place = text[: found.start()], f"{found[1]}:{found[2]}"
        hint = reach.hint(text)
        text = re.sub(r" In call to configurable .*? in scope '([^']+)'.*", r" (in \1)", text)
        text = text.partition(" In call to configurable")[0]
        for pattern, plainly in _PLAINLY:
            text = re.sub(f"^{pattern}$", plainly, text)
        where = place if is_file else source
        raise UserError(f"gin: {where}{': ' * bool(where)}{text[:600]}{hint}") from error


def _scoped(text: str) -> str:
    """The first line of an error, with the scope in which gin was making what it is about.

    gin appends the configurables that were being made, a line each, the innermost first.
    """
    line, _, rest = text.partition("\n")
    made = re.match(r"\s*In call to configurable '(\w+)' .*?(?: in scope '([^']+)')?(?:\n|$)", rest)
    field = re.match(r"(\w+)\.(\w+): ", line)
    if not (made and field and made[1] == field[1]):
        return line
    scope = made[2] or ""
    scopes, source = tuple(filter(None, scope.split("/"))), ""
    for selector in {selector for _, selector in gin_config._CONFIG}:
        if reach.class_name(selector) != field[1]:
            continue
        for key, value in reach.in_effect(scopes, selector).items():
            if key.parameter == field[2] and repr(value).startswith("%"):
                source = f" (from {repr(value)[1:]})"
    return f"{scope}/{line}{source}" if scope else f"{line}{source}"
