//! What a client's certificate entitles it to, on listeners that ask for one.

use super::problem::{Code, Problem};

/// What is known of whoever opened a connection, from its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "tls"),
    expect(dead_code, reason = "without TLS nobody is asked")
)]
pub(crate) enum Identity {
    /// Nobody was asked for a certificate.
    NotAsked,
    /// It showed one with a name on the list.
    Proven,
    /// It showed none.
    None,
    /// It showed one of the right authority, with no name on the list.
    NotListed,
}

impl Identity {
    /// Refuses who was asked for a certificate and has none that will do.
    pub(crate) fn demand(self) -> Result<(), Problem> {
        let detail = match self {
            Self::NotAsked | Self::Proven => return Ok(()),
            Self::None => {
                "this needs a client certificate of an authority in the listener's `tls.client_ca`"
            }
            Self::NotListed => {
                "no name of the client certificate is in the listener's `tls.client_names`"
            }
        };
        Err(Problem::new(Code::Forbidden, detail))
    }
}
