use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{ArgGroup, Args, Subcommand};
use hyper::Uri;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{
    audit::Flags,
    backup::{BackUp, Recover, Restore},
    keks::{RewrapKek, Verify, anchored},
    output::{Failure, Format, columns, print, render, write_out},
    shown,
};
use crate::{
    admin::{Admin, Fleet, Loss, OpsTls, Signing, Takeover, ask_sidecars},
    backend,
    clock::Clock,
    config,
    crypto::{KeyringId, SigningKey},
    keyring::{
        self, Activation, BackupRecord, Destruction, Document, Evidence, Policy, Reign, State,
        WaveSelector, primaries, reign, scheduled,
    },
    model::{CertificateName, KekPattern, KekScope, KekUri, KeyringName, Location, Span},
};

/// Work on keyrings where they are stored. LOCATION is a URI such as `file:PATH`, or a path alone.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a new keyring whose version 1 encrypts at once.
    Init(Init),
    /// Add a new version; it decrypts everywhere before it encrypts anywhere.
    Rotate(Rotate),
    /// Let a version encrypt, for every wave or one; activating the former version is the rollback.
    Activate(Activate),
    /// Suspend a version, on evidence that nobody uses it.
    Disable(Disable),
    /// Let a disabled version decrypt again.
    Enable(Change),
    /// Destroy a disabled version for good.
    Destroy(Destroy),
    /// Mark a version as known to others, so that it never encrypts again.
    Compromise(Change),
    /// Write a new generation with nothing else new, to confirm copies of the manifest.
    Touch(Target),
    /// Show versions, states and who encrypts with what; opens no key.
    Status(Read),
    /// Open every version through every KEK and verify the manifest's authentication.
    Verify(Verify),
    /// Add, drop or refresh the KEKs that wrap every version; no ciphertext changes.
    RewrapKek(RewrapKek),
    /// Write the manifest and every key that is left to an encrypted file, and show that it opens.
    Backup(BackUp),
    /// Bring a keyring back from a backup, as a new generation.
    Restore(Restore),
    /// Put the newest manifest that any sidecar has in force back where it was lost or rolled back.
    Recover(Recover),
}

#[derive(Debug, Args)]
pub(super) struct Target {
    /// Where the manifest is.
    #[arg(value_parser = Location::from_str)]
    location: Location,
    /// Sign the manifest with this Ed25519 key (PKCS#8 PEM).
    #[arg(long, value_name = "FILE", conflicts_with = "unsigned")]
    sign_key: Option<PathBuf>,
    /// Drop the signature of a signed manifest.
    #[arg(long)]
    unsigned: bool,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    audit: Flags,
}

/// Which outside systems a command may use.
#[derive(Debug, Args)]
pub(super) struct Reach {
    /// Open versions by this KEK alone, or by those that begin like this and end in `*`, whatever others the manifest names.
    #[arg(long = "allow-kek", value_name = "URI", value_parser = KekPattern::from_str)]
    patterns: Vec<KekPattern>,
    /// Reach Vault, AWS and the like as this config file says, instead of as the environment does.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The passphrase of KEKs in encrypted local files is in this file; /dev/fd/3 reads it from a pipe.
    #[arg(long, value_name = "FILE")]
    kek_passphrase_file: Option<PathBuf>,
}

impl Reach {
    /// The keyring at `location`, which is not going to be changed.
    pub(super) fn admin(self, location: Location) -> Result<Admin, Failure> {
        self.signing(location, Signing::Unless)
    }

    fn signing(self, location: Location, signing: Signing) -> Result<Admin, Failure> {
        let mut settings = match &self.config {
            Some(file) => config::load(file)?.backends,
            None => config::Backends::default(),
        };
        if self.kek_passphrase_file.is_some() {
            settings.local.passphrase_file = self.kek_passphrase_file;
        }
        let admin = Admin::new(
            location,
            signing,
            &backend::configured(&settings),
            Clock::system(),
        )?;
        if self.patterns.is_empty() {
            return Ok(admin);
        }
        let folder = std::env::current_dir()
            .map_err(|error| Failure::failed(format!("the working folder: {error}")))?;
        let patterns = self
            .patterns
            .into_iter()
            .map(|pattern| pattern.anchored(&folder))
            .collect();
        Ok(admin.within(KekScope::Only(patterns)))
    }
}

