//! The parsers on the path of a hit: request head, byte range, digest, endpoint.
//!
//! httparse beside ours is the yardstick for heads. It does less: it leaves Host, framing,
//! persistence and expectations to its caller, ours has decided them when it returns.

use std::hint::black_box;
use std::mem::MaybeUninit;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use entrepot::http::head::{Limits, Method, Parsed, parse_request};
use entrepot::http::range::{self, RangeRequest};
use entrepot::oci::endpoint;
use entrepot_storage::Digest;

const LAYER_LEN: u64 = 31_357_624;
const DIGEST: &str = "sha256:4bcff63911fcb4448bd4fdacec207030997caf25e9bea4045fa6c8c44de311d1";

/// Six Accept lines and no Range: every pull by skopeo, podman and buildah begins so.
const SKOPEO: &str = "GET /v2/dh/library/nginx/manifests/1.27 HTTP/1.1\r\n\
    Host: cache:5000\r\n\
    User-Agent: skopeo/1.9.3\r\n\
    Accept: application/vnd.oci.image.manifest.v1+json\r\n\
    Accept: application/vnd.docker.distribution.manifest.v2+json\r\n\
    Accept: application/vnd.docker.distribution.manifest.v1+prettyjws\r\n\
    Accept: application/vnd.docker.distribution.manifest.v1+json\r\n\
    Accept: application/vnd.docker.distribution.manifest.list.v2+json\r\n\
    Accept: application/vnd.oci.image.index.v1+json\r\n\
    Docker-Distribution-Api-Version: registry/2.0\r\n\
    Accept-Encoding: gzip\r\n\r\n";

/// A layer through a mirror configured in hosts.toml.
const CONTAINERD: &str = "GET /v2/library/nginx/blobs/sha256:\
    4bcff63911fcb4448bd4fdacec207030997caf25e9bea4045fa6c8c44de311d1?ns=docker.io HTTP/1.1\r\n\
    Host: cache:5000\r\n\
    User-Agent: containerd/2.1.4\r\n\
    Accept: application/vnd.oci.image.layer.v1.tar+gzip, */*\r\n\
    Accept-Encoding: zstd;q=1.0, gzip;q=0.8, deflate;q=0.5\r\n\
    Range: bytes=0-\r\n\r\n";

/// A layer pulled by a daemon with graph drivers: one very long User-Agent.
const DOCKER: &str = "GET /v2/library/nginx/blobs/sha256:\
    4bcff63911fcb4448bd4fdacec207030997caf25e9bea4045fa6c8c44de311d1 HTTP/1.1\r\n\
    Host: cache:5000\r\n\
    User-Agent: docker/20.10.24+dfsg1 go/go1.19.8 git-commit/5d6db84 kernel/6.1.0-18-amd64 \
    os/linux arch/amd64 UpstreamClient(Docker-Client/20.10.24+dfsg1 \\(linux\\))\r\n\
    Accept-Encoding: identity\r\n\
    Connection: close\r\n\r\n";

fn heads(criterion: &mut Criterion) {
    let limits = Limits::default();
    for (client, head) in [
        ("skopeo", SKOPEO),
        ("containerd", CONTAINERD),
        ("docker", DOCKER),
    ] {
        let mut group = criterion.benchmark_group(format!("head/{client}"));
        group.throughput(Throughput::Bytes(head.len() as u64));
        group.bench_function("entrepot", |bencher| {
            bencher.iter(
                || match parse_request(black_box(head.as_bytes()), &limits) {
                    Ok(Parsed::Complete(head)) => black_box(head.len),
                    _ => panic!("{client}"),
                },
            );
        });
        group.bench_function("httparse", |bencher| {
            bencher.iter(|| {
                let mut lines = [const { MaybeUninit::uninit() }; 64];
                let mut request = httparse::Request::new(&mut []);
                let bytes = black_box(head.as_bytes());
                match request.parse_with_uninit_headers(bytes, &mut lines) {
                    Ok(httparse::Status::Complete(len)) => black_box((len, request.headers.len())),
                    _ => panic!("{client}"),
                }
            });
        });
        group.finish();
    }
}

fn fields(criterion: &mut Criterion) {
    let Ok(Parsed::Complete(head)) = parse_request(SKOPEO.as_bytes(), &Limits::default()) else {
        panic!("skopeo");
    };
    criterion.bench_function("field/absent", |bencher| {
        bencher.iter(|| head.field(black_box("if-none-match")));
    });
}

fn values(criterion: &mut Criterion) {
    for (name, value) in [
        ("one", "bytes=1048576-2097151"),
        ("whole", "bytes=0-"),
        ("suffix", "bytes=-4096"),
        ("several", "bytes=0-99,200-299,4096-8191,-100"),
    ] {
        criterion.bench_function(&format!("range/{name}"), |bencher| {
            bencher.iter(|| ranges(black_box(value.as_bytes())));
        });
    }
    criterion.bench_function("digest", |bencher| {
        bencher.iter(|| Digest::parse(black_box(DIGEST)));
    });
    let blob = format!("/v2/dh/library/nginx/blobs/{DIGEST}");
    criterion.bench_function("endpoint", |bencher| {
        bencher.iter(|| endpoint::parse(Method::Get, black_box(&blob)).is_ok());
    });
}

/// What is sent of a layer: parsed and laid over its length, as a request is answered.
fn ranges(value: &[u8]) -> usize {
    match range::parse(value) {
        RangeRequest::None => 0,
        RangeRequest::One(one) => usize::from(one.resolve(black_box(LAYER_LEN)).is_ok()),
        RangeRequest::Several(set) => match set.resolve(black_box(LAYER_LEN)) {
            Ok(Some(parts)) => parts.len(),
            _ => 0,
        },
    }
}

criterion_group!(benches, heads, fields, values);
criterion_main!(benches);
