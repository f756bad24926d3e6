//! `vault-transit:MOUNT/KEY`: a KEK of the Transit engine.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{MAX_RESPONSE, Vault, response::policy_denies};
use crate::{
    backend::{BackendError, ErrorKind, Kek, error::Failure},
    crypto::{Dek, WrapContext},
    model::KekUri,
};

/// The capacity of request bodies: enough that the buffer is never reallocated, which would leave
/// a copy of the plaintext behind.
const BODY_CAPACITY: usize = 4096;

/// A key of the Transit engine. Its wraps are Vault's own text, `vault:v1:…`.
pub(super) struct TransitKek {
    uri: KekUri,
    mount: String,
    key: String,
    vault: Arc<Vault>,
}

#[derive(Serialize)]
struct EncryptRequest<'a> {
    plaintext: &'a str,
    associated_data: &'a str,
}

#[derive(Serialize)]
struct DecryptRequest<'a> {
    ciphertext: &'a str,
    associated_data: &'a str,
}

#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

#[derive(Deserialize)]
struct Ciphertext {
    ciphertext: String,
}

#[derive(Deserialize)]
struct Plaintext {
    plaintext: Zeroizing<String>,
}

#[derive(Deserialize)]
struct Key {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    derived: bool,
}

impl TransitKek {
    pub(super) fn new(
        uri: &KekUri,
        vault: impl FnOnce() -> Result<Arc<Vault>, Failure>,
    ) -> Result<Self, Failure> {
        let (mount, key) = parse(uri.rest()).ok_or_else(|| {
            let message = "expected vault-transit:MOUNT/KEY, of letters, digits, `.`, `_` and `-`";
            Failure::new(ErrorKind::Misconfigured, message)
        })?;
        Ok(Self {
            uri: uri.clone(),
            mount: mount.into(),
            key: key.into(),
            vault: vault()?,
        })
    }

    async fn encrypt(&self, dek: &Dek, context: WrapContext) -> Result<Vec<u8>, Failure> {
        self.require_suitable_key().await?;
        let plaintext = Zeroizing::new(STANDARD.encode(dek.expose()));
        let associated_data = STANDARD.encode(context.to_bytes());
        let body = body(&EncryptRequest {
            plaintext: &plaintext,
            associated_data: &associated_data,
        })?;
        let response: Ciphertext = self.post("encrypt", body).await?;
        Ok(response.ciphertext.into_bytes())
    }

    async fn decrypt(&self, wrap: &[u8], context: WrapContext) -> Result<Dek, Failure> {
        let ciphertext = std::str::from_utf8(wrap)
            .ok()
            .filter(|text| text.starts_with("vault:v"))
            .ok_or_else(|| {
                Failure::new(ErrorKind::Rejected, "not a ciphertext of a Transit engine")
            })?;
        let associated_data = STANDARD.encode(context.to_bytes());
        let body = body(&DecryptRequest {
            ciphertext,
            associated_data: &associated_data,
        })?;
        let response: Plaintext = self.post("decrypt", body).await?;
        let bytes = STANDARD
            .decode(response.plaintext.as_str())
            .map(Zeroizing::new);
        bytes
            .ok()
            .and_then(|bytes| Dek::from_slice(&bytes))
            .ok_or_else(|| {
                let message = "Vault decrypted the wrap, but it does not contain a data key";
                Failure::new(ErrorKind::Rejected, message)
            })
    }

    /// Asks the engine to `encrypt` or `decrypt`, and returns the data of its response.
    async fn post<T: DeserializeOwned>(
        &self,
        operation: &str,
        body: Zeroizing<Vec<u8>>,
    ) -> Result<T, Failure> {
        let path = self.path(operation);
        let response = self
            .vault
            .call(Method::POST, &path, Some(body), MAX_RESPONSE)
            .await?;
        if !response.status.is_success() {
            return Err(self.explain(response.failure(), operation));
        }
        Ok(response.parse::<Data<T>>()?.data)
    }