#[derive(Debug, Args)]
pub(super) struct Read {
    /// Where the manifest is.
    #[arg(value_parser = Location::from_str)]
    location: Location,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Args)]
pub(super) struct Init {
    #[command(flatten)]
    target: Target,
    /// The keyring's name.
    #[arg(long, value_parser = KeyringName::from_str)]
    name: KeyringName,
    /// A KEK that wraps every version; several are failover for each other.
    #[arg(long, required = true, value_name = "URI", value_parser = KekUri::from_str)]
    kek: Vec<KekUri>,
    /// How often a new version is due.
    #[arg(long, value_name = "DURATION", default_value_t = Policy::default().rotate_every, value_parser = Span::from_str)]
    rotate_every: Span,
    /// How long no sidecar may have used a version before it is disabled.
    #[arg(long, value_name = "DURATION", default_value_t = Policy::default().quiet_period, value_parser = Span::from_str)]
    quiet_period: Span,
    /// How long a sidecar that can't confirm its manifest goes on encrypting.
    #[arg(long, value_name = "DURATION", default_value_t = Policy::default().encrypt_lease, value_parser = Span::from_str)]
    encrypt_lease: Span,
    /// How long a version stays disabled before it may be destroyed.
    #[arg(long, value_name = "DURATION", default_value_t = Policy::default().destroy_after, value_parser = Span::from_str)]
    destroy_after: Span,
}

#[derive(Debug, Args)]
pub(super) struct Rotate {
    #[command(flatten)]
    target: Target,
    /// Let it encrypt for every wave: `now`, or at a time such as 2027-01-31T06:00:00Z. Without this it stays pending.
    #[arg(long, value_name = "now|TIME", value_parser = takeover)]
    activate: Option<Takeover>,
    /// Wrap it under these KEKs instead of those of the newest version.
    #[arg(long, value_name = "URI", value_parser = KekUri::from_str)]
    kek: Vec<KekUri>,
}

#[derive(Debug, Args)]
pub(super) struct Activate {
    #[command(flatten)]
    target: Target,
    /// The version.
    #[arg(long)]
    version: u32,
    /// The wave; every wave if there is none.
    #[arg(long, value_parser = WaveSelector::from_str, default_value = "*")]
    wave: WaveSelector,
    /// When, such as 2027-01-31T06:00:00Z; now if there is none.
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub(super) struct Change {
    #[command(flatten)]
    target: Target,
    /// The version.
    #[arg(long)]
    version: u32,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("evidence").args(["sidecar", "override_reason"])))]
pub(super) struct Disable {
    #[command(flatten)]
    change: Change,
    #[command(flatten)]
    sidecars: Box<Sidecars>,
    /// Decide without evidence.
    #[arg(long = "override", value_name = "REASON")]
    override_reason: Option<String>,
}

/// Sidecars, and how they are reached.
#[derive(Debug, Args)]
pub(super) struct Sidecars {
    /// The ops listener of a live sidecar, such as http://10.1.2.3:9464 or https://10.1.2.3:9464; name every one.
    #[arg(long, value_name = "URL", value_parser = sidecar_url)]
    sidecar: Vec<Uri>,
    /// Certificates (PEM) of the authorities that sidecars' certificates come from, instead of the system's.
    #[arg(long, value_name = "FILE", requires = "sidecar")]
    sidecar_ca: Option<PathBuf>,
    /// Our certificate chain (PEM), for sidecars that ask for one.
    #[arg(long, value_name = "FILE", requires_all = ["sidecar", "sidecar_key"])]
    sidecar_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "sidecar_cert")]
    sidecar_key: Option<PathBuf>,
    /// The name that every sidecar's certificate has, instead of the URL's host: a DNS name, a URI such as a SPIFFE id, or the
    /// beginning of URIs with `/*` behind it.
    #[arg(long, value_name = "NAME", requires = "sidecar", value_parser = CertificateName::from_str)]
    sidecar_name: Option<CertificateName>,
}

