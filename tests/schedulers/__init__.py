"""Tests of the schedulers, and the suite that all of them pass."""

import pytest

pytest.register_assert_rewrite("tests.schedulers.contract")
