"""What the benchmarks share: key=value options, claims with their limits, the table and the file of both."""

import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from stence_dist import files

EXIT_USAGE = 2


def options(defaults: Mapping[str, str], arguments: list[str] | None = None) -> dict[str, str]:
    """`defaults` with what was typed as key=value; an unknown key or an empty value ends the program with code 2."""
    given = {}
    for argument in sys.argv[1:] if arguments is None else arguments:
        name, _, value = argument.partition("=")
        if name not in defaults or not value:
            refuse(f"{argument} is not understood. Keys: {', '.join(defaults)}.")
        given[name] = value
    return {**defaults, **given}


def whole(options: Mapping[str, str], name: str, *, least: int = 1) -> int:
    """An option as a whole number of at least `least`; anything else ends the program with code 2."""
    text = options[name]
    if not text.isdecimal() or int(text) < least:
        refuse(f"{name}={text} is not understood. Use a whole number from {least} on.")
    return int(text)


def refuse(message: str) -> NoReturn:
    """End the program as a usage error."""
    sys.stderr.write(f"error: {message}\n")
    sys.exit(EXIT_USAGE)


def command() -> str:
    """The command line that this program was started with, but for its output and for paths of this machine."""
    typed = []
    for text in sys.argv:
        name, _, value = text.partition("=")
        typed.append(f"{name}={name.upper()}" if name == "out" or value.startswith("/") else text)
    return " ".join(["python", *typed])


class Claims:
    """Measured values against what is claimed of them, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, value: float, limit: float, *, least: bool = False, **figures: Any) -> None:
        """`value` must be at most `limit`, at least with `least`; figures stand beside it."""
        met = value >= limit if least else value <= limit
        self.rows.append({"what": what, "value": value, "limit": limit, "met": met, **figures})
        shown = "  ".join(f"{name} {figure:.4g}" for name, figure in figures.items() if isinstance(figure, float))
        bound = f"{'at least' if least else 'at most'} {limit:g}"
        print(f"{'met    ' if met else 'NOT met'} {what}: {value:.3g} ({bound})  {shown}", flush=True)

    def finish(self, out: str, **more: Any) -> int:
        """Print the command, write `out` where one is named; exit code 1 where a claim was not met."""
        print(f"command: {command()}")
        if out:
            files.write_json(out, {"command": command(), "rows": self.rows, **more})
        return 0 if all(row["met"] for row in self.rows) else 1
