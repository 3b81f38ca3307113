"""Reads gin files and `--gin.NAME=VALUE` flags, and refuses what would change nothing.

gin itself takes a macro that nobody uses, a scope that names no stage, and a value that a scoped
one hides, all without a word. So this walks from the configurations of a command through all that
they are made of, as gin will make them, and knows what each binding reaches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import pathlib
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import gin
from gin import config as gin_config
from gin import config_parser
from pit_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
_MACRO = "gin.macro"
_STAGE = "STAGE"  # what it names is trained or converted; no configuration has it
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


class Key(NamedTuple):
    """What is bound: a parameter of a configurable in a scope; a macro is the scope of its own."""

    scope: str
    selector: str
    parameter: str

    def __str__(self) -> str:
        if self.selector == _MACRO:
            return self.scope
        name = f"{_class_name(self.selector)}.{self.parameter}"
        return f"{self.scope}/{name}" if self.scope else name


class Binding(NamedTuple):
    """Something that the user has bound, and how to speak of it."""

    key: Key
    place: str
    value: str = ""


class Reach(NamedTuple):
    """What is used of all that is bound.

    Attributes:
      used: every binding that gives something its value.
      made: (scopes, selector) of everything that is made -> its class or function.
    """

    used: set[Key]
    made: dict[tuple[tuple[str, ...], str], Any]

    def scopes_of(self, selector: str) -> list[tuple[str, ...]]:
        """The scopes in which something is made."""
        return [scopes for scopes, made in self.made if made == selector]

    def settable(self) -> list[str]:
        """The names of all macros and fields that can be bound with effect, macros first."""
        macros = sorted(key.scope for key in self.used if key.selector == _MACRO)
        fields = [
            str(Key("/".join(scopes), selector, field.name))
            for (scopes, selector), cls in self.made.items()
            if dataclasses.is_dataclass(cls)
            for field in dataclasses.fields(cls)
        ]
        return [*macros, _STAGE, *fields]


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
) -> None:
    """Sets up gin with files, then flags.

    Args:
      files: gin files; each is looked for here, in the search paths and beside the package.
      search_paths: folders, separated by commas, in which included files are looked for too.
      flags: (name, value) of each flag.
      roots: the configurations that the command is going to make.
      takes_stage: whether the command does something with STAGE.

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
    given: list[Binding] = []
    used: set[Key] = set()
    for file in files:
        given += _parse_file(file, folders)
        used |= _reach(roots).used
    flagged = [_bind(name, value, roots) for name, value in flags]
    reach = _reach(roots)
    for binding in given:
        key = binding.key
        if key not in used and key.scope != _STAGE and not _is_left_out(key):
            _judge(binding, reach, used)
    for binding in flagged:
        if binding.key == Key(_STAGE, _MACRO, "value"):
            if not takes_stage:
                raise UserError(
                    f"{binding.place}={binding.value} has no effect: this command is about all "
                    "stages, and train about one"
                )
        else:
            _judge(binding, reach, used)
    with errors():
        gin.finalize()


def configured(cls: type) -> Any:
    """Returns an instance of a configuration class with its bindings."""
    with errors():
        return gin.get_configurable(cls)()


def stage(names: Iterable[str]) -> str:
    """Returns the stage that STAGE names; gin/ sets none, so that none is trained unasked."""
    choices = ", ".join(names)
    try:
        found = gin.query_parameter(f"%{_STAGE}")
    except ValueError:
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
    for key in _reach(roots).used:
        bound.setdefault(key[:2], {})[key.parameter] = gin_config._CONFIG[key[:2]][key.parameter]
    return _WHOLE + gin_config._config_str(bound)


# --- reading ----------------------------------------------------------------------------------


class _Named(io.StringIO):
    """A text that gin takes for the file of its name."""

    name = ""


def _parse_file(file: str, folders: Iterable[str]) -> list[Binding]:
    """Parses a file; returns its own bindings, without those of the files that it includes."""
    wanted = os.path.expanduser(file)
    paths = [pathlib.Path(folder) / wanted for folder in (".", *folders)]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise UserError(f"--gin_file: {file} not found{_nearest_file(paths[1])}")
    with errors(file, is_file=True):
        text = path.read_text(encoding="utf-8-sig")
        source = _Named(text)
        source.name = file
        gin.parse_config(source)
    with gin_config._parse_scope() as context:
        return list(_own_bindings(file, text, context))


