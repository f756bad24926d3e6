//! What stands for TLS in a build without it: nothing, for the config parser refuses its settings.

use std::{convert::Infallible, sync::Arc};

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{identity::Identity, transport::Transport};
use crate::ops::status::TlsStatus;
use crate::{clock::Clock, config, telemetry::Registry};

/// TLS of one listener.
pub struct Tls(Infallible);

/// A listener has TLS that this build hasn't.
#[derive(Debug, thiserror::Error)]
#[error("this build has no TLS (the feature `tls`)")]
pub struct TlsError;

/// There are no metrics of TLS.
pub(crate) fn describe_metrics(_: &Registry) {}

impl Tls {
    /// # Errors
    /// Always.
    pub async fn of_applications(
        _: &config::Tls,
        _: &Registry,
        _: &Clock,
    ) -> Result<Arc<Self>, TlsError> {
        Err(TlsError)
    }

    /// # Errors
    /// Always.
    pub async fn of_operators(
        _: &config::Tls,
        _: &Registry,
        _: &Clock,
    ) -> Result<Arc<Self>, TlsError> {
        Err(TlsError)
    }

    /// There is nobody to do it.
    pub fn request_reload(&self) {
        match self.0 {}
    }

    /// There is nobody to do it.
    pub async fn follow(self: Arc<Self>, _: CancellationToken) {
        match self.0 {}
    }

    pub(crate) async fn handshake(&self, _: TcpStream) -> Option<(Transport, Identity)> {
        match self.0 {}
    }

    pub(crate) fn status(&self) -> TlsStatus {
        match self.0 {}
    }
}
