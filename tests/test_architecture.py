"""The house keeps its own rules: one-way imports, one owner per dangerous import, names, the README's tree."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "stence_dist"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Layer of each module or folder of the package; imports go to an equal or lower layer only.
LAYERS = {
    "__init__": 0,
    "batch": 0,
    "config": 0,
    "device": 0,
    "distributed": 0,
    "ecg": 0,
    "errors": 0,
    "files": 0,
    "launchers": 0,
    "page": 0,
    "profile": 0,
    "seeds": 0,
    "targets": 0,
    "data": 1,
    "losses": 1,
    "models": 1,
    "phantom": 1,
    "checkpoint": 2,
    "engine": 2,
    "train_step": 2,
    "zero_views": 2,
    "evaluate": 2,
    "check": 3,
    "doctor": 3,
    "embed": 3,
    "train": 3,
}
APART = {
    "data": {"models", "phantom", "losses"},
    "models": {"data", "phantom"},
    "phantom": {"data", "models", "losses"},
}


def room(module: str) -> str:
    """`stence_dist.data.order` -> `data`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def name_of(path: Path) -> str:
    """`stence_dist/data/order.py` -> `stence_dist.data.order`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    """No module imports from a higher layer, and data, models and phantom do not know each other."""
    here = room(name_of(path))
    assert here in LAYERS, f"{path} stands in no layer: add its room to LAYERS"
    for imported in imports(path):
        if imported.split(".")[0] != "stence_dist":
            assert imported.split(".")[0] not in ("launch", "shards", "tests", "benchmarks")
            continue
        there = room(imported)
        if there not in LAYERS:
            continue  # a name that the package itself exports
        assert LAYERS[there] <= LAYERS[here], f"{path} (layer {LAYERS[here]}) imports {imported} ({LAYERS[there]})"
        assert there not in APART.get(here, set()), f"{path} imports {imported}"


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("torch.distributed", {"stence_dist.distributed"}),
        ("deepspeed", {"stence_dist.engine"}),
        ("pickle", set()),
        (
            "matplotlib",
            {f"stence_dist.evaluate.figures.{name}" for name in ("drawing", "curves", "embeddings", "recordings")},
        ),
    ],
)
def test_one_importer(library: str, owners: set[str]) -> None:
    """Libraries with sharp edges are imported in one place only."""
    users = {
        name_of(path)
        for path in MODULES
        if any(found == library or found.startswith(f"{library}.") for found in imports(path))
    }
    assert users <= owners


def test_nothing_executes_data() -> None:
    """No pickle, eval, exec, unsafe load or shell in the package, the verbs and the benchmarks."""
    forbidden = re.compile(
        r"allow_pickle=True|weights_only=False|shell=True|yaml\.load\(|pickle\.load|(?<![.\w])(eval|exec)\("
    )
    for folder in ("stence_dist", "launch", "shards", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                assert not forbidden.search(line), f"{path}:{number}: {line.strip()}"


def test_no_print_or_exit_below_launch() -> None:
    """The package raises and logs; only `config.command.run` and the ranks' end leave the process."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called != "print", f"{path}:{node.lineno}"
                if called == "sys.exit":
                    assert name_of(path) == "stence_dist.config.command"


def test_script_names_shadow_nothing() -> None:
    """A script's folder comes first on sys.path: no script may bear the name of an importable module."""
    for folder in ("launch", "shards", "benchmarks"):
        for path in (ROOT / folder).glob("*.py"):
            assert path.stem not in sys.stdlib_module_names, path
            found = importlib.util.find_spec(path.stem)
            assert found is None or found.loader is None, path  # no loader: a bare folder that the tests' path shows


def test_configs_are_not_written_to() -> None:
    """Nothing assigns to an attribute of a config once it is composed."""
    for path in MODULES:
        if room(name_of(path)) == "config":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for target in getattr(node, "targets", []) if isinstance(node, ast.Assign) else []:
                text = ast.unparse(target)
                assert not re.match(r"(self\.)?(cfg|config)\.\w", text), f"{path}:{node.lineno}: {text}"


def test_readme_tree_matches_the_disk() -> None:
    """Every path in the README's tree exists, and every tracked source file outside tests stands in it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- tree -->\n```\n(.*?)```", text, re.DOTALL)
    assert block, "README.md has no tree"
    named: set[str] = set()
    folders: list[tuple[int, str]] = []
    for line in block.group(1).splitlines():
        entry = line.split("#")[0].rstrip()
        depth = len(entry) - len(entry.lstrip())
        while folders and folders[-1][0] >= depth:
            folders.pop()
        prefix = folders[-1][1] if folders else ""
        for part in entry.split():
            if part.endswith("/"):
                folders.append((depth, f"{prefix}{part}"))
                prefix = f"{prefix}{part}"
                assert (ROOT / prefix).is_dir(), prefix
            else:
                assert (ROOT / f"{prefix}{part}").is_file(), f"{prefix}{part}"
                named.add(f"{prefix}{part}")
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "stence_dist", "launch", "shards", "benchmarks"],
        capture_output=True,
        text=True,
        check=True,
    )
    on_disk = {name for name in listing.stdout.split() if name.endswith((".py", ".sh")) and "__init__" not in name}
    assert on_disk <= named, f"not in the README's tree: {sorted(on_disk - named)}"
