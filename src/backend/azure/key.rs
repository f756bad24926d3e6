//! `azure-kv:https://VAULT/keys/NAME`: a KEK in Azure Key Vault or a Managed HSM.

use std::sync::Arc;

use azure_core::{Error, http::RequestContent};
use azure_security_keyvault_keys::{
    KeyClient,
    models::{EncryptionAlgorithm, KeyClientWrapKeyOptions, KeyOperationParameters, KeyType},
};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{
    Client,
    errors::{ObjectType, explain},
    is_word,
};
use crate::{
    backend::{BackendError, ErrorKind, Kek, error::Failure},
    crypto::{Dek, WrapContext, bind_dek, unbind_dek},
    model::KekUri,
};

/// The byte of a wrap that identifies the algorithm.
const RSA_OAEP_256: u8 = 1;
const AES_KW_256: u8 = 2;

const KEY: ObjectType = ObjectType {
    name: "key",
    role: "Key Vault Crypto Service Encryption User",
};

/// A key in a vault.
///
/// A wrap is the identifier of the key version that made it, a zero byte, the algorithm's byte and
/// the ciphertext. It therefore remains valid when the key is rotated in Azure.
pub(super) struct VaultKey {
    uri: KekUri,
    vault: String,
    name: String,
    client: Arc<Client>,
}

impl VaultKey {
    pub(super) fn new(uri: &KekUri, client: Arc<Client>) -> Result<Self, Failure> {
        let (vault, name) = parse(uri.rest()).ok_or_else(|| {
            let message = "expected azure-kv:https://VAULT/keys/NAME, without a version (each \
                           wrap contains its own)";
            Failure::new(ErrorKind::Misconfigured, message)
        })?;
        Ok(Self {
            uri: uri.clone(),
            vault: vault.to_owned(),
            name: name.to_owned(),
            client,
        })
    }

    async fn encrypt(&self, dek: &Dek, context: WrapContext) -> Result<Vec<u8>, Failure> {
        let client = self.client.key_client(&self.vault)?;
        let (algorithm_byte, algorithm, version) = self.current_version(&client).await?;
        let parameters = parameters(algorithm, bind_dek(dek, context).to_vec())?;
        let options = KeyClientWrapKeyOptions {
            key_version: Some(version),
            ..KeyClientWrapKeyOptions::default()
        };
        let response = client
            .wrap_key(&self.name, parameters, Some(options))
            .await
            .and_then(|response| response.into_model())
            .map_err(|error| explain(&error, &KEY, "wrapKey"))?;
        let (id, ciphertext) = response.kid.zip(response.result).ok_or_else(|| {
            let message = "Azure's response has no key identifier or no ciphertext";
            Failure::new(ErrorKind::Unavailable, message)
        })?;
        self.version_in(&id).ok_or_else(another_key)?;
        Ok([id.as_bytes(), &[0, algorithm_byte], &ciphertext].concat())
    }

    /// Returns the algorithm for the key's type, and the key's current version.
    async fn current_version(
        &self,
        client: &KeyClient,
    ) -> Result<(u8, EncryptionAlgorithm, String), Failure> {
        let key = client
            .get_key(&self.name, None)
            .await
            .and_then(|response| response.into_model())
            .map_err(|error| explain(&error, &KEY, "get"))?
            .key
            .ok_or_else(|| Failure::new(ErrorKind::Unavailable, "Azure's response has no key"))?;
        let (byte, algorithm) = match key.kty {
            Some(KeyType::Rsa | KeyType::RsaHsm) => (RSA_OAEP_256, EncryptionAlgorithm::RsaOaep256),
            Some(KeyType::Oct | KeyType::OctHsm) => (AES_KW_256, EncryptionAlgorithm::A256Kw),
            _ => {
                let message = "the key is neither RSA nor AES, which a KEK must be";
                return Err(Failure::new(ErrorKind::Misconfigured, message));
            }
        };
        let version = key
            .kid
            .as_deref()
            .and_then(|id| self.version_in(id))
            .ok_or_else(another_key)?;
        Ok((byte, algorithm, version.to_owned()))
    }

