"""shared/config/tree.py: planting, grafting, and how paths and values are shown."""

from shared.config.tree import Node, Origin, Problem, graft, origin_at, plant, show_path, show_value, uproot


def tree(value, source="f"):
    problems = []
    node = plant(value, lambda path: Origin(source, len(path) + 1), problems)
    assert problems == []
    return node


def test_a_tree_is_the_document_with_origins():
    document = {"a": {"b": [1, {"c": "x"}]}}
    root = tree(document)
    assert uproot(root) == document
    assert str(origin_at(root, ("a", "b", 1, "c"))) == "f:5"
    # What is not there is where the table around it is.
    assert str(origin_at(root, ("a", "nothing", 3))) == "f:2"
    assert str(origin_at(root, ("a", "b", 7))) == "f:3"


def test_grafting_merges_tables_and_appends_arrays_of_tables():
    for append, entries in ((True, [{"n": 1}, {"n": 2}]), (False, [{"n": 2}])):
        base = tree({"t": {"a": 1, "b": [1]}, "list": [{"n": 1}], "only": 1})
        graft(base, tree({"t": {"a": 2, "b": [2]}, "list": [{"n": 2}], "more": 2}, "g"), append=append)
        assert uproot(base) == {"t": {"a": 2, "b": [2]}, "list": entries, "only": 1, "more": 2}
        assert origin_at(base, ("t", "a")).source == "g"
        assert origin_at(base, ("only",)).source == "f"


def test_an_empty_list_clears_values_but_not_tables():
    base = tree({"values": [1], "tables": [{"n": 1}]})
    graft(base, tree({"values": [], "tables": []}), append=True)
    assert uproot(base) == {"values": [], "tables": [{"n": 1}]}


def test_paths_name_entries_where_the_name_is_one():
    root = tree({"agents": [{"name": "a.b"}, {"name": "x"}, {"name": "x"}, {"name": 3}, {"name": "a b"}, 4]})
    shown = [show_path(root, ("agents", number, "k")) for number in range(7)]
    assert shown == [f"agents[{label}].k" for label in ("a.b", 1, 2, 3, 4, 5, 6)]
    assert show_path(root, ("odd key", "\x1b[31m")) == '"odd key"."\\u001b[31m"'


def test_values_are_shown_short_and_without_control_characters():
    assert show_value("a\x1b\n") == '"a\\u001b\\n"'
    assert len(show_value("x" * 10_000)) < 100
    assert show_value(True) == "true"
    assert show_value(10**50_000) == "an integer beyond 64 bits"


def test_a_problem_is_one_line():
    problem = Problem(Origin("f", 3), "a.b", "is wrong", "do this")
    assert str(problem) == "f:3: a.b: is wrong; do this"
    assert str(Problem(Origin("environment X"), "", "is wrong")) == "environment X: is wrong"


def test_what_is_nested_too_deeply_is_cut_off_and_told():
    value = {}
    for _ in range(10_000):
        value = {"a": value}
    problems = []
    node = plant(value, lambda path: Origin("f"), problems)
    assert isinstance(node, Node)
    assert len(problems) == 1
