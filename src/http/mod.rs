//! The server kit: listeners, connections, admission, time-outs, bodies, TLS and problem+json. It
//! knows no key.

pub(crate) mod activity;
pub(crate) mod admission;
pub(crate) mod body;
pub(crate) mod connection;
pub(crate) mod identity;
pub(crate) mod listener;
pub(crate) mod problem;
pub(crate) mod reply;
#[cfg(feature = "tls")]
pub(crate) mod tls;
#[cfg(not(feature = "tls"))]
#[path = "no_tls.rs"]
pub(crate) mod tls;
pub(crate) mod token;
pub(crate) mod transport;

#[cfg(feature = "tls")]
pub use self::tls::CertificateNames;
pub use self::{
    listener::ListenError,
    problem::{Code, Problem},
    tls::{Tls, TlsError},
    token::TokenError,
};