    async fn decrypt(&self, wrap: &[u8], context: WrapContext) -> Result<Dek, Failure> {
        let foreign = || Failure::new(ErrorKind::Rejected, "not a wrap of this key");
        let at = wrap
            .iter()
            .position(|byte| *byte == 0)
            .ok_or_else(foreign)?;
        let version = std::str::from_utf8(&wrap[..at])
            .ok()
            .and_then(|id| self.version_in(id))
            .ok_or_else(foreign)?;
        let (algorithm, ciphertext) = match &wrap[at + 1..] {
            [RSA_OAEP_256, ciphertext @ ..] => (EncryptionAlgorithm::RsaOaep256, ciphertext),
            [AES_KW_256, ciphertext @ ..] => (EncryptionAlgorithm::A256Kw, ciphertext),
            _ => return Err(foreign()),
        };
        let client = self.client.key_client(&self.vault)?;
        let parameters = parameters(algorithm, ciphertext.to_vec())?;
        let response = client
            .unwrap_key(&self.name, version, parameters, None)
            .await
            .and_then(|response| response.into_model())
            .map_err(|error| explain(&error, &KEY, "unwrapKey"))?;
        let bound = Zeroizing::new(response.result.unwrap_or_default());
        unbind_dek(&bound, context).ok_or_else(|| {
            let message = "the wrap belongs to another keyring or version";
            Failure::new(ErrorKind::Rejected, message)
        })
    }

    /// Returns the version in the identifier of one of this key's versions.
    fn version_in<'i>(&self, id: &'i str) -> Option<&'i str> {
        let version = id.strip_prefix(&format!("{}/keys/{}/", self.vault, self.name))?;
        is_word(version).then_some(version)
    }
}

fn another_key() -> Failure {
    Failure::new(ErrorKind::Rejected, "Azure responded with another key")
}

impl Kek for VaultKey {
    fn wrap<'a>(
        &'a self,
        dek: &'a Dek,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Vec<u8>, BackendError>> {
        Box::pin(async move {
            self.encrypt(dek, context)
                .await
                .map_err(|failure| failure.on(&self.uri))
        })
    }

    fn unwrap<'a>(
        &'a self,
        wrap: &'a [u8],
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Dek, BackendError>> {
        Box::pin(async move {
            self.decrypt(wrap, context)
                .await
                .map_err(|failure| failure.on(&self.uri))
        })
    }

    fn server_time(&self) -> Option<Timestamp> {
        self.client.clock.now()
    }
}

/// The SDK does not zeroize its copies of a plaintext.
fn parameters(
    algorithm: EncryptionAlgorithm,
    value: Vec<u8>,
) -> Result<RequestContent<KeyOperationParameters>, Failure> {
    let parameters = KeyOperationParameters {
        algorithm: Some(algorithm),
        value: Some(value),
        ..KeyOperationParameters::default()
    };
    parameters
        .try_into()
        .map_err(|error: Error| Failure::new(ErrorKind::Misconfigured, error.to_string()))
}

/// Splits `https://VAULT/keys/NAME` into the vault's URL and the key's name.
fn parse(rest: &str) -> Option<(&str, &str)> {
    let (vault, name) = rest.split_once("/keys/")?;
    let host = vault
        .strip_prefix("https://")
        .or_else(|| vault.strip_prefix("http://"))?;
    let is_host = !host.is_empty()
        && host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '[' | ']'));
    (is_host && is_word(name)).then_some((vault, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_a_vault_and_a_key() {
        let vault = "https://orders.vault.azure.net";
        assert_eq!(
            parse("https://orders.vault.azure.net/keys/kek-1"),
            Some((vault, "kek-1"))
        );
        for malformed in [
            "",
            "orders/keys/kek",
            "https://a/keys/",
            "https://a/keys/b/c",
            "https:///keys/a",
            "https://u@a/keys/b",
            "https://a/secrets/b",
        ] {
            assert_eq!(parse(malformed), None, "{malformed}");
        }
    }
}
