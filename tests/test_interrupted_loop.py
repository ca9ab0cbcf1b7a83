"""Ctrl-C in whichever task runs: the command ends by it, and asyncio prints nothing."""

import asyncio
import gc

import pytest

from simbatch.profiler.server.http import run_loop


async def waits_beside(task):
    other = asyncio.create_task(task())
    await asyncio.sleep(60)
    await other


def test_a_task_that_the_interruption_met_is_not_printed(caplog):
    async def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_loop(waits_beside(interrupted))
    gc.collect()
    assert caplog.text == ""


def test_other_tasks_that_failed_are(caplog):
    async def fails():
        raise ValueError("lost")

    async def main():
        task = asyncio.create_task(fails())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task
        gc.collect()
        return 3

    assert run_loop(main()) == 3
    assert "lost" in caplog.text
