//! `sidekey serve` and `sidekey check`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::{
    output::{CliError, Format, columns, path_for_display, print},
    runtime::block_on,
};
use crate::{
    admin::{Purpose, probe},
    app::{self, Config, ConfigFile},
    backend,
    clock::Clock,
    config::{self, LoadError, Settings},
    files::allow_connections,
    lifecycle::{Signals, notify_ready, reap_orphans},
    model::{KeyringName, SecretName},
    telemetry,
};

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Config file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), CliError> {
        let file = ConfigFile::new(self.config);
        serve(&file.load()?, file, async |_| Ok(()))
    }
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Config file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the config alone, as on a machine that isn't the sidecar's. Other than template files,
    /// nothing on this host is looked at.
    #[arg(long, conflicts_with = "online")]
    config_only: bool,
    /// Also read every manifest and secret and unwrap a version with every KEK, with the access
    /// rights that a sidecar on this host would have.
    #[arg(long)]
    online: bool,
}

#[derive(Serialize)]
struct ProbeResult {
    #[serde(skip_serializing_if = "Option::is_none")]
    keyring: Option<KeyringName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<SecretName>,
    /// Location, KEK or source.
    subject: String,
    took_ms: f64,
    error: Option<String>,
}

impl Check {
    pub(super) fn run(self, format: Format) -> Result<(), CliError> {
        let file = path_for_display(&self.config);
        match config::load(&self.config) {
            Ok(settings) => {
                if !self.config_only {
                    require_start(&file, &settings, format)?;
                }
                if self.online {
                    return online(&file, &settings, format);
                }
                let (keyrings, secrets) = (settings.keyrings.len(), &settings.secrets);
                let secrets = secrets.named.len() + secrets.mappings.len();
                print(
                    format,
                    &json!({
                        "file": file,
                        "valid": true,
                        "keyrings": keyrings,
                        "secrets": secrets,
                    }),
                    || format!("{file}: valid, {keyrings} keyrings, {secrets} secrets\n"),
                )
            }
            Err(error) => Err(invalid(&file, error, format)),
        }
    }
}

/// Prints why a config file can't be used, if the format is JSON, and returns the error.
pub(super) fn invalid(file: &str, error: LoadError, format: Format) -> CliError {
    let (LoadError::Invalid(problems), Format::Json) = (&error, format) else {
        return error.into();
    };
    let items: Vec<_> = problems
        .items
        .iter()
        .map(|item| json!({ "line": item.line, "key": item.key, "message": item.message }))
        .collect();
    let answer = json!({ "file": file, "valid": false, "problems": items });
    match print(format, &answer, String::new) {
        Ok(()) => CliError::failed(format!("{file}: invalid config")),
        Err(unwritable) => unwritable,
    }
}

/// Fails, with all reasons, if a sidecar can't start with these settings on this host.
fn require_start(file: &str, settings: &Settings, format: Format) -> Result<(), CliError> {
    let backends = backend::configured(&settings.backends);
    let found = block_on(async { Ok(app::rehearse(settings, &backends, &Clock::system()).await) })?;
    if found.is_empty() {
        return Ok(());
    }
    let reasons: Vec<String> = found.iter().map(ToString::to_string).collect();
    let problems: Vec<_> = reasons
        .iter()
        .map(|reason| json!({ "message": reason }))
        .collect();
    let summary = format!("{file}: a sidecar can't start with this config");
    match format {
        Format::Json => {
            let answer = json!({ "file": file, "valid": false, "problems": problems });
            print(format, &answer, String::new)?;
            Err(CliError::failed(summary))
        }
        Format::Text => Err(CliError::failed(format!(
            "{summary} on this host\n{}",
            reasons.join("\n")
        ))),
    }
}

fn online(file: &str, settings: &Settings, format: Format) -> Result<(), CliError> {
    let probes = block_on(async { Ok(probe(settings, Clock::system()).await) })?;
    let tried: Vec<ProbeResult> = probes
        .into_iter()
        .map(|probe| {
            let (keyring, secret) = match probe.purpose {
                Purpose::Keyring(name) => (Some(name), None),
                Purpose::Secret(name) => (None, Some(name)),
            };
            let took_ms = probe.took.as_secs_f64() * 1000.0;
            ProbeResult {
                keyring,
                secret,
                subject: probe.subject,
                took_ms,
                error: probe.result.err(),
            }
        })
        .collect();
    let text = || {
        let heading = ["FOR", "LOCATION, KEK OR SOURCE", "TOOK", "RESULT"]
            .map(String::from)
            .to_vec();
        let row = |tried: &ProbeResult| {
            let result = tried.error.clone().unwrap_or_else(|| "ok".into());
            let keyring = tried.keyring.as_ref().map(|name| format!("keyring {name}"));
            let secret = tried.secret.as_ref().map(|name| format!("secret {name}"));
            vec![
                keyring.or(secret).unwrap_or_default(),
                tried.subject.clone(),
                format!("{:.0} ms", tried.took_ms),
                result,
            ]
        };
        columns(
            &std::iter::once(heading)
                .chain(tried.iter().map(row))
                .collect::<Vec<_>>(),
        )
    };
    print(
        format,
        &json!({ "file": file, "valid": true, "tried": tried }),
        text,
    )?;
    match tried.iter().filter(|tried| tried.error.is_some()).count() {
        0 => Ok(()),
        failed => Err(CliError::failed(format!(
            "{failed} of {} checks failed",
            tried.len()
        ))),
    }
}

pub(super) fn serve(
    config: &Config,
    file: ConfigFile,
    started: impl AsyncFnOnce(&app::Bound) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let settings = &config.settings;
    telemetry::init_logging(&settings.log).map_err(CliError::failed)?;
    block_on(async {
        // First, so that an early signal doesn't kill the process.
        let signals = Signals::listen()
            .and_then(|signals| reap_orphans().map(|()| signals))
            .map_err(|error| CliError::failed(format!("can't install signal handlers: {error}")))?;
        let listeners = 1 + u64::from(settings.listen.tcp.is_some());
        allow_connections(listeners * settings.limits.connections as u64);
        let backends = backend::configured(&settings.backends);
        let bound = app::build(config, backends, Clock::system()).await?;
        notify_ready();
        started(&bound).await?;
        bound.run(signals, file).await;
        Ok(())
    })
}
