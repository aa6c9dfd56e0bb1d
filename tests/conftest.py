import socket

import pytest

# Hosts that the tests marked network download from.
_HOSTS = ("download.pytorch.org", "huggingface.co")


def _why_no_network():
    for host in _HOSTS:
        try:
            socket.create_connection((host, 443), timeout=5).close()
        except OSError as error:
            return f"no network: {host} cannot be reached ({error})"
    return None


def pytest_collection_modifyitems(items):
    network = [item for item in items if item.get_closest_marker("network")]
    reason = _why_no_network() if network else None
    if reason is not None:
        for item in network:
            item.add_marker(pytest.mark.skip(reason=reason))
