import socket

import pytest
from canned_hub import RUN, TOKEN, canned_hub

from manyhands.cli.client import HubClient
from manyhands.errors import ConfigurationError, HubUnreachable


def test_a_hub_is_asked():
    with canned_hub() as url:
        client = HubClient(url, TOKEN)
        assert client.run() == RUN
        assert len(client.workers()) == 3
        assert client.rounds(5)[0]["version"] == 7
        assert [event["id"] for event in client.events(after=1)] == [2, 3]
        assert client.run_id() == "r1"


def test_an_address_without_scheme_will_do():
    with canned_hub() as url:
        assert HubClient(url.removeprefix("http://"), TOKEN).url == url


@pytest.mark.parametrize(
    "url", ["", "nowhere", "http://nowhere", "https://a:1", "http://a:b", "http://a:99999"]
)
def test_what_is_no_address_is_refused_with_the_form_of_one(url):
    with pytest.raises(ConfigurationError, match="give it as http://HOST:PORT"):
        HubClient(url, TOKEN)


def test_a_wrong_token_is_named():
    with canned_hub() as url, pytest.raises(ConfigurationError, match="does not know this token"):
        HubClient(url, "wrong").run()


def test_a_hub_that_is_not_there_is_named_with_the_remedy():
    with canned_hub() as url:
        pass
    with pytest.raises(HubUnreachable, match=f"no hub answers at {url} .*: start one with"):
        HubClient(url, TOKEN).run()


def test_a_host_that_does_not_exist_is_named():
    with pytest.raises(HubUnreachable, match=r"no hub answers at http://nowhere\.invalid:1"):
        HubClient("http://nowhere.invalid:1", TOKEN).run()


def test_a_hub_that_accepts_and_says_nothing_is_not_waited_for_for_ever():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(HubUnreachable, match="timed out"):
            HubClient(url, TOKEN, timeout=0.1).run()


def test_something_else_that_listens_there_is_no_hub():
    with canned_hub() as url, pytest.raises(HubUnreachable, match="answered 404"):
        HubClient(url, TOKEN)._get("/api/nothing")
