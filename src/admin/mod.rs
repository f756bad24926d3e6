//! Changing keyrings where they are stored: open every version, verify, change, authenticate,
//! compare-and-swap.
//!
//! Plain data keys pass through here between making or unwrapping and derivation.

mod backup;
mod envelope;
mod evidence;
mod ops_client;
mod payload;
mod present;
mod probe;
mod recover;
mod restore;
mod rewrap;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{sleep, timeout};

use crate::{
    backend::{Backends, KekError, KekFault, ManifestStore, StoreError},
    clock::Clock,
    config,
    crypto::{Dek, KeyringId, RandomnessUnavailable, SigningKey, VersionKeys, WrapContext},
    keks::Keks,
    keyring::{
        self, Document, Manifest, ManifestError, NewVersion, Policy, Refusal, Rejection, State,
        WaveSelector,
    },
    model::{KekScope, KekUri, KeyringName, Location, SignerKey},
};

pub use backup::{Backup, Proof};
pub use envelope::{EnvelopeError, Lock, Opener, Passphrase, recipient, recipients_in};
pub use evidence::ask_sidecars;
pub use ops_client::{Fleet, OpsTls};
pub use probe::{Probe, Purpose, probe};
pub use recover::Recovered;
pub use restore::{Restored, Restoring};
pub use rewrap::KekChange;

/// How often a change is tried again when somebody else's came in between.
const ATTEMPTS: u32 = 32;
/// How long one wrap or unwrap may take: long enough for a client that slows down because it is
/// throttled.
const KEK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long reading or writing a manifest may take.
const STORE_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest manifest that is read, in bytes.
const MANIFEST_LIMIT: usize = 256 << 20;

/// Why a keyring was not made, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The place where it is stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What stands there.
    #[error("{location}: {error}")]
    Manifest {
        /// Where.
        location: Location,
        /// What is wrong.
        error: ManifestError,
    },
    /// Its authentication.
    #[error("{location}: {error}")]
    Unauthentic {
        /// Where.
        location: Location,
        /// What is wrong.
        error: Rejection,
    },
    /// An invariant.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A KEK, when it should wrap.
    #[error(transparent)]
    Kek(#[from] KekError),
    /// Versions that no KEK opened.
    #[error(
        "who changes a keyring must open all its versions to authenticate it, and {}\nIf the KEKs of one are gone for good: keyring destroy --lost", list(.0)
    )]
    Unopened(Vec<(u32, String)>),
    /// The same when a backup is made, which holds every version or is none.
    #[error("a backup holds every version that is left, and {}\nThrough which KEKs each opens: keyring verify", list(.0))]
    UnopenedForBackup(Vec<(u32, String)>),
    /// A restored manifest whose wraps don't open.
    #[error("the KEKs that the manifest names don't open all of it, so name others with --kek URI: {}", list(.0))]
    NeedsKeks(Vec<(u32, String)>),
    /// Wraps that should stay and don't open.
    #[error(
        "version {version} was left as it is, because what would open it from now on doesn't: {reasons}"
    )]
    Unproven {
        /// The version.
        version: u32,
        /// What the KEKs said.
        reasons: String,
    },
    /// A signed manifest and no key to sign with.
    #[error(
        "{0}: the manifest is signed and the change would not be; give --sign-key FILE, or --unsigned to drop the signature"
    )]
    WouldDropSignature(Location),
    /// A backup's file.
    #[error("{}: {reason}", .file.display())]
    Backup {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// What a backup is encrypted for, or opened with.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// No randomness or no memory.
    #[error("{0}")]
    System(String),
}

impl From<RandomnessUnavailable> for AdminError {
    fn from(error: RandomnessUnavailable) -> Self {
        Self::System(error.to_string())
    }
}

fn list(unopened: &[(u32, String)]) -> String {
    unopened
        .iter()
        .map(|(version, reason)| format!("version {version} did not open: {reason}"))
        .collect::<Vec<_>>()
        .join("; ")
}

/// A keyring where it is stored, with what is needed to change it.
pub struct Admin {
    location: Location,
    store: Arc<dyn ManifestStore>,
    keks: Arc<Keks>,
    scope: Arc<KekScope>,
    signing: Signing,
    clock: Clock,
}

