"""Files of parameters: read, checked against what they must hold, and refused in plain words."""

from __future__ import annotations

import difflib
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = [
    "Fraction",
    "Name",
    "ParameterError",
    "Positive",
    "PositiveFloat",
    "Section",
    "UserError",
    "complaint",
    "derive_seed",
    "flow_of_today",
    "load_parameters",
    "project_root",
]

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]


class UserError(Exception):
    """What the user can mend: the message says all that is needed."""


class ParameterError(UserError, ValueError):
    """A study file, or a value asked of it, is not what was expected."""


class Section(BaseModel):
    """A part of a file of parameters: every key is needed, and no other is allowed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-4`` as text and lets a key stand twice; neither is what a user means."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:  # type: ignore[type-arg]
        keys = [key.value for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0]!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


Parameters = TypeVar("Parameters", bound=BaseModel)


def project_root() -> Path:
    """The nearest folder at or above the working folder with ``notebooks`` and ``zdc_nb``.

    So that a notebook finds the same files from JupyterLab (which starts it in its own folder)
    and from papermill (which starts it where the user is). The working folder itself where
    there is no such folder.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "zdc_nb").is_dir():
            return folder
    return here


def load_parameters(path: str | Path, model: type[Parameters], what: str) -> Parameters:
    """Read and check a file of parameters.

    Parameters
    ----------
    path
        a YAML file; a relative path is looked for in the working folder, then in the project.
    model
        what it must hold; its ``name`` is that of the file.
    what
        the file is one of, for messages.

    Raises
    ------
    ParameterError
        naming the file, the key and what was expected.
    """
    file = Path(path)
    if not file.is_absolute() and not file.exists():
        file = project_root() / file
    if not file.is_file():
        raise ParameterError(f"{path}: no such {what} file")

    def refuse(why: object) -> NoReturn:
        raise ParameterError(f"{path}: {why}") from None

    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        refuse(f"not readable as YAML: {error}")
    if not isinstance(content, dict):
        refuse("expected a mapping of parameters")
    if "name" in content:
        refuse(f"name: a {what} is named after its file, the key is not allowed")
    try:
        return model.model_validate({"name": file.stem, **content})
    except ValidationError as error:
        # of a union pydantic tells what is wrong with each of its members
        refuse("; ".join(dict.fromkeys(complaint(model, content, e) for e in error.errors())))


_RENAMED = {"flow.blocks": "hidden_layers", "blocks": "hidden_layers"}
"""Keys of before, and what they are called now."""

_RENAMED_VALUES = {("flow.engine", "reference"): "plain"}


def flow_of_today(flow: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a flow in a file that was written before something was renamed."""
    today = {_RENAMED.get(f"flow.{key}", key): value for key, value in flow.items()}
    engine = today.get("engine")
    return today | {"engine": _RENAMED_VALUES.get(("flow.engine", str(engine)), engine)}


def complaint(model: type[BaseModel], content: dict[str, Any], error: Any) -> str:
    """What is wrong with one key, as a user would say it: key, what was expected, what was found."""
    keys: list[str] = []
    fields, field = model.model_fields, None
    entries: type[BaseModel] | None = None  # what a mapping or list holds whose entry comes next
    value: Any = content
    for part in error["loc"]:
        if entries is not None:
            fields, entries = entries.model_fields, None
        elif part in fields:
            field = fields[part]
            section, entries = _sections(field.annotation)
            fields = section.model_fields if section else {}
        else:
            break
        keys.append(str(part))
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):  # missing, or no mapping
            value = None
    name = ".".join(keys)
    if error["type"] == "extra_forbidden":
        wrong = str(error["loc"][-1])
        whole = ".".join((*keys, wrong))
        near = difflib.get_close_matches(wrong, fields, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; expected {', '.join(fields)}"
        renamed = _RENAMED.get(whole)
        return f"{whole}: is called {renamed} now" if renamed else f"{whole}: no such key{hint}"
    if error["type"] == "value_error":  # of our own validators, which name their key
        own = str(error["msg"]).removeprefix("Value error, ")
        return f"{name}.{own}" if own.partition(":")[0] in fields and name else own
    if field is None:
        return str(error["msg"])
    expected = _words(field.annotation, field.metadata)
    if error["type"] == "missing" and error["loc"][-1] == keys[-1]:
        return f"{name}: is missing; expected {expected}"
    if isinstance(value, str) and (name, value) in _RENAMED_VALUES:
        return f"{name}: {value} is called {_RENAMED_VALUES[name, value]} now"
    return f"{name}: expected {expected}, got {value!r:.80}"


def _sections(kind: Any) -> tuple[type[BaseModel] | None, type[BaseModel] | None]:
    """The section that a key holds, null apart, or the one of each entry of its mapping or list."""
    origin, members = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind, None
    if (
        origin in (Union, UnionType)
        and len(rest := [m for m in members if m is not type(None)]) == 1
    ):
        return _sections(rest[0])
    if origin in (dict, list):
        return None, _sections(members[-1])[0]
    return None, None


_BOUNDS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}


def _words(kind: Any, rules: Iterable[Any] = ()) -> str:  # noqa: PLR0911 - one for each kind
    """A type with its bounds in words: ``a whole number above 0``."""
    origin, members = get_origin(kind), get_args(kind)
    if origin is Annotated:
        inner = [
            x for r in kind.__metadata__ for x in (r.metadata if hasattr(r, "metadata") else [r])
        ]
        return _words(members[0], inner)
    if origin in (Union, UnionType):
        return ", or ".join(map(_words, members))
    if origin is Literal:
        return f"one of {', '.join(map(str, members))}"
    if origin is list:
        return f"a list, each {_words(members[0])}"
    if origin is dict:
        names = _words(members[0]).removeprefix("one of ")
        each = "each name" if names.startswith("a text") else f"each of {names}"
        return f"for {each} {_words(members[1])}"
    if origin is tuple:
        return f"a list of {len(members)}, each {_words(members[0])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"the keys {', '.join(kind.model_fields)}"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    bounds = [
        f"{words} {getattr(rule, bound):g}"
        for rule in rules
        for bound, words in _BOUNDS.items()
        if hasattr(rule, bound)
    ]
    return " ".join([plain.get(kind, "null"), " and ".join(bounds)]).strip()


def derive_seed(seed: int, *labels: str | int) -> int:
    """An independent 63-bit seed for the part of a study named by ``labels``."""
    words = [zlib.crc32(str(label).encode()) for label in labels]
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
