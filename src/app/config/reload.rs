//! Running with another config.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tracing::{info, warn};

use super::{Config, metrics::ConfigMetrics};
use crate::{
    audit::Recorder,
    backend::BackendError,
    clock::Clock,
    config::{Changes, LoadError, Settings, changes},
    lifecycle::Readiness,
    policy::ActivePolicy,
    refresh::Keyring,
    render::Renders,
    secrets::{PreparedSecrets, Secrets},
    telemetry::{self, Registry},
    wire::status::{ConfigStatus, LastError},
};

/// Why another config changes nothing.
#[derive(Debug, thiserror::Error)]
pub(in crate::app) enum ReloadError {
    /// It can't be read, or is invalid.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Reading it takes too long.
    #[error("can't read {} within {limit:?}", .file.display())]
    TimedOut {
        /// The file.
        file: PathBuf,
        /// The time limit.
        limit: Duration,
    },
    /// A secret's source can't be used.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl ReloadError {
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Load(LoadError::Unreadable { .. }) | Self::TimedOut { .. } => "config_unreadable",
            Self::Load(LoadError::Invalid(_)) | Self::Backend(_) => "config_invalid",
        }
    }
}

/// The parts of a sidecar that another config changes.
pub(in crate::app) struct LiveParts {
    pub(in crate::app) keyrings: Vec<Arc<Keyring>>,
    pub(in crate::app) secrets: Arc<Secrets>,
    pub(in crate::app) renders: Arc<Renders>,
    pub(in crate::app) policy: Arc<ActivePolicy>,
    pub(in crate::app) readiness: Arc<Readiness>,
    pub(in crate::app) audit: Recorder,
    pub(in crate::app) clock: Clock,
}

/// The config that a sidecar runs with.
pub(in crate::app) struct LiveConfig {
    parts: LiveParts,
    metrics: ConfigMetrics,
    state: Mutex<State>,
}

struct State {
    file: PathBuf,
    /// What the sidecar runs with.
    settings: Settings,
    sha256: String,
    loaded_at: Timestamp,
    needs_restart: Vec<String>,
    failure: Option<(Timestamp, &'static str, String)>,
}

impl LiveConfig {
    /// The config that the sidecar was started with.
    pub(in crate::app) fn new(config: &Config, parts: LiveParts, registry: &Registry) -> Self {
        let (metrics, now) = (ConfigMetrics::new(registry), parts.clock.now());
        metrics.loaded(now, 0);
        Self {
            metrics,
            state: Mutex::new(State {
                file: config.file.clone(),
                settings: config.settings.clone(),
                sha256: config.sha256.clone(),
                loaded_at: now,
                needs_restart: Vec::new(),
                failure: None,
            }),
            parts,
        }
    }

    /// Takes over what another config may change, or nothing if it is invalid.
    pub(in crate::app) fn reload(&self, config: Result<Config, ReloadError>) {
        let mut state = self.state();
        let prepared = config.and_then(|config| {
            let Config {
                sha256, settings, ..
            } = config;
            let changes = changes(&state.settings, settings);
            let secrets = self.parts.secrets.prepare(&changes.settings.secrets)?;
            Ok((sha256, changes, secrets))
        });
        match prepared {
            Ok((sha256, changes, secrets)) => self.succeed(&mut state, sha256, changes, secrets),
            Err(error) => self.fail(&mut state, &error),
        }
    }

    fn succeed(
        &self,
        state: &mut State,
        sha256: String,
        changes: Changes,
        secrets: PreparedSecrets,
    ) {
        let Changes {
            settings,
            needs_restart,
        } = changes;
        let is_changed = settings != state.settings;
        self.apply(&state.settings, &settings, secrets);
        let is_news = needs_restart != state.needs_restart;
        let names = needs_restart.join(", ");
        if is_news && !needs_restart.is_empty() {
            warn!("the config changed, but needs a restart: {names}");
        }
        if is_changed {
            info!(%sha256, "the config is in use");
        } else if state.failure.is_some() {
            info!(%sha256, "the config is valid again");
        }
        if is_changed || is_news {
            self.parts.audit.record("config.reloaded", |event| {
                event
                    .with("sha256", sha256.as_str())
                    .with("needs_restart", names)
            });
        }
        let now = self.parts.clock.now();
        self.metrics.reloaded(is_changed);
        self.metrics.loaded(now, needs_restart.len());
        state.settings = settings;
        state.sha256 = sha256;
        state.loaded_at = now;
        state.needs_restart = needs_restart;
        state.failure = None;
    }

    /// Changes the parts whose settings differ.
    fn apply(&self, former: &Settings, settings: &Settings, secrets: PreparedSecrets) {
        if settings.log != former.log
            && let Err(error) = telemetry::change_filter(&settings.log)
        {
            warn!("can't change what is logged: {error}");
        }
        if let (Some(audit), Some(before)) = (&settings.audit, &former.audit)
            && audit.forwards != before.forwards
        {
            self.parts.audit.forward_to(&audit.forwards);
        }
        for keyring in &self.parts.keyrings {
            let mut configured = settings.keyrings.iter();
            if let Some(settings) = configured.find(|found| found.name == *keyring.name())
                && keyring.trust_as(settings)
            {
                info!(
                    keyring = %keyring.name(),
                    "the config changed what the keyring trusts; refreshing it"
                );
            }
        }
        let change_secrets = || {
            self.parts.secrets.install(secrets);
            if settings.renders != former.renders {
                self.parts.renders.install(&settings.renders);
            }
        };
        if settings.policy == former.policy {
            change_secrets();
        } else {
            self.parts.policy.replace(&settings.policy, change_secrets);
        }
        self.parts.readiness.reconsider();
    }

    fn fail(&self, state: &mut State, error: &ReloadError) {
        let (code, message) = (error.code(), error.to_string());
        self.metrics.failed();
        let known = state.failure.as_ref().map(|(_, _, known)| known);
        if known != Some(&message) {
            warn!(
                code,
                "can't reload the config; keeping the one in use: {message}"
            );
            self.parts.audit.record("config.refused", |event| {
                event.with("code", code).with("reason", message.as_str())
            });
        }
        state.failure = Some((self.parts.clock.now(), code, message));
    }

    /// What `/status` says of it.
    pub(in crate::app) fn status(&self) -> ConfigStatus {
        let state = self.state();
        ConfigStatus {
            file: state.file.display().to_string(),
            sha256: state.sha256.clone(),
            loaded_at: state.loaded_at,
            needs_restart: state.needs_restart.clone(),
            last_error: state.failure.clone().map(|(at, code, message)| LastError {
                at,
                code: code.into(),
                message,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