/// How changes are signed.
pub enum Signing {
    /// Not; a signed manifest is then not changed.
    NoKey,
    /// With this key.
    With(SigningKey),
    /// Not, even if the manifest was signed.
    Drop,
}

/// A version that need not open, because the change destroys it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss<'w> {
    /// The version.
    pub version: u32,
    /// What the operator said.
    pub confirm: Option<&'w str>,
}

/// How a new version takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takeover {
    /// Not yet: it stays pending.
    Later,
    /// For every wave, at once.
    Now,
    /// For every wave, then.
    At(Timestamp),
}

impl Admin {
    /// The keyring at `location`, reached through `backends`.
    ///
    /// # Errors
    /// This build has no backend for the location, or its settings are wrong.
    pub fn new(
        location: Location,
        signing: Signing,
        backends: &Arc<dyn Backends>,
        clock: Clock,
    ) -> Result<Self, AdminError> {
        let store = backends.store(&location)?;
        let times = config::Refresh {
            kek_timeout: KEK_TIMEOUT,
            ..config::Refresh::default()
        };
        let keks = Arc::new(Keks::new(
            Arc::clone(backends),
            &times,
            clock.clone(),
            Arc::default(),
        ));
        Ok(Self {
            location,
            store,
            keks,
            scope: Arc::new(KekScope::Any),
            signing,
            clock,
        })
    }

