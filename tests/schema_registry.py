"""The other side of the wire: an HTTP server that answers as Confluent's schema registry does."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Registry:
    """Schemas by id, as (type, text); `away` makes it fail, `secret` asks for an Authorization header."""

    def __init__(self, schemas):
        self.schemas, self.away, self.secret, self.asked = schemas, False, None, []


@contextmanager
def running(schemas):
    registry = Registry(schemas)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            number = int(self.path.rpartition("/")[2])
            registry.asked.append(number)
            if registry.away:
                self.reply(503, {"error_code": 50001, "message": "away"})
            elif registry.secret and self.headers["Authorization"] != registry.secret:
                self.reply(401, {"error_code": 401, "message": "Unauthorized"})
            elif number not in registry.schemas:
                self.reply(404, {"error_code": 40403, "message": "Schema not found"})
            else:
                kind, text = registry.schemas[number]
                told = {"schema": text} if kind == "AVRO" else {"schema": text, "schemaType": kind}
                self.reply(200, told)

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
