//! Error answers (OCI, "Error codes").

use serde::Serialize;

use super::endpoint::RouteError;

/// Every code of the specification, and two of Distribution's: for page sizes, and for failures
/// that say nothing about what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    Denied,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    PaginationNumberInvalid,
    SizeInvalid,
    TooManyRequests,
    Unauthorized,
    Unknown,
    Unsupported,
}

impl Code {
    pub fn as_str(self) -> &'static str {
        match self {
            Code::BlobUnknown => "BLOB_UNKNOWN",
            Code::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Code::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Code::Denied => "DENIED",
            Code::DigestInvalid => "DIGEST_INVALID",
            Code::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Code::ManifestInvalid => "MANIFEST_INVALID",
            Code::ManifestUnknown => "MANIFEST_UNKNOWN",
            Code::NameInvalid => "NAME_INVALID",
            Code::NameUnknown => "NAME_UNKNOWN",
            Code::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Code::SizeInvalid => "SIZE_INVALID",
            Code::TooManyRequests => "TOOMANYREQUESTS",
            Code::Unauthorized => "UNAUTHORIZED",
            Code::Unknown => "UNKNOWN",
            Code::Unsupported => "UNSUPPORTED",
        }
    }
}

/// The one table from a refused endpoint to its answer.
pub fn answer(error: RouteError) -> (u16, Code) {
    match error {
        RouteError::DigestInvalid => (400, Code::DigestInvalid),
        RouteError::NameInvalid => (400, Code::NameInvalid),
        // Of an `ns` we cannot serve the client learns 404 and asks its next mirror.
        RouteError::NamespaceInvalid => (404, Code::NameUnknown),
        RouteError::NotFound => (404, Code::NameUnknown),
        RouteError::PageInvalid => (400, Code::PaginationNumberInvalid),
        RouteError::PercentEncoded => (400, Code::NameInvalid),
        RouteError::QueryInvalid => (400, Code::Unsupported),
        RouteError::QueryTooLong => (414, Code::Unsupported),
        // A reference outside of the grammar of tags names no manifest: Distribution answers 404.
        RouteError::TagInvalid => (404, Code::ManifestUnknown),
    }
}

#[derive(Serialize)]
struct Body<'a> {
    errors: [Error<'a>; 1],
}

#[derive(Serialize)]
struct Error<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

/// The JSON body of an error answer; its media type is `application/json`.
pub fn body(code: Code, message: &str, detail: Option<&str>) -> Vec<u8> {
    let code = code.as_str();
    let errors = [Error {
        code,
        message,
        detail,
    }];
    // Strings always serialise; the fallback is an empty body, which clients accept.
    serde_json::to_vec(&Body { errors }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        let text = |body: Vec<u8>| String::from_utf8(body).unwrap();
        assert_eq!(
            text(body(Code::ManifestUnknown, "manifest unknown", None)),
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#
        );
        assert_eq!(
            text(body(Code::Unsupported, "a \"b\"\n\u{7}", Some("c\\d"))),
            r#"{"errors":[{"code":"UNSUPPORTED","message":"a \"b\"\n\u0007","detail":"c\\d"}]}"#
        );
    }

    #[test]
    fn answers() {
        let cases = [
            (RouteError::DigestInvalid, 400, "DIGEST_INVALID"),
            (RouteError::NameInvalid, 400, "NAME_INVALID"),
            (RouteError::NamespaceInvalid, 404, "NAME_UNKNOWN"),
            (RouteError::NotFound, 404, "NAME_UNKNOWN"),
            (RouteError::PageInvalid, 400, "PAGINATION_NUMBER_INVALID"),
            (RouteError::PercentEncoded, 400, "NAME_INVALID"),
            (RouteError::QueryInvalid, 400, "UNSUPPORTED"),
            (RouteError::QueryTooLong, 414, "UNSUPPORTED"),
            (RouteError::TagInvalid, 404, "MANIFEST_UNKNOWN"),
        ];
        for (error, status, code) in cases {
            let (answered, with) = answer(error);
            assert_eq!((answered, with.as_str()), (status, code), "{error}");
        }
    }
}
