use super::*;

const SKOPEO: &[u8] = b"GET /v2/dh/library/nginx/manifests/1.27 HTTP/1.1\r\n\
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

const CHUNKED: &[u8] = b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: a\r\n\
    Transfer-Encoding: chunked\r\nConnection: keep-alive, Close\r\nExpect: 100-continue\r\n\r\n";

fn parse(bytes: &[u8]) -> Result<Parsed<RequestHead<'_>>, HeadError> {
    parse_request(bytes, &Limits::default())
}

fn complete(bytes: &[u8]) -> RequestHead<'_> {
    match parse(bytes) {
        Ok(Parsed::Complete(head)) => head,
        Ok(Parsed::Partial) => panic!("partial: {}", bytes.escape_ascii()),
        Err(error) => panic!("{error}: {}", bytes.escape_ascii()),
    }
}

/// What is wrong with a head; the answer must be the same when it comes octet by octet.
fn refused(bytes: &[u8]) -> Option<HeadError> {
    let whole = parse(bytes).err();
    let first = (0..=bytes.len()).find_map(|len| parse(&bytes[..len]).err());
    assert_eq!(first, whole, "{}", bytes.escape_ascii());
    whole
}

/// A GET of `/` in HTTP/1.1 with these field lines after its Host.
fn with(lines: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").into_bytes()
}

#[test]
fn a_client_head_is_read_whole() {
    let head = complete(SKOPEO);
    assert_eq!(head.method, Method::Get);
    assert_eq!(head.target, "/v2/dh/library/nginx/manifests/1.27");
    assert_eq!(head.version, Version::Http11);
    assert_eq!(head.framing, Framing::None);
    assert!(head.keep_alive && !head.expect_continue);
    assert_eq!(head.len, SKOPEO.len());
    assert_eq!(head.field("user-agent"), Some(&b"skopeo/1.9.3"[..]));
    assert_eq!(head.field("range"), None);
    let accepted: Vec<_> = head.fields("accept").collect();
    assert_eq!(accepted.len(), 6);
    assert_eq!(accepted[5], b"application/vnd.oci.image.index.v1+json");
    assert_eq!(head.lines().count(), 10);
    let (name, value) = head.lines().last().unwrap();
    assert_eq!((name, value), (&b"Accept-Encoding"[..], &b"gzip"[..]));
}

#[test]
fn every_prefix_is_partial() {
    for head in [SKOPEO, CHUNKED, b"\r\nHEAD / HTTP/1.0\r\n\r\n"] {
        for len in 0..head.len() {
            assert!(matches!(parse(&head[..len]), Ok(Parsed::Partial)), "{len}");
        }
        assert_eq!(complete(head).len, head.len());
    }
}

#[test]
fn pipelined_requests_are_told_apart() {
    let bytes = [SKOPEO, CHUNKED, SKOPEO].concat();
    let first = complete(&bytes);
    let second = complete(&bytes[first.len..]);
    assert_eq!(second.method, Method::Post);
    assert_eq!(second.framing, Framing::Chunked);
    let third = complete(&bytes[first.len + second.len..]);
    assert_eq!(third.target, first.target);
}

#[test]
fn methods() {
    let cases = [
        ("GET", Method::Get),
        ("HEAD", Method::Head),
        ("POST", Method::Post),
        ("PUT", Method::Put),
        ("PATCH", Method::Patch),
        ("DELETE", Method::Delete),
        ("OPTIONS", Method::Options),
        ("get", Method::Other),
        ("GETS", Method::Other),
        ("PROPFIND", Method::Other),
    ];
    for (method, expected) in cases {
        let bytes = format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(complete(bytes.as_bytes()).method, expected, "{method}");
    }
}

