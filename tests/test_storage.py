"""ldm/storage.py: files by URL, against memory, an HTTP server that breaks connections, and S3 where moto is there."""

import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm import storage
from ldm.files import sha256_of, staging
from ldm.images import PictureFile, open_picture
from ldm.storage import StorageError, Url, is_url, local, place
from ldm.util import UserError
from tests.conftest import empty_memory


@pytest.fixture(autouse=True)
def _fast(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("PAINT_BY_EXAMPLE_CACHE", str(tmp_path / "fetched"))
    empty_memory()


@pytest.fixture
def server(tmp_path):
    """A server of tmp_path/www. It answers a request for /<n>/<status>/<name> wrongly n times, with the status or, for
    status 0, with half of the file, and then with the file; `server.asked` counts by path."""
    folder, asked = tmp_path / "www", {}
    folder.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked[self.path] = asked.get(self.path, 0) + 1
            *how, name = self.path.strip("/").split("/")
            fails, status = (int(how[0]), int(how[1])) if how else (0, 0)
            broken = asked[self.path] <= fails
            if broken and status:
                return self.send_error(status)
            if not (folder / name).exists():
                return self.send_error(404)
            data = (folder / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[: len(data) // 2] if broken else data)
            if broken:
                self.connection.close()

        def do_HEAD(self):
            self.do_GET()
            asked[self.path] -= 1

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.folder, httpd.asked, httpd.url = folder, asked, f"http://127.0.0.1:{httpd.server_address[1]}"
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def picture(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(path)


def test_what_is_a_url():
    assert all(is_url(text) for text in ("s3://a/b", "https://a/b", "memory://a", Url("gs://a")))
    assert not any(is_url(text) for text in ("a/b", "/a", "C://a", "file:///a", Path("s3://a/b"), None, 3))
    assert isinstance(place("a/b"), Path) and place(Url("s3://a")) == Url("s3://a")


def test_the_parts_of_a_url():
    table = place("s3://bucket/a/jobs.csv")
    assert (table.name, table.stem, table.suffix) == ("jobs.csv", "jobs", ".csv")
    assert table.parent / "../b/x.png" == Url("s3://bucket/b/x.png")
    assert table.parent / "gs://other/x" == Url("gs://other/x") and table.parent / "/x" == Path("/x")
    assert table.with_suffix(".results.csv") == Url("s3://bucket/a/jobs.results.csv")
    signed = place("https://host/a/photo.jpg?signature=secret/1.png")
    assert (signed.name, signed.parent, str(signed)[-5:]) == ("photo.jpg", Url("https://host/a"), "1.png")


def test_files_come_and_go():
    file = place("memory://box/folder/a.txt")
    assert not file.exists()
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    file.write_bytes(b"abc")
    assert file.is_file() and file.parent.is_dir() and file.parent.files() == [file]
    assert file.read_text() == "abc" and file.read_bytes(limit=2) == b"ab"
    file.rename(file.with_name("b.txt"))
    assert [each.name for each in file.parent.files()] == ["b.txt"]
    file.unlink(missing_ok=True)


def test_staging_writes_all_or_nothing():
    folder = place("memory://box/out")
    with pytest.raises(UserError, match="no good"), staging(folder) as temporary:
        (temporary / "a.txt").write_text("1")
        raise UserError("no good")
    assert not folder.exists()
    with staging(folder) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner/a.txt").write_text("1")
        (temporary / "b.txt").write_text("2")
    assert (folder / "inner/a.txt").read_text() == "1" and (folder / "b.txt").read_text() == "2"
    assert not temporary.exists()


def test_a_broken_connection_is_tried_again(server, tmp_path):
    picture(server.folder / "a.png")
    for status in (0, 503, 429):
        url = f"{server.url}/3/{status}/a.png"
        opened = open_picture(url, "image")
        assert opened.size == (50, 40) and opened.filename == url
        assert server.asked[f"/3/{status}/a.png"] == 4
    assert PictureFile(place(f"{server.url}/2/0/a.png")).pixels().shape == (40, 50, 3)
    copy = local(f"{server.url}/4/0/a.png")
    assert copy.name == "a.png" and copy.read_bytes() == (server.folder / "a.png").read_bytes()


def test_the_attempts_end_with_a_sentence(server):
    picture(server.folder / "a.png")
    with pytest.raises(StorageError, match=r"/9/503/a\.png cannot be read after 5 attempts \(503.*: check the connec"):
        open_picture(f"{server.url}/9/503/a.png", "image")
    with pytest.raises(StorageError, match="cannot be read after 5 attempts"):
        local(f"{server.url}/9/0/a.png")
    with pytest.raises(StorageError, match=r"403.*check its name"):
        open_picture(f"{server.url}/9/403/a.png", "image")
    assert server.asked["/9/403/a.png"] == 1
    with pytest.raises(UserError, match="does not exist"):
        open_picture(f"{server.url}/nowhere.png", "image")
    with pytest.raises(UserError, match=r"a\.png cannot be written, as http:// only reads"):
        place(f"{server.url}/a.png").write_bytes(b"")


def test_nothing_half_read_is_kept(server, tmp_path):
    picture(server.folder / "a.png")
    with pytest.raises(StorageError):
        local(f"{server.url}/99/0/a.png")
    assert list((tmp_path / "fetched").iterdir()) == []


def test_a_missing_driver_and_a_scheme_of_no_store():
    with pytest.raises(StorageError, match=r"abfs:// needs a driver .*: pip install 'paint-by-example\[storage\]'"):
        place("abfs://a/b").read_bytes()
    with pytest.raises(StorageError, match="Protocol not known"):
        place("nonsense://a/b").read_bytes()


def test_a_copy_is_made_once_for_each_state(monkeypatch):
    file = place("memory://box/model.bin")
    file.write_bytes(b"one")
    first = local(file)
    monkeypatch.setattr(storage, "_download", None)
    assert local(str(file)) == first and first.name == "model.bin" and sha256_of(file) == sha256_of(first)


def test_a_changed_file_and_a_folder_are_copied(tmp_path):
    file = place("memory://box/folder/model.bin")
    file.write_bytes(b"one")
    (file.parent / "inner/config.json").write_bytes(json.dumps({}).encode())
    first = local(file)
    file.write_bytes(b"three")
    assert local(file) != first and local(file).read_bytes() == b"three"
    folder = local(file.parent)
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")) == ["inner/config.json", "model.bin"]
    with pytest.raises(UserError, match="does not exist"):
        local("memory://box/nowhere")
