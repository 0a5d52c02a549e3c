"""nginx: over files, as the caching proxy of rpardini/docker-registry-proxy, and with aio."""

import os
import shutil
from urllib.parse import urlsplit

from .process import needed, wait_until_open
from .server import Server

FILES_OPEN_MAX = 20_000


class Nginx(Server):
    """Over files and at its best: one worker, sendfile, no tcp_nopush, files held open."""

    name = "nginx"
    program = "nginx"
    caches = False
    http = """\
    sendfile on;
    tcp_nopush off;     # on, it delays the last packet of every body by 40 ms
    open_file_cache max=1000 inactive=1h;
    open_file_cache_valid 1h;"""

    def start(self, origin, bodies):
        for body in bodies:
            self.write_file(origin, body)
        self.configuration = ("conf", self.write_configuration(origin))
        # -e: otherwise nginx opens Debian's log before it reads the configuration.
        arguments = ["-p", self.directory, "-e", self.directory / "error.log"]
        command = [needed(self.program), *arguments, "-c", self.directory / "nginx.conf"]
        self.start_process(command, self.cores)
        wait_until_open(self.port, self.process)

    def write_file(self, origin, body):
        file = self.directory / "root" / body.path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        with origin.open(body) as answer, open(file, "wb") as out:
            shutil.copyfileobj(answer, out, 1 << 20)

    def server(self, _origin):
        return f"        root {self.directory}/root;"

    def write_configuration(self, origin):
        directory = self.directory
        user = "user root;" if os.geteuid() == 0 else ""
        text = f"""\
daemon off;
worker_processes 1;
worker_rlimit_nofile {FILES_OPEN_MAX};
{user}
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{
    worker_connections {FILES_OPEN_MAX - 1000};
}}
http {{
    access_log off;
    default_type application/octet-stream;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
{self.http}
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{self.zone()}
    server {{
        listen 127.0.0.1:{self.port} backlog=4096;
{self.server(origin)}
    }}
}}
"""
        (directory / "nginx.conf").write_text(text)
        return text

    def zone(self):
        return ""


class NginxAio(Nginx):
    """Over files that are not in the page cache: threads wait for the disk."""

    name = "nginx-aio"
    http = Nginx.http + "\n    aio threads;"


class NginxProxy(Nginx):
    """The caching server of rpardini/docker-registry-proxy 0.7.0 (7515d698), less what a plain
    HTTP origin without redirects and logins needs not: TLS, CONNECT, the maps of hosts. Tags are
    cached as ENABLE_MANIFEST_CACHE=true has it; sendfile and aio stay off, there is no slice.
    Ours: one worker, no access log, connections that are never closed."""

    name = "nginx-proxy"
    caches = True
    http = """\
    sendfile off;
    gzip off;
    proxy_buffer_size 128k;
    proxy_buffers 4 256k;"""

    def start(self, origin, bodies):
        del bodies  # fetched when they are asked for
        super().start(origin, [])

    def zone(self):
        return (
            f"    proxy_cache_path {self.directory}/cache levels=1:2 max_size=32g inactive=60d "
            "keys_zone=cache:10m use_temp_path=off;"
        )

    def server(self, origin):
        common = f"""\
            proxy_pass http://{urlsplit(origin.url).netloc};
            proxy_cache cache;
            proxy_cache_key $uri;
            proxy_intercept_errors on;
            add_header X-Docker-Registry-Proxy-Cache-Upstream-Status "$upstream_cache_status";
            add_header X-Docker-Registry-Proxy-Cache-Type "$docker_proxy_request_type";"""
        return f"""\
        set $docker_proxy_request_type "unknown";
        chunked_transfer_encoding on;
        if ($request_method = POST) {{ return 405; }}
        if ($request_method = PUT) {{ return 405; }}
        if ($request_method = DELETE) {{ return 405; }}
        proxy_read_timeout 900;
        proxy_cache_lock on;
        proxy_cache_lock_timeout 880s;
        proxy_cache_valid 200 206 60d;
        proxy_force_ranges on;
        proxy_ignore_client_abort on;
        proxy_cache_revalidate on;
        proxy_hide_header Set-Cookie;
        proxy_ignore_headers X-Accel-Expires Expires Cache-Control Set-Cookie;
        proxy_set_header Authorization $http_authorization;
        location ~ ^/v2/(.*)/blobs/sha256:(.*) {{
            set $docker_proxy_request_type "blob-by-digest";
{common}
        }}
        location ~ ^/v2/(.*)/manifests/sha256:(.*) {{
            set $docker_proxy_request_type "manifest-by-digest";
{common}
        }}
        location ~ ^/v2/(.*)/manifests/ {{
            set $docker_proxy_request_type "manifest-default";
            proxy_cache_valid 1h;
            proxy_cache_use_stale error timeout http_500 http_502 http_504 http_429;
{common}
        }}"""


class NginxSendfile(NginxProxy):
    """The same with sendfile: the best that nginx can be as this cache."""

    name = "nginx-sendfile"
    http = NginxProxy.http.replace("sendfile off;", "sendfile on;\n    tcp_nopush off;")
