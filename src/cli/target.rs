//! What keyring commands share: the keyring they work on, the backends and the sidecars they use.

use std::{
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use clap::Args;
use serde::Serialize;
use serde_json::Map;
use zeroize::Zeroizing;

use super::{
    decrypt_args::DecryptArgs,
    output::{CliError, Format, note, path_for_display, render},
    record::{AuditArgs, Completed},
};
use crate::{
    admin::{Admin, Bases, Memory, Signing},
    backend::{self, Backends},
    clock::Clock,
    config,
    crypto::{KeyringId, SigningKey},
    fleet::{Fleet, OpsTls},
    keyring::{Document, NearLimit},
    model::{
        CertificateName, KekPattern, KekScope, KekUri, KeyringName, Location, OpsUrl, SignerKey,
    },
};

/// Where a keyring is, and how its changes are signed and recorded.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// Location of the manifest: a URI such as `file:PATH` or `s3://BUCKET/KEY`, or a path.
    #[arg(value_parser = Location::from_str)]
    pub(super) location: Location,
    #[command(flatten)]
    pub(super) access: AccessArgs,
}

/// How changes of a keyring are signed and recorded, and what they may use.
#[derive(Debug, Args)]
pub(super) struct AccessArgs {
    /// Sign the manifest with the Ed25519 key in this file (PKCS#8 PEM).
    #[arg(long, value_name = "FILE", conflicts_with = "unsigned")]
    sign_key: Option<PathBuf>,
    /// Drop the signature of a signed manifest.
    #[arg(long)]
    unsigned: bool,
    /// Remember manifests in this folder instead of ~/.local/state/sidekey.
    ///
    /// A later command refuses a location without a successor of the remembered manifest.
    #[arg(long, value_name = "DIR", env = "SIDEKEY_STATE_DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    backends: BackendArgs,
    #[command(flatten)]
    pub(super) audit: AuditArgs,
}

impl Place {
    /// Access to a keyring that doesn't exist yet.
    pub(super) fn admin_of_new(self, trust_clock: bool) -> Result<Admin, CliError> {
        let trust = TrustArgs {
            trust_clock,
            ..TrustArgs::default()
        };
        self.access.admin(self.location, trust)
    }
}

impl AccessArgs {
    /// Access to the keyring at `location`.
    fn admin(self, location: Location, trust: TrustArgs) -> Result<Admin, CliError> {
        self.admin_of_fleet(location, trust, Fleet::default())
    }

    /// Access to a keyring of which `fleet` may tell the time.
    pub(super) fn admin_of_fleet(
        self,
        location: Location,
        trust: TrustArgs,
        clocks: Fleet,
    ) -> Result<Admin, CliError> {
        let signing = match (&self.sign_key, self.unsigned) {
            (Some(file), _) => Signing::With {
                key: signing_key(file)?,
                trusted: trust.trusted_signer,
                adopt: trust.adopt_unsigned,
            },
            (None, true) => Signing::Drop,
            (None, false) => Signing::NoKey,
        };
        let admin = self.backends.signing_admin(location, signing)?;
        let admin = trust.backup.given_to(admin)?;
        Ok(admin.with_bases(Bases {
            memory: memory(self.state_dir),
            files: trust.base,
            sidecars: trust.sidecars.into(),
            clocks,
            first_time: trust.first_time,
            accept_lost: trust.accept_lost,
            trust_clock: trust.trust_clock,
            repair_time: trust.repair_time,
            despite_rollout: trust.despite_rollout,
        }))
    }

    /// The public half of the key that signs changes, if there is one.
    pub(super) fn signer(&self) -> Result<Option<SignerKey>, CliError> {
        let key = self.sign_key.as_deref().map(signing_key).transpose()?;
        Ok(key.map(|key| SignerKey(key.public_key())))
    }

    /// The key that signs changes, if there is one.
    pub(super) fn sign_key(&self) -> Result<Option<SigningKey>, CliError> {
        self.sign_key.as_deref().map(signing_key).transpose()
    }

    /// The backends.
    pub(super) fn backends(&self) -> Result<Arc<dyn Backends>, CliError> {
        self.backends.configured()
    }

    /// The config file, which may name an audit log.
    pub(super) fn config(&self) -> Option<&PathBuf> {
        self.backends.config.as_ref()
    }
}

/// Returns the manifests that this user has seen, or None if the user has no home folder. `folder`
/// is the value of --state-dir.
pub(super) fn memory(folder: Option<PathBuf>) -> Option<Memory> {
    let folder_in = |variable: &str| {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .filter(|folder| folder.is_absolute())
    };
    let configured = || std::env::var_os("SIDEKEY_STATE_DIR").map(PathBuf::from);
    // XDG Base Directory Specification, version 0.8.
    folder
        .or_else(configured)
        .or_else(|| Some(folder_in("XDG_STATE_HOME")?.join("sidekey")))
        .or_else(|| Some(folder_in("HOME")?.join(".local/state/sidekey")))
        .map(Memory::in_folder)
}

/// A keyring that a command may change.
#[derive(Debug, Args)]
pub(super) struct Target {
    #[command(flatten)]
    pub(super) place: Place,
    #[command(flatten)]
    trust: Box<TrustArgs>,
}

impl Target {
    pub(super) fn admin(self) -> Result<Admin, CliError> {
        self.place.access.admin(self.place.location, *self.trust)
    }

    /// Whether the change is made although a rollout is active.
    pub(super) fn is_despite_rollout(&self) -> bool {
        self.trust.despite_rollout
    }

