//! `azure-kv:https://VAULT/keys/NAME`: a KEK in Azure Key Vault or a Managed HSM.

mod login;
mod transport;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use azure_core::{
    Error,
    credentials::TokenCredential,
    error::ErrorKind,
    http::{ClientOptions, ExponentialRetryOptions, RequestContent, RetryOptions, Transport},
};
use azure_security_keyvault_keys::{
    KeyClient, KeyClientOptions,
    models::{EncryptionAlgorithm, KeyClientWrapKeyOptions, KeyOperationParameters, KeyType},
};
use hyper::Uri;
use zeroize::Zeroizing;

use self::transport::Courier;
use super::{
    Kek, KekError, KekFault, Pending,
    fault::Fault,
    web::{Identity, Web},
};
use crate::{
    config::{self, KekUri},
    crypto::{Dek, WrapContext, bind_dek, unbind_dek},
};

/// The byte of a wrap that tells how the key was encrypted.
const RSA_OAEP_256: u8 = 1;
const AES_KW_256: u8 = 2;

/// Azure as the settings and the environment say.
pub(super) struct Room {
    settings: config::Azure,
    web: Arc<Web>,
    /// For the platform's own service that gives tokens to managed identities. It speaks in the clear, at an address of the machine.
    platform: Arc<Web>,
    credential: Mutex<Option<Arc<dyn TokenCredential>>>,
    clients: Mutex<BTreeMap<String, Arc<KeyClient>>>,
}

impl Room {
    pub(super) fn new(settings: &config::Backends) -> Arc<Self> {
        let identity = Identity { ca_file: settings.azure.ca_file.clone(), client: None };
        let platforms = [&settings.plain_http[..], &login::platform_hosts()].concat();
        Arc::new(Self {
            settings: settings.azure.clone(),
            web: Arc::new(Web::new(identity, &settings.plain_http)),
            platform: Arc::new(Web::new(Identity::default(), &platforms)),
            credential: Mutex::default(),
            clients: Mutex::default(),
        })
    }

    pub(super) fn kek(self: &Arc<Self>, uri: &KekUri) -> Result<Arc<dyn Kek>, KekError> {
        let (vault, name) = parse(uri.rest()).ok_or_else(|| {
            let reason = "write azure-kv:https://VAULT/keys/NAME, without a version: wraps hold their own";
            Fault::new(KekFault::Misconfigured, reason).of_kek(uri)
        })?;
        let (room, vault, name) = (Arc::clone(self), vault.to_owned(), name.to_owned());
        Ok(Arc::new(VaultKey { uri: uri.clone(), vault, name, room }))
    }

    fn options(web: &Arc<Web>) -> ClientOptions {
        let transport = Transport::new(Arc::new(Courier(Arc::clone(web))));
        // Throttled, or failed within Azure: a few times, well within the time that one unwrap may take.
        let times = ExponentialRetryOptions { max_retries: 3, ..ExponentialRetryOptions::default() };
        ClientOptions { transport: Some(transport), retry: RetryOptions::exponential(times), ..ClientOptions::default() }
    }

    /// The login; one that can't be made yet, because a file is missing, is tried again.
    fn credential(&self) -> Result<Arc<dyn TokenCredential>, Fault> {
        let mut slot = self.credential.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(credential) = &*slot {
            return Ok(Arc::clone(credential));
        }
        let credential = login::credential(&self.settings, Self::options(&self.web), Self::options(&self.platform))?;
        Ok(Arc::clone(slot.insert(credential)))
    }

    fn client(&self, vault: &str) -> Result<Arc<KeyClient>, Fault> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(vault) {
            return Ok(Arc::clone(client));
        }
        let misconfigured = |error: String| Fault::new(KekFault::Misconfigured, error);
        let url: Uri = vault.parse().map_err(|_| misconfigured(format!("{vault} is not a URL")))?;
        self.web.allows(&url).map_err(|error| misconfigured(error.to_string()))?;
        let credential = self.credential()?;
        let options = KeyClientOptions {
            client_options: Self::options(&self.web),
            verify_challenge_resource: Some(self.settings.verify_challenge),
            ..KeyClientOptions::default()
        };
        let client = KeyClient::new(vault, credential, Some(options)).map_err(|error| misconfigured(error.to_string()))?;
        let client = Arc::new(client);
        clients.insert(vault.to_owned(), Arc::clone(&client));
        Ok(client)
    }
}

/// A key of a vault. A wrap is the identifier of the key's version that made it, a zero byte, how it was made, and the ciphertext:
/// a rotation in Azure thus keeps nothing from opening.
struct VaultKey {
    uri: KekUri,
    vault: String,
    name: String,
    room: Arc<Room>,
}

