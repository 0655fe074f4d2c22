"""The agent `headers`: every head gets the verdict of its route's plan.

Strict-Transport-Security means nothing over http, and RFC 6797 (7.2) forbids to send it there. Whether the client came
over https is seen in its request alone: by the TLS of its connection, or, behind a terminator, by X-Forwarded-Proto.
So with `https = "auto"` it is the request's verdict that sets the field on the response to come. A client that writes
X-Forwarded-Proto itself gets the field in its own answer over http, where browsers ignore it.

Kind: IO (an agent; the plans are made in rules.py).
"""

import wardgate_agent
from wardgate_agent import Agent, AgentError, Configure, HttpAnswer, RequestHeaders, ResponseHeaders
from wardgate_agents.headers.rules import Plans
from wardgate_agents.headers.settings import HeadersSettings, HttpsMode
from wardgate_agents.settings import settings_of


class HeadersAgent(Agent):
    """Sets and removes fields. Its configuration is HeadersSettings."""

    name = "headers"

    def __init__(self) -> None:
        self._plans: Plans | None = None
        self._https: HttpsMode = "auto"

    def on_configure(self, configure: Configure) -> None:
        """The plans of every route, all or none."""
        settings = settings_of(HeadersSettings, configure.config)
        self._plans = Plans(settings)
        self._https = settings.https

    def on_request_headers(self, event: RequestHeaders) -> HttpAnswer:
        if self._plans is None:
            raise AgentError("not_configured")
        return self._plans.of(event.route_id).on_request(self._https == "auto" and _is_https(event))

    def on_response_headers(self, event: ResponseHeaders) -> HttpAnswer:
        if self._plans is None:
            raise AgentError("not_configured")
        return self._plans.of(event.route_id).on_response(self._https == "always", event.headers.raw)


def _is_https(event: RequestHeaders) -> bool:
    """By the connection's own TLS, or by what a proxy in front of this one says."""
    if event.metadata.tls_version:
        return True
    said: str = event.headers.get("x-forwarded-proto", "")
    return said.strip().lower() == "https"


def main() -> int:
    """`wardgate-agent-headers`."""
    return wardgate_agent.main(HeadersAgent)