#[test]
fn targets() {
    let cases: [(&str, &str, Result<&str, HeadError>); 22] = [
        ("GET", "/", Ok("/")),
        ("GET", "/v2/?ns=docker.io", Ok("/v2/?ns=docker.io")),
        ("GET", "/v2/a/blobs/sha256:00", Ok("/v2/a/blobs/sha256:00")),
        ("GET", "/a//../%zz", Ok("/a//../%zz")),
        ("GET", "http://cache:5000/v2/", Ok("/v2/")),
        ("GET", "HTTPS://[::1]:5000/v2/", Ok("/v2/")),
        ("GET", "http://cache", Ok("/")),
        ("OPTIONS", "*", Ok("*")),
        ("CONNECT", "ghcr.io:443", Ok("ghcr.io:443")),
        ("CONNECT", "/", Err(HeadError::InvalidTarget)),
        ("GET", "ghcr.io:443", Err(HeadError::InvalidTarget)),
        ("GET", "*", Err(HeadError::InvalidTarget)),
        ("GET", "v2/", Err(HeadError::InvalidTarget)),
        ("GET", "ftp://cache/v2/", Err(HeadError::InvalidTarget)),
        ("GET", "http:///v2/", Err(HeadError::InvalidTarget)),
        ("GET", "http://a@b/v2/", Err(HeadError::InvalidTarget)),
        ("GET", "http://cache?ns=a", Err(HeadError::InvalidTarget)),
        ("GET", "/#fragment", Err(HeadError::InvalidTarget)),
        ("GET", "/a\tb", Err(HeadError::InvalidTarget)),
        ("GET", "/a\u{e9}", Err(HeadError::InvalidTarget)),
        ("GET", "/a\"b", Err(HeadError::InvalidTarget)),
        ("GET", "", Err(HeadError::InvalidTarget)),
    ];
    for (method, target, expected) in cases {
        let bytes = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
        match expected {
            Ok(expected) => assert_eq!(complete(&bytes).target, expected, "{target}"),
            Err(expected) => assert_eq!(refused(&bytes), Some(expected), "{target}"),
        }
    }
}

#[test]
fn refused_lines() {
    use HeadError as E;
    let cases: [(&[u8], HeadError); 32] = [
        (b"\nGET / HTTP/1.1\r\n", E::BareLineFeed),
        (b"\rGET / HTTP/1.1\r\n", E::BareCarriageReturn),
        (b"\r\n\r\nGET / HTTP/1.1\r\n", E::InvalidMethod),
        (b" GET / HTTP/1.1\r\n", E::InvalidMethod),
        (b"G\0T / HTTP/1.1\r\n", E::InvalidMethod),
        (b"GET\t/ HTTP/1.1\r\n", E::InvalidMethod),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            E::InvalidMethod,
        ),
        (b"GET  / HTTP/1.1\r\n", E::InvalidTarget),
        (b"GET /\r\n", E::InvalidVersion),
        (b"GET / \r\n", E::InvalidVersion),
        (b"GET /  HTTP/1.1\r\n", E::InvalidVersion),
        (b"GET / HTTP/1.1 \r\n", E::InvalidVersion),
        (b"GET / HTTP/1.10\r\n", E::InvalidVersion),
        (b"GET / http/1.1\r\n", E::InvalidVersion),
        (b"GET / X\r\n\r\n", E::InvalidVersion),
        (b"GET / HTTP/1.1\n", E::BareLineFeed),
        (b"GET / HTTP/1.1\rX", E::BareCarriageReturn),
        (b"GET / HTTP/1.2\r\n", E::UnsupportedVersion),
        (b"GET / HTTP/0.9\r\n", E::UnsupportedVersion),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", E::InvalidTarget),
        (b"GET / HTTP/2.0\r\n\r\n", E::UnsupportedVersion),
        (
            b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
            E::ObsoleteLineFolding,
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
            E::ObsoleteLineFolding,
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n",
            E::ObsoleteLineFolding,
        ),
        (
            b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            E::WhitespaceBeforeColon,
        ),
        (
            b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n",
            E::WhitespaceBeforeColon,
        ),
        (b"GET / HTTP/1.1\r\n: a\r\n\r\n", E::InvalidFieldName),
        (b"GET / HTTP/1.1\r\nHo(st: a\r\n\r\n", E::InvalidFieldName),
        (b"GET / HTTP/1.1\r\nHost\r\n\r\n", E::InvalidFieldName),
        (b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n", E::InvalidFieldValue),
        (b"GET / HTTP/1.1\r\nX: a\x7f\r\n\r\n", E::InvalidFieldValue),
        (b"GET / HTTP/1.1\r\nX: a\x0bb\r\n\r\n", E::InvalidFieldValue),
    ];
    for (bytes, expected) in cases {
        assert_eq!(refused(bytes), Some(expected), "{}", bytes.escape_ascii());
    }
    let cases: [(&[u8], HeadError); 6] = [
        (b"GET / HTTP/1.1\r\nHost\nX: a\r\n\r\n", E::BareLineFeed),
        (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", E::BareLineFeed),
        (
            b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
            E::BareCarriageReturn,
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
            E::BareCarriageReturn,
        ),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\n", E::BareLineFeed),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\rX", E::BareCarriageReturn),
    ];
    for (bytes, expected) in cases {
        assert_eq!(refused(bytes), Some(expected), "{}", bytes.escape_ascii());
    }
}

#[test]
fn field_values_are_trimmed_and_opaque() {
    let bytes = with("X: \t a \tb \t\r\nY:\r\nZ:  \r\nO: \u{e9}\u{2028}\r\nX:c\r\n");
    let head = complete(&bytes);
    assert_eq!(head.fields("x").collect::<Vec<_>>(), [&b"a \tb"[..], b"c"]);
    assert_eq!(head.field("y"), Some(&b""[..]));
    assert_eq!(head.field("z"), Some(&b""[..]));
    assert!(head.field("o").is_some_and(|value| !value.is_ascii()));
}

