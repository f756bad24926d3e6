//! The work of one request on one keyring: which key encrypts, which one decrypts, and what stands against it.
//!
//! Plaintexts pass through here in the buffers of their requests.

use std::sync::Arc;

use jiff::Timestamp;

use crate::http::problem::{Code, Problem};
use crate::{
    crypto::{
        Header, OVERHEAD, Opener, PREFIX_LEN, Sealer, StreamOpener, StreamSealer, VersionKeys,
    },
    keyring::Slot,
    refresh::{Keyring, Snapshot},
};

/// Seconds until a version that is missing now may be there.
const RETRY_SECONDS: u32 = 1;

/// One request's view of a keyring: one snapshot from beginning to end, but for the refresh that the request itself may cause.
pub(crate) struct Session<'k> {
    keyring: &'k Keyring,
    snapshot: Arc<Snapshot>,
    now: Timestamp,
    opener: Opener,
    /// A batch may name many versions that nobody knows; one refresh answers for all of them.
    has_learned: bool,
}

/// Encrypts the items of one request.
pub(crate) struct Encryptor {
    sealer: Sealer,
    usage: Usage,
    now: Timestamp,
}

impl<'k> Session<'k> {
    pub(crate) fn new(keyring: &'k Keyring, now: Timestamp) -> Result<Self, Problem> {
        let snapshot = keyring.snapshot();
        let Some(snapshot) = snapshot.as_ref() else {
            return Err(Problem::new(
                Code::ProviderUnavailable,
                "the keyring has not been loaded yet; /readyz on the ops listener says why",
            )
            .retry_after(RETRY_SECONDS));
        };
        Ok(Self::resume(keyring, Arc::clone(snapshot), now))
    }

    /// The session of a request that goes on, with the generation that it saw from its beginning.
    pub(crate) fn resume(keyring: &'k Keyring, snapshot: Arc<Snapshot>, now: Timestamp) -> Self {
        Self {
            keyring,
            snapshot,
            now,
            opener: Opener::default(),
            has_learned: false,
        }
    }

