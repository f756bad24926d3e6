//! The peer of a connection: its caller, its token and its client certificate.

use std::sync::Arc;

use super::{problem::Problem, token::Token};
use crate::{policy::Caller, wire::Code};

/// Where the requests of one connection come from.
pub(crate) struct Peer {
    pub(crate) caller: Caller,
    /// The token that every request must present.
    pub(crate) token: Option<Arc<Token>>,
    pub(crate) certificate: ClientCertificate,
}

/// What a peer proved by its certificate during the TLS handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "tls"),
    expect(dead_code, reason = "a build without TLS requests no certificate")
)]
pub(crate) enum ClientCertificate {
    NotRequested,
    /// Issued by a trusted authority, with an allowed name.
    Accepted,
    Missing,
    /// Issued by a trusted authority, without an allowed name.
    NameNotAllowed,
}

impl ClientCertificate {
    /// Rejects a peer that should have presented an acceptable certificate and did not.
    ///
    /// # Errors
    /// [`Code::Forbidden`]
    pub(crate) fn require(self) -> Result<(), Problem> {
        let detail = match self {
            Self::NotRequested | Self::Accepted => return Ok(()),
            Self::Missing => {
                "present a client certificate issued by an authority in the listener's \
                 `tls.client_ca`"
            }
            Self::NameNotAllowed => {
                "no name in the client certificate is listed in the listener's `tls.client_names`"
            }
        };
        Err(Problem::new(Code::Forbidden, detail))
    }
}