def _own_bindings(file: str, text: str, context: Any) -> Iterator[Binding]:
    """Reads a file that gin has taken once more, for its own bindings and their lines."""
    for statement in config_parser.ConfigParser(text, gin_config.ParserDelegate()):
        if isinstance(statement, config_parser.ImportStatement):
            context.process_import(statement)
        elif isinstance(statement, config_parser.BindingStatement):
            key = _key(statement.scope, statement.selector, statement.arg_name)
            yield Binding(key, f"{file}:{statement.location.line_num}: {key}")


def _nearest_file(path: pathlib.Path) -> str:
    """A hint at the gin file that may have been meant."""
    stems = {each.stem: each for each in path.parent.glob("*.gin")}
    close = difflib.get_close_matches(path.stem, stems, n=1)
    return f"; did you mean {_shown(stems[close[0]])}?" if close else ""


def _shown(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _bind(name: str, value: str, roots: Sequence[type]) -> Binding:
    """Binds what a flag says."""
    place = f"--gin.{name}"
    if not re.fullmatch(r"[\w./]+", name):
        raise UserError(f"{place}: got the name {name!r}, expected --gin.NAME=VALUE")
    if not value:
        raise UserError(f"{place}: got no value, expected {place}=VALUE")
    scope, selector, parameter = config_parser.parse_binding_key(name)
    try:
        key = _key(scope, selector, parameter)
    except _ERRORS:
        wanted = _nearest(name, _reach(roots).settable())
        raise UserError(f"{place}: there is no such setting{wanted}") from None
    with errors(f"{place}={value}"):
        gin.bind_parameter(tuple(key), _value(value))
    return Binding(key, place, " ".join(value.split()))


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


def _key(scope: str, selector: str, parameter: str) -> Key:
    if not parameter:
        return Key(f"{scope}/{selector}" if scope else selector, _MACRO, "value")
    return Key(*gin_config.ParsedBindingKey.parse((scope, selector, parameter)).scope_selector_arg)


def _class_name(selector: str) -> str:
    return selector.rpartition(".")[2]


# --- judging ----------------------------------------------------------------------------------


def _reach(roots: Iterable[type]) -> Reach:
    """Walks from the configurations through all that they are made of, and makes nothing."""
    reach = Reach(set(), {})
    todo = [((), found) for root in roots if (found := gin_config._inverse_lookup(root))]
    while todo:
        scopes, configurable = todo.pop()
        selector = configurable.selector
        if (scopes, selector) in reach.made:
            continue
        reach.made[scopes, selector] = configurable.wrapped
        for key, value in _in_effect(scopes, selector).items():
            reach.used.add(key)
            for reference in gin_config.iterate_references({"": value}):
                todo.append((tuple(reference.scopes) or scopes, reference.configurable))
    return reach


def _is_left_out(key: Key) -> bool:
    """Whether a binding is of a stage that is set up but not in the run, or of a part of one."""
    bound = gin_config._CONFIG
    references = gin_config.iterate_references(bound)
    return (
        key.selector != _MACRO
        and bool(key.scope)
        and (
            any(key[:2] == reference.config_key for reference in references)
            or any("name" in values for (scope, _), values in bound.items() if scope == key.scope)
        )
    )


def _in_effect(scopes: tuple[str, ...], selector: str) -> dict[Key, Any]:
    """The bindings that something made in these scopes takes: of each parameter the innermost."""
    found = {}
    for depth in range(len(scopes) + 1):
        scope = "/".join(scopes[:depth])
        for name, value in gin_config._CONFIG.get((scope, selector), {}).items():
            found[name] = (Key(scope, selector, name), value)
    return dict(found.values())


def _judge(binding: Binding, reach: Reach, used: set[Key]) -> None:
    """Refuses a binding that reaches nothing; `used` says what did before the flags."""
    key, place = binding.key, binding.place
    if key in reach.used:
        return
    if binding.value:
        place = f"{place}={binding.value}"
    if key.selector == _MACRO:
        named = {"/".join(r.scopes) for r in gin_config.iterate_references(gin_config._CONFIG)}
        if key in used or key.scope in named:
            raise UserError(f"{place} has no effect: another setting replaces all that use it")
        expected = _nearest(key.scope, reach.settable())
        if not expected:
            macros = sorted(each.scope for each in reach.used if each.selector == _MACRO)
            expected = f", expected one of {', '.join(macros)}, {_STAGE}"
        raise UserError(f"{binding.place}: no such macro{expected}")
    made = reach.scopes_of(key.selector)
    if not made:
        name = _class_name(key.selector)
        raise UserError(f"{place} has no effect: nothing in this run is made of {name}")
    start = tuple(key.scope.split("/")) if key.scope else ()
    hidden = [scopes for scopes in made if scopes[: len(start)] == start]
    if not hidden:
        places = [str(key._replace(scope="/".join(scopes))) for scopes in made]
        expected = _nearest(str(key), places) or f", expected one of {', '.join(sorted(places))}"
        raise UserError(f"{place} has no effect: {key.scope!r} is no scope of it{expected}")
    winners = {
        str(winner): value
        for scopes in hidden
        for winner, value in _in_effect(scopes, key.selector).items()
        if winner.parameter == key.parameter
    }
    told = ", ".join(f"{winner}={value!r}" for winner, value in sorted(winners.items())[:4])
    told += f" and {len(winners) - 4} more" if len(winners) > 4 else ""
    written = f"--gin.{min(winners)}={binding.value}" if binding.value else min(winners)
    what = "wins" if len(winners) == 1 else "win"
    raise UserError(f"{place} has no effect: {told} {what}; write {written}")


def _nearest(name: str, names: Sequence[str]) -> str:
    """A hint at the settings that may have been meant by a name that isn't one; empty for none."""
    folded, last = name.casefold(), name.rpartition(".")[2].casefold()
    by_fold = {each.casefold(): each for each in reversed(names)}
    alike = [n.rpartition("/")[2] for n in names if n.rpartition(".")[2].casefold() == last]

    def close(cutoff):
        return [by_fold[n] for n in difflib.get_close_matches(folded, by_fold, 1, cutoff)]

    found = close(0.85) or list(dict.fromkeys(alike))[:3] or close(0.75 if "." in name else 0.6)
    return f"; did you mean {' or '.join(found)}?" if found else ""


# --- errors -----------------------------------------------------------------------------------

# What gin says -> what its user reads.
_PLAINLY = (
    (r".*Failed to parse token '(.*)'.*", r"got \1, expected a value; text stands in quotes"),
    (r"maximum recursion depth.*", "a macro or an include leads back to itself"),
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
    except _ERRORS as error:
        text, place = " ".join(str(error).partition(" in config string")[0].split()), source
        if isinstance(error, SyntaxError) and error.lineno:
            text = error.msg.splitlines()[-1].strip()
            place = f"{error.filename}:{error.lineno}"
        elif found := re.search(r' In file "([^"]*)", line (\d+) ', text):
            text, place = text[: found.start()], f"{found[1]}:{found[2]}"
        hint = _hint(text)
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
    source = ""
    for scopes, selector in ((tuple(scope.split("/")) if scope else (), s) for s in _selectors()):
        for key, value in _in_effect(scopes, selector).items():
            if (_class_name(selector), key.parameter) == field.groups() and repr(value)[0] == "%":
                source = f" (from {repr(value)[1:]})"
    return f"{scope}/{line}{source}" if scope else f"{line}{source}"


def _selectors() -> set[str]:
    return {selector for _, selector in gin_config._CONFIG}


def _hint(text: str) -> str:
    """The nearest name for a parameter, class or module that gin doesn't find."""
    classes = {each.name: each.wrapped for each in gin_config._INVERSE_REGISTRY.values()}
    if found := re.search(r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", text):
        cls = classes.get(_class_name(found[1]))
        fields = [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
        return _nearest(found[2], fields)
    if found := re.search(r"Couldn't resolve selector ([\w.]+);", text):
        return _nearest(_class_name(found[1]), list(classes))
    return ""
