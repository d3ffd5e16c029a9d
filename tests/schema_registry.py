"""The other side of the wire: an HTTP server that answers as Confluent's schema registry does."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from urllib.parse import unquote


class Registry:
    """Schemas by id, as (type, text), and references if it has any; `away` makes it fail.

    `subjects` has ids by "subject/version"; `secret` asks for an Authorization header.
    """

    def __init__(self, schemas, subjects):
        self.schemas, self.subjects = schemas, subjects
        self.away, self.secret, self.asked = False, None, []

    def number(self, path):
        """The id of the schema at a path; None where there is none."""
        kind, _, rest = path.strip("/").partition("/")
        return self.subjects.get(unquote(rest).replace("/versions", "")) if kind == "subjects" else int(rest[4:])


@contextmanager
def running(schemas, subjects=MappingProxyType({})):
    registry = Registry(schemas, subjects)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            number = registry.number(self.path)
            registry.asked.append(number)
            if registry.away:
                self.reply(503, {"error_code": 50001, "message": "away"})
            elif registry.secret and self.headers["Authorization"] != registry.secret:
                self.reply(401, {"error_code": 401, "message": "Unauthorized"})
            elif number not in registry.schemas:
                self.reply(404, {"error_code": 40403, "message": "Schema not found"})
            else:
                kind, text, *references = registry.schemas[number]
                told = {"schema": text} if kind == "AVRO" else {"schema": text, "schemaType": kind}
                self.reply(200, told | ({"references": references} if references else {}))

        def reply(self, status, body):
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    registry.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
