"""The text of `--help`."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from stence_dist.config.compose import CONFIG_FOLDER, GROUPS, as_typed, compose_verb, script_of, verb_groups


def help_text(config_class: type, verb: str, arguments: Sequence[str] = ()) -> str:
    """Every key of a verb with its meaning and its default, as the group choices among `arguments` compose them.

    Keys that only another choice has, or has with another default, stand below their group. Raises ConfigError for
    choices that are not known or do not go together.
    """
    folders = verb_groups(verb)
    typed = dict(argument.split("=", 1) for argument in arguments if argument.partition("=")[0] in folders)
    cfg, made = compose_verb(config_class, verb, typed)
    lines = [f"usage: python {script_of(verb)} key=value …", "", (config_class.__doc__ or "").strip(), ""]
    for group_name, (folder, _) in folders.items():
        names = sorted(path.stem for path in (CONFIG_FOLDER / folder).glob("*.yaml"))
        lines.append(f"  {group_name}={made[group_name]}\n      one of {', '.join(names)} (configs/{folder}/)")
    lines += _help_rows(cfg, "", made)
    lines += [
        "",
        "Values are literal after the first '='.",
        "Exit codes: 0 done, 1 failure, 2 refused, 75 stopped and resumable.",
    ]
    return "\n".join([*lines, ""])


def _help_rows(cfg: DictConfig, prefix: str, made: dict[str, str]) -> list[str]:
    rows: list[str] = []
    texts = _meanings(OmegaConf.get_type(cfg))
    for part in map(str, cfg):
        node = cfg._get_node(part)
        if isinstance(node, DictConfig) and dataclasses.is_dataclass(OmegaConf.get_type(node)):
            rows += ["", f"  {prefix}{part}: {texts[part]}", *_help_rows(node, f"{prefix}{part}.", {})]
            rows += _other_choices(part, made[part]) if part in made else []
        else:
            rows.append(f"  {prefix}{as_typed(part)}={_default(cfg, part)}\n      {texts[part]}")
    return rows


def _other_choices(group_name: str, chosen: str) -> list[str]:
    """Help rows of the keys that the group's other choices have beside the chosen one, or with another default.

    Choices of one dataclass share their rows: their defaults stand side by side, in the heading's order.
    """
    rows: list[str] = []
    own_class, own = GROUPS[group_name][chosen], _member(group_name, chosen)
    for member in dict.fromkeys(GROUPS[group_name].values()):
        names = [name for name, other in GROUPS[group_name].items() if other is member and name != chosen]
        members = [_member(group_name, name) for name in names]
        found: list[str] = []
        for part, text in _meanings(member).items():
            defaults = [_default(other, part) for other in members]
            shown = part in own and _meanings(own_class)[part] == text and set(defaults) <= {_default(own, part)}
            if part != "name" and defaults and not shown:
                value = " | ".join(defaults if len(set(defaults)) > 1 else defaults[:1])
                found.append(f"  {group_name}.{part}={value}\n      {text}")
        if found:
            rows += ["", f"  with {group_name}={' | '.join(names)}:", *found]
    return rows


def _member(group_name: str, name: str) -> DictConfig:
    """One choice of a group by itself: its dataclass's defaults under its YAML's values."""
    values = yaml.safe_load((CONFIG_FOLDER / group_name / f"{name}.yaml").read_text())
    values.pop("defaults", None)
    return typing.cast(DictConfig, OmegaConf.merge(OmegaConf.structured(GROUPS[group_name][name]), values))


def _meanings(config_class: Any) -> dict[str, str]:
    return {field.name: field.metadata.get("help", "") for field in dataclasses.fields(config_class)}


def _default(cfg: DictConfig, part: str) -> str:
    if OmegaConf.is_missing(cfg, part):
        return "(required)"
    return "null" if cfg[part] is None else str(cfg[part])
