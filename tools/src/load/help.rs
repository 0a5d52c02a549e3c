//! Examples that `--help` ends with.

pub const ALL: &str = "\
Examples:
  Sixteen connections for ten seconds, after one to warm up:
    entrepot-load blob --url http://127.0.0.1:5000/v2/dh/library/app/blobs/sha256:... \\
        -c 16 -d 10 --warmup 1
  Fifty clients pull an image from Docker Hub through a cache, and from Docker Hub itself:
    entrepot-load pull http://127.0.0.1:5000/dh/library/alpine:3.20 -c 50
    entrepot-load pull docker.io/library/alpine:3.20
  What does a server that is asked 5,000 times a second answer when it is late?
    entrepot-load manifest --url ... --rate 5000 -c 200 -d 60 --html report.html

Each command's own --help has more. Latency is from when a request was due (--rate, replay) or
begun to its last byte; new connections, redirects and tokens are part of it. The exit code is 1
when any request failed, 2 when the command line is wrong.";

pub const PATH: &str = "\
Examples:
  As many as one core gets, bodies discarded inside the kernel:
    entrepot-load blob --url URL -c 64 -d 10
  Every body hashed and compared with the digest in the path:
    entrepot-load blob --url URL -c 4 -n 1000 --verify
  From four cores, second by second, for other programs:
    entrepot-load manifest --url URL -c 256 --threads 4 -d 30 --json --histogram run.hlog
  What each request costs without keep-alive, over TLS with a CA of your own:
    entrepot-load blob --url https://... --no-keep-alive --ca-file ca.pem -c 8 -d 10";

pub const PULL: &str = "\
Examples:
  As containerd does, config and layers hashed, three at a time:
    entrepot-load pull http://127.0.0.1:5000/dh/library/alpine:3.20
  A hundred Docker daemons, ten pulls each, of two images in turn:
    entrepot-load pull http://h:5000/dh/a:1 http://h:5000/dh/b:2 --client docker -c 100 -n 1000
  Twenty pulls a second whatever happens, for a minute, of a private image:
    ENTREPOT_LOAD_USER=me:secret entrepot-load pull ghcr.io/me/app:1 --rate 20 -c 200 -d 60
  As a mirror of docker.io is asked:
    entrepot-load pull http://127.0.0.1:5000/library/alpine:3.20 --ns docker.io

Each pull starts without tokens and connections. One that fails anywhere counts as failed image;
the request that failed is counted by its class.";

pub const HERD: &str = "\
Examples:
  Sixty-four nodes want the same new layer:
    entrepot-load herd --url http://127.0.0.1:5000/v2/dh/library/app/blobs/sha256:... -c 64
  And how often was upstream asked, if it is an entrepot-origin?
    entrepot-load herd --url URL -c 64 --verify --upstream http://127.0.0.1:41003

`first_bytes_ms` has one time for each client; `latency max` is when the last had it all.";

pub const MIX: &str = "\
Examples:
  Over what an entrepot-origin makes, 1,000 blobs 64 times smaller than Docker Hub's:
    entrepot-origin
    entrepot-load mix --url http://127.0.0.1:5000 --prefix dh/ --control http://127.0.0.1:41003 \\
        --synthesise 1000 -c 64 -d 60
  The same again, without making it, at 2,000 requests a second, and a herd every ten seconds:
    entrepot-load mix --url http://127.0.0.1:5000 --prefix dh/ --catalog http://127.0.0.1:41003 \\
        --rate 2000 -c 256 -d 60 --herd-every 10
  Over a list of your own, in the form of entrepot-origin's /_origin/repositories:
    echo '{\"library/app\":{\"manifests\":[\"sha256:...\"],\"blobs\":[\"sha256:...\"]}}' >list.json
    entrepot-load mix --url http://127.0.0.1:5000 --catalog list.json -c 16 -d 10";

pub const REPLAY: &str = "\
Examples:
  Yesterday again, ten times as fast:
    entrepot-load replay --log access.log --url http://127.0.0.1:5000 --speed 10 -c 256
  Its first 100,000 requests as fast as 64 connections get answers:
    entrepot-load replay --log access.log --url http://127.0.0.1:5000 --speed max -c 64 -n 100000

Lines that are no GET or HEAD are left out and counted. An answer of 400 or more is no error where
the log has the same one.";
