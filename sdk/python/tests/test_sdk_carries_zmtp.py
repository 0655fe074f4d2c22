"""The SDK brings ZeroMQ's wire protocol along: what is installed of it needs nothing of Wardgate's."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import wardgate_agent

CARRIED = Path(wardgate_agent.__file__).parent / "zmtp"


def test_nothing_of_wardgate_is_imported() -> None:
    for file in CARRIED.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").partition(".")[0] in sys.stdlib_module_names, file
            elif isinstance(node, ast.Import):
                assert all(name.name.partition(".")[0] in sys.stdlib_module_names for name in node.names), file


def test_its_wheel_has_the_files(tmp_path: Path) -> None:
    """The package is a symbolic link in the repository."""
    root = Path(__file__).resolve().parents[1]
    sdk, target = tmp_path / "sdk" / "python", tmp_path / "wheel"
    shutil.copytree(root, sdk, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    shutil.copytree(root.parents[1] / "shared" / "zmtp", tmp_path / "shared" / "zmtp")
    assert (sdk / "src" / "wardgate_agent" / "zmtp").is_symlink()
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(target)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=sdk, capture_output=True, check=True)
    (wheel,) = target.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packed = {name.rpartition("/")[2] for name in names if name.startswith("wardgate_agent/zmtp/")}
    assert packed == {file.name for file in CARRIED.glob("*.py")} != set()
