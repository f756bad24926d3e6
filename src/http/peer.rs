//! The peer of a connection: its caller, its token and its client certificate.

use std::{future::pending, sync::Arc};

#[cfg(feature = "tls")]
use super::tls::AcceptedClient;
use super::{problem::Problem, token::Token};
use crate::{policy::Caller, wire::Code};

/// Where the requests of one connection come from.
pub(crate) struct Peer {
    pub(crate) caller: Caller,
    /// The token that every request must present.
    pub(crate) token: Option<Arc<Token>>,
    pub(crate) certificate: PeerCertificate,
}

/// What a connection's peer proved in the TLS handshake, if there was one.
pub(crate) enum PeerCertificate {
    /// The same for the life of the connection.
    Fixed(ClientCertificate),
    /// A certificate that can stop being accepted.
    #[cfg(feature = "tls")]
    Accepted(Box<AcceptedClient>),
}

impl PeerCertificate {
    /// What the peer's certificate is worth now.
    pub(crate) fn verdict(&self) -> ClientCertificate {
        match self {
            Self::Fixed(certificate) => *certificate,
            #[cfg(feature = "tls")]
            Self::Accepted(client) => client.verdict(),
        }
    }

    /// The names in a certificate that was accepted.
    #[cfg(all(feature = "hub", feature = "tls"))]
    pub(crate) fn names(&self) -> Option<crate::wire::CertificateNames> {
        match self {
            Self::Fixed(_) => None,
            Self::Accepted(client) => Some(client.names()),
        }
    }

    /// Resolves when a certificate that was accepted no longer is.
    pub(crate) async fn withdrawn(&self) {
        match self {
            Self::Fixed(_) => pending().await,
            #[cfg(feature = "tls")]
            Self::Accepted(client) => client.withdrawn().await,
        }
    }
}

/// What a peer's certificate is worth.
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
    /// Accepted when the connection began, and no longer.
    Withdrawn,
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
            Self::Withdrawn => {
                "the client certificate expired, or its authority left the listener's \
                 `tls.client_ca`, since this connection began; connect again with another one"
            }
        };
        Err(Problem::new(Code::Forbidden, detail))
    }
}
