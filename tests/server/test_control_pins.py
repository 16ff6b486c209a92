from __future__ import annotations

import time
from datetime import timedelta

import pytest
from dmesr_server.control import Control
from dmesr_server.errors import ServiceError


@pytest.fixture
def pins(control_url):
    control = Control(control_url)
    control.migrate()
    control.catalogs.create("films")
    yield control.pins
    control.close()


def gone(pins, pin_id: str) -> bool:
    with pytest.raises(ServiceError) as caught:
        pins.get(pin_id)
    return caught.value.reason == "VERSION_NOT_FOUND"


def test_pins_last_their_time(pins):
    pin = pins.create("films", "e1", 7, 3_600, "train.py on host-3", "pin-1")
    assert (pin.catalog, pin.recipe_id, pin.version, pin.tag) == ("films", "e1", 7, "pin-1")
    assert pin.expire_time - pin.create_time == timedelta(hours=1)
    assert pins.get(pin.pin_id) == pin
    short = pins.create("films", "e1", 8, 0.02, "", "pin-2")
    time.sleep(0.03)
    assert gone(pins, short.pin_id)
    assert pins.expired() == [short]
    assert pins.release(short.pin_id) == short
    assert pins.expired() == []
    assert pins.get(pin.pin_id) == pin


def test_releasing(pins):
    pin = pins.create("films", "e1", 7, 60, "", "t")
    assert pins.release(pin.pin_id) == pin
    assert pins.release(pin.pin_id) is None
    assert gone(pins, pin.pin_id)
    assert gone(pins, "nobody")
