//! Shows that this process holds the key of a version, without encrypting or decrypting anything
//! for the one who asks.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{error::SessionError, version::version_keys};
use crate::{
    crypto::{
        CiphertextError, Header, KeyringId, Opener, RandomnessUnavailable, Sealer, VersionKeys,
        random, to_hex,
    },
    keyring::Role,
    model::KeyringName,
    refresh::Keyring,
    wire::proof::{Proof, ProofRequest, ProvenRole},
};

/// For how long a nonce is remembered. A signer refuses a proof that is older.
const NONCE_LIFE: Duration = Duration::from_secs(60);
/// The most proofs of one keyring within [`NONCE_LIFE`], which bounds the memory of nonces, too.
const MOST_PROOFS: usize = 120;

const TRIAL: &[u8] = b"sidekey proof trial";

/// Why a proof is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProofError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the nonce was used before; draw a new one for every request")]
    NonceUsed,
    #[error(
        "this keyring has given {MOST_PROOFS} proofs within {} seconds; ask again later",
        NONCE_LIFE.as_secs()
    )]
    TooMany { retry_after: Duration },
    #[error("a message that was encrypted under the version on trial does not decrypt")]
    TrialFailed,
}

impl From<RandomnessUnavailable> for ProofError {
    fn from(error: RandomnessUnavailable) -> Self {
        Self::Session(error.into())
    }
}

/// Proves that this process holds keys. Nothing that it does counts as a use of a version.
pub struct Prover {
    instance: [u8; 16],
    recent: Mutex<BTreeMap<KeyringName, VecDeque<Recent>>>,
}

struct Recent {
    nonce: [u8; 32],
    at: Instant,
}

impl Prover {
    /// Creates a prover with a random identity.
    ///
    /// # Errors
    /// [`RandomnessUnavailable`]
    pub fn new() -> Result<Self, RandomnessUnavailable> {
        Ok(Self {
            instance: random()?,
            recent: Mutex::default(),
        })
    }

    /// Returns the identity of this process, which no other process has.
    pub fn id(&self) -> [u8; 16] {
        self.instance
    }

    /// Returns the identity of this process: 32 hexadecimal digits, which no other process has.
    pub fn instance(&self) -> String {
        to_hex(&self.instance)
    }

    /// Answers a request about a version of `keyring`, after an encryption and a decryption on
    /// trial. A nonce counts as used only once a proof names it.
    pub(crate) fn prove(
        &self,
        keyring: &Keyring,
        request: &ProofRequest,
        now: Timestamp,
    ) -> Result<Proof, ProofError> {
        let snapshot = keyring.snapshot().clone().ok_or(SessionError::NotLoaded)?;
        let (table, version) = (&snapshot.table, request.version);
        let keys = version_keys(&snapshot, version)?;
        let role = match table.role(version, now) {
            Some(Role::Primary) => ProvenRole::Primary,
            Some(Role::Pending) => ProvenRole::Pending,
            // A version whose key is held has no other role.
            _ => ProvenRole::DecryptOnly,
        };
        attempt(keys, table.id(), version)?;
        self.use_nonce(keyring.name(), request.nonce)?;
        let manifest = table.document().digest();
        Ok(keys
            .proof_key()
            .prove(table.id(), request, self.instance, manifest, role))
    }

    fn use_nonce(&self, keyring: &KeyringName, nonce: [u8; 32]) -> Result<(), ProofError> {
        let now = Instant::now();
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = recent.entry(keyring.clone()).or_default();
        while recent
            .front()
            .is_some_and(|oldest| now.duration_since(oldest.at) >= NONCE_LIFE)
        {
            recent.pop_front();
        }
        if recent.iter().any(|used| used.nonce == nonce) {
            return Err(ProofError::NonceUsed);
        }
        if let Some(oldest) = recent.front()
            && recent.len() >= MOST_PROOFS
        {
            let retry_after = NONCE_LIFE.saturating_sub(now.duration_since(oldest.at));
            return Err(ProofError::TooMany { retry_after });
        }
        recent.push_back(Recent { nonce, at: now });
        Ok(())
    }
}

