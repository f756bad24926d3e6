//! What a command trusts of a keyring before it reads the location: its bases (I13, I14).
//!
//! A command that changes a keyring signs what it read. Without a base it would sign whatever
//! someone put into the location, such as an older generation with a compromised primary.

use std::{
    fs::{self, DirBuilder},
    io::{self, Read, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;

use super::{access::Admin, error::AdminError, recover::fetch_manifests};
use crate::{
    crypto::KeyringId,
    files::{Allowed, NewFile, WriterLock, open_private},
    fleet::Fleet,
    keyring::{Document, Expectations, Rejection, Sightings, Succession, examine},
};

use super::access::MANIFEST_LIMIT;

/// How long a command waits for another one that remembers a manifest.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The manifests that a command's user has seen, one file for each keyring id.
#[derive(Debug, Clone)]
pub struct Memory {
    folder: PathBuf,
}

/// Where the bases of a command come from.
#[derive(Debug, Clone, Default)]
pub struct Bases {
    /// Manifests seen by earlier commands. None if there is no place to keep them.
    pub memory: Option<Memory>,
    /// Copies of manifests that the operator trusts.
    pub files: Vec<PathBuf>,
    /// Sidecars whose active manifest the operator trusts.
    pub sidecars: Fleet,
    /// Other sidecars, which tell the time and what they have seen, and whose manifests aren't
    /// compared.
    pub clocks: Fleet,
    /// The digest of the manifest that the operator trusts without any base, in hexadecimal digits.
    pub first_time: Option<String>,
    /// Versions that the operator knows to be lost.
    pub accept_lost: Vec<u32>,
    /// The operator vouches for this machine's clock.
    pub trust_clock: bool,
    /// Write over a manifest whose stamp is in the future, and repair its times.
    pub repair_time: bool,
    /// Make changes by hand although a rollout is active.
    pub despite_rollout: bool,
}

/// A manifest and its holder: a sidecar, a file, or the location.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) holder: String,
    pub(super) document: Document,
}

impl Memory {
    /// Keeps manifests in `folder`, which is created at the first write.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    fn file(&self, id: KeyringId) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    /// Returns the last manifest of a keyring that was seen.
    ///
    /// # Errors
    /// The file can't be read, is no manifest, or others may write it.
    fn recall(&self, id: KeyringId) -> Result<Option<Document>, AdminError> {
        let file = self.file(id);
        let Some(bytes) = read_own(&file, "the last manifest seen")? else {
            return Ok(None);
        };
        let document = Document::parse(bytes).map_err(|error| AdminError::Base {
            file,
            reason: error.to_string(),
        })?;
        Ok(Some(document))
    }

    /// Remembers a manifest and, from `now` on, the states that it shows.
    fn remember(&self, document: &Document, now: Timestamp) -> Result<(), AdminError> {
        let manifest = document.manifest();
        let file = self.file(manifest.id);
        let _lock = self.lock(&file)?;
        // Another command may have gone on.
        let newest = self.recall(manifest.id)?;
        if newest.is_some_and(|newest| newest.manifest().generation > manifest.generation) {
            return Ok(());
        }
        // First: a manifest that is remembered without them would look as if it had just been seen.
        let mut sightings = self.sightings(manifest.id)?;
        sightings.observe(manifest, now);
        let text = serde_json::to_vec(&sightings)
            .map_err(|error| AdminError::System(format!("can't remember states: {error}")))?;
        self.write(&self.sightings_file(manifest.id), &text)?;
        self.write(&file, document.bytes())
    }

    /// Returns when this user's commands first saw the state of each version.
    ///
    /// # Errors
    /// The file can't be read, is damaged, or others may write it.
    pub(super) fn sightings(&self, id: KeyringId) -> Result<Sightings, AdminError> {
        let file = self.sightings_file(id);
        let Some(bytes) = read_own(&file, "the states seen")? else {
            return Ok(Sightings::default());
        };
        serde_json::from_slice(&bytes).map_err(|error| AdminError::Base {
            file,
            reason: format!(
                "it is damaged ({error}); remove it, then waiting times count from the next command"
            ),
        })
    }

    fn sightings_file(&self, id: KeyringId) -> PathBuf {
        self.folder.join(format!("{id}.seen.json"))
    }

    fn write(&self, file: &Path, content: &[u8]) -> Result<(), AdminError> {
        let write = || {
            let mut new = NewFile::beside(file)?;
            new.write_all(content)?;
            new.file().sync_all()?;
            new.persist(file)
        };
        write().map_err(|error| cant_remember(file, &error))
    }

    /// Waits for other commands of this user that remember the same keyring.
    fn lock(&self, file: &Path) -> Result<WriterLock, AdminError> {
        let lock = || {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.folder)?;
            WriterLock::acquire(file, &fs::metadata(&self.folder)?, LOCK_PATIENCE)
        };
        lock().map_err(|error| cant_remember(file, &error))
    }
}

impl Admin {
    /// Reads the manifest and checks that every base leads to it.
    ///
    /// # Errors
    /// [`AdminError::NoBase`] if there is none; [`AdminError::Unauthentic`] if the location holds
    /// something else than a successor, such as an older generation.
    pub async fn read_trusted(&self) -> Result<Document, AdminError> {
        self.compare_clocks().await?;
        let (document, has_base) = self.read_against_bases().await?;
        self.compare_with_location()?;
        if !has_base {
            self.accept_first(&document)?;
        }
        self.require_signers(&document)?;
        self.remember(&document)?;
        Ok(document)
    }

