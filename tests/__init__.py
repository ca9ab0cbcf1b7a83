"""The machines that run the tests are shared: a test has a time limit of its own (pyproject), no example has one."""

from contextlib import suppress

with suppress(ImportError):  # vLLM's environment has none
    from hypothesis import settings

    settings.register_profile("shared machine", deadline=None)
    settings.load_profile("shared machine")