impl From<Sidecars> for Fleet {
    fn from(arguments: Sidecars) -> Self {
        let Sidecars {
            sidecar,
            sidecar_ca,
            sidecar_cert,
            sidecar_key,
            sidecar_name,
        } = arguments;
        Self {
            urls: sidecar,
            tls: OpsTls {
                ca_file: sidecar_ca,
                client: sidecar_cert.zip(sidecar_key),
                name: sidecar_name,
            },
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Destroy {
    #[command(flatten)]
    change: Change,
    /// The words that stand in for a verified backup; the refusal without them says which.
    #[arg(long, value_name = "WORDS")]
    confirm: Option<String>,
    /// Every KEK of the version is gone for good, so nothing can open it: no waiting time helps.
    #[arg(long)]
    lost: bool,
    /// With --lost: the version that encrypts for every wave from now on, if the lost one did for any.
    #[arg(long, value_name = "VERSION", requires = "lost")]
    successor: Option<u32>,
}

/// Arguments are recorded, and messages name sidecars by their URLs.
fn sidecar_url(text: &str) -> Result<Uri, String> {
    let url: Uri = text
        .parse()
        .map_err(|error| format!("this is not a URL: {error}"))?;
    if url
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return Err("a sidecar's URL carries no user and password; log in by --sidecar-cert and --sidecar-key".into());
    }
    Ok(url)
}

fn takeover(text: &str) -> Result<Takeover, String> {
    match text {
        "now" => Ok(Takeover::Now),
        time => time
            .parse()
            .map(Takeover::At)
            .map_err(|_| "write `now`, or a time such as 2027-01-31T06:00:00Z".into()),
    }
}

fn signing_key(file: &Path) -> Result<SigningKey, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(format!("--sign-key {}: {error}", shown(file)))
    };
    let pem = fs::read(file).map_err(|error| failed(&error))?;
    SigningKey::from_pem(&Zeroizing::new(pem)).map_err(|error| failed(&error))
}

impl Target {
    pub(super) fn admin(self) -> Result<Admin, Failure> {
        let signing = match (&self.sign_key, self.unsigned) {
            (Some(file), _) => Signing::With(signing_key(file)?),
            (None, true) => Signing::Drop,
            (None, false) => Signing::Unless,
        };
        self.reach.signing(self.location, signing)
    }
}

impl Read {
    fn admin(self) -> Result<Admin, Failure> {
        self.reach.admin(self.location)
    }
}

/// What a command came to, for the audit log.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) keyring: Option<String>,
    pub(super) generation: Option<u64>,
    pub(super) version: Option<u32>,
    pub(super) details: Map<String, Value>,
    /// What is to be printed once all of it is recorded.
    pub(super) output: String,
}

impl Done {
    pub(super) fn print(&self) -> Result<(), Failure> {
        write_out(&self.output)
    }

    pub(super) fn details(&self) -> Map<String, Value> {
        let mut details = self.details.clone();
        details.extend(
            self.keyring
                .clone()
                .map(|keyring| ("keyring".to_owned(), keyring.into())),
        );
        details.extend(
            self.generation
                .map(|generation| ("generation".to_owned(), generation.into())),
        );
        details.extend(
            self.version
                .map(|version| ("version".to_owned(), version.into())),
        );
        details
    }
}

impl Command {
    pub(super) async fn run(self, format: Format) -> Result<(), Failure> {
        let Some((name, target, details)) = self.act() else {
            return self.perform(format).await?.print();
        };
        let (flags, config) = (target.audit.clone(), target.reach.config.clone());
        flags
            .around(config.as_ref(), name, details, self.perform(format))
            .await
    }

