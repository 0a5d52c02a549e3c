"""`entrepot-origin`, which makes the bytes and is the upstream of every cache, and its content."""

import json
import subprocess
import urllib.request
from dataclasses import dataclass

from .process import Process

PROJECT = "bench"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True)
class Body:
    """What is asked for; a manifest may be asked for by its tag."""

    name: str
    size: int
    digest: str
    repository: str
    kind: str = "blobs"
    tag: str | None = None

    @property
    def path(self):
        """The same for every server, so that none has a longer request to read."""
        return f"/v2/{PROJECT}/{self.upstream_path.removeprefix('/v2/')}"

    @property
    def upstream_path(self):
        return f"/v2/{self.repository}/{self.kind}/{self.tag or self.digest}"

    @property
    def accept(self):
        """Distribution gives an OCI manifest only to those who say that they take one."""
        return MANIFEST_TYPE if self.kind == "manifests" else None


class Origin(Process):
    def __init__(self, programs, core):
        self.programs = programs
        self.core = core

    def __enter__(self):
        self.start_process([self.programs.origin], self.core, stdout=subprocess.PIPE, text=True)
        urls = {}
        for line in self.process.stdout:
            if line == "ready\n":
                break
            name, url = line.split()
            urls[name] = url
        self.url, self.control = urls["listening"], urls["control"]
        return self

    def __exit__(self, *_):
        self.stop()

    def call(self, name, asked):
        request = urllib.request.Request(
            f"{self.control}/_origin/{name}", json.dumps(asked).encode(), method="POST"
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def put_blob(self, name, size, seed=None, repository=None):
        """In two repositories: entrepot takes the project off the path, other caches do not."""
        repository = repository or f"blob-{name.lower()}"
        repositories = [repository, f"{PROJECT}/{repository}"]
        asked = {"repositories": repositories, "size": size, "seed": size if seed is None else seed}
        return Body(name, size, self.call("blobs", asked)["digest"], repository)

    def put_manifest(self, repository, tag, layers):
        """An image manifest: about 200 bytes, and 160 for each layer."""
        descriptor = lambda kind, number: {
            "mediaType": kind,
            "digest": f"sha256:{number:064x}",
            "size": 30_000_000 + number,
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor(CONFIG_TYPE, 0),
            "layers": [descriptor(LAYER_TYPE, number) for number in range(1, layers + 1)],
        }
        text = json.dumps(manifest)
        for name in [repository, f"{PROJECT}/{repository}"]:
            asked = {"repository": name, "media_type": MANIFEST_TYPE, "text": text, "tags": [tag]}
            put = self.call("manifests", asked)
        return Body("manifest", put["size"], put["digest"], repository, "manifests")

    def open(self, body):
        accept = {"Accept": body.accept} if body.accept else {}
        return urllib.request.urlopen(
            urllib.request.Request(f"{self.url}{body.upstream_path}", headers=accept)
        )

    def sent(self, body):
        """GETs and bytes of a body so far, by whichever path."""
        url = f"{self.control}/_origin/counters?contains={body.digest}"
        with urllib.request.urlopen(url) as answer:
            paths = json.load(answer)["paths"].values()
        return sum(path["get"] for path in paths), sum(path["bytes"] for path in paths)
