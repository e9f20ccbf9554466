"""Hub: a small server that answers as a model and data hub does, for a few data sets of a few files."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(sets: dict[str, dict[str, Path]]):
    """Serve data sets, name -> path in the repository -> file; gives the address and the paths asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, body=b"", status=200, kind="application/json", **headers):
            self.send_response(status)
            for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def entries(self, files):
            """What the hub says of each file."""
            data = {path: file.read_bytes() for path, file in files.items()}
            return [
                {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()} for p, d in data.items()
            ]

        def repository(self):
            """Name and files of the data set that is asked about; no files where there is no such set."""
            name = next((name for name in sets if f"datasets/{name}/" in f"{self.path.split('?')[0]}/"), "")
            return name, sets.get(name, {})

        def do_GET(self):
            path = self.path.split("?")[0]
            asked.append(path)
            name, files = self.repository()
            if name and path.startswith(f"/datasets/{name}/resolve/"):
                return self.file(files.get(path.removeprefix(f"/datasets/{name}/resolve/").split("/", 1)[1]))
            if name and path.startswith(f"/api/datasets/{name}/tree/"):
                below = path.removeprefix(f"/api/datasets/{name}/tree/").partition("/")[2].rstrip("/")
                inside = [row for row in self.entries(files) if row["path"].startswith(below + "/" if below else "")]
                folders = sorted({row["path"].rpartition("/")[0] for row in inside} - {"", below})
                rows = [{"type": "directory", "path": folder, "oid": "0", "size": 0} for folder in folders]
                return self.answer(json.dumps(rows + inside).encode())
            if name and path.startswith(f"/api/datasets/{name}"):
                siblings = [{"rfilename": file} for file in files]
                flags = {"private": False, "gated": False, "disabled": False}
                info = {"id": name, "sha": COMMIT, **flags, "tags": [], "siblings": siblings}
                return self.answer(json.dumps(info).encode())
            return self.answer(b"{}", 404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def file(self, place):
            """The bytes of a file, or the part that is asked for."""
            if place is None:
                return self.answer(b"{}", 404, X_Error_Code="EntryNotFound")
            data = place.read_bytes()
            common = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
            if "Range" not in self.headers:
                return self.answer(data, 200, "application/octet-stream", **common)
            low, high = self.headers["Range"].removeprefix("bytes=").split("-")
            part = data[int(low) : int(high) + 1 if high else None]
            span = f"bytes {low}-{int(low) + len(part) - 1}/{len(data)}"
            return self.answer(part, 206, "application/octet-stream", Content_Range=span, **common)

        def do_POST(self):
            paths = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            asked.append(f"POST {self.path}")
            rows = self.entries(self.repository()[1])
            asked_for = [row for row in rows if row["path"] in paths or row["path"].replace("/", "%2F") in paths]
            return self.answer(json.dumps(asked_for).encode())

        def log_message(self, *args):
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
