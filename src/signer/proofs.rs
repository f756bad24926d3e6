//! Proofs that sidecars have a key: the nonce is the signer's, and so is the verdict.

use std::collections::BTreeMap;

use super::Signer;
use crate::{
    admin::AdminError,
    crypto::{RandomnessUnavailable, random},
    keyring::Document,
    rollout::State,
    wire::proof::ProofRequest,
};

impl Signer {
    /// Lets sidecars prove that they have a version, and verifies that with its key.
    ///
    /// # Errors
    /// The version can't be unwrapped here, or there is no randomness.
    pub async fn prove(
        &self,
        state: &State,
        version: u32,
        sidecars: &[String],
    ) -> Result<BTreeMap<String, Result<(), String>>, AdminError> {
        let document = self.admin().read_trusted().await?;
        let key = self.admin().proof_key(&document, version).await?;
        let request = ProofRequest {
            keyring: state.plan.keyring.clone(),
            rollout: state.id.0,
            version,
            nonce: random().map_err(|error: RandomnessUnavailable| AdminError::from(error))?,
        };
        let answers = self.fleet().prove(sidecars, &request).await;
        let verdict = |answer: Result<_, String>| {
            let proof = answer?;
            if !key.verify(state.plan.keyring_id, &request, &proof) {
                return Err("its proof is not by the version's key".into());
            }
            runs(&document, &proof.manifest)
        };
        Ok(answers
            .into_iter()
            .map(|(name, answer)| (name, verdict(answer)))
            .collect())
    }
}

/// A proof names the manifest that the sidecar runs: the present one, or one that it descends from.
fn runs(document: &Document, digest: &[u8; 32]) -> Result<(), String> {
    let is_known = document.digest() == *digest
        || document
            .manifest()
            .lineage
            .iter()
            .any(|ancestor| ancestor.sha256.0 == digest);
    if is_known {
        Ok(())
    } else {
        Err("it runs a manifest that the present one doesn't descend from".into())
    }
}
