"""Serve this folder to this machine, isolated from other origins: python3 serve.py [PORT]. WebAssembly gets threads."""

from __future__ import annotations

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Isolated(SimpleHTTPRequestHandler):
    """Says with each file that the page shares no process with other origins."""

    def end_headers(self) -> None:
        """Add the two headers that a browser asks for before it lets threads share memory."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(Isolated, directory=str(Path(__file__).parent)))
    sys.stdout.write(f"http://localhost:{server.server_port}/\n")
    sys.stdout.flush()
    server.serve_forever()
