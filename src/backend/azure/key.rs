//! `azure-kv:https://VAULT/keys/NAME`: a KEK in Azure Key Vault or a Managed HSM.

use std::sync::Arc;

use azure_core::{Error, http::RequestContent};
use azure_security_keyvault_keys::models::{
    EncryptionAlgorithm, KeyClientWrapKeyOptions, KeyOperationParameters, KeyType,
};
use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::{Fault, Room, Thing, explain, is_word};
use crate::{
    backend::{Kek, KekError, KekFault},
    crypto::{Dek, WrapContext, bind_dek, unbind_dek},
    model::KekUri,
};

/// The byte of a wrap that tells how the key was encrypted.
const RSA_OAEP_256: u8 = 1;
const AES_KW_256: u8 = 2;

const KEY: Thing = Thing {
    name: "key",
    role: "Key Vault Crypto Service Encryption User",
};

/// A key of a vault. A wrap is the identifier of the key's version that made it, a zero byte, how it was made, and the ciphertext:
/// a rotation in Azure thus keeps nothing from opening.
pub(super) struct VaultKey {
    uri: KekUri,
    vault: String,
    name: String,
    room: Arc<Room>,
}

impl VaultKey {
    pub(super) fn new(uri: &KekUri, room: Arc<Room>) -> Result<Self, Fault> {
        let (vault, name) = parse(uri.rest()).ok_or_else(|| {
            let reason =
                "write azure-kv:https://VAULT/keys/NAME, without a version: wraps hold their own";
            Fault::new(KekFault::Misconfigured, reason)
        })?;
        Ok(Self {
            uri: uri.clone(),
            vault: vault.to_owned(),
            name: name.to_owned(),
            room,
        })
    }

    async fn encrypt(&self, dek: &Dek, context: WrapContext) -> Result<Vec<u8>, Fault> {
        let client = self.room.keys_of(&self.vault)?;
        let key = client
            .get_key(&self.name, None)
            .await
            .and_then(|answer| answer.into_model());
        let key = key.map_err(|error| explain(&error, &KEY, "get"))?.key;
        let key =
            key.ok_or_else(|| Fault::new(KekFault::Unavailable, "Azure answered without a key"))?;
        let (form, algorithm) = match key.kty {
            Some(KeyType::Rsa | KeyType::RsaHsm) => (RSA_OAEP_256, EncryptionAlgorithm::RsaOaep256),
            Some(KeyType::Oct | KeyType::OctHsm) => (AES_KW_256, EncryptionAlgorithm::A256Kw),
            _ => {
                return Err(Fault::new(
                    KekFault::Misconfigured,
                    "the key is neither RSA nor AES; a KEK has to be one of them",
                ));
            }
        };
        let version = key
            .kid
            .as_deref()
            .and_then(|id| self.version(id))
            .ok_or_else(|| self.another())?
            .to_owned();
        let parameters = parameters(algorithm, bind_dek(dek, context).to_vec())?;
        let options = KeyClientWrapKeyOptions {
            key_version: Some(version),
            ..KeyClientWrapKeyOptions::default()
        };
        let answer = client
            .wrap_key(&self.name, parameters, Some(options))
            .await
            .and_then(|answer| answer.into_model());
        let answer = answer.map_err(|error| explain(&error, &KEY, "wrapKey"))?;
        let incomplete = || {
            Fault::new(
                KekFault::Unavailable,
                "Azure answered without a key or a ciphertext",
            )
        };
        let (id, ciphertext) = answer.kid.zip(answer.result).ok_or_else(incomplete)?;
        self.version(&id).ok_or_else(|| self.another())?;
        Ok([id.as_bytes(), &[0, form], &ciphertext].concat())
    }

    async fn decrypt(&self, wrap: &[u8], context: WrapContext) -> Result<Dek, Fault> {
        let foreign = || Fault::new(KekFault::Refused, "this is no wrap of this key");
        let at = wrap
            .iter()
            .position(|byte| *byte == 0)
            .ok_or_else(foreign)?;
        let version = std::str::from_utf8(&wrap[..at])
            .ok()
            .and_then(|id| self.version(id))
            .ok_or_else(foreign)?;
        let (algorithm, ciphertext) = match &wrap[at + 1..] {
            [RSA_OAEP_256, ciphertext @ ..] => (EncryptionAlgorithm::RsaOaep256, ciphertext),
            [AES_KW_256, ciphertext @ ..] => (EncryptionAlgorithm::A256Kw, ciphertext),
            _ => return Err(foreign()),
        };
        let client = self.room.keys_of(&self.vault)?;
        let parameters = parameters(algorithm, ciphertext.to_vec())?;
        let answer = client
            .unwrap_key(&self.name, version, parameters, None)
            .await
            .and_then(|answer| answer.into_model());
        let answer = answer.map_err(|error| explain(&error, &KEY, "unwrapKey"))?;
        let bound = Zeroizing::new(answer.result.unwrap_or_default());
        unbind_dek(&bound, context).ok_or_else(|| {
            Fault::new(
                KekFault::Refused,
                "the wrap is of another keyring or version",
            )
        })
    }

    /// The version in the identifier of one of this key's versions.
    fn version<'i>(&self, id: &'i str) -> Option<&'i str> {
        let version = id.strip_prefix(&format!("{}/keys/{}/", self.vault, self.name))?;
        is_word(version).then_some(version)
    }

    fn another(&self) -> Fault {
        Fault::new(KekFault::Refused, "Azure answered with another key")
    }
}

impl Kek for VaultKey {
    fn wrap<'a>(
        &'a self,
        dek: &'a Dek,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Vec<u8>, KekError>> {
        Box::pin(async move {
            self.encrypt(dek, context)
                .await
                .map_err(|fault| fault.of_kek(&self.uri))
        })
    }

    fn unwrap<'a>(
        &'a self,
        wrap: &'a [u8],
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Dek, KekError>> {
        Box::pin(async move {
            self.decrypt(wrap, context)
                .await
                .map_err(|fault| fault.of_kek(&self.uri))
        })
    }
}

/// The SDK keeps its copies of a plaintext in memory that it doesn't zeroize.
fn parameters(
    algorithm: EncryptionAlgorithm,
    value: Vec<u8>,
) -> Result<RequestContent<KeyOperationParameters>, Fault> {
    let parameters = KeyOperationParameters {
        algorithm: Some(algorithm),
        value: Some(value),
        ..KeyOperationParameters::default()
    };
    parameters
        .try_into()
        .map_err(|error: Error| Fault::new(KekFault::Misconfigured, error.to_string()))
}

/// The vault and the key's name in `https://VAULT/keys/NAME`.
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
    fn a_uri_names_vault_and_key() {
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