    /// The sidecars to ask.
    pub(super) fn fleet(&self) -> Fleet {
        self.trust.sidecars.clone().into()
    }

    /// The signers whose manifests are trusted.
    pub(super) fn trusted_signers(&self) -> Vec<SignerKey> {
        self.trust.trusted_signer.clone()
    }
}

/// What is trusted of a keyring besides the manifests that earlier commands have seen.
#[derive(Debug, Default, Args)]
pub(super) struct TrustArgs {
    #[command(flatten)]
    sidecars: SidecarArgs,
    /// Require that the manifest follows from the copy in this file, which is trusted.
    #[arg(long, value_name = "FILE")]
    base: Vec<PathBuf>,
    /// Trust exactly the manifest with this digest, the first time it is seen here.
    #[arg(long, value_name = "DIGEST")]
    first_time: Option<String>,
    /// Accept that this version was destroyed as lost since it was last seen here.
    #[arg(long, value_name = "VERSION")]
    accept_lost: Vec<u32>,
    /// Accept manifests signed by this key (`ed25519:BASE64`); repeat for several.
    #[arg(long, value_name = "KEY", value_parser = SignerKey::from_str)]
    trusted_signer: Vec<SignerKey>,
    /// Trust the clock of this machine, although it can't be compared or differs from a sidecar's.
    #[arg(long)]
    trust_clock: bool,
    /// Write over a manifest whose stamp is in the future, and repair its times.
    #[arg(long)]
    repair_time: bool,
    /// Make the change although a rollout is active, which may then fail.
    #[arg(long)]
    despite_rollout: bool,
    /// Sign the successor of the manifest with this digest, although no trusted key has signed it.
    #[arg(long, value_name = "DIGEST", requires = "sign_key")]
    adopt_unsigned: Option<String>,
    #[command(flatten)]
    backup: KeysFromBackup,
}

/// A backup that replaces KEKs which can't unwrap a version.
#[derive(Debug, Default, Args)]
struct KeysFromBackup {
    /// Take data keys that no KEK unwraps from this backup.
    #[arg(long, value_name = "FILE")]
    from_backup: Option<PathBuf>,
    /// Decrypt that backup with the age identities in this file, instead of a passphrase.
    #[arg(long, value_name = "FILE", requires = "from_backup")]
    from_backup_identity: Option<PathBuf>,
    /// Read the passphrase of that backup from the first line of this file.
    #[arg(
        long,
        value_name = "FILE",
        requires = "from_backup",
        conflicts_with = "from_backup_identity"
    )]
    from_backup_passphrase_file: Option<PathBuf>,
}

impl KeysFromBackup {
    fn given_to(self, admin: Admin) -> Result<Admin, CliError> {
        let Some(file) = self.from_backup else {
            return Ok(admin);
        };
        let decryption = DecryptArgs {
            identity: self.from_backup_identity,
            passphrase_file: self.from_backup_passphrase_file,
        };
        Ok(admin.with_backup(&file, &decryption.decrypt_with()?)?)
    }
}

pub(super) fn signing_key(file: &Path) -> Result<SigningKey, CliError> {
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
    /// Compare with the manifests remembered in this folder instead of ~/.local/state/sidekey.
    #[arg(long, value_name = "DIR", env = "SIDEKEY_STATE_DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    backends: BackendArgs,
}

impl ReadTarget {
    pub(super) fn admin(self) -> Result<Admin, CliError> {
        let admin = self.backends.signing_admin(self.location, Signing::NoKey)?;
        Ok(admin.with_bases(Bases {
            memory: memory(self.state_dir),
            ..Bases::default()
        }))
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
    fn configured(&self) -> Result<Arc<dyn Backends>, CliError> {
        let mut settings = match &self.config {
            Some(file) => config::load(file)?.backends,
            None => config::Backends::default(),
        };
        if let Some(file) = &self.kek_passphrase_file {
            settings.local.passphrase_file = Some(file.clone());
        }
        Ok(backend::configured(&settings))
    }

    fn signing_admin(self, location: Location, signing: Signing) -> Result<Admin, CliError> {
        let backends = self.configured()?;
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
#[derive(Debug, Clone, Default, Args)]
struct SidecarArgs {
    /// Ops listener of a live sidecar, such as https://10.1.2.3:9464; repeat for every one.
    ///
    /// The manifest in the location must follow from the one that each of them serves.
    #[arg(long, value_name = "URL", value_parser = OpsUrl::from_str)]
    sidecar: Vec<OpsUrl>,
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
        let tls = OpsTls {
            ca_file: arguments.sidecar_ca,
            client: arguments.sidecar_cert.zip(arguments.sidecar_key),
            name: arguments.sidecar_name,
        };
        Self::of(arguments.sidecar, tls)
    }
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
    /// Limits of which half is used, and a clock that nothing confirms.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

fn warnings(admin: &Admin, document: &Document) -> Vec<String> {
    let limits = admin.near_limits(document);
    let clock = admin.unconfirmed_step().map(|step| step.to_string());
    let limits = limits.iter().map(NearLimit::to_string);
    limits.chain(clock).collect()
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
        warnings: warnings(admin, document),
    };
    for (version, reason) in admin.taken_from_backup() {
        note(format_args!(
            "{}: took the key of version {version} from the backup, because {reason}",
            manifest.name
        ));
    }
    for warning in &report.warnings {
        note(format_args!("{}: {warning}", manifest.name));
    }
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
