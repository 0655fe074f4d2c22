"""The agent `auth`: a request passes with an identity, or not at all.

A verdict is made once per user or token and kept, so that the common request costs a hash and a look-up. What waits
(a password's comparison) waits in a thread. Everything that is not plainly right is refused; what goes wrong in here
is an error, which ends as the filter's failure mode says: leave that `closed`.

Kind: IO (an agent; who somebody is, is decided in ways.py and below).
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

import wardgate_agent
from wardgate_agent import Agent, AgentError, Allow, Configure, HttpAnswer, HttpVerdict, RequestHeaders
from wardgate_agents.auth.command import COMMANDS
from wardgate_agents.auth.command import main as run_command
from wardgate_agents.auth.credentials import ApiKey, Basic, Bearer, Unusable, credential_of
from wardgate_agents.auth.gate import Crowded
from wardgate_agents.auth.settings import AuthSettings
from wardgate_agents.auth.tokens import InvalidToken
from wardgate_agents.auth.ways import Ways
from wardgate_agents.budget import answer_within_s
from wardgate_agents.files import BadFile, Follower, Health
from wardgate_agents.settings import ConfigRejected, settings_of


class AuthAgent(Agent):
    """Lets in who can prove who they are. Its configuration is AuthSettings."""

    name = "auth"

    def __init__(self, clock_s: Callable[[], float] = time.time) -> None:
        self._clock_s = clock_s
        self._ways: Ways | None = None
        self._files = Follower(Health(self.session))
        self._allowed = self.session.metrics.counter("allowed_total")
        self._refused = self.session.metrics.counter("refused_total")
        self._waiting = self.session.metrics.gauge("passwords_waiting")

    async def on_configure(self, configure: Configure) -> None:
        """Read every file before anything is taken over: a configuration that is rejected changes nothing."""
        settings = settings_of(AuthSettings, configure.config)
        if settings.jwt is None and settings.api_keys is None and settings.basic is None:
            raise ConfigRejected("config: nobody could get in; give one or more of the tables jwt, api_keys and basic")
        ways = Ways(settings, self._clock_s)
        watched = ways.watched()
        for one in watched:
            try:
                await one.start()
            except BadFile as error:
                raise ConfigRejected(f"config.{one.part}: {error}") from None
        before, self._ways = self._ways, ways
        if before is not None and before.logins is not None:
            before.logins.gate.close()
        self._files.follow(watched, settings.check_interval_s)

    def on_request_headers(self, event: RequestHeaders) -> HttpAnswer | Awaitable[HttpAnswer]:
        ways = self._ways
        if ways is None:
            raise AgentError("not_configured", "no keys were read yet")
        credential = credential_of(event.headers, ways.api_key_header)
        if isinstance(credential, Bearer) and ways.tokens is not None:
            try:
                return self._let_in(ways, event, "jwt", ways.tokens.verdict(credential.token))
            except InvalidToken as error:
                return self._turn_away(ways.challenges.refused("bearer"), "bearer", error.code)
        if isinstance(credential, ApiKey) and ways.key_ring is not None:
            verdict = ways.key_ring.verdict(credential.key)
            if verdict is not None:
                return self._let_in(ways, event, "api_key", verdict)
            return self._turn_away(ways.challenges.refused("apikey"), "apikey", "unknown_key")
        if isinstance(credential, Basic) and ways.logins is not None:
            answer = ways.logins.verdict(credential, event.client_ip)
            if isinstance(answer, Allow):
                return self._let_in(ways, event, "basic", answer)
            return self._logged_in(ways, event, answer)
        if credential is None:
            if event.route_id in ways.optional_routes:
                return self._let_in(ways, event, "none", ways.identities.nobody)
            return self._turn_away(ways.challenges.nobody(), "none", "no_credential")
        if isinstance(credential, Unusable):
            if credential.is_ambiguous:
                return self._turn_away(ways.challenges.ambiguous, "none", credential.code)
            refusal = ways.challenges.refused(credential.scheme)
            return self._turn_away(refusal, credential.scheme, credential.code)
        return self._turn_away(ways.challenges.nobody(), "none", "scheme_not_accepted")

    async def _logged_in(self, ways: Ways, event: RequestHeaders, answer: Awaitable[Allow | None]) -> HttpAnswer:
        assert ways.logins is not None
        try:
            self._waiting.set(ways.logins.gate.waiting)
            # In time to say so, see budget.py: a load of wrong passwords must not refuse everybody.
            async with asyncio.timeout(answer_within_s(event.budget_ms)):
                verdict = await answer
        except TimeoutError:  # the comparison goes on; if it comes out right, the next request finds it
            return self._turn_away(ways.challenges.busy, "basic", "out_of_time")
        except Crowded as error:
            refusal = ways.challenges.busy_client if error.is_client else ways.challenges.busy
            return self._turn_away(refusal, "basic", "too_many_logins")
        finally:
            self._waiting.set(ways.logins.gate.waiting)
        if verdict is None:
            return self._turn_away(ways.challenges.refused("basic"), "basic", "wrong_password")
        return self._let_in(ways, event, "basic", verdict)

    def _let_in(self, ways: Ways, event: RequestHeaders, method: str, verdict: Allow) -> Allow:
        self._allowed.inc(method=method)
        return ways.identities.stripped(verdict, event.headers)

    def _turn_away(self, verdict: HttpVerdict, scheme: str, code: str) -> HttpVerdict:
        """`scheme` came from the client: only those that there are become a label."""
        method = scheme if scheme in ("bearer", "apikey", "basic", "none") else "other"
        self._refused.inc(method=method, code=code)
        return verdict.audit(tags=("auth", method), reason_codes=code)


def main() -> int:
    """`wardgate-agent-auth`: the agent, or with a command as the first argument that command."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        return run_command(sys.argv[1:])
    if sys.argv[1:2] in (["-h"], ["--help"]):
        sys.stdout.write(
            f"commands: wardgate-agent-auth {{{','.join(COMMANDS)}}} --help; without one the agent runs:\n\n"
        )
    return wardgate_agent.main(AuthAgent)
