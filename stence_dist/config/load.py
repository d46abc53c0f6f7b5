"""From a command line to one typed config, and from an error to an exit code.

hydra composes the YAML files of `configs/` over the dataclasses of this package; values typed as `key=value` are
applied last, the value taken literally after the first `=`. The result is plain dataclass instances: nothing below
`launch/` sees a DictConfig, and nothing writes to a config afterwards.
"""

import contextlib
import dataclasses
import difflib
import keyword
import logging
import math
import os
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from stence_dist import launchers
from stence_dist.config.ecg_encoder import OTIS_SIZES, OtisConfig, ResNetConfig
from stence_dist.config.image_tower import PixelsConfig, TokensConfig
from stence_dist.config.optimizer import AdamWConfig, SgdConfig
from stence_dist.errors import (
    EXIT_DONE,
    EXIT_FAILURE,
    EXIT_REFUSED,
    EXIT_STOPPED,
    CheckFailedError,
    CommonFailureError,
    ConfigError,
    RefusedError,
    StoppedError,
)

# Every dataclass that a group's YAML may choose. To add one: a dataclass, a line here, a YAML of the same name.
GROUPS: dict[str, dict[str, type]] = {
    "ecg_encoder": {"resnet": ResNetConfig, **dict.fromkeys(OTIS_SIZES, OtisConfig)},
    "image_tower": {"pixels": PixelsConfig, "tokens": TokensConfig},
    "optimizer": {"adamw": AdamWConfig, "sgd": SgdConfig},
}

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "configs"

logger = logging.getLogger("stence_dist")
C = TypeVar("C")


def run(config_class: type[C], verb: str, main: Callable[[C], int | None]) -> NoReturn:
    """Compose the config from the command line, call `main`, and end the process with the code that fits.

    0 done, 1 failure, 2 usage, configuration or data refused, 75 stopped on request and resumable.
    """
    sys.exit(_end_ranks(_guarded(config_class, verb, main)))


def _guarded(config_class: type[C], verb: str, main: Callable[[C], int | None]) -> int:
    rank, world_size = launchers.place(os.environ)
    where = f"rank {rank}: " if world_size > 1 else ""
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING, format=f"{where}%(message)s", stream=sys.stderr
    )
    try:
        arguments = sys.argv[1:]
        if any(argument in ("-h", "--help") for argument in arguments):
            if rank == 0:
                sys.stdout.write(help_text(config_class, verb, arguments))
            return EXIT_DONE
        return main(load(config_class, verb, arguments)) or EXIT_DONE
    except RefusedError as error:
        if error.quiet:
            _let_first_rank_speak()
        else:
            sys.stderr.write(f"{where}error: {error}{_notes(error)}\n")
        return EXIT_REFUSED
    except StoppedError as stop:
        sys.stderr.write(f"{where}{stop}\n")
        # A stop is no failure that torchrun should mend. It flattens the code in any case; status.json says "stopped".
        # But where a node of several leaves, or one joins, the agents of the others start their ranks again.
        goes_on = stop.terminated and launchers.has_other_nodes(os.environ)
        return EXIT_DONE if launchers.would_restart(os.environ) and not goes_on else EXIT_STOPPED
    except CheckFailedError as error:
        sys.stderr.write(f"{where}{error}\n")
        return EXIT_FAILURE
    except KeyboardInterrupt:
        sys.stderr.write(f"{where}interrupted\n")
        return EXIT_FAILURE
    except CommonFailureError as error:
        if rank == 0:
            sys.stderr.write(f"{where}failed: {type(error).__name__}: {error}{_notes(error)}\n")
        else:
            _let_first_rank_speak()
        return EXIT_FAILURE
    except Exception as error:
        if type(error).__name__ == "PeerLostError":
            sys.stderr.write(f"{where}{error}\n")
        else:
            message = f"failed: {type(error).__name__}: {error}{_notes(error)}"
            sys.stderr.write(f"{where}{traceback.format_exc()}{where}{message}\n")
        return EXIT_FAILURE


def _notes(error: Exception) -> str:
    """What was added to an error on its way up, e.g. rank, host and step."""
    return "".join(f" {note}" for note in getattr(error, "__notes__", []))


def _let_first_rank_speak() -> None:
    """Wait until rank 0 is gone. Launchers end all ranks when one leaves, also one that has not said yet why."""
    distributed = sys.modules.get("stence_dist.distributed")
    if distributed is not None and distributed.active():
        with contextlib.suppress(RuntimeError):  # rank 0 does not join: it leaves, and that breaks the connection
            distributed.barrier()


def _end_ranks(code: int) -> int:
    """In a process group, leave through `distributed.finish`; otherwise return `code`."""
    distributed = sys.modules.get("stence_dist.distributed")
    if distributed is not None and distributed.active():
        distributed.finish(code)
    return code


