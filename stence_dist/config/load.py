"""From the arguments of a command line to one typed config.

Values typed as `key=value` are applied after composition, the value taken literally after the first `=`. The result is
plain dataclass instances: nothing below `launch/` sees a DictConfig, and nothing writes to a config afterwards.
"""

import dataclasses
import difflib
import keyword
import math
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stence_dist.config.compose import CONFIG_FOLDER, as_typed, compose_verb, script_of, verb_groups
from stence_dist.errors import ConfigError

C = TypeVar("C")


def load(config_class: type[C], verb: str, arguments: Sequence[str]) -> C:
    """The config of one verb as an instance of `config_class`.

    arguments: `key=value` texts. Raises ConfigError on unknown keys (with near misses), values of a wrong type,
    missing keys, and whatever the dataclasses' own checks refuse.
    """
    choices, values = _split(arguments)
    cfg, _ = compose_verb(config_class, verb, choices)
    for name, text in values.items():
        _assign(cfg, verb, name, text)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(
            f"{', '.join(f'{as_typed(name)}=' for name in missing)} must be given. "
            f"See `python {script_of(verb)} --help` for every key."
        )
    try:
        return typing.cast(C, OmegaConf.to_object(cfg))
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None


def to_dict(config: Any) -> dict[str, Any]:
    """A config instance as plain JSON values."""
    return dataclasses.asdict(config)


def to_yaml(config: Any) -> str:
    """A config instance as YAML text, readable by people and by `yaml.safe_load`."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _split(arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Arguments as (group choices, key values). Launchers' own `--local_rank=N` is dropped."""
    choices: dict[str, str] = {}
    values: dict[str, str] = {}
    groups = {folder.name for folder in CONFIG_FOLDER.iterdir() if folder.is_dir()}
    for argument in arguments:
        if argument.startswith(("--local_rank", "--local-rank")):
            continue
        name, equals, value = argument.partition("=")
        if not equals or not name or name[0] in "+~-":
            raise ConfigError(f"{argument!r} is not understood. Write key=value; --help lists every key.")
        if name in groups:
            choices[name] = value
        else:
            values[name] = value
    return choices, values


def _assign(cfg: DictConfig, verb: str, name: str, text: str) -> None:
    """Set one key to what was typed, as `_read` and `_read_container` take it."""
    node: Any = cfg
    parts = [f"{part}_" if keyword.iskeyword(part) else part for part in name.split(".")]
    for part in parts:
        node = node._get_node(part) if isinstance(node, DictConfig) and part in node.keys() else None  # noqa: SIM118
        if node is None:
            raise ConfigError(_unknown_key(cfg, verb, name))
    if isinstance(node, DictConfig) and dataclasses.is_dataclass(OmegaConf.get_type(node)):
        raise ConfigError(f"{name} is a group of keys. Set one of them, e.g. {name}.{next(map(str, node))}=…")
    kind = node._metadata.ref_type
    value: Any
    try:
        if node._metadata.optional and text in ("", "null", "none", "None"):
            value = None
        elif isinstance(node, (ListConfig, DictConfig)):
            value = _read_container(node, text)
        else:
            value = _read(kind, text)
        OmegaConf.update(cfg, ".".join(parts), value, merge=False)
    except _NotFiniteError:
        raise ConfigError(f"{name}={text} is no finite number.") from None
    except (OmegaConfBaseException, yaml.YAMLError, ValueError):
        expected = str(kind).replace("typing.", "").lower() if typing.get_origin(kind) else kind.__name__
        raise ConfigError(f"{name}={text} is not a value that this key takes (expected {expected}).") from None


class _NotFiniteError(ValueError):
    """A number that is infinite or none at all."""


def _read(kind: Any, text: Any) -> Any:
    """A scalar of type `kind`. Text is literal and numbers are decimal: YAML would read 010 as 8 and 1:30 as 90.

    Raises ValueError.
    """
    if not isinstance(text, str) or (kind in (int, float) and "_" in text):
        raise ValueError(text)
    if kind is str:
        return text.replace("${", "\\${")
    if kind is int:
        return int(text, 10)
    if kind is float:
        number = float(text)
        if not math.isfinite(number):
            raise _NotFiniteError(text)
        return number
    return yaml.safe_load(text)


def _read_container(node: ListConfig | DictConfig, text: str) -> list[Any] | dict[Any, Any]:
    """A YAML list or mapping whose elements are read as `_read` reads them. Raises ValueError, yaml.YAMLError."""
    written = yaml.compose(text, Loader=yaml.SafeLoader)  # nodes that hold their text, before YAML gives it a type
    kind = node._metadata.element_type
    if isinstance(node, ListConfig) and isinstance(written, yaml.SequenceNode):
        return [_read(kind, item.value) for item in written.value]
    if isinstance(node, DictConfig) and isinstance(written, yaml.MappingNode):
        return {_read(node._metadata.key_type, name.value): _read(kind, item.value) for name, item in written.value}
    raise ValueError(text)


def _unknown_key(cfg: DictConfig, verb: str, name: str) -> str:
    groups = list(verb_groups(verb))
    chosen = [f"{group}.name" for group in groups]  # by typing the group
    known = groups + [key for key in _keys(cfg) if key not in chosen]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near += [other for other in known if other.split(".")[-1] == name.split(".")[-1] and other not in near]
    advice = f" Did you mean {' or '.join(f'{other}=' for other in near[:3])}?" if near else ""
    return f"{name} is not a key of this command.{advice} --help lists every key."


def _keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    names: list[str] = []
    for part in map(str, cfg):
        node = cfg._get_node(part)
        if isinstance(node, DictConfig) and dataclasses.is_dataclass(OmegaConf.get_type(node)):
            names += _keys(node, f"{prefix}{part}.")
        else:
            names.append(f"{prefix}{as_typed(part)}")
    return names
