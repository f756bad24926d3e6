//! Replaces the `tls` module in builds without the feature. The config parser rejects TLS settings.

use std::{convert::Infallible, sync::Arc};

use tokio_util::sync::CancellationToken;

use crate::{clock::Clock, config, telemetry::Registry, wire::status::TlsStatus};

/// The TLS of a listener; has no values in this build.
pub struct Tls(Infallible);

/// A listener requires TLS, which this build lacks.
#[derive(Debug, thiserror::Error)]
#[error("this build has no TLS (feature `tls`)")]
pub struct TlsError;

/// Does nothing: there are no TLS metrics in this build.
pub(crate) fn describe_metrics(_: &Registry) {}

impl Tls {
    /// # Errors
    /// Always.
    pub async fn for_applications(
        _: &config::Tls,
        _: &Registry,
        _: &Clock,
    ) -> Result<Arc<Self>, TlsError> {
        Err(TlsError)
    }

    /// # Errors
    /// Always.
    pub async fn for_operators(
        _: &config::Tls,
        _: &Registry,
        _: &Clock,
    ) -> Result<Arc<Self>, TlsError> {
        Err(TlsError)
    }

    /// Unreachable in this build.
    pub fn request_reload(&self) {
        match self.0 {}
    }

    /// Unreachable in this build.
    pub async fn follow_files(self: Arc<Self>, _: CancellationToken) {
        match self.0 {}
    }

    /// Unreachable in this build.
    pub(crate) fn unreachable(&self) -> ! {
        match self.0 {}
    }

    pub(crate) fn status(&self) -> TlsStatus {
        match self.0 {}
    }
}