impl VaultKey {
    async fn encrypt(&self, dek: &Dek, context: WrapContext) -> Result<Vec<u8>, Fault> {
        let client = self.room.client(&self.vault)?;
        let key = client.get_key(&self.name, None).await.and_then(|answer| answer.into_model());
        let key = key.map_err(|error| explain(&error, "get"))?.key;
        let key = key.ok_or_else(|| Fault::new(KekFault::Unavailable, "Azure answered without a key"))?;
        let (form, algorithm) = match key.kty {
            Some(KeyType::Rsa | KeyType::RsaHsm) => (RSA_OAEP_256, EncryptionAlgorithm::RsaOaep256),
            Some(KeyType::Oct | KeyType::OctHsm) => (AES_KW_256, EncryptionAlgorithm::A256Kw),
            _ => return Err(Fault::new(KekFault::Misconfigured, "the key is neither RSA nor AES; a KEK has to be one of them")),
        };
        let version = key.kid.as_deref().and_then(|id| self.version(id)).ok_or_else(|| self.another())?.to_owned();
        let parameters = parameters(algorithm, bind_dek(dek, context).to_vec())?;
        let options = KeyClientWrapKeyOptions { key_version: Some(version), ..KeyClientWrapKeyOptions::default() };
        let answer = client.wrap_key(&self.name, parameters, Some(options)).await.and_then(|answer| answer.into_model());
        let answer = answer.map_err(|error| explain(&error, "wrapKey"))?;
        let incomplete = || Fault::new(KekFault::Unavailable, "Azure answered without a key or a ciphertext");
        let (id, ciphertext) = answer.kid.zip(answer.result).ok_or_else(incomplete)?;
        self.version(&id).ok_or_else(|| self.another())?;
        Ok([id.as_bytes(), &[0, form], &ciphertext].concat())
    }

    async fn decrypt(&self, wrap: &[u8], context: WrapContext) -> Result<Dek, Fault> {
        let foreign = || Fault::new(KekFault::Refused, "this is no wrap of this key");
        let at = wrap.iter().position(|byte| *byte == 0).ok_or_else(foreign)?;
        let version = std::str::from_utf8(&wrap[..at]).ok().and_then(|id| self.version(id)).ok_or_else(foreign)?;
        let (algorithm, ciphertext) = match &wrap[at + 1..] {
            [RSA_OAEP_256, ciphertext @ ..] => (EncryptionAlgorithm::RsaOaep256, ciphertext),
            [AES_KW_256, ciphertext @ ..] => (EncryptionAlgorithm::A256Kw, ciphertext),
            _ => return Err(foreign()),
        };
        let client = self.room.client(&self.vault)?;
        let parameters = parameters(algorithm, ciphertext.to_vec())?;
        let answer = client.unwrap_key(&self.name, version, parameters, None).await.and_then(|answer| answer.into_model());
        let answer = answer.map_err(|error| explain(&error, "unwrapKey"))?;
        let bound = Zeroizing::new(answer.result.unwrap_or_default());
        unbind_dek(&bound, context).ok_or_else(|| Fault::new(KekFault::Refused, "the wrap is of another keyring or version"))
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
    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> Pending<'a, Result<Vec<u8>, KekError>> {
        Box::pin(async move { self.encrypt(dek, context).await.map_err(|fault| fault.of_kek(&self.uri)) })
    }

    fn unwrap<'a>(&'a self, wrap: &'a [u8], context: WrapContext) -> Pending<'a, Result<Dek, KekError>> {
        Box::pin(async move { self.decrypt(wrap, context).await.map_err(|fault| fault.of_kek(&self.uri)) })
    }
}

/// The SDK keeps its copies of a plaintext in memory that it doesn't zeroize.
fn parameters(algorithm: EncryptionAlgorithm, value: Vec<u8>) -> Result<RequestContent<KeyOperationParameters>, Fault> {
    let parameters =
        KeyOperationParameters { algorithm: Some(algorithm), value: Some(value), ..KeyOperationParameters::default() };
    parameters.try_into().map_err(|error: Error| Fault::new(KekFault::Misconfigured, error.to_string()))
}

/// What an error means and what to do about it.
fn explain(error: &Error, right: &str) -> Fault {
    let text = with_causes(error);
    let ErrorKind::HttpResponse { status, .. } = error.kind() else {
        return match error.kind() {
            ErrorKind::Credential => Fault::new(KekFault::Denied, format!("can't log in: {text}")),
            _ => Fault::new(KekFault::Unavailable, text),
        };
    };
    let (kind, advice) = match u16::from(*status) {
        403 if text.contains("disabled") || text.contains("Disabled") => {
            (KekFault::Disabled, "; the key or its version is disabled".into())
        }
        401 | 403 => {
            let role = "the role `Key Vault Crypto Service Encryption User`";
            (KekFault::Denied, format!("; the identity needs the key permission {right}, as {role} gives it"))
        }
        404 => (KekFault::Missing, "; is this the vault's and the key's name?".into()),
        429 => (KekFault::Throttled, String::new()),
        400 | 409 | 422 => (KekFault::Refused, String::new()),
        _ => (KekFault::Unavailable, String::new()),
    };
    Fault::new(kind, format!("Azure answered {}: {text}{advice}", u16::from(*status)))
}

/// An error and what it came from, on one line of bounded length.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(|error| error.to_string());
    let mut text = String::new();
    for cause in causes.filter(|cause| !cause.is_empty()) {
        // Some repeat their causes in their own words.
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(400).collect()
}

/// The vault and the key's name in `https://VAULT/keys/NAME`.
fn parse(rest: &str) -> Option<(&str, &str)> {
    let (vault, name) = rest.split_once("/keys/")?;
    let host = vault.strip_prefix("https://").or_else(|| vault.strip_prefix("http://"))?;
    let is_host = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '[' | ']'));
    (is_host && is_word(name)).then_some((vault, name))
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.len() <= 127 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_vault_and_key() {
        let vault = "https://orders.vault.azure.net";
        assert_eq!(parse("https://orders.vault.azure.net/keys/kek-1"), Some((vault, "kek-1")));
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