    /// What the audit log is told of it before it is done; nothing of what changes nothing.
    fn act(&self) -> Option<(&'static str, &Target, Map<String, Value>)> {
        let (name, target, version) = match self {
            Self::Init(init) => ("keyring.init", &init.target, None),
            Self::Rotate(rotate) => ("keyring.rotate", &rotate.target, None),
            Self::Activate(activate) => {
                ("keyring.activate", &activate.target, Some(activate.version))
            }
            Self::Disable(disable) => (
                "keyring.disable",
                &disable.change.target,
                Some(disable.change.version),
            ),
            Self::Enable(change) => ("keyring.enable", &change.target, Some(change.version)),
            Self::Destroy(destroy) => (
                "keyring.destroy",
                &destroy.change.target,
                Some(destroy.change.version),
            ),
            Self::Compromise(change) => {
                ("keyring.compromise", &change.target, Some(change.version))
            }
            Self::Touch(target) => ("keyring.touch", target, None),
            Self::RewrapKek(rewrap) => ("keyring.rewrap-kek", &rewrap.target, None),
            Self::Backup(backup) => ("keyring.backup", &backup.target, None),
            Self::Restore(restore) => ("keyring.restore", &restore.target, None),
            Self::Recover(recover) => ("keyring.recover", &recover.target, None),
            Self::Status(_) | Self::Verify(_) => return None,
        };
        let mut details =
            Map::from_iter([("location".to_owned(), target.location.to_string().into())]);
        details.extend(version.map(|version| ("version".to_owned(), version.into())));
        match self {
            Self::Disable(Disable {
                override_reason: Some(reason),
                ..
            }) => {
                details.insert("override".into(), reason.as_str().into());
            }
            Self::Destroy(Destroy {
                confirm: Some(words),
                ..
            }) => {
                details.insert("confirmed".into(), words.as_str().into());
            }
            _ => {}
        }
        Some((name, target, details))
    }

    async fn perform(self, format: Format) -> Result<Done, Failure> {
        match self {
            Self::Init(arguments) => arguments.run(format).await,
            Self::Rotate(arguments) => arguments.run(format).await,
            Self::Activate(arguments) => arguments.run(format).await,
            Self::Disable(arguments) => arguments.run(format).await,
            Self::Destroy(arguments) => arguments.run(format).await,
            Self::Enable(Change { target, version }) => {
                let admin = target.admin()?;
                let document = admin
                    .change(None, |current, now| keyring::enable(current, version, now))
                    .await?;
                changed(
                    format,
                    &admin,
                    &document,
                    Some(version),
                    &format!("version {version} decrypts again"),
                )
            }
            Self::Compromise(Change { target, version }) => {
                let admin = target.admin()?;
                let document = admin
                    .change(None, |current, now| {
                        keyring::compromise(current, version, now)
                    })
                    .await?;
                let manifest = document.manifest();
                let what = match reign(&manifest.activations, version, manifest.updated_at) {
                    Reign::CurrentOrScheduled => format!(
                        "version {version} is marked as compromised but still encrypts, or will, for a wave; \
                         `keyring rotate --activate now` ends that"
                    ),
                    Reign::Never | Reign::Ended(_) => {
                        format!(
                            "version {version} is marked as compromised and never encrypts again"
                        )
                    }
                };
                changed(format, &admin, &document, Some(version), &what)
            }
            Self::Touch(target) => {
                let admin = target.admin()?;
                let document = admin
                    .change(None, |current, now| Ok(keyring::touch(current, now)))
                    .await?;
                changed(format, &admin, &document, None, "the manifest is confirmed")
            }
            Self::Status(read) => {
                let admin = read.admin()?;
                let document = admin.read().await?;
                status(format, &document, admin.now())?;
                Ok(Done::default())
            }
            Self::Verify(arguments) => arguments.run(format).await.map(|()| Done::default()),
            Self::RewrapKek(arguments) => arguments.run(format).await,
            Self::Backup(arguments) => arguments.run(format).await,
            Self::Restore(arguments) => arguments.run(format).await,
            Self::Recover(arguments) => arguments.run(format).await,
        }
    }
}

