//! The server kit: listeners, connections, admission, timeouts, bodies, TLS and problem details.
//! It knows nothing of keys or secrets.

pub(crate) mod accept;
pub(crate) mod account;
pub(crate) mod activity;
pub(crate) mod admission;
pub(crate) mod ahead;
pub(crate) mod body;
pub(crate) mod connection;
pub(crate) mod listeners;
pub(crate) mod memory;
pub(crate) mod metrics;
pub(crate) mod payload;
pub(crate) mod peer;
pub(crate) mod problem;
pub(crate) mod response;
pub(crate) mod share;
pub(crate) mod socket;
pub(crate) mod tcp;
#[cfg(feature = "tls")]
pub(crate) mod tls;
#[cfg(not(feature = "tls"))]
#[path = "no_tls.rs"]
pub(crate) mod tls;
pub(crate) mod token;
pub(crate) mod transport;
pub(crate) mod watched_io;

pub use self::{
    account::Accounts,
    problem::Problem,
    socket::ListenError,
    tls::{Tls, TlsError},
    token::TokenError,
};
