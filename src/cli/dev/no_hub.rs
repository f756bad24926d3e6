//! Builds without the feature `hub`: `sidekey dev --fleet` starts none.

use std::path::Path;

use crate::cli::output::CliError;

pub(super) struct DevHub;

impl DevHub {
    pub(super) async fn start(_: &Path) -> Result<Self, CliError> {
        Ok(Self)
    }

    pub(super) fn sidecar_config(&self, _: &str) -> String {
        String::new()
    }

    pub(super) fn fleet_config(&self) -> String {
        String::new()
    }

    pub(super) async fn stop(self) {}
}
