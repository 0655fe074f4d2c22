"""proxy/cli/supervise.py: sentences of what happens to children and what is done about it. No process."""

from proxy.cli.supervise import DOWN, TRANSITIONS, Event, Phase, Ready, Role, Say, Send, Start, Supervision
from shared.clock import S
from shared.defaults import RESPAWN_MAX_MS, RESPAWN_MS

NOW = 1_000 * S
ALL = [
    ("upstream", Role.UPSTREAM),
    ("agentd", Role.AGENTD),
    ("proxy", Role.PROXY),
    ("a", Role.AGENT),
    ("b", Role.AGENT),
]


def begun() -> Supervision:
    made = Supervision(ALL, startup_s=10)
    assert made.begin(NOW) == [Start(label) for label, _ in ALL]
    return made


def running() -> Supervision:
    made = begun()
    said = [action for label, _ in ALL for action in made.ready(label, NOW + S)]
    assert said == [Ready()]
    assert made.phase is Phase.RUNNING
    return made


def sent(actions: list[object]) -> list[object]:
    return [action for action in actions if not isinstance(action, Say)]


def test_the_banner_comes_once_when_all_are_ready() -> None:
    """Ready said twice is nothing new, also when it is said after a restart."""
    made = running()
    assert made.ready("proxy", NOW + 2 * S) == []


def test_a_child_that_ends_during_the_start_ends_all() -> None:
    """A half-started system helps nobody: exit code 1, and what was started is stopped in order."""
    made = begun()
    actions = made.ended("agentd", "ended with exit code 2", NOW)
    assert actions == [Say("agentd ended with exit code 2 before everything was ready", True), Send("proxy", "term")]
    assert (made.phase, made.exit_code) == (Phase.STOPPING, 1)


def test_agents_may_be_late_the_rest_may_not() -> None:
    """After the patience: without agents there is a banner that says so, without the proxy there is none."""
    made = begun()
    for label in ("upstream", "agentd", "proxy", "a"):
        made.ready(label, NOW)
    assert made.tick(NOW + 9 * S) == []
    assert made.tick(NOW + 10 * S) == [Ready(("b",))]
    assert made.phase is Phase.RUNNING
    made = begun()
    said = made.tick(NOW + 10 * S)
    assert said[0] == Say("not ready after 10 s: upstream, agentd, proxy, a, b", True)
    assert made.exit_code == 1


def test_going_down_one_stage_after_the_other() -> None:
    """The proxy first, agentd after the agents, the application last; each only when the one before is gone."""
    made = running()
    assert sent(made.stop("Ctrl-C", NOW)) == [Send("proxy", "term")]
    assert made.ended("proxy", "", NOW) == [Send("a", "term"), Send("b", "term")]
    assert made.ended("b", "", NOW) == []
    assert made.ended("a", "", NOW) == [Send("agentd", "term")]
    assert made.ended("agentd", "", NOW) == [Send("upstream", "term")]
    assert made.ended("upstream", "", NOW) == []
    assert (made.phase, made.exit_code) == (Phase.DONE, 0)


def test_who_does_not_go_is_pressed_and_killed_and_all_of_it_takes_less_than_5_s() -> None:
    """Nobody reacts to anything but SIGKILL."""
    made = running()
    now = NOW
    actions = made.stop("Ctrl-C", now)
    forces = []
    while made.phase is not Phase.DONE:
        killed = [a.label for a in actions if isinstance(a, Send) and a.force == "kill"]
        forces += [a.force for a in actions if isinstance(a, Send)]
        if killed:
            actions = [action for label in killed for action in made.ended(label, "was killed", now)]
        else:
            due = made.next_ns()
            assert due is not None
            now = due
            actions = made.tick(now)
    assert now - NOW < 5 * S
    assert forces == ["term", "quit", "kill", "term", "term", "kill", "kill", "term", "kill", "term", "kill"]


def test_asked_again_means_now() -> None:
    """The second Ctrl-C kills whatever is left, every stage at once."""
    made = running()
    made.stop("Ctrl-C", NOW)
    made.ended("proxy", "", NOW)
    actions = made.stop("Ctrl-C", NOW)
    assert sent(actions) == [Send(label, "kill") for label in ("upstream", "agentd", "a", "b")]
    assert made.stop("Ctrl-C", NOW)[0] == Say("killing what is left")
    for label in ("a", "b", "upstream", "agentd"):
        assert made.phase is Phase.KILLING
        assert made.ended(label, "", NOW) == []
    assert made.phase is Phase.DONE
    assert made.stop("Ctrl-C", NOW) == []


def test_everything_but_the_proxy_is_started_again() -> None:
    """With a wait that grows while it dies young and begins anew once it lived."""
    made = running()
    now = NOW + 60 * S
    for wait_ms in (RESPAWN_MS, 2 * RESPAWN_MS, 4 * RESPAWN_MS, 8 * RESPAWN_MS, RESPAWN_MAX_MS, RESPAWN_MAX_MS):
        (said,) = made.ended("agentd", "was killed by SIGKILL", now)
        assert said == Say(f"agentd was killed by SIGKILL; starting it again in {wait_ms / 1000:.1f} s", True)
        due = made.next_ns()
        assert due == now + wait_ms * 1_000_000
        assert made.tick(due - 1) == []
        assert made.tick(due) == [Start("agentd")]
        assert made.next_ns() is None
        now = due
    made.ended("agentd", "was killed by SIGKILL", now + 30 * S)
    assert made.next_ns() == now + 30 * S + RESPAWN_MS * 1_000_000


def test_without_the_proxy_everything_stops() -> None:
    """Exit code 1; agents first, since there is no proxy to wait for."""
    made = running()
    actions = made.ended("proxy", "ended with exit code 1", NOW)
    assert actions[0] == Say("proxy ended with exit code 1: nothing to run without it", True)
    assert sent(actions) == [Send("a", "term"), Send("b", "term")]
    assert made.exit_code == 1


def test_a_stop_while_a_restart_is_due_starts_nothing() -> None:
    """On the way down nobody comes back."""
    made = running()
    made.ended("agentd", "x", NOW)
    made.stop("Ctrl-C", NOW)
    actions = made.tick(NOW + S)
    assert Start("agentd") not in actions


def test_the_stages_hold_every_role_once_and_less_than_5_s() -> None:
    """The table of the way down; SIGKILL needs no patience."""
    assert [role for role, _ in DOWN] == [Role.PROXY, Role.AGENT, Role.AGENTD, Role.UPSTREAM]
    assert all(steps[-1][0] == "kill" for _, steps in DOWN)
    assert sum(ns for _, steps in DOWN for force, ns in steps if force != "kill") < 5 * S


def test_the_transitions_lead_down_only() -> None:
    """No pair leads back up, and a stop is an event of every phase but the last."""
    order = list(Phase)
    assert all(order.index(after) >= order.index(before) for (before, _), after in TRANSITIONS.items())
    assert {before for before, event in TRANSITIONS if event is Event.STOP} == set(Phase) - {Phase.DONE}