impl Init {
    async fn run(self, format: Format) -> Result<Done, Failure> {
        let keks = anchored(&self.kek)?;
        let policy = Policy {
            rotate_every: self.rotate_every,
            quiet_period: self.quiet_period,
            encrypt_lease: self.encrypt_lease,
            destroy_after: self.destroy_after,
        };
        let admin = self.target.admin()?;
        let document = admin.init(self.name, &keks, policy).await.map_err(|error| match error {
            crate::admin::AdminError::Store(backend::StoreError::Conflict(location)) => {
                Failure::failed(format!("{location}: there is a keyring already; `keyring rotate` adds a version to it"))
            }
            other => other.into(),
        })?;
        changed(
            format,
            &admin,
            &document,
            Some(1),
            "the keyring is made; version 1 encrypts",
        )
    }
}

impl Rotate {
    async fn run(self, format: Format) -> Result<Done, Failure> {
        let keks = anchored(&self.kek)?;
        let admin = self.target.admin()?;
        let takeover = self.activate.unwrap_or(Takeover::Later);
        let (document, version) = admin.rotate(&keks, takeover).await?;
        let what = match takeover {
            Takeover::Later => {
                format!(
                    "version {version} is added and pending; `keyring activate --version {version}` lets it encrypt"
                )
            }
            Takeover::Now => format!("version {version} is added and encrypts"),
            Takeover::At(at) => format!("version {version} is added and encrypts from {at} on"),
        };
        changed(format, &admin, &document, Some(version), &what)
    }
}

impl Activate {
    async fn run(self, format: Format) -> Result<Done, Failure> {
        let admin = self.target.admin()?;
        let document = admin
            .activate(self.version, self.wave.clone(), self.at)
            .await?;
        let from = self.at.map_or_else(|| "now".into(), |at| at.to_string());
        let whom = match &self.wave {
            WaveSelector::Every => "every wave".into(),
            WaveSelector::One(wave) => format!("wave {wave}"),
        };
        changed(
            format,
            &admin,
            &document,
            Some(self.version),
            &format!(
                "version {} encrypts for {whom} from {from} on",
                self.version
            ),
        )
    }
}

impl Disable {
    async fn run(self, format: Format) -> Result<Done, Failure> {
        let version = self.change.version;
        let admin = self.change.target.admin()?;
        let document = match self.override_reason {
            Some(reason) => {
                let evidence = Evidence::Override(reason);
                admin
                    .change(None, |current, now| {
                        keyring::disable(current, version, &evidence, now)
                    })
                    .await?
            }
            None => {
                let current = admin.read().await?;
                let manifest = current.manifest();
                let reports = ask_sidecars(
                    &(*self.sidecars).into(),
                    &manifest.name,
                    manifest.id,
                    version,
                )
                .await;
                let reports = reports.map_err(Failure::failed)?;
                // A change in between shows as sidecars that serve another generation.
                let evidence = Evidence::Fleet(reports);
                admin
                    .change(None, |current, now| {
                        keyring::disable(current, version, &evidence, now)
                    })
                    .await?
            }
        };
        changed(
            format,
            &admin,
            &document,
            Some(version),
            &format!("version {version} is disabled; `keyring enable` undoes it"),
        )
    }
}

