//! Replaces the module in builds without the feature `tls`. The config parser rejects `[hub]`.

mod parts;

use std::convert::Infallible;

pub use self::parts::Parts;
use crate::{
    clock::Clock, config, crypto::RandomnessUnavailable, telemetry::Registry,
    wire::status::HubStatus,
};

/// Joining a hub requires TLS, which this build lacks.
#[derive(Debug, thiserror::Error)]
#[error("this build has no TLS (feature `tls`)")]
pub struct HubError;

/// Does nothing: there are no metrics of a hub in this build.
pub fn describe_metrics(_: &Registry) {}

/// A hub; has no values in this build.
#[derive(Clone)]
pub struct Hub(Infallible);

impl Hub {
    /// # Errors
    /// Always.
    pub async fn load(_: &config::Hub, _: &Registry, _: &Clock) -> Result<Self, HubError> {
        Err(HubError)
    }

    /// Unreachable in this build.
    pub fn status(&self) -> HubStatus {
        match self.0 {}
    }

    /// # Errors
    /// Unreachable in this build.
    pub fn join(&self, _: Parts) -> Result<Membership, RandomnessUnavailable> {
        match self.0 {}
    }
}

/// Being joined to a hub; has no values in this build.
pub struct Membership(Infallible);

impl Membership {
    /// Unreachable in this build.
    pub async fn end(self) {
        match self.0 {}
    }
}
