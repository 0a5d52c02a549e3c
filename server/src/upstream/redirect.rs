//! Whether and how a redirect is followed. Pure.
//!
//! Called by `request` for each answer that names another place. Authorization stays only while
//! scheme, host and port stay (R11), never comes back on a later hop, https never becomes http,
//! and nobody sends us to addresses beyond the upstream's reach. Names are checked again, by their
//! addresses, where they are dialled: see `connect`.

use super::origin::{Reach, Target, TargetError, is_downgrade};

/// Hub and its storage need two; a longer chain is a loop or a trap.
pub(super) const REDIRECTS_MAX: u8 = 5;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedirectError {
    #[error("more than {REDIRECTS_MAX} in a row")]
    TooMany,
    #[error("it names no location")]
    NoLocation,
    #[error("its location is unusable: {0}")]
    Target(#[from] TargetError),
    #[error("it leads from https to http")]
    Downgrade,
    #[error("it leads to a private address, {host}")]
    Private { host: String },
}

/// One request of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    pub target: Target,
    /// Still the origin that the credentials belong to.
    pub authorized: bool,
    /// Redirects that led here.
    pub hops: u8,
}

impl Hop {
    /// To a configured origin.
    pub(super) fn first(target: Target) -> Hop {
        Hop {
            target,
            authorized: true,
            hops: 0,
        }
    }
}

/// To a place that was named by content, as if a redirect had led there.
pub(super) fn lead(target: Target, reach: Reach) -> Result<Hop, RedirectError> {
    check_reach(&target, reach)?;
    Ok(Hop {
        target,
        authorized: false,
        hops: 1,
    })
}

fn check_reach(target: &Target, reach: Reach) -> Result<(), RedirectError> {
    match Reach::to_host(&target.origin.host) > reach {
        true => Err(RedirectError::Private {
            host: target.origin.host.clone(),
        }),
        false => Ok(()),
    }
}

/// RFC 9110 §15.4; 300, 304 and the deprecated ones are answers and not redirects.
pub(super) fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

pub(super) fn follow(
    from: &Hop,
    location: Option<&[u8]>,
    reach: Reach,
) -> Result<Hop, RedirectError> {
    if from.hops >= REDIRECTS_MAX {
        return Err(RedirectError::TooMany);
    }
    let location = location.ok_or(RedirectError::NoLocation)?;
    let location = std::str::from_utf8(location).map_err(|_| TargetError::Characters)?;
    let target = from.target.join(location)?;
    if is_downgrade(&from.target.origin, &target.origin) {
        return Err(RedirectError::Downgrade);
    }
    check_reach(&target, reach)?;
    let authorized = from.authorized && from.target.origin == target.origin;
    Ok(Hop {
        target,
        authorized,
        hops: from.hops + 1,
    })
}

#[cfg(test)]
mod tests {
    use super::{Hop, REDIRECTS_MAX, Reach, RedirectError, Target, TargetError, follow};

    fn hop(text: &str) -> Hop {
        Hop {
            target: Target::parse(text).expect(text),
            authorized: true,
            hops: 0,
        }
    }

    #[test]
    fn authorization_stays_with_its_origin() {
        for (from, location, authorized) in [
            ("https://r.example/v2/x", "/v2/y", true),
            ("https://r.example/v2/x", "https://r.example:443/v2/y", true),
            ("https://r.example/v2/x", "https://R.EXAMPLE/v2/y", true),
            (
                "https://r.example/v2/x",
                "https://r.example:8443/v2/y",
                false,
            ),
            (
                "https://r.example/v2/x",
                "https://cdn.r.example/v2/y",
                false,
            ),
            ("https://r.example/v2/x", "//cdn.example/y", false),
            ("http://r.example/v2/x", "https://r.example/v2/y", false),
            (
                "http://r.example:5000/v2/x",
                "http://r.example:5001/v2/x",
                false,
            ),
        ] {
            let next =
                follow(&hop(from), Some(location.as_bytes()), Reach::Public).expect(location);
            assert_eq!(next.authorized, authorized, "{from} to {location}");
            assert_eq!(next.hops, 1);
        }
        let away = follow(
            &hop("https://r.example/"),
            Some(b"//cdn.example/"),
            Reach::Public,
        )
        .expect("away");
        let back = follow(&away, Some(b"https://r.example/"), Reach::Public).expect("back");
        assert!(!back.authorized, "what was dropped does not come back");
    }

    #[test]
    fn refusals() {
        let private = |host: &str| RedirectError::Private {
            host: host.to_owned(),
        };
        for (from, location, error) in [
            (
                "https://r.example/",
                "http://r.example/",
                RedirectError::Downgrade,
            ),
            (
                "https://r.example/",
                "file:///etc/passwd",
                TargetError::Scheme.into(),
            ),
            (
                "https://r.example/",
                "https://127.0.0.1/",
                private("127.0.0.1"),
            ),
            ("https://r.example/", "https://[::1]/", private("::1")),
            (
                "https://r.example/",
                "https://169.254.169.254/latest",
                private("169.254.169.254"),
            ),
            (
                "https://r.example/",
                "https://localhost:8443/",
                private("localhost"),
            ),
            (
                "https://r.example/",
                "https://2130706433/",
                TargetError::NumericHost.into(),
            ),
            ("https://r.example/", "/a b", TargetError::Characters.into()),
        ] {
            assert_eq!(
                follow(&hop(from), Some(location.as_bytes()), Reach::Public),
                Err(error),
                "{location}"
            );
        }
        let from = hop("https://r.example/");
        assert_eq!(
            follow(&from, None, Reach::Public),
            Err(RedirectError::NoLocation)
        );
        assert_eq!(
            follow(&from, Some(b"/\xff"), Reach::Public),
            Err(TargetError::Characters.into())
        );
        let tired = Hop {
            hops: REDIRECTS_MAX,
            ..from
        };
        assert_eq!(
            follow(&tired, Some(b"/"), Reach::Public),
            Err(RedirectError::TooMany)
        );
    }

    #[test]
    fn a_private_upstream_may_lead_to_private_places() {
        let from = hop("http://127.0.0.1:5000/v2/x");
        let near = Reach::Private;
        assert!(follow(&from, Some(b"http://127.0.0.1:5001/y"), near).is_ok());
        assert!(follow(&from, Some(b"http://10.0.0.1/y"), near).is_ok());
        let metadata = Some(b"http://169.254.169.254/y".as_slice());
        let host = "169.254.169.254".to_owned();
        assert_eq!(
            follow(&from, metadata, near),
            Err(RedirectError::Private { host })
        );
        assert!(follow(&from, metadata, Reach::Anywhere).is_ok());
    }
}