#[test]
fn hosts() {
    let accepted = [
        "a",
        "cache:5000",
        "1.2.3.4:80",
        "[::1]:5000",
        "my_host",
        "a:",
    ];
    for host in accepted {
        complete(format!("GET / HTTP/1.1\r\nhOST:{host}\r\n\r\n").as_bytes());
    }
    let invalid = [
        "", ":80", "a b", "a,b", "a/b", "a:b", "a:123456", "[::1", "[]", "[g]", "u@a",
    ];
    for host in invalid {
        let bytes = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(
            refused(bytes.as_bytes()),
            Some(HeadError::InvalidHost),
            "{host}"
        );
    }
    assert_eq!(
        refused(&with("Host: a\r\n")),
        Some(HeadError::DuplicateHost)
    );
    assert_eq!(
        refused(b"GET / HTTP/1.1\r\n\r\n"),
        Some(HeadError::MissingHost)
    );
    // HTTP/1.0 knows no Host; one that is there must still be valid and alone.
    complete(b"GET / HTTP/1.0\r\n\r\n");
    let twice = b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n";
    assert_eq!(refused(twice), Some(HeadError::DuplicateHost));
}

#[test]
fn framings() {
    use HeadError as E;
    let cases = [
        ("", Ok(Framing::None)),
        ("Content-Length: 0\r\n", Ok(Framing::None)),
        ("content-length: 007\r\n", Ok(Framing::Length(7))),
        (
            "Content-Length: 9223372036854775807\r\n",
            Ok(Framing::Length(i64::MAX as u64)),
        ),
        (
            "Content-Length: 9223372036854775808\r\n",
            Err(E::InvalidContentLength),
        ),
        (
            "Content-Length: 99999999999999999999\r\n",
            Err(E::InvalidContentLength),
        ),
        ("Content-Length: +5\r\n", Err(E::InvalidContentLength)),
        ("Content-Length: -5\r\n", Err(E::InvalidContentLength)),
        ("Content-Length: 5 5\r\n", Err(E::InvalidContentLength)),
        ("Content-Length: 5, 5\r\n", Err(E::InvalidContentLength)),
        ("Content-Length: 0x5\r\n", Err(E::InvalidContentLength)),
        ("Content-Length:\r\n", Err(E::InvalidContentLength)),
        (
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            Err(E::DuplicateContentLength),
        ),
        (
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            Err(E::DuplicateContentLength),
        ),
        (
            "Content-Length: 0\r\nContent-Length: 6\r\n",
            Err(E::DuplicateContentLength),
        ),
        ("Transfer-Encoding: chunked\r\n", Ok(Framing::Chunked)),
        ("transfer-encoding: CHUNKED\r\n", Ok(Framing::Chunked)),
        (
            "Transfer-Encoding: gzip, chunked\r\n",
            Err(E::UnknownTransferCoding),
        ),
        ("Transfer-Encoding: gzip\r\n", Err(E::UnknownTransferCoding)),
        (
            "Transfer-Encoding: xchunked\r\n",
            Err(E::UnknownTransferCoding),
        ),
        (
            "Transfer-Encoding: chunked;a=b\r\n",
            Err(E::UnknownTransferCoding),
        ),
        (
            "Transfer-Encoding: \"chunked\"\r\n",
            Err(E::UnknownTransferCoding),
        ),
        (
            "Transfer-Encoding: identity\r\n",
            Err(E::UnknownTransferCoding),
        ),
        (
            "Transfer-Encoding: chunked, gzip\r\n",
            Err(E::ChunkedNotFinal),
        ),
        (
            "Transfer-Encoding: chunked, chunked\r\n",
            Err(E::ChunkedNotFinal),
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
            Err(E::ChunkedNotFinal),
        ),
        ("Transfer-Encoding: chunked,\r\n", Err(E::ChunkedNotFinal)),
        (
            "Transfer-Encoding: , chunked\r\n",
            Err(E::InvalidTransferCoding),
        ),
        ("Transfer-Encoding:\r\n", Err(E::InvalidTransferCoding)),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            Err(E::LengthWithTransferCoding),
        ),
        (
            "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
            Err(E::LengthWithTransferCoding),
        ),
        (
            "Content-Length: 0\r\nTransfer-Encoding: x\r\n",
            Err(E::LengthWithTransferCoding),
        ),
    ];
    for (lines, expected) in cases {
        let bytes = with(lines);
        match expected {
            Ok(framing) => assert_eq!(complete(&bytes).framing, framing, "{lines}"),
            Err(error) => assert_eq!(refused(&bytes), Some(error), "{lines}"),
        }
    }
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(refused(old), Some(E::TransferCodingInHttp10));
}

