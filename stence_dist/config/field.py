"""Config fields that carry their own help text."""

import dataclasses
from typing import Any

from omegaconf import MISSING

from stence_dist.errors import ConfigError


def key(help: str, default: Any = MISSING) -> Any:  # noqa: A002  (the field's standard word)
    """A dataclass field with a help text, which `--help` prints. Without a default the key must be given."""
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def group(help: str, factory: Any) -> Any:  # noqa: A002
    """A nested group of keys, built by `factory` unless a YAML chooses another one."""
    return dataclasses.field(default_factory=factory, metadata={"help": help})


def check_name(group_name: str, config: Any, config_class: type) -> None:
    """Raise ConfigError where a group's `name` is not the one of its class: the group is chosen by its YAML instead."""
    name = next(field.default for field in dataclasses.fields(config_class) if field.name == "name")
    if config.name != name:
        raise ConfigError(f"{group_name}.name={config.name} does not choose another {group_name}: {group_name}= does.")
