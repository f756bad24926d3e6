//! How lines reach a collector.

use bytes::Bytes;

/// A collector of one kind. Connects when there is something to deliver.
pub(super) trait Deliver: Send {
    /// Delivers lines, each without its newline. After an error, none, some or all of them may have
    /// arrived. Dropping the future ends the attempt.
    fn deliver(&mut self, lines: &[Bytes]) -> impl Future<Output = Result<(), Undelivered>> + Send;

    /// Resolves once what was delivered may be lost; then the next delivery, even of no lines,
    /// repeats it. Dropping the future changes nothing. Returns the reason, for the operator.
    fn lost(&mut self) -> impl Future<Output = String> + Send;

    /// Ends in order, once nothing more is to be delivered. The caller limits the time.
    fn close(&mut self) -> impl Future<Output = ()> + Send;
}

/// A collector took no lines. The reason is for the operator.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Undelivered {
    /// It may take the same lines later.
    Failed(String),
    /// It will never take these lines together. One alone that is refused is lost to it.
    #[cfg_attr(
        not(any(feature = "https-client", test)),
        expect(dead_code, reason = "syslog refuses nothing")
    )]
    Refused(String),
}
