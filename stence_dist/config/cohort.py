"""Which rows of a shard set take part."""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from stence_dist.config.field import key
from stence_dist.errors import ConfigError

FLAG_COLUMNS = ("acute", "prior_revascularization", "after_procedure")
NUMBER_COLUMNS = ("age", "days_between", "lvef", "high_pass_hz", "low_pass_hz")
TEXT_COLUMNS = ("site", "device", "sex")
_RULE = re.compile(r"(?P<column>\w+)\s*(?:(?P<relation>[=<>])\s*(?P<value>.+))?")


class Rule(NamedTuple):
    """`column` alone (a flag that is 1), or `column`, one of = < >, and a value."""

    column: str
    relation: str
    value: str


def parse_rule(text: str) -> Rule:
    """The rule that `text` states. Raises ConfigError."""
    match = _RULE.fullmatch(text.strip())
    rule = Rule(match["column"], match["relation"] or "", (match["value"] or "").strip()) if match else None
    if rule is not None:
        if rule.column in FLAG_COLUMNS and not rule.relation:
            return rule
        if rule.column in TEXT_COLUMNS and rule.relation == "=":
            return rule
        if rule.column in NUMBER_COLUMNS and rule.relation and _is_number(rule.value):
            return rule
    raise ConfigError(
        f"cohort.exclude has the entry {text!r}. Use {', '.join(FLAG_COLUMNS)}, a number as in age<40 "
        f"({', '.join(NUMBER_COLUMNS)}; < > =), or a text as in site=A ({', '.join(TEXT_COLUMNS)})."
    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@dataclass
class CohortConfig:
    """Which rows of the shard set take part."""

    exclude: list[str] = key('rows to leave out, e.g. [acute,prior_revascularization,"age<40","device=MAC 5500"]', [])

    def __post_init__(self) -> None:
        for text in self.exclude:
            parse_rule(text)
