"""Finds what gin's bindings reach, and refuses those that reach nothing.

gin itself takes a macro that nobody uses, a scope that names no stage, and a value that a scoped
one hides, all without a word. So this walks from the configurations of a command through all that
they are made of, as gin will make them, and knows what each binding reaches.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from gin import config as gin_config
from gin import config_parser
from pit_jax.errors import UserError

MACRO = "gin.macro"
STAGE = "STAGE"  # what it names is trained or converted; no configuration has it


class Key(NamedTuple):
    """What is bound: a parameter of a configurable in a scope; a macro is the scope of its own."""

    scope: str
    selector: str
    parameter: str

    def __str__(self) -> str:
        if self.selector == MACRO:
            return self.scope
        name = f"{class_name(self.selector)}.{self.parameter}"
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
        macros = sorted(key.scope for key in self.used if key.selector == MACRO)
        fields = [
            str(Key("/".join(scopes), selector, field.name))
            for (scopes, selector), cls in self.made.items()
            if dataclasses.is_dataclass(cls)
            for field in dataclasses.fields(cls)
        ]
        return [*macros, STAGE, *fields]


def key_of(scope: str, selector: str, parameter: str) -> Key:
    """Returns what a statement binds; raises what gin does if there is no such thing."""
    if not parameter:
        return Key(f"{scope}/{selector}" if scope else selector, MACRO, "value")
    parsed = gin_config.ParsedBindingKey.parse((scope, selector, parameter))
    return Key(*parsed.scope_selector_arg)


def own_bindings(file: str, text: str, context: Any) -> Iterator[tuple[Binding, Any]]:
    """Reads a file that gin has taken once more, for its own bindings, their lines and values."""
    for statement in config_parser.ConfigParser(text, gin_config.ParserDelegate()):
        if isinstance(statement, config_parser.ImportStatement):
            context.process_import(statement)
        elif isinstance(statement, config_parser.BindingStatement):
            key = key_of(statement.scope, statement.selector, statement.arg_name)
            place = f"{file}:{statement.location.line_num}: {key}"
            yield Binding(key, place), statement.value


def find(roots: Iterable[type]) -> Reach:
    """Walks from the configurations through all that they are made of, and makes nothing."""
    reach = Reach(set(), {})
    todo = [((), found) for root in roots if (found := gin_config._inverse_lookup(root))]
    while todo:
        scopes, configurable = todo.pop()
        selector = configurable.selector
        if (scopes, selector) in reach.made:
            continue
        reach.made[scopes, selector] = configurable.wrapped
        for key, value in in_effect(scopes, selector).items():
            reach.used.add(key)
            for reference in gin_config.iterate_references({"": value}):
                todo.append((tuple(reference.scopes) or scopes, reference.configurable))
    return reach


def is_left_out(key: Key, reach: Reach) -> bool:
    """Returns whether a binding is of a stage that is set up but not in the run, or its part."""
    bound = gin_config._CONFIG
    if key.selector == MACRO or (reach.scopes_of(key.selector) and not key.scope):
        return False
    references = {reference.config_key for reference in gin_config.iterate_references(bound)}
    if not key.scope:
        return any(selector == key.selector for _, selector in references)
    stages = {scope for (scope, _), values in bound.items() if "name" in values}
    return key[:2] in references or key.scope in stages


def in_effect(scopes: tuple[str, ...], selector: str) -> dict[Key, Any]:
    """Returns the bindings that something made in these scopes takes: the innermost of each."""
    found = {}
    for depth in range(len(scopes) + 1):
        scope = "/".join(scopes[:depth])
        for name, value in gin_config._CONFIG.get((scope, selector), {}).items():
            found[name] = (Key(scope, selector, name), value)
    return dict(found.values())


def judge(binding: Binding, reach: Reach, used: set[Key]) -> None:
    """Refuses a binding that reaches nothing; `used` says what did before the flags.

    Raises:
      UserError: if it does; it names what wins in its place, or what may have been meant.
    """
    key, place = binding.key, binding.place
    if key in reach.used:
        return
    if binding.value:
        place = f"{place}={binding.value}"
    if key.selector == MACRO:
        named = {"/".join(r.scopes) for r in gin_config.iterate_references(gin_config._CONFIG)}
        if key in used or key.scope in named:
            raise UserError(f"{place} has no effect: another setting replaces all that use it")
        expected = nearest(key.scope, reach.settable())
        if not expected:
            macros = sorted(each.scope for each in reach.used if each.selector == MACRO)
            expected = f", expected one of {', '.join(macros)}, {STAGE}"
        raise UserError(f"{binding.place}: no such macro{expected}")
    made = reach.scopes_of(key.selector)
    if not made:
        name = class_name(key.selector)
        raise UserError(f"{place} has no effect: nothing in this run is made of {name}")
    start = tuple(key.scope.split("/")) if key.scope else ()
    hidden = [scopes for scopes in made if scopes[: len(start)] == start]
    if not hidden:
        places = sorted(str(key._replace(scope="/".join(scopes))) for scopes in made)
        close = difflib.get_close_matches(str(key), places, 1)
        expected = (
            f"; did you mean {close[0]}?" if close else f", expected one of {', '.join(places)}"
        )
        raise UserError(f"{place} has no effect: {key.scope!r} is no scope of it{expected}")
    winners = {
        str(winner): value
        for scopes in hidden
        for winner, value in in_effect(scopes, key.selector).items()
        if winner.parameter == key.parameter
    }
    told = ", ".join(f"{winner}={value!r}" for winner, value in sorted(winners.items())[:4])
    told += f" and {len(winners) - 4} more" if len(winners) > 4 else ""
    written = f"--gin.{min(winners)}={binding.value}" if binding.value else min(winners)
    what = "wins" if len(winners) == 1 else "win"
    raise UserError(f"{place} has no effect: {told} {what}; write {written}")


def nearest(name: str, names: Sequence[str]) -> str:
    """Returns a hint at the settings that may have been meant by a name; empty for none."""
    folded, last = name.casefold(), name.rpartition(".")[2].casefold()
    by_fold = {each.casefold(): each for each in reversed(names)}
    alike = [n.rpartition("/")[2] for n in names if n.rpartition(".")[2].casefold() == last]

    def close(cutoff):
        return [by_fold[n] for n in difflib.get_close_matches(folded, by_fold, 1, cutoff)]

    found = close(0.85) or list(dict.fromkeys(alike))[:3] or close(0.75 if "." in name else 0.6)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def hint(text: str) -> str:
    """Returns a hint at the nearest parameter, class or module for one that gin doesn't find."""
    classes = {each.name: each.wrapped for each in gin_config._INVERSE_REGISTRY.values()}
    if found := re.search(r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", text):
        cls = classes.get(class_name(found[1]))
        fields = [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
        return nearest(found[2], fields)
    if found := re.search(r"Couldn't resolve selector ([\w.]+);", text):
        return nearest(class_name(found[1]), list(classes))
    return ""


def class_name(selector: str) -> str:
    """Returns the name of a class without its modules."""
    return selector.rpartition(".")[2]