    pub(crate) fn keyring(&self) -> &'k Keyring {
        self.keyring
    }

    pub(crate) fn into_snapshot(self) -> Arc<Snapshot> {
        self.snapshot
    }

    /// Time has passed: uses count for the new time, and versions that nobody knew may be known.
    pub(crate) fn go_on(&mut self, now: Timestamp) {
        self.now = now;
        self.has_learned = false;
    }

    /// The encryptor of the version that encrypts now, if this sidecar may encrypt at all.
    pub(crate) fn encryptor(&self) -> Result<Encryptor, Problem> {
        let (version, keys) = self.encrypting()?;
        let sealer = Sealer::new(keys, self.snapshot.table.id(), version)?;
        Ok(Encryptor {
            sealer,
            usage: Usage::new(self.keyring, &self.snapshot, version),
            now: self.now,
        })
    }

    fn encrypting(&self) -> Result<(u32, &VersionKeys), Problem> {
        let table = &self.snapshot.table;
        let primary = table.primary(self.now).ok_or_else(|| {
            Problem::new(
                Code::NoPrimary,
                format!("no version is activated for wave {} yet", table.wave()),
            )
        })?;
        let Some(found) = table.encrypting(self.now) else {
            return Err(keys(&self.snapshot, primary)
                .err()
                .unwrap_or_else(|| Problem::new(Code::NoPrimary, "no version encrypts")));
        };
        let end = self.keyring.lease_end(table);
        if self.now < end {
            Ok(found)
        } else {
            Err(lease_expired(end))
        }
    }

    /// Decrypts a whole message or stream in place; gives its plaintext, which stands behind the prefix, and the version.
    pub(crate) async fn decrypt<'m>(
        &mut self,
        aad: &[u8],
        message: &'m mut [u8],
    ) -> Result<(&'m mut [u8], u32), Problem> {
        let header = self.find(message).await?;
        let keys = keys(&self.snapshot, header.version)?;
        let plaintext = self
            .opener
            .open(keys, &self.snapshot.table.id(), &header, aad, message)?;
        if let Some(usage) = self.snapshot.usage(header.version) {
            usage.record_decrypted(1, self.now);
        }
        Ok((plaintext, header.version))
    }

    /// The opener of a stream that begins so.
    pub(crate) async fn stream_decryptor(
        &mut self,
        aad: &[u8],
        prefix: &[u8; PREFIX_LEN],
    ) -> Result<StreamDecryptor, Problem> {
        // The first chunk, which must follow, is checked as such.
        let header = self
            .find(&[&prefix[..], &[0; OVERHEAD - PREFIX_LEN]].concat())
            .await?;
        let keys = keys(&self.snapshot, header.version)?;
        let opener = StreamOpener::new(keys, &self.snapshot.table.id(), prefix, aad);
        let usage = Usage::new(self.keyring, &self.snapshot, header.version);
        usage.decrypted(self.now);
        Ok(StreamDecryptor { opener, usage })
    }

    /// The encryptor of a stream, and what the stream begins with.
    pub(crate) fn stream_encryptor(
        &self,
        aad: &[u8],
    ) -> Result<(StreamEncryptor, [u8; PREFIX_LEN]), Problem> {
        let (version, keys) = self.encrypting()?;
        let (sealer, prefix) = StreamSealer::new(keys, &self.snapshot.table.id(), version, aad)?;
        let usage = Usage::new(self.keyring, &self.snapshot, version);
        usage.encrypted(self.now);
        Ok((StreamEncryptor { sealer, usage }, prefix))
    }

    /// Reads a ciphertext's header, and sees to it that a version that was never heard of is looked for.
    async fn find(&mut self, ciphertext: &[u8]) -> Result<Header, Problem> {
        let header = Header::parse(ciphertext, &self.snapshot.table.id())?;
        let version = header.version;
        let is_missing = |snapshot: &Snapshot| {
            matches!(snapshot.table.slot(version), None | Some(Slot::Unopened(_)))
        };
        if is_missing(&self.snapshot) {
            // What is in force by now may have it: a request may take long.
            if let Some(newest) = self.keyring.snapshot().as_ref()
                && !is_missing(newest)
            {
                self.snapshot = Arc::clone(newest);
            }
        }
        if self.snapshot.table.slot(version).is_none()
            && !self.has_learned
            && let Some(newest) = self.keyring.refresh_for_version(version).await
        {
            self.has_learned = true;
            self.snapshot = newest;
        }
        Ok(header)
    }
}

impl Encryptor {
    /// The version that encrypts.
    pub(crate) fn version(&self) -> u32 {
        self.usage.version
    }

    /// Turns a buffer with [`PREFIX_LEN`] bytes of room before the plaintext into a message.
    pub(crate) fn encrypt(&mut self, aad: &[u8], buffer: &mut Vec<u8>) {
        self.encrypt_at(aad, buffer, 0);
    }

    /// Time has passed; says whether it may go on.
    pub(crate) fn go_on(&mut self, keyring: &Keyring, now: Timestamp) -> Result<(), Problem> {
        self.now = now;
        self.usage.check(keyring, now)
    }

    /// The same for a room and a plaintext that begin at `from`.
    pub(crate) fn encrypt_at(&mut self, aad: &[u8], buffer: &mut Vec<u8>, from: usize) {
        self.sealer.seal(aad, buffer, from);
        self.usage.encrypted(self.now);
    }

    /// A message from a plaintext that stands elsewhere.
    pub(crate) fn encrypt_copy(&mut self, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let message = self.sealer.seal_copy(aad, plaintext);
        self.usage.encrypted(self.now);
        message
    }
}

/// Encrypts a stream that may take long.
pub(crate) struct StreamEncryptor {
    sealer: StreamSealer,
    usage: Usage,
}

impl StreamEncryptor {
    /// The version that encrypts.
    pub(crate) fn version(&self) -> u32 {
        self.usage.version
    }

    /// Encrypts the plaintext in `buffer` from `from` on as the next chunk, unless the lease has ended meanwhile (I11).
    pub(crate) fn encrypt(
        &mut self,
        keyring: &Keyring,
        now: Timestamp,
        is_last: bool,
        buffer: &mut Vec<u8>,
        from: usize,
    ) -> Result<(), Problem> {
        self.usage.check(keyring, now)?;
        self.sealer.seal(is_last, buffer, from);
        self.usage.goes_on(now);
        Ok(())
    }
}

