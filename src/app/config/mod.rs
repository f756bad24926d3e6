//! The config of a running sidecar: reading its file again, and what another one changes.

mod file;
mod metrics;
mod reload;
mod watch;

pub use self::file::{Config, ConfigFile};
pub(super) use self::{
    metrics::describe as describe_metrics,
    reload::{LiveConfig, LiveParts, ReloadError},
    watch::ConfigWatch,
};
