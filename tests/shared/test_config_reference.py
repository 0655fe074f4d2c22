"""shared/config/reference.py and docs/generate.py: the pages are made from the schema and are fresh."""

import importlib.util
import json
from pathlib import Path

import msgspec
import pytest

from shared.config import later
from shared.config.build import walk_keys
from shared.config.reference import render_markdown, render_schema
from shared.config.schema import Config
from shared.config.shape import shape_of

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_in_the_repository_are_fresh():
    assert (DOCS / "configuration.md").read_text() == render_markdown()
    assert (DOCS / "configuration.schema.json").read_text() == render_schema()


def test_every_key_has_its_heading_and_every_later_key_its_row():
    page = render_markdown()
    tables = ("server", "runtime", "admin", "upstreams", "agents", "routes", "audit", "logging")
    for path in walk_keys(shape_of(Config, None), ""):
        if path not in tables:
            assert f"### `{path.replace('[]', '')}`\n" in page
    for path in later.KEYS:
        assert f"| `{path}` |" in page


def test_a_key_shows_type_range_default_and_when_a_change_acts():
    page = render_markdown()
    assert "### `server.workers`\n\nInteger from 0 to 64. Default `2`. Reload.\n\nHow many worker processes" in page
    assert "### `server.header_timeout_s`\n\nNumber greater than 0, at most 3600. Default `10`. Reload.\n" in page
    assert '### `agents.protocol`\n\n`"zmq-v2"` or `"zmq-v1"`. **Required.** Reload.\n' in page
    assert '### `audit.sinks`\n\nArray of `"file"`. Default `["file"]`. Reload.\n' in page
    assert '### `admin.listen`\n\nArray of strings. Default `["127.0.0.1:9900"]`. Restart.\n' in page


def test_the_minimal_file_of_the_page_is_accepted(tmp_path):
    from shared.config.load import load

    text = render_markdown().partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "w.toml").write_text(text)
    assert load(str(tmp_path / "w.toml"), {}).warnings == []


def test_the_json_schema_is_closed_and_tells_when_a_change_acts():
    schema = json.loads(render_schema())
    for definition in schema["$defs"].values():
        assert definition["additionalProperties"] is False
        for key in definition["properties"].values():
            assert key["x-wardgate-change"] in ("reload", "restart")
            assert key["description"]
    assert msgspec.json.schema(Config)["$defs"].keys() == schema["$defs"].keys()


def test_a_stale_page_is_found_and_written(generate, tmp_path, monkeypatch, capsys):
    (tmp_path / "configuration.md").write_text("old\n")
    monkeypatch.setattr(generate, "HERE", tmp_path)
    monkeypatch.setattr(
        generate.stale,
        "__defaults__",
        ((("configuration.md", "shared.config.reference", "render_markdown"),), tmp_path),
    )
    assert generate.main(["--check"]) == 1
    output = capsys.readouterr().out
    assert "--- docs/configuration.md" in output
    assert "-old" in output
    assert (tmp_path / "configuration.md").read_text() == "old\n"
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    assert (tmp_path / "configuration.md").read_text() == render_markdown()