    /// Reads the manifest like [`Admin::read_trusted`], but accepts that there is no base: for
    /// commands that change nothing.
    ///
    /// # Errors
    /// [`AdminError::Unauthentic`]
    pub async fn read_checked(&self) -> Result<Document, AdminError> {
        Ok(self.read_against_bases().await?.0)
    }

    /// Reads the manifest, checks that every base leads to it, and returns whether there is one.
    async fn read_against_bases(&self) -> Result<(Document, bool), AdminError> {
        let document = self.read().await?;
        let bases = self.bases_for(&document).await?;
        let Err(error) = self.check_against(&bases, &document) else {
            return Ok((document, !bases.is_empty()));
        };
        if !matches!(&error, AdminError::Untrusted { error, .. } if error.code() == "behind") {
            return Err(error);
        }
        // Another command may have written between the read and the recall.
        let document = self.read().await?;
        self.check_against(&bases, &document)?;
        Ok((document, true))
    }

    /// Returns the bases for the keyring of `document`.
    pub(super) async fn bases_for(&self, document: &Document) -> Result<Vec<Held>, AdminError> {
        let mut bases = self.own_bases(document.manifest().id)?;
        bases.extend(fetch_manifests(&self.bases.sidecars, &document.manifest().name).await?);
        Ok(bases)
    }

    /// Returns the bases that need no sidecar: what this command wrote or read before, what earlier
    /// ones remember, and the operator's files.
    pub(super) fn own_bases(&self, id: KeyringId) -> Result<Vec<Held>, AdminError> {
        let mut bases = Vec::new();
        if let Some(document) = self.last_seen(id) {
            bases.push(Held {
                holder: "this command".into(),
                document,
            });
        }
        if let Some(memory) = &self.bases.memory
            && let Some(document) = memory.recall(id)?
            && bases
                .iter()
                .all(|seen| seen.document.bytes() != document.bytes())
        {
            bases.push(Held {
                holder: memory.file(id).display().to_string(),
                document,
            });
        }
        for file in &self.bases.files {
            bases.push(Held {
                holder: file.display().to_string(),
                document: read_base(file)?,
            });
        }
        Ok(bases)
    }

    fn accept_first(&self, document: &Document) -> Result<(), AdminError> {
        let digest = document.digest_hex();
        if self.bases.first_time.as_deref() != Some(digest.as_str()) {
            return Err(AdminError::NoBase {
                location: self.location.clone(),
                generation: document.manifest().generation,
                digest,
            });
        }
        examine(None, document, &Expectations::of(&document.manifest().name))
            .map(drop)
            .map_err(|error| self.unauthentic(error))
    }

    fn check_against(&self, bases: &[Held], document: &Document) -> Result<(), AdminError> {
        for base in bases {
            self.leads_to(&base.document, document)
                .map_err(|error| AdminError::Untrusted {
                    location: self.location.clone(),
                    holder: base.holder.clone(),
                    error: Box::new(error),
                })?;
        }
        Ok(())
    }

    /// Decides whether `document` follows from `base`, as a reader with this base would.
    pub(super) fn leads_to(
        &self,
        base: &Document,
        document: &Document,
    ) -> Result<Succession, Rejection> {
        leads_to(base, document, &self.bases.accept_lost)
    }

    /// Remembers `document` as the newest manifest of its keyring.
    pub(super) fn remember(&self, document: &Document) -> Result<(), AdminError> {
        let last = self.last_seen(document.manifest().id);
        if last.is_some_and(|last| last.bytes() == document.bytes()) {
            return Ok(());
        }
        if let Some(memory) = &self.bases.memory {
            memory.remember(document, self.now())?;
        }
        self.see(document);
        Ok(())
    }

    pub(super) fn unauthentic(&self, error: Rejection) -> AdminError {
        AdminError::Unauthentic {
            location: self.location.clone(),
            error,
        }
    }
}

/// Decides whether `document` follows from `base`. Losses other than `accept_lost` are refused.
pub(super) fn leads_to(
    base: &Document,
    document: &Document,
    accept_lost: &[u32],
) -> Result<Succession, Rejection> {
    let expect = Expectations {
        accept_lost: accept_lost.to_vec(),
        ..Expectations::of(&base.manifest().name)
    };
    examine(Some(base), document, &expect)
}

fn cant_remember(file: &Path, error: &io::Error) -> AdminError {
    AdminError::Base {
        file: file.to_owned(),
        reason: format!("can't remember the manifest: {error}; give --state-dir DIR"),
    }
}

/// Reads a file that only this user may write, or returns `None` if there is none. Nothing in it is
/// secret.
fn read_own(file: &Path, what: &'static str) -> Result<Option<Vec<u8>>, AdminError> {
    let failed = |reason: String| AdminError::Base {
        file: file.to_owned(),
        reason,
    };
    match fs::symlink_metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    let (opened, _) =
        open_private(file, what, Allowed::Owner).map_err(|error| failed(error.to_string()))?;
    let mut bytes = Vec::new();
    opened
        .take(MANIFEST_LIMIT as u64)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(error.to_string()))?;
    Ok(Some(bytes))
}

fn read_base(file: &Path) -> Result<Document, AdminError> {
    let failed = |reason: String| AdminError::Base {
        file: file.to_owned(),
        reason,
    };
    let bytes = fs::read(file).map_err(|error| failed(error.to_string()))?;
    Document::parse(bytes).map_err(|error| failed(error.to_string()))
}