#[test]
fn persistence() {
    let cases = [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: Upgrade, CLOSE\r\n", false),
        (
            "1.1",
            "Connection: keep-alive\r\nConnection: close\r\n",
            false,
        ),
        ("1.1", "Connection: closed, xclose\r\n", true),
        ("1.1", "Connection:\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ];
    for (version, lines, expected) in cases {
        let bytes = format!("GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n");
        let head = complete(bytes.as_bytes());
        assert_eq!(head.keep_alive, expected, "{version} {lines}");
    }
}

#[test]
fn expectations() {
    assert!(complete(CHUNKED).expect_continue);
    assert!(complete(&with("expect: 100-Continue\r\n")).expect_continue);
    assert!(!complete(b"GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").expect_continue);
    for value in ["", "200-ok", "100-continue, x"] {
        let bytes = with(&format!("Expect: {value}\r\n"));
        assert_eq!(
            refused(&bytes),
            Some(HeadError::UnknownExpectation),
            "{value}"
        );
    }
}

#[test]
fn limits_hold_to_the_octet() {
    let limits = Limits {
        head_len_max: 60,
        fields_max: 2,
        target_len_max: 10,
    };
    let refused = |text: &str| parse_request(text.as_bytes(), &limits).err();
    let partial =
        |text: &str| matches!(parse_request(text.as_bytes(), &limits), Ok(Parsed::Partial));
    assert!(partial("GET /123456789"));
    assert_eq!(refused("GET /1234567890"), Some(HeadError::TargetTooLong));
    assert_eq!(refused("GET /123456789 HTTP/1.1\r\nHost: a\r\n\r\n"), None);
    let two = "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n";
    assert_eq!(refused(&format!("{two}\r\n")), None);
    assert_eq!(refused(&format!("{two}Y")), Some(HeadError::TooManyFields));
    let fill = |len: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "b".repeat(len));
    let whole = |len: usize| format!("{}\r\n\r\n", fill(len));
    assert_eq!(whole(28).len(), 60);
    assert_eq!(refused(&whole(28)), None);
    assert_eq!(refused(&whole(29)), Some(HeadError::HeadTooLong));
    assert!(partial(&fill(31)));
    assert_eq!(refused(&fill(32)), Some(HeadError::HeadTooLong));
    // What follows a head is no part of it.
    assert_eq!(refused(&format!("{}{}", whole(28), whole(28))), None);
}

#[test]
fn limits_above_the_ceilings_are_the_ceilings() {
    let limits = Limits {
        head_len_max: usize::MAX,
        fields_max: 1000,
        target_len_max: 10,
    };
    let lines = |count: usize| "X: y\r\n".repeat(count);
    let most = with(&lines(FIELDS_CEILING - 1));
    assert!(matches!(
        parse_request(&most, &limits),
        Ok(Parsed::Complete(_))
    ));
    let more = with(&lines(FIELDS_CEILING));
    assert_eq!(
        parse_request(&more, &limits).err(),
        Some(HeadError::TooManyFields)
    );
    let long = with(&format!("X: {}\r\n", "y".repeat(HEAD_LEN_CEILING)));
    assert_eq!(
        parse_request(&long, &limits).err(),
        Some(HeadError::HeadTooLong)
    );
}

#[test]
fn statuses() {
    let cases = [
        (HeadError::BareLineFeed, 400),
        (HeadError::TargetTooLong, 414),
        (HeadError::UnknownExpectation, 417),
        (HeadError::HeadTooLong, 431),
        (HeadError::TooManyFields, 431),
        (HeadError::UnknownTransferCoding, 501),
        (HeadError::UnsupportedVersion, 505),
    ];
    for (error, status) in cases {
        assert_eq!(error.status(), status);
    }
}

#[test]
fn fuzz_mutated_heads() {
    let seeds = [
        SKOPEO,
        CHUNKED,
        b"HEAD http://cache:5000/v2/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: [::1]:5000\r\nContent-Length: 3\r\n\r\nabc",
        b"CONNECT ghcr.io:443 HTTP/1.1\r\nHost: ghcr.io:443\r\n\r\n",
    ];
    let words: [&[u8]; 16] = [
        b"\r\n",
        b"\r",
        b"\n",
        b" ",
        b"\t",
        b":",
        b",",
        b"\0",
        b"\r\n\r\n",
        b"HTTP/1.0",
        b"Host: a\r\n",
        b"Content-Length: 1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"http://",
        b"\xff",
    ];
    super::super::fuzzing::run(&seeds, &words, fuzz);
}