    /// Fails if the key is missing or of an unsuitable type. Encrypting under a missing name would
    /// create a key, if the policy permits it.
    async fn require_suitable_key(&self) -> Result<(), Failure> {
        let response = self
            .vault
            .call(Method::GET, &self.path("keys"), None, MAX_RESPONSE)
            .await?;
        match response.status {
            StatusCode::NOT_FOUND => return Err(self.missing(&response.failure())),
            // A policy that only permits encryption. The encryption then shows what is wrong.
            StatusCode::FORBIDDEN => return Ok(()),
            _ => {}
        }
        let Key { kind, derived } = response.ok()?.parse::<Data<Key>>()?.data;
        let is_aead = matches!(
            kind.as_str(),
            "aes128-gcm96" | "aes256-gcm96" | "chacha20-poly1305" | "xchacha20-poly1305"
        );
        if is_aead && !derived {
            return Ok(());
        }
        let derived = if derived { "derived " } else { "" };
        let message = format!(
            "a {derived}{kind} key does not support associated data; create one of type \
             aes256-gcm96 that is not derived"
        );
        Err(Failure::new(ErrorKind::Misconfigured, message))
    }

    fn path(&self, operation: &str) -> String {
        format!("{}/{operation}/{}", self.mount, self.key)
    }

    fn missing(&self, failure: &Failure) -> Failure {
        let message = if failure.message.contains("no handler for route") {
            let mount = &self.mount;
            format!(
                "no engine is mounted at {mount}; mount it: \
                 vault secrets enable -path={mount} transit"
            )
        } else {
            let path = self.path("keys");
            format!("there is no such key; create it: vault write -f {path}")
        };
        Failure::new(ErrorKind::NotFound, message)
    }

    /// Explains a failed operation, and what to do about it.
    fn explain(&self, failure: Failure, operation: &str) -> Failure {
        let message = &failure.message;
        match failure.kind {
            ErrorKind::Denied => policy_denies(&self.path(operation), "update"),
            ErrorKind::NotFound => self.missing(&failure),
            ErrorKind::Rejected if message.contains("encryption key not found") => {
                self.missing(&failure)
            }
            ErrorKind::Rejected if message.contains("disallowed by policy") => {
                let message = "the wrap is older than the key's min_decryption_version; lower \
                               that, then run: keyring rewrap-kek --refresh";
                Failure::new(ErrorKind::Rejected, message)
            }
            ErrorKind::Rejected
                if message.contains("authentication failed")
                    || message.contains("invalid ciphertext") =>
            {
                let message =
                    "the key cannot decrypt the wrap: another key made it, or it was modified";
                Failure::new(ErrorKind::Rejected, message)
            }
            _ => failure,
        }
    }
}

impl Kek for TransitKek {
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
        self.vault.clock.now()
    }
}

fn parse(rest: &str) -> Option<(&str, &str)> {
    let (mount, key) = rest.rsplit_once('/')?;
    rest.split('/').all(is_path_segment).then_some((mount, key))
}

/// Returns whether a name is safe as one segment of a path: it can't change the path and needs no
/// escaping. Vault allows no other names of keys.
fn is_path_segment(segment: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !matches!(segment, "" | "." | "..") && segment.chars().all(is_plain)
}

fn body(value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut body = Zeroizing::new(Vec::with_capacity(BODY_CAPACITY));
    serde_json::to_writer(&mut *body, value)
        .map_err(|error| Failure::new(ErrorKind::Misconfigured, error.to_string()))?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_a_mount_and_a_key() {
        assert_eq!(parse("transit/orders"), Some(("transit", "orders")));
        assert_eq!(
            parse("teams/a/transit/orders.1"),
            Some(("teams/a/transit", "orders.1"))
        );
        for malformed in [
            "",
            "transit",
            "/orders",
            "transit/",
            "a//b",
            "../sys/seal",
            "transit/a?b",
            "transit/a b",
            "a/../b",
        ] {
            assert_eq!(parse(malformed), None, "{malformed}");
        }
    }
}
