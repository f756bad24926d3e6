//! What keyring commands share: the keyring they work on, the backends and the sidecars they use.

use std::{
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::Args;
use hyper::Uri;
use serde::Serialize;
use serde_json::Map;
use zeroize::Zeroizing;

use super::{
    output::{CliError, Format, path_for_display, render},
    record::{AuditArgs, Completed},
};
use crate::{
    admin::{Admin, Fleet, OpsTls, Signing},
    backend,
    clock::Clock,
    config,
    crypto::{KeyringId, SigningKey},
    keyring::Document,
    model::{CertificateName, KekPattern, KekScope, KekUri, KeyringName, Location},
};

/// A keyring that a command may change.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// Location of the manifest: a URI such as `file:PATH` or `s3://BUCKET/KEY`, or a path.
    #[arg(value_parser = Location::from_str)]
    pub(super) location: Location,
    /// Sign the manifest with the Ed25519 key in this file (PKCS#8 PEM).
    #[arg(long, value_name = "FILE", conflicts_with = "unsigned")]
    sign_key: Option<PathBuf>,
    /// Drop the signature of a signed manifest.
    #[arg(long)]
    unsigned: bool,
    #[command(flatten)]
    backends: BackendArgs,
    #[command(flatten)]
    pub(super) audit: AuditArgs,
}

impl Target {
    pub(super) fn admin(self) -> Result<Admin, CliError> {
        let signing = match (&self.sign_key, self.unsigned) {
            (Some(file), _) => Signing::With(signing_key(file)?),
            (None, true) => Signing::Drop,
            (None, false) => Signing::NoKey,
        };
        self.backends.signing_admin(self.location, signing)
    }

    /// The config file, which may name an audit log.
    pub(super) fn config(&self) -> Option<&PathBuf> {
        self.backends.config.as_ref()
    }
}

fn signing_key(file: &Path) -> Result<SigningKey, CliError> {
    let failed = |error: &dyn Display| {
        CliError::failed(format!("--sign-key {}: {error}", path_for_display(file)))
    };
    let pem = fs::read(file).map_err(|error| failed(&error))?;
    SigningKey::from_pem(&Zeroizing::new(pem)).map_err(|error| failed(&error))
}

/// A keyring that a command only reads.
#[derive(Debug, Args)]
pub(super) struct ReadTarget {
    /// Location of the manifest: a URI such as `file:PATH` or `s3://BUCKET/KEY`, or a path.
    #[arg(value_parser = Location::from_str)]
    location: Location,
    #[command(flatten)]
    backends: BackendArgs,
}

impl ReadTarget {
    pub(super) fn admin(self) -> Result<Admin, CliError> {
        self.backends.signing_admin(self.location, Signing::NoKey)
    }
}

/// The backends that a command may use.
#[derive(Debug, Args)]
struct BackendArgs {
    /// Unwrap only with this KEK, or with KEKs that match a prefix ending in `*`.
    #[arg(long = "allow-kek", value_name = "URI", value_parser = KekPattern::from_str)]
    patterns: Vec<KekPattern>,
    /// Take backend settings from this config file instead of the environment.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Read the passphrase of encrypted local KEKs from this file; /dev/fd/N reads a pipe.
    #[arg(long, value_name = "FILE")]
    kek_passphrase_file: Option<PathBuf>,
}

impl BackendArgs {
    fn signing_admin(self, location: Location, signing: Signing) -> Result<Admin, CliError> {
        let mut settings = match &self.config {
            Some(file) => config::load(file)?.backends,
            None => config::Backends::default(),
        };
        if self.kek_passphrase_file.is_some() {
            settings.local.passphrase_file = self.kek_passphrase_file;
        }
        let backends = backend::configured(&settings);
        let admin = Admin::new(location, signing, &backends, Clock::system())?;
        if self.patterns.is_empty() {
            return Ok(admin);
        }
        let folder = std::env::current_dir().map_err(|error| {
            CliError::failed(format!("can't determine the working directory: {error}"))
        })?;
        let patterns = self
            .patterns
            .into_iter()
            .map(|pattern| pattern.anchored(&folder))
            .collect();
        Ok(admin.with_scope(KekScope::Only(patterns)))
    }
}

/// The sidecars to ask, and how to connect to them.
#[derive(Debug, Args)]
pub(super) struct SidecarArgs {
    /// Ops listener of a live sidecar, such as https://10.1.2.3:9464; repeat for every one.
    #[arg(long, value_name = "URL", value_parser = sidecar_url)]
    sidecar: Vec<Uri>,
    /// Trust the CA certificates in this file (PEM) instead of the system's.
    #[arg(long, value_name = "FILE", requires = "sidecar")]
    sidecar_ca: Option<PathBuf>,
    /// Present the client certificate chain in this file (PEM).
    #[arg(long, value_name = "FILE", requires_all = ["sidecar", "sidecar_key"])]
    sidecar_cert: Option<PathBuf>,
    /// Private key of the client certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "sidecar_cert")]
    sidecar_key: Option<PathBuf>,
    /// Expect this DNS name or URI (a SPIFFE ID, or a prefix ending in `/*`) in certificates.
    ///
    /// Without it, each sidecar's certificate must be valid for the host in its URL.
    #[arg(
        long,
        value_name = "NAME",
        requires = "sidecar",
        value_parser = CertificateName::from_str
    )]
    sidecar_name: Option<CertificateName>,
}

impl From<SidecarArgs> for Fleet {
    fn from(arguments: SidecarArgs) -> Self {
        Self {
            urls: arguments.sidecar,
            tls: OpsTls {
                ca_file: arguments.sidecar_ca,
                client: arguments.sidecar_cert.zip(arguments.sidecar_key),
                name: arguments.sidecar_name,
            },
        }
    }
}

/// Parses a sidecar's URL. Credentials are refused, because URLs are logged and recorded.
fn sidecar_url(text: &str) -> Result<Uri, String> {
    let url: Uri = text
        .parse()
        .map_err(|error| format!("invalid URL: {error}"))?;
    if url
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return Err(
            "a sidecar URL must not contain credentials; authenticate with --sidecar-cert \
             and --sidecar-key"
                .into(),
        );
    }
    Ok(url)
}

/// Makes the paths in KEK URIs absolute, so that they stay valid in every working directory.
pub(super) fn anchored(keks: &[KekUri]) -> Result<Vec<KekUri>, CliError> {
    keks.iter()
        .map(|kek| backend::absolute_kek(kek).map_err(CliError::failed))
        .collect()
}

#[derive(Serialize)]
struct Changed<'a> {
    location: String,
    keyring: &'a KeyringName,
    id: KeyringId,
    generation: u64,
    version: Option<u32>,
    message: &'a str,
}

/// Reports that a keyring was changed.
pub(super) fn changed(
    format: Format,
    admin: &Admin,
    document: &Document,
    version: Option<u32>,
    message: &str,
) -> Result<Completed, CliError> {
    let manifest = document.manifest();
    let report = Changed {
        location: admin.location().to_string(),
        keyring: &manifest.name,
        id: manifest.id,
        generation: manifest.generation,
        version,
        message,
    };
    let output = render(format, &report, || {
        format!(
            "{}: {message} (generation {})\n",
            manifest.name, manifest.generation
        )
    })?;
    Ok(Completed {
        keyring: Some(manifest.name.to_string()),
        generation: Some(manifest.generation),
        version,
        details: Map::new(),
        output,
    })
}
