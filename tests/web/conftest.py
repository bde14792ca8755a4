"""Fixtures of the tests that drive the page in a real browser; a module gives the page's `address`."""

import pytest


@pytest.fixture(scope="module")
def browser():
    # It needs playwright, which other tests of the page do without.
    import real_browser

    with real_browser.chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser, address):
    import real_browser

    with real_browser.opener(browser, address) as opened:
        yield opened
