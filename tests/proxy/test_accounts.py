"""What a worker tells agentd of refusals: nothing where nobody keeps an audit."""

from pathlib import Path

import pytest

from shared.metrics import W_AUDIT_DROPPED, W_AUDIT_QUEUED, W_REQUESTS
from tests.proxy.front import Client, Front
from tests.support import wait_until


@pytest.mark.parametrize(("sinks", "kept"), [('["file"]', 5), ("[]", 0)])
def test_records_are_for_a_sink(short_tmp_dir: Path, sinks: str, kept: int) -> None:
    """Without agentd they would wait in the worker; each would be a message to it. Nothing is counted as dropped."""
    front = Front(short_tmp_dir, "127.0.0.1:9")
    front.config.write_text(front.config.read_text() + f'[audit]\nsinks = {sinks}\npath = "{short_tmp_dir}"\n')
    with front.serving(), Client(front.address) as client:
        for _ in range(5):
            assert client.get("/")[0] == 502
        wait_until(lambda: front.count(W_REQUESTS) == 5 and front.count(W_AUDIT_QUEUED) == kept)
        assert front.count(W_AUDIT_DROPPED) == 0