/// Decrypts a stream that may take long.
pub(crate) struct StreamDecryptor {
    opener: StreamOpener,
    usage: Usage,
}

impl StreamDecryptor {
    /// The version that decrypts.
    pub(crate) fn version(&self) -> u32 {
        self.usage.version
    }

    /// Decrypts the next chunk in place and gives its plaintext's length.
    pub(crate) fn decrypt(
        &mut self,
        now: Timestamp,
        is_last: bool,
        chunk: &mut [u8],
    ) -> Result<usize, Problem> {
        let length = self.opener.open(is_last, chunk)?.len();
        self.usage.goes_on(now);
        Ok(length)
    }
}

/// One version of the generation that a request sees, for as long as the request takes.
struct Usage {
    snapshot: Arc<Snapshot>,
    version: u32,
    /// Until when it may encrypt.
    until: Timestamp,
}

impl Usage {
    fn new(keyring: &Keyring, snapshot: &Arc<Snapshot>, version: u32) -> Self {
        Self {
            snapshot: Arc::clone(snapshot),
            version,
            until: keyring.lease_end(&snapshot.table),
        }
    }

    /// Whether a request that goes on may still encrypt (I11). It keeps the version that it began with, but not longer than a sidecar
    /// that never heard of a newer one would: once another version encrypts, nothing renews the lease any more, and once the version is
    /// disabled or destroyed, it ends at once.
    fn check(&mut self, keyring: &Keyring, now: Timestamp) -> Result<(), Problem> {
        if let Some(newest) = keyring.snapshot().as_ref() {
            keys(newest, self.version)?;
            if newest
                .table
                .encrypting(now)
                .is_some_and(|(version, _)| version == self.version)
            {
                self.until = keyring.lease_end(&newest.table);
            }
        }
        if now < self.until {
            Ok(())
        } else {
            Err(lease_expired(self.until))
        }
    }

    fn encrypted(&self, now: Timestamp) {
        if let Some(usage) = self.snapshot.usage(self.version) {
            usage.record_encrypted(1, now);
        }
    }

    fn decrypted(&self, now: Timestamp) {
        if let Some(usage) = self.snapshot.usage(self.version) {
            usage.record_decrypted(1, now);
        }
    }

    /// What takes hours is used until its end.
    fn goes_on(&self, now: Timestamp) {
        if let Some(usage) = self.snapshot.usage(self.version) {
            usage.touch(now);
        }
    }
}

fn lease_expired(end: Timestamp) -> Problem {
    let detail = format!(
        "the manifest could not be confirmed, so encrypting ended at {end}; decrypting goes on"
    );
    Problem::new(Code::LeaseExpired, detail).retry_after(60)
}

/// A buffer for a body of `len` bytes that becomes a message in place.
pub(crate) fn message_buffer(len: usize) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(len + OVERHEAD);
    buffer.resize(PREFIX_LEN, 0);
    buffer
}

fn keys(snapshot: &Snapshot, version: u32) -> Result<&VersionKeys, Problem> {
    let unavailable = |why: &str| {
        Problem::new(
            Code::KeyVersionUnavailable,
            format!("key version {version} {why}; try again"),
        )
        .retry_after(RETRY_SECONDS)
    };
    match snapshot.table.slot(version) {
        Some(Slot::Open(keys)) => Ok(keys),
        Some(Slot::Unopened(_)) => Err(unavailable("could not be opened by its KEKs yet")),
        Some(Slot::Disabled) => Err(Problem::new(
            Code::KeyVersionDisabled,
            format!(
                "key version {version} is disabled; `sidekey keyring enable` lets it decrypt again"
            ),
        )
        .of_version(version)),
        Some(Slot::Destroyed) => Err(Problem::new(
            Code::KeyVersionDestroyed,
            format!("key version {version} was destroyed for good"),
        )
        .of_version(version)),
        None => Err(unavailable(
            "is not in the newest manifest that could be read",
        )),
    }
}