def load(config_class: type[C], verb: str, arguments: Sequence[str]) -> C:
    """The config of one verb as an instance of `config_class`.

    arguments: `key=value` texts. Raises ConfigError on unknown keys (with near misses), values of a wrong type,
    missing keys, and whatever the dataclasses' own checks refuse.
    """
    choices, values = _split(arguments)
    cfg, _ = _compose(config_class, verb, choices)
    for name, text in values.items():
        _assign(cfg, verb, name, text)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(
            f"{', '.join(f'{_as_typed(name)}=' for name in missing)} must be given. "
            f"See `python {_script(verb)} --help` for every key."
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


def _compose(config_class: type, verb: str, choices: dict[str, str]) -> tuple[DictConfig, dict[str, str]]:
    """What the verb's YAML, these choices and a recipe among them make; and the choice of every group.

    Raises ConfigError for a choice that is not known, and for choices that do not go together.
    """
    _check_choices(verb, choices)
    folders = {group_name: folder for group_name, (folder, _) in _verb_groups(verb).items()}
    store = ConfigStore.instance()
    schema = OmegaConf.structured(config_class)
    for group_name in GROUPS.keys() & schema.keys():
        schema[group_name] = MISSING  # the verb's YAML chooses; a default instance would only merge with its own class
    store.store(name=f"{verb}_schema", node=schema)
    for group_name, members in GROUPS.items():
        for name, member in members.items():
            store.store(group=group_name, name=f"{name}_schema", node=member)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        overrides = [f"{folders[group_name]}={name}" for group_name, name in choices.items()]
        try:
            cfg = compose(verb, overrides=overrides, return_hydra_config=True)
        except HydraException as error:
            cause = error.__context__
            if not (choices and isinstance(cause, OmegaConfBaseException)):
                raise
            chosen = " ".join(f"{group_name}={name}" for group_name, name in choices.items())
            raise ConfigError(
                f"{chosen} do not go together: one of them sets {cause.full_key}, which is no key here then."
            ) from None
    made = {group_name: str(cfg.hydra.runtime.choices[folder]) for group_name, folder in folders.items()}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, made


def _verb_groups(verb: str) -> dict[str, tuple[str, str]]:
    """What a verb's YAML composes: by the name that is typed, the group's folder and its default choice.

    A folder inside a group's is typed as that group: `recipe=` chooses in recipe/finetune/ where that is what the verb
    composes.
    """
    entries = yaml.safe_load((CONFIG_FOLDER / f"{verb}.yaml").read_text()).get("defaults", [])
    groups = {name: chosen for entry in entries if isinstance(entry, dict) for name, chosen in entry.items()}
    return {name.partition("/")[0]: (name, chosen) for name, chosen in groups.items()}


def _check_choices(verb: str, choices: dict[str, str]) -> None:
    """Raise ConfigError for a group that the verb does not take or a choice that has no YAML."""
    taken = _verb_groups(verb)
    for group_name, name in choices.items():
        if group_name not in taken:
            raise ConfigError(f"{group_name}= is not a key of this command. --help lists every key.")
        known = sorted(path.stem for path in (CONFIG_FOLDER / taken[group_name][0]).glob("*.yaml"))
        if name not in known:
            raise ConfigError(f"{group_name}={name} is not known. Use one of: {', '.join(known)}.")


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


def _as_typed(name: str) -> str:
    """A field's name on the command line. One that is a word of Python's ends in `_`, which is not typed: `as_`."""
    return name.removesuffix("_")


def _unknown_key(cfg: DictConfig, verb: str, name: str) -> str:
    groups = list(_verb_groups(verb))
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
            names.append(f"{prefix}{_as_typed(part)}")
    return names


def _script(verb: str) -> str:
    folder = "shards" if (CONFIG_FOLDER.parent / "shards" / f"{verb}.py").exists() else "launch"
    return f"{folder}/{verb}.py"


def help_text(config_class: type, verb: str, arguments: Sequence[str] = ()) -> str:
    """Every key of a verb with its meaning and its default, as the group choices among `arguments` compose them.

    Keys that only another choice has, or has with another default, stand below their group. Raises ConfigError for
    choices that are not known or do not go together.
    """
    folders = _verb_groups(verb)
    typed = dict(argument.split("=", 1) for argument in arguments if argument.partition("=")[0] in folders)
    cfg, made = _compose(config_class, verb, typed)
    lines = [f"usage: python {_script(verb)} key=value …", "", (config_class.__doc__ or "").strip(), ""]
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
            rows.append(f"  {prefix}{_as_typed(part)}={_default(cfg, part)}\n      {texts[part]}")
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
