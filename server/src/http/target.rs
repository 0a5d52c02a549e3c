//! Request targets and the hosts in them (RFC 9112 §3.2, RFC 3986 §3.2.2).
//!
//! Called for each request head. What is left of any form is a path and query; which endpoint
//! that is, is not decided here.

use super::field;
use super::head::{HeadError, Method};

/// RFC 9112 §3.2: the four forms of a target.
pub(super) fn path_and_query(method: Method, target: &str) -> Result<&str, HeadError> {
    if target.starts_with('/') && method != Method::Connect {
        return Ok(target);
    }
    match method {
        Method::Connect if is_authority(target.as_bytes()) => return Ok(target),
        Method::Options if target == "*" => return Ok(target),
        _ => {}
    }
    // RFC 9112 §3.2.2: the absolute form is accepted, and its authority overrides Host. Nothing
    // here depends on either, so both are only checked.
    let (scheme, rest) = target.split_once("://").ok_or(HeadError::InvalidTarget)?;
    let known = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    let (authority, path) = match rest.find(['/', '?']) {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    if !known || !is_authority(authority.as_bytes()) || !path.starts_with('/') {
        return Err(HeadError::InvalidTarget);
    }
    Ok(path)
}

/// RFC 9110 §7.2: `uri-host [":" port]`. The empty host is refused (§4.2.1).
pub(super) fn is_authority(value: &[u8]) -> bool {
    let of_address = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
    let (host, port) = match value {
        [b'[', rest @ ..] => {
            let len = rest.iter().take_while(|byte| of_address(**byte)).count();
            match &rest[len..] {
                [b']', port @ ..] => (&rest[..len], port),
                _ => return false,
            }
        }
        _ => {
            let len = value.iter().take_while(|byte| field::is_host(**byte));
            value.split_at(len.count())
        }
    };
    let port_fits = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    !host.is_empty() && port_fits
}