/// Encrypts and decrypts a message that never leaves this process.
fn attempt(keys: &VersionKeys, id: KeyringId, version: u32) -> Result<(), ProofError> {
    let mut message = Sealer::new(keys, id, version)?.seal_copy(TRIAL, TRIAL);
    let opened = Header::parse(&message, &id).and_then(|header| {
        Opener::default()
            .open(keys, &id, &header, TRIAL, &mut message)
            .map(|plaintext| plaintext == TRIAL)
    });
    match opened {
        Ok(true) => Ok(()),
        Ok(false) | Err(CiphertextError::DecryptionFailed) => Err(ProofError::TrialFailed),
        Err(error) => Err(SessionError::from(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        keyring::{State, WaveSelector},
        refresh::testing::ManualKeyring,
        session::{
            error::UnavailableReason,
            testing::{
                ID, activate, after, dek, empty_keyring, keyring_with, manifest, start, table,
            },
        },
    };

    fn request(version: u32, nonce: u8) -> ProofRequest {
        ProofRequest {
            keyring: "demo".parse().expect("a name"),
            rollout: [1; 16],
            version,
            nonce: [nonce; 32],
        }
    }

    fn prover() -> Prover {
        Prover::new().expect("randomness")
    }

    /// Versions 1 (superseded), 2 (primary), 3 (pending), 4 (not unwrapped) and 5 (disabled).
    fn keyring() -> ManualKeyring {
        let mut manifest = manifest(5);
        activate(&mut manifest, 2, WaveSelector::Every, start());
        manifest.versions[4].state = State::Disabled;
        keyring_with(table(manifest, "standard", &[4]))
    }

    #[tokio::test]
    async fn the_signer_verifies_what_a_sidecar_proves() {
        let (prover, keyring) = (prover(), keyring());
        for (version, role) in [
            (1, ProvenRole::DecryptOnly),
            (2, ProvenRole::Primary),
            (3, ProvenRole::Pending),
        ] {
            let request = request(version, version as u8);
            let proof = prover.prove(&keyring.keyring, &request, after(1));
            let proof = proof.expect("the key is held");
            assert_eq!(proof.role, role);
            assert_eq!(to_hex(&proof.instance), prover.instance());
            let snapshot = keyring.keyring.snapshot().clone().expect("loaded");
            assert_eq!(proof.manifest, snapshot.table.document().digest());
            let key = dek(version).proof_key();
            assert!(key.verify(ID, &request, &proof));
            let usage = snapshot.usage(version).expect("it is listed");
            assert_eq!(usage.last_used(), None, "a proof is no use");
        }
    }

    #[tokio::test]
    async fn a_version_without_its_key_is_not_proven() {
        let (prover, keyring) = (prover(), keyring());
        let refused = |version, keyring: &Keyring| {
            let refusal = prover.prove(keyring, &request(version, 1), after(1));
            refusal.expect_err("no key")
        };
        let unavailable = |version, reason| {
            ProofError::Session(SessionError::VersionUnavailable { version, reason })
        };
        assert_eq!(
            refused(4, &keyring.keyring),
            unavailable(4, UnavailableReason::NotUnwrapped)
        );
        assert_eq!(
            refused(6, &keyring.keyring),
            unavailable(6, UnavailableReason::Unknown)
        );
        assert_eq!(
            refused(5, &keyring.keyring),
            SessionError::VersionDisabled { version: 5 }.into()
        );
        assert_eq!(
            refused(1, &empty_keyring("standard").keyring),
            SessionError::NotLoaded.into()
        );
        // None of these used the nonce.
        prover
            .prove(&keyring.keyring, &request(1, 1), after(1))
            .expect("the first proof with it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_nonce_is_good_for_one_proof() {
        let (prover, keyring) = (prover(), keyring());
        let prove =
            |version, nonce| prover.prove(&keyring.keyring, &request(version, nonce), start());
        prove(1, 7).expect("the first");
        tokio::time::advance(NONCE_LIFE - Duration::from_secs(1)).await;
        assert_eq!(prove(1, 7), Err(ProofError::NonceUsed));
        assert_eq!(prove(2, 7), Err(ProofError::NonceUsed), "for any version");
        prove(1, 8).expect("another nonce");
    }

    #[tokio::test(start_paused = true)]
    async fn proofs_are_limited_per_minute() {
        let (prover, keyring) = (prover(), keyring());
        let prove = |nonce: usize| {
            let nonce = u8::try_from(nonce).expect("fewer than 256");
            prover.prove(&keyring.keyring, &request(1, nonce), start())
        };
        prove(0).expect("the first");
        tokio::time::advance(Duration::from_secs(20)).await;
        for nonce in 1..MOST_PROOFS {
            prove(nonce).expect("within the limit");
        }
        let retry_after = Duration::from_secs(40);
        assert_eq!(prove(MOST_PROOFS), Err(ProofError::TooMany { retry_after }));
        tokio::time::advance(retry_after).await;
        prove(MOST_PROOFS).expect("the first is forgotten");
        let retry_after = Duration::from_secs(20);
        assert_eq!(
            prove(MOST_PROOFS + 1),
            Err(ProofError::TooMany { retry_after })
        );
    }
}