impl Destroy {
    async fn run(self, format: Format) -> Result<Done, Failure> {
        let version = self.change.version;
        let admin = self.change.target.admin()?;
        let confirm = self.confirm.as_deref();
        let (lost, how) = if self.lost {
            (
                Some(Loss { version, confirm }),
                Destruction::Lost {
                    confirm,
                    successor: self.successor,
                },
            )
        } else {
            (None, Destruction::Orderly { confirm })
        };
        let document = admin
            .change(lost, |current, now| {
                keyring::destroy(current, version, how, now)
            })
            .await?;
        changed(
            format,
            &admin,
            &document,
            Some(version),
            &format!("version {version} is destroyed"),
        )
    }
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

pub(super) fn changed(
    format: Format,
    admin: &Admin,
    document: &Document,
    version: Option<u32>,
    message: &str,
) -> Result<Done, Failure> {
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
    let keyring = Some(manifest.name.to_string());
    Ok(Done {
        keyring,
        generation: Some(manifest.generation),
        version,
        details: Map::new(),
        output,
    })
}

#[derive(Serialize)]
struct KeyringStatus<'a> {
    name: &'a KeyringName,
    id: KeyringId,
    generation: u64,
    updated_at: Timestamp,
    policy: &'a Policy,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_backup: Option<&'a BackupRecord>,
    primaries: BTreeMap<String, Option<u32>>,
    versions: Vec<VersionStatus<'a>>,
    activations: &'a [Activation],
}

#[derive(Serialize)]
struct VersionStatus<'a> {
    version: u32,
    state: State,
    compromised: bool,
    created_at: Timestamp,
    /// The waves that it encrypts for.
    primary_for: Vec<String>,
    keks: Vec<&'a KekUri>,
}

fn status(format: Format, document: &Document, now: Timestamp) -> Result<(), Failure> {
    let manifest = document.manifest();
    let primaries: BTreeMap<String, Option<u32>> = primaries(&manifest.activations, now)
        .into_iter()
        .map(|(wave, version)| (wave.to_string(), version))
        .collect();
    let versions = manifest.versions.iter().map(|version| VersionStatus {
        version: version.version,
        state: version.state,
        compromised: version.compromised,
        created_at: version.created_at,
        primary_for: primaries
            .iter()
            .filter(|(_, primary)| **primary == Some(version.version))
            .map(|(wave, _)| wave.clone())
            .collect(),
        keks: version.wraps.iter().map(|wrap| &wrap.kek).collect(),
    });
    let status = KeyringStatus {
        name: &manifest.name,
        id: manifest.id,
        generation: manifest.generation,
        updated_at: manifest.updated_at,
        policy: &manifest.policy,
        last_backup: manifest.last_backup.as_ref(),
        primaries: primaries.clone(),
        versions: versions.collect(),
        activations: &manifest.activations,
    };
    print(format, &status, || describe(&status, now))
}

fn describe(status: &KeyringStatus<'_>, now: Timestamp) -> String {
    let mut text = format!(
        "{}  id {}  generation {}  updated {:.3}\n\n",
        status.name, status.id, status.generation, status.updated_at
    );
    let heading = ["VERSION", "STATE", "ENCRYPTS FOR", "CREATED", "KEKS"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for version in &status.versions {
        let state = if version.compromised {
            format!("{}, compromised", version.state)
        } else {
            version.state.to_string()
        };
        let waves = if version.primary_for.is_empty() {
            "-".into()
        } else {
            version.primary_for.join(", ")
        };
        let keks: Vec<&str> = version.keks.iter().map(|kek| kek.as_str()).collect();
        let keks = if keks.is_empty() {
            "-".into()
        } else {
            keks.join(", ")
        };
        rows.push(vec![
            version.version.to_string(),
            state,
            waves,
            format!("{:.3}", version.created_at),
            keks,
        ]);
    }
    text.push_str(&columns(&rows));
    if let Some(backup) = status.last_backup {
        let (newest, verified, sha256) = (
            backup.newest_version,
            backup.verified_at,
            backup.sha256_hex(),
        );
        text.push_str(&format!("\nlast backup: versions up to {newest}, shown to open {verified:.3}, SHA-256 {sha256}\n"));
    }
    for activation in scheduled(status.activations, now) {
        text.push_str(&format!(
            "\nfrom {} on, version {} encrypts for {}\n",
            activation.at, activation.version, activation.wave
        ));
    }
    text
}