    /// The same, opening versions by KEKs within `scope` alone, whatever others the manifest names.
    #[must_use]
    pub fn within(self, scope: KekScope) -> Self {
        Self {
            scope: Arc::new(scope),
            ..self
        }
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The time that changes carry.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Makes a new keyring: version 1, wrapped under every one of `keks`, primary everywhere.
    ///
    /// # Errors
    /// [`AdminError`]; [`StoreError::Conflict`] if there is one already.
    pub async fn init(
        &self,
        name: KeyringName,
        keks: &[KekUri],
        policy: Policy,
    ) -> Result<Document, AdminError> {
        let id = KeyringId::generate()?;
        let now = self.clock.now();
        let (new, keys) = self.new_version(id, 1, keks).await?;
        let manifest = keyring::init(name, id, policy, new, now);
        let document = self.authenticate(manifest, &BTreeMap::from([(1, keys)]))?;
        self.replace(None, &document).await?;
        Ok(document)
    }

    /// Reads the keyring without opening it.
    ///
    /// # Errors
    /// [`AdminError`]
    pub async fn read(&self) -> Result<Document, AdminError> {
        let bytes = self.read_bytes().await?;
        Document::parse(bytes).map_err(|error| AdminError::Manifest {
            location: self.location.clone(),
            error,
        })
    }

    async fn read_bytes(&self) -> Result<Bytes, StoreError> {
        timeout(STORE_TIMEOUT, self.store.read(MANIFEST_LIMIT))
            .await
            .unwrap_or_else(|_| {
                Err(StoreError::Failed {
                    location: self.location.clone(),
                    reason: format!("no answer within {STORE_TIMEOUT:?}"),
                })
            })
    }

    /// Opens every version that is left and verifies MACs, and signatures by `trusted` unless that
    /// is empty.
    ///
    /// # Errors
    /// [`AdminError`]
    pub async fn verify(&self, trusted: &[SignerKey]) -> Result<Document, AdminError> {
        let document = self.read().await?;
        self.open(&document, trusted, None).await?;
        Ok(document)
    }

    /// Adds a version, wrapped under `keks` or, if there are none, under those of the newest
    /// version that is left.
    ///
    /// # Errors
    /// [`AdminError`]. If only the takeover failed, the new version is there, pending.
    pub async fn rotate(
        &self,
        keks: &[KekUri],
        takeover: Takeover,
    ) -> Result<(Document, u32), AdminError> {
        if let Takeover::At(at) = takeover
            && at < self.clock.now()
        {
            // Before anything is written.
            return Err(Refusal::InThePast { at }.into());
        }
        let document = self.retry(async || self.add_version(keks).await).await?;
        let version = newest(document.manifest());
        let document = match takeover {
            Takeover::Later => document,
            Takeover::Now => self.activate(version, WaveSelector::Every, None).await?,
            Takeover::At(at) => {
                self.activate(version, WaveSelector::Every, Some(at))
                    .await?
            }
        };
        Ok((document, version))
    }

    /// Lets a version take over for `wave` at `at`, or now.
    ///
    /// # Errors
    /// [`AdminError`]
    pub async fn activate(
        &self,
        version: u32,
        wave: WaveSelector,
        at: Option<Timestamp>,
    ) -> Result<Document, AdminError> {
        self.change(None, |current, now| {
            keyring::activate(current, version, wave.clone(), at, now)
        })
        .await
    }

    /// Makes any other change. `lost` names a version that need not open, because the change
    /// destroys it.
    ///
    /// # Errors
    /// [`AdminError`]
    pub async fn change(
        &self,
        lost: Option<Loss<'_>>,
        change: impl Fn(&Manifest, Timestamp) -> Result<Manifest, Refusal>,
    ) -> Result<Document, AdminError> {
        self.retry(async || {
            let current = self.read().await?;
            // Before any KEK is asked, so that a refusal costs nothing and needs no rights.
            let next = change(current.manifest(), self.clock.now())?;
            let keys = self
                .open(&current, &[], lost.map(|lost| lost.version))
                .await?;
            if let Some(lost) = lost {
                self.demand_lost(current.manifest(), lost).await?;
            }
            self.write(&current, next, &keys).await
        })
        .await
    }

    /// Refuses to call a version lost that a KEK still opens, or that a KEK might open again.
    async fn demand_lost(&self, manifest: &Manifest, lost: Loss<'_>) -> Result<(), AdminError> {
        let Loss {
            version: number,
            confirm,
        } = lost;
        let Some(version) = manifest.version(number) else {
            return Ok(());
        };
        // Every one of them, whichever the operator allows otherwise: one that isn't ours opens the
        // version, too.
        let trials = self
            .keks
            .try_each(manifest.id, version, &KekScope::Any)
            .await;
        if trials.iter().any(|trial| trial.result.is_ok()) {
            return Err(Refusal::NotLost(number).into());
        }
        // No such key, or another one in its place. Whatever else is wrong may come right: a
        // network, a right, a setting.
        let is_gone =
            |error: &KekError| matches!(error.fault, KekFault::Missing | KekFault::Refused);
        let errors = trials.into_iter().filter_map(|trial| trial.result.err());
        let doubts: Vec<String> = errors
            .filter(|error| !is_gone(error))
            .map(|error| error.to_string())
            .collect();
        let phrase = keyring::doubted_loss_phrase(&manifest.name, number);
        if doubts.is_empty() || confirm == Some(phrase.as_str()) {
            return Ok(());
        }
        Err(Refusal::NotShownLost {
            version: number,
            doubts,
            phrase,
        }
        .into())
    }

    async fn add_version(&self, keks: &[KekUri]) -> Result<Document, AdminError> {
        let current = self.read().await?;
        let manifest = current.manifest();
        let mut keys = self.open(&current, &[], None).await?;
        let inherited: Vec<KekUri>;
        let keks = if keks.is_empty() {
            let model = manifest
                .versions
                .iter()
                .rev()
                .find(|version| version.state != State::Destroyed);
            inherited = model
                .into_iter()
                .flat_map(|version| &version.wraps)
                .map(|wrap| wrap.kek.clone())
                .collect();
            &inherited
        } else {
            keks
        };
        let number = newest(manifest) + 1;
        let now = self.clock.now();
        let (new, new_keys) = self.new_version(manifest.id, number, keks).await?;
        keys.insert(number, new_keys);
        self.write(&current, keyring::rotate(manifest, new, now), &keys)
            .await
    }

    async fn new_version(
        &self,
        id: KeyringId,
        version: u32,
        keks: &[KekUri],
    ) -> Result<(NewVersion, VersionKeys), AdminError> {
        let dek = Dek::generate()?;
        let wraps = self
            .keks
            .wrap(
                keks,
                &dek,
                WrapContext {
                    keyring: id,
                    version,
                },
            )
            .await?;
        let keys = VersionKeys::derive(&dek)
            .map_err(|error| AdminError::System(format!("no memory for keys: {error}")))?;
        Ok((
            NewVersion {
                wraps,
                check: dek.check_value(&id, version),
            },
            keys,
        ))
    }

    async fn open(
        &self,
        document: &Document,
        trusted: &[SignerKey],
        lost: Option<u32>,
    ) -> Result<BTreeMap<u32, VersionKeys>, AdminError> {
        let mut keys = BTreeMap::new();
        self.open_missing(&mut keys, document, trusted, lost)
            .await?;
        Ok(keys)
    }

    /// Opens the versions whose keys aren't in `keys` yet, and verifies the document by all of
    /// them.
    async fn open_missing(
        &self,
        keys: &mut BTreeMap<u32, VersionKeys>,
        document: &Document,
        trusted: &[SignerKey],
        lost: Option<u32>,
    ) -> Result<(), AdminError> {
        let manifest = document.manifest();
        let needed = manifest.live().filter(|version| {
            Some(version.version) != lost && !keys.contains_key(&version.version)
        });
        let opened = self
            .keks
            .unwrap_all(manifest.id, needed.collect::<Vec<_>>(), &self.scope)
            .await;
        let mut unopened = Vec::new();
        for (version, result) in opened {
            match result {
                Ok(opened) => drop(keys.insert(version, opened)),
                Err(reason) => unopened.push((version, reason)),
            }
        }
        if !unopened.is_empty() {
            return Err(AdminError::Unopened(unopened));
        }
        keyring::verify(document, keys, trusted).map_err(|error| AdminError::Unauthentic {
            location: self.location.clone(),
            error,
        })
    }

    async fn write(
        &self,
        current: &Document,
        next: Manifest,
        keys: &BTreeMap<u32, VersionKeys>,
    ) -> Result<Document, AdminError> {
        self.demand_signing(current)?;
        let document = self.authenticate(next, keys)?;
        self.replace(Some(current), &document).await?;
        Ok(document)
    }

    /// Refuses to let a signed manifest be followed by one that isn't, unless that is meant.
    fn demand_signing(&self, current: &Document) -> Result<(), AdminError> {
        let was_signed = !current.manifest().authentication.signatures.is_empty();
        if was_signed && matches!(self.signing, Signing::NoKey) {
            return Err(AdminError::WouldDropSignature(self.location.clone()));
        }
        Ok(())
    }

    async fn replace(
        &self,
        current: Option<&Document>,
        document: &Document,
    ) -> Result<(), StoreError> {
        self.replace_bytes(current.map(|current| current.bytes().clone()), document)
            .await
    }

    async fn replace_bytes(
        &self,
        expected: Option<Bytes>,
        document: &Document,
    ) -> Result<(), StoreError> {
        let expected = expected.map(Vec::from);
        let new = document.bytes().to_vec();
        timeout(STORE_TIMEOUT, self.store.replace(expected, new)).await.unwrap_or_else(|_| {
            let reason = format!("no answer within {STORE_TIMEOUT:?}; `keyring status` shows whether the change was made");
            Err(StoreError::Failed { location: self.location.clone(), reason })
        })
    }

    fn authenticate(
        &self,
        manifest: Manifest,
        keys: &BTreeMap<u32, VersionKeys>,
    ) -> Result<Document, AdminError> {
        let signer = match &self.signing {
            Signing::With(key) => Some(key),
            Signing::NoKey | Signing::Drop => None,
        };
        keyring::authenticate(manifest, keys, signer).map_err(|missing| {
            AdminError::Unopened(
                missing
                    .into_iter()
                    .map(|version| (version, "it was not tried".into()))
                    .collect(),
            )
        })
    }

    /// Makes a change on top of whatever came in between (I8).
    async fn retry(
        &self,
        attempt: impl AsyncFn() -> Result<Document, AdminError>,
    ) -> Result<Document, AdminError> {
        for _ in 1..ATTEMPTS {
            match attempt().await {
                Err(AdminError::Store(StoreError::Conflict(_))) => step_back().await,
                result => return result,
            }
        }
        attempt().await
    }
}

/// Waits so long that operators who collided once don't go on doing so.
async fn step_back() {
    sleep(Duration::from_millis(fastrand::u64(1..50))).await;
}

fn newest(manifest: &Manifest) -> u32 {
    manifest
        .versions
        .last()
        .map_or(0, |version| version.version)
}
