"""The page that is served while a sweep runs."""

import asyncio

from aiohttp.test_utils import TestClient, TestServer

from tune.store import Store
from tune.watch import _application, _Page


def test_a_store_that_cannot_be_read_is_one_line_until_it_can(tmp_path, row):
    store = Store(str(tmp_path / "out"))
    store.write_trial(row(0.5), [])
    trials, aside = tmp_path / "out" / "trials", tmp_path / "aside"

    async def looked():
        async with TestClient(TestServer(_application(_Page(store, "test")))) as client:
            trials.rename(aside)
            trials.write_text("")  # no folder
            for path in ("/", "/version"):
                answer = await client.get(path)
                assert (answer.status, answer.content_type, answer.headers["Refresh"]) == (503, "text/plain", "3")
                text = await answer.text()
                assert text.startswith("The store cannot be read at the moment: ")
                assert str(trials) in text
            trials.unlink()
            aside.rename(trials)
            assert "No trial has ended yet" not in await (await client.get("/")).text()

    asyncio.run(looked())
