"""Edits as the server lists, loads and unloads them, and the folders that they come from."""

import asyncio
import json
import threading
import time
from pathlib import Path

import pytest

from cad_fast.edits.files.store import read_folder
from cad_fast.serving.edit_library import EditLibrary, UnknownEdit
from cad_fast.serving.engine.edited_passes import RowWise
from cad_fast.serving.engine.jobs import PictureJob
from cad_fast.serving.server import Server
from cad_fast.serving.settings import Settings
from tests.pipelines import PIPELINES, stable_diffusion
from tests.serving.common import PATH, TOKEN, client_of, make_server, random_edit, run


def test_edits_and_admin(tmp_path) -> None:
    pipeline = stable_diffusion()
    edit = random_edit(pipeline, "no-cat", 1)
    edit.provenance.update(concept="cat", selection={"sign": "positive"})
    edit.save_pretrained(tmp_path / "anything")
    random_edit(pipeline, "more-cat", 2).save_pretrained(tmp_path / "other")
    (tmp_path / "not-an-edit").mkdir()
    settings = Settings(warm_up=False, steps=1)
    server = Server(pipeline, EditLibrary(tmp_path, pipeline), settings, admin_token=TOKEN)
    good = {"authorization": f"Bearer {TOKEN}"}
    body = {"prompt": "a cat", "edits": [{"name": "no-cat"}]}

    async def go():
        async with client_of(server) as client:
            listed = (await client.get("/v1/edits")).json()["data"]
            assert [entry["id"] for entry in listed] == ["more-cat", "no-cat"]
            one = (await client.get("/v1/edits/no-cat")).json()
            assert one["effect"] == "erase" and one["concept"] == "cat" and one["digest"] == edit.digest()
            assert str(tmp_path) not in json.dumps(listed)
            for headers in ({}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": TOKEN}):
                assert (await client.post("/v1/edits/no-cat/unload", headers=headers)).status_code == 403
            assert (await client.post(PATH, json=body)).status_code == 200
            unloaded = await client.post("/v1/edits/no-cat/unload", headers=good)
            assert unloaded.json() == {"id": "no-cat", "object": "edit", "loaded": False}
            assert (await client.get("/v1/edits/no-cat")).json() == unloaded.json()
            gone = await client.post(PATH, json=body)
            assert gone.status_code == 404 and gone.json()["error"]["code"] == "edit_not_loaded"
            for path in ("/v1/edits/none/load", "/v1/edits/..%2Fother/load"):
                assert (await client.post(path, headers=good)).status_code in (404, 405)
            assert (await client.post("/v1/edits/no-cat/load", headers=good)).json() == one
            assert (await client.post(PATH, json=body)).status_code == 200
            (tmp_path / "anything" / "edit_config.json").write_text("{}")
            damaged = await client.post("/v1/edits/no-cat/load", headers=good)
            assert damaged.status_code == 500 and str(tmp_path) not in damaged.text
            assert (await client.post(PATH, json=body)).status_code == 200  # what was loaded stays

    run(go())


def test_an_edit_without_a_file_is_neither_loaded_nor_unloaded() -> None:
    pipeline = stable_diffusion()
    server = make_server(pipeline, [random_edit(pipeline, "own", 1)], admin_token=TOKEN)

    async def go():
        async with client_of(server) as client:
            for action in ("load", "unload"):
                answer = await client.post(f"/v1/edits/own/{action}", headers={"authorization": f"Bearer {TOKEN}"})
                assert answer.status_code == 409 and answer.json()["error"]["code"] == "edit_without_file"
            assert (await client.get("/v1/edits/own")).json()["loaded"] is True

    run(go())


@pytest.mark.parametrize("found", [{"concept": 5}, {"concept": ["a"]}, {"selection": None}, {"selection": "all"}])
def test_edits_are_listed_whatever_their_provenance_holds(found) -> None:
    pipeline = stable_diffusion()
    edit = random_edit(pipeline, "odd", 1)
    edit.provenance.update(found)
    server = make_server(pipeline, [edit])

    async def go():
        async with client_of(server) as client:
            (entry,) = (await client.get("/v1/edits")).json()["data"]
            assert entry["id"] == "odd" and "effect" not in entry
            assert isinstance(entry.get("concept", ""), str)

    run(go())


@pytest.mark.parametrize("damage", ["twice", "config", "model"])
def test_folders_that_are_refused(tmp_path, damage) -> None:
    pipeline = stable_diffusion()
    random_edit(pipeline, "edit", 1).save_pretrained(tmp_path / "one")
    if damage == "twice":
        random_edit(pipeline, "edit", 2).save_pretrained(tmp_path / "two")
    elif damage == "config":
        (tmp_path / "one" / "edit_config.json").write_text("{}")
    else:
        pipeline = stable_diffusion("v_prediction", "euler")
        pipeline = PIPELINES["sd3"][0]()
    message = {"twice": "two edits have the name 'edit'", "config": "format_version", "model": "another model"}[damage]
    with pytest.raises(ValueError, match=message):
        EditLibrary(tmp_path, pipeline)


def test_edit_folder_that_is_none(tmp_path) -> None:
    with pytest.raises(NotADirectoryError, match="is no folder"):
        EditLibrary(tmp_path / "none", stable_diffusion())
    library = EditLibrary(None, stable_diffusion())
    with pytest.raises(UnknownEdit, match="there are: none"):
        library.get("edit")


def test_an_edit_whose_folder_has_gone_is_not_fetched_from_the_hub(tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names, **_: asked.append(names))
    monkeypatch.chdir(tmp_path)
    pipeline = stable_diffusion()
    random_edit(pipeline, "no-cat", 1).save_pretrained("edits/no-cat")
    library = EditLibrary("edits", pipeline)
    (tmp_path / "edits").rename(tmp_path / "gone")  # neither the edit nor anything else of that name is here
    with pytest.raises(FileNotFoundError, match="no-cat holds no edit_config"):
        library.load("no-cat")
    assert asked == [] and library.is_loaded("no-cat")


def test_links_out_of_the_folder_are_refused_unless_allowed(tmp_path) -> None:
    pipeline, edits = stable_diffusion(), tmp_path / "edits"
    random_edit(pipeline, "inside", 1).save_pretrained(edits / "inside")
    random_edit(pipeline, "outside", 2).save_pretrained(tmp_path / "outside")
    (tmp_path / "same").symlink_to(edits)
    assert EditLibrary(tmp_path / "same", pipeline).names == ["inside"]
    (edits / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(PermissionError, match=r"link is a link that leads out of .*edits_?.*--edit-links"):
        EditLibrary(edits, pipeline)
    library = EditLibrary(edits, pipeline, links=True)
    assert library.names == ["inside", "outside"]
    (edits / "link").unlink()
    library = EditLibrary(edits, pipeline)
    (edits / "inside").rename(tmp_path / "moved")
    (edits / "inside").symlink_to(tmp_path / "moved")
    with pytest.raises(PermissionError, match="leads out"):
        library.load("inside")


def test_unload_does_not_wait_for_a_load_and_is_not_undone_by_it(tmp_path, monkeypatch) -> None:
    pipeline = stable_diffusion()
    for number, name in enumerate(("first", "second")):
        random_edit(pipeline, name, number).save_pretrained(tmp_path / name)
    server = Server(pipeline, EditLibrary(tmp_path, pipeline), Settings(warm_up=False, steps=1), admin_token=TOKEN)
    good = {"authorization": f"Bearer {TOKEN}"}
    reading, may_read = threading.Event(), threading.Event()

    def slow(*args, **kwargs):
        reading.set()
        assert may_read.wait(60)
        return read_folder(*args, **kwargs)

    monkeypatch.setattr("cad_fast.serving.edit_library.read_folder", slow)

    async def go():
        async with client_of(server) as client:
            load = asyncio.create_task(client.post("/v1/edits/first/load", headers=good))
            await asyncio.to_thread(reading.wait, 60)
            for name in ("second", "first"):
                answer = await asyncio.wait_for(client.post(f"/v1/edits/{name}/unload", headers=good), 20)
                assert answer.json()["loaded"] is False
            assert (await client.get("/health")).status_code == 200
            assert not load.done()
            may_read.set()
            assert (await load).json()["loaded"] is False

    run(go())


def test_an_edit_that_is_replaced_between_job_and_submit_is_let_go() -> None:
    pipeline = stable_diffusion()
    passes = RowWise(pipeline)
    server = make_server(pipeline, [random_edit(pipeline, "edit", 1)], passes=passes, batch_timeout=0.0)
    server.library._sources["edit"] = Path("nowhere")
    server.batcher.start()
    try:
        request = server.request_class(prompt="a cat", edits=[{"name": "edit"}], num_inference_steps=1)
        job = server.job(request, "", "req")
        server.unload_edit("edit")
        while server.batcher._retired:  # the batcher has looked, and found nobody who uses it
            time.sleep(0.01)
        server.submit(job).future.result(timeout=60)
        server.batcher.submit(PictureJob("next", "a cat", arguments={"num_inference_steps": 1})).future.result(60)
        assert passes.known == []
    finally:
        server.stop()
