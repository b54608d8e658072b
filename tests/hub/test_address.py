"""Where a hub listens: hub.json, the port, and one hub for one folder."""

import os
import socket
import stat

import pytest

from manyhands.errors import ConfigurationError, MachineError, PortInUse
from manyhands.hub.address import Address, listen, read_address, sole, url_of, write_address

ADDRESS = Address("http://127.0.0.1:1234", 99, "run", "secret", 1234)


def test_hub_json_is_read_back_and_is_its_owners_alone(tmp_path):
    write_address(tmp_path, ADDRESS)
    write_address(tmp_path, ADDRESS)
    assert read_address(tmp_path) == ADDRESS
    assert stat.S_IMODE((tmp_path / "hub.json").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["hub.json"]


def test_no_hub_json_is_no_address(tmp_path):
    assert read_address(tmp_path) is None


def test_a_damaged_hub_json_is_named_with_the_remedy(tmp_path):
    (tmp_path / "hub.json").write_text('{"url": 3}')
    with pytest.raises(ConfigurationError, match=r"hub\.json cannot be read.*remove it"):
        read_address(tmp_path)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("box", "http://box:80"),
    ],
)
def test_the_url_is_one_that_this_machine_can_reach(host, url):
    assert url_of(host, 80) == url


def test_a_port_in_use_is_named_with_the_remedy():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"port {port} on 127\.0\.0\.1 is in use.*--port"):
            listen("127.0.0.1", port)


def test_a_port_is_free_again_as_soon_as_its_holder_is_gone():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), first.accept()[0]:
            pass  # our side closes last or first: a socket lingers either way
    with listen("127.0.0.1", port) as second:
        assert second.getsockname()[1] == port


def test_a_free_port_is_not_one_that_the_kernel_gives_to_outgoing_connections():
    with listen("127.0.0.1", 0) as listener:
        assert 15_000 <= listener.getsockname()[1] < 30_000


def test_a_host_that_is_not_this_machine_is_a_wrong_configuration():
    with pytest.raises(
        ConfigurationError, match=r"203\.0\.113\.7 is not an address of this machine.*0\.0\.0\.0"
    ):
        listen("203.0.113.7", 0)


def test_a_folder_has_one_hub_at_a_time(tmp_path):
    sentence = r"another hub serves the run folder.*--folder"
    with sole(tmp_path), pytest.raises(MachineError, match=sentence), sole(tmp_path):
        pass
    with sole(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    with pytest.raises(MachineError, match=r"cannot be written.*--folder"), sole(tmp_path / "missing"):
        pass
