"""A real nginx with deploy/nginx.conf, for tests."""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import httpx
from deploy_files import DEPLOY, free_port, tool
from live_service import Live, expect

CONF = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
NOTHING: Mapping[str, str] = MappingProxyType({})

MAIN = """
daemon off; user {user}; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    include {folder}/textgen.conf;
}}
"""


@contextmanager
def nginx(folder: Path, *upstreams: Live, changes: Mapping[str, str] = NOTHING) -> Iterator[httpx.Client]:
    """nginx with the file as it is, but for its port, the services behind it, and what a test changes.

    Args:
        folder: for its files.
        upstreams: services of this machine.
        changes: what stands in the file to what stands there instead.
    """
    port = free_port()
    servers = "".join(f"    server 127.0.0.1:{live.port};\n" for live in upstreams)
    text = CONF.replace("    server 127.0.0.1:8000;\n", servers)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    text = text.replace("listen 80;", f"listen 127.0.0.1:{port};").replace("listen [::]:80;", "")
    (folder / "textgen.conf").write_text(text, encoding="utf-8")
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=getpass.getuser()), encoding="utf-8")
    folder.chmod(0o755)
    process = subprocess.Popen([tool("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")])
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
    try:
        expect(lambda: answers(client) or process.poll() is not None, "nginx")
        assert process.poll() is None, (folder / "error.log").read_text()
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(30)


def answers(client: httpx.Client) -> bool:
    try:
        client.get("/")
    except httpx.ConnectError:
        return False
    return True
