"""shared/config/owners.py: the import names proxy, agentd and shared have one owner each."""

import importlib.metadata
import sys

from shared.config import owners


def test_each_import_name_has_exactly_one_owner():
    assert owners.problems() == []


def test_another_distribution_with_one_of_the_names_is_found(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"shared": ["wardgate", "Other-Thing"]})
    assert owners.problems() == ["import name shared: also belongs to Other-Thing; give wardgate its own environment"]


def test_a_directory_or_module_of_that_name_on_the_path_is_found(monkeypatch, tmp_path):
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "__init__.py").touch()
    (tmp_path / "agentd.py").touch()
    (tmp_path / "shared").mkdir()  # no package: nothing that an import would prefer
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    problems = owners.problems()
    assert len(problems) == 2
    assert f"{tmp_path}/proxy" in problems[0]
    assert f"{tmp_path}/agentd.py" in problems[1]


def test_our_own_directory_twice_on_the_path_is_one_owner(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    assert owners.problems() == []
