//! Attempts of which the first that succeeds counts (RFC 8305, "Happy Eyeballs").
//!
//! Called by `connect`, with one attempt for each address. The next one starts when the one before
//! has failed or is still on its way after a while; whatever has not won is dropped. Pure but for
//! the timer.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use monoio::time::sleep;

/// The first success, or the last failure; `None` when there was nothing to attempt.
pub(super) async fn race<T, E, F>(
    attempts: impl Iterator<Item = F>,
    stagger: Duration,
) -> Result<T, Option<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut attempts = attempts.fuse();
    let mut running: Vec<Pin<Box<F>>> = Vec::new();
    let mut failure = None;
    loop {
        let started = attempts
            .next()
            .map(|attempt| running.push(Box::pin(attempt)));
        if running.is_empty() {
            return Err(failure);
        }
        let mut pause = started.map(|()| Box::pin(sleep(stagger)));
        let next = std::future::poll_fn(|cx| {
            let mut at = 0;
            while at < running.len() {
                match running[at].as_mut().poll(cx) {
                    Poll::Pending => at += 1,
                    Poll::Ready(outcome) => {
                        drop(running.remove(at));
                        return Poll::Ready(Some(outcome));
                    }
                }
            }
            match &mut pause {
                Some(pause) => pause.as_mut().poll(cx).map(|()| None),
                // Nothing is left to start.
                None => Poll::Pending,
            }
        })
        .await;
        match next {
            Some(Ok(won)) => return Ok(won),
            Some(Err(lost)) => failure = Some(lost),
            None => {}
        }
    }
}

/// The two families in turn, beginning with the first address's (RFC 8305 §4): when one family
/// leads nowhere, the next attempt is of the other.
pub(super) fn in_turn(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let v6_first = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == v6_first);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut mixed = Vec::with_capacity(first.len() + second.len());
    while first.len() + second.len() > 0 {
        mixed.extend(first.next());
        mixed.extend(second.next());
    }
    mixed
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;
    use std::net::IpAddr;
    use std::time::Duration;

    use super::super::tests::run;
    use super::{in_turn, race};

    const SOON: Duration = Duration::from_millis(1);
    const NEVER: Duration = Duration::from_secs(3600);

    #[test]
    fn families_take_turns() {
        for (found, tried) in [
            ("", ""),
            ("10.0.0.1", "10.0.0.1"),
            ("::1 ::2 10.0.0.1 10.0.0.2", "::1 10.0.0.1 ::2 10.0.0.2"),
            ("10.0.0.1 ::1 ::2 ::3", "10.0.0.1 ::1 ::2 ::3"),
        ] {
            let parse = |text: &str| -> Vec<IpAddr> {
                let words = text.split_whitespace();
                words.map(|word| word.parse().expect(word)).collect()
            };
            assert_eq!(in_turn(parse(found)), parse(tried), "{found}");
        }
    }

    #[test]
    fn one_that_hangs_is_overtaken() {
        run(async {
            let attempts = (0..3u8).map(|nth| async move {
                match nth {
                    0 => pending().await,
                    nth => Ok::<u8, ()>(nth),
                }
            });
            assert_eq!(race(attempts, SOON).await, Ok(1));
        });
    }

    #[test]
    fn a_failure_starts_the_next_at_once_and_the_last_one_is_told() {
        run(async {
            let started = Cell::new(0);
            let attempts = (0..3u8).map(|nth| {
                started.set(started.get() + 1);
                async move { Err::<(), u8>(nth) }
            });
            assert_eq!(race(attempts, NEVER).await, Err(Some(2)));
            assert_eq!(started.get(), 3);
            let nothing = std::iter::empty::<std::future::Ready<Result<(), u8>>>();
            assert_eq!(race(nothing, NEVER).await, Err(None));
        });
    }
}
