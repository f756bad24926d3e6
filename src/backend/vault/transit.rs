//! `vault-transit:MOUNT/KEY`: a KEK of the Transit engine.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{ANSWER, Fault, Vault};
use crate::{
    backend::{Kek, KekError, KekFault},
    crypto::{Dek, WrapContext},
    model::{KekUri, is_path_segment},
};

/// A key of the Transit engine. Its wraps are Vault's own text, `vault:v1:…`.
pub(super) struct TransitKek {
    uri: KekUri,
    mount: String,
    key: String,
    vault: Arc<Vault>,
}

#[derive(Serialize)]
struct Encrypt<'a> {
    plaintext: &'a str,
    associated_data: &'a str,
}

#[derive(Serialize)]
struct Decrypt<'a> {
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
        vault: impl FnOnce() -> Result<Arc<Vault>, Fault>,
    ) -> Result<Self, Fault> {
        let (mount, key) = parse(uri.rest()).ok_or_else(|| {
            Fault::new(
                KekFault::Misconfigured,
                "write vault-transit:MOUNT/KEY, of letters, digits, `.`, `_` and `-`",
            )
        })?;
        Ok(Self {
            uri: uri.clone(),
            mount: mount.into(),
            key: key.into(),
            vault: vault()?,
        })
    }

    async fn encrypt(&self, dek: &Dek, context: WrapContext) -> Result<Vec<u8>, Fault> {
        self.demand_key().await?;
        let plaintext = Zeroizing::new(STANDARD.encode(dek.expose()));
        let associated_data = STANDARD.encode(context.to_bytes());
        let body = body(&Encrypt {
            plaintext: &plaintext,
            associated_data: &associated_data,
        })?;
        let answer = self
            .vault
            .call(Method::POST, &self.path("encrypt"), Some(body), ANSWER)
            .await?;
        if !answer.status.is_success() {
            return Err(self.explain(answer.fault(), "encrypt"));
        }
        let answer: Data<Ciphertext> = answer.parse()?;
        Ok(answer.data.ciphertext.into_bytes())
    }

    async fn decrypt(&self, wrap: &[u8], context: WrapContext) -> Result<Dek, Fault> {
        let foreign = || {
            Fault::new(
                KekFault::Refused,
                "this is no ciphertext of Vault's Transit engine",
            )
        };
        let ciphertext = std::str::from_utf8(wrap)
            .ok()
            .filter(|text| text.starts_with("vault:v"))
            .ok_or_else(foreign)?;
        let associated_data = STANDARD.encode(context.to_bytes());
        let body = body(&Decrypt {
            ciphertext,
            associated_data: &associated_data,
        })?;
        let answer = self
            .vault
            .call(Method::POST, &self.path("decrypt"), Some(body), ANSWER)
            .await?;
        if !answer.status.is_success() {
            return Err(self.explain(answer.fault(), "decrypt"));
        }
        let answer: Data<Plaintext> = answer.parse()?;
        let bytes = STANDARD
            .decode(answer.data.plaintext.as_str())
            .map(Zeroizing::new);
        let dek = bytes.ok().and_then(|bytes| Dek::from_slice(&bytes));
        dek.ok_or_else(|| {
            Fault::new(
                KekFault::Refused,
                "Vault opened the wrap, and it holds no data key",
            )
        })
    }

    /// Encrypting under a name that isn't there would make a new key, if we may; and not every kind of key can do what we need.
    async fn demand_key(&self) -> Result<(), Fault> {
        let answer = self
            .vault
            .call(Method::GET, &self.path("keys"), None, ANSWER)
            .await?;
        match answer.status {
            StatusCode::NOT_FOUND => Err(self.missing(&answer.fault())),
            // Whoever may only encrypt is told by that.
            StatusCode::FORBIDDEN => Ok(()),
            _ => {
                let Data {
                    data: Key { kind, derived },
                } = answer.ok()?.parse()?;
                if matches!(
                    kind.as_str(),
                    "aes128-gcm96" | "aes256-gcm96" | "chacha20-poly1305" | "xchacha20-poly1305"
                ) && !derived
                {
                    return Ok(());
                }
                let kind = if derived {
                    format!("derived {kind}")
                } else {
                    kind
                };
                let reason = format!(
                    "a {kind} key can't take associated data; make one of type aes256-gcm96, not derived"
                );
                Err(Fault::new(KekFault::Misconfigured, reason))
            }
        }
    }

    fn path(&self, operation: &str) -> String {
        format!("{}/{operation}/{}", self.mount, self.key)
    }

    fn missing(&self, fault: &Fault) -> Fault {
        if fault.reason.contains("no handler for route") {
            let mount = &self.mount;
            let reason = format!(
                "nothing is mounted at {mount}; mount the engine: vault secrets enable -path={mount} transit"
            );
            return Fault::new(KekFault::Missing, reason);
        }
        let reason = format!(
            "there is no such key; make it: vault write -f {}",
            self.path("keys")
        );
        Fault::new(KekFault::Missing, reason)
    }

    /// What to do about a failure.
    fn explain(&self, fault: Fault, operation: &str) -> Fault {
        let said = &fault.reason;
        match fault.kind {
            KekFault::Denied => {
                let path = self.path(operation);
                let stanza = format!("path \"{path}\" {{ capabilities = [\"update\"] }}");
                Fault::new(
                    KekFault::Denied,
                    format!("the token's policy doesn't allow it; it needs: {stanza}"),
                )
            }
            KekFault::Missing => self.missing(&fault),
            KekFault::Refused if said.contains("encryption key not found") => self.missing(&fault),
            KekFault::Refused if said.contains("disallowed by policy") => Fault::new(
                KekFault::Refused,
                "the wrap is older than the key's min_decryption_version allows; lower it, then: keyring rewrap-kek --refresh",
            ),
            KekFault::Refused
                if said.contains("authentication failed")
                    || said.contains("invalid ciphertext") =>
            {
                Fault::new(
                    KekFault::Refused,
                    "this key doesn't open the wrap: it is another key, or the wrap was changed",
                )
            }
            _ => fault,
        }
    }
}

impl Kek for TransitKek {
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

fn parse(rest: &str) -> Option<(&str, &str)> {
    let (mount, key) = rest.rsplit_once('/')?;
    rest.split('/').all(is_path_segment).then_some((mount, key))
}

fn body(value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, Fault> {
    // Room enough that the buffer never moves and leaves a copy behind.
    let mut body = Zeroizing::new(Vec::with_capacity(4096));
    serde_json::to_writer(&mut *body, value)
        .map_err(|error| Fault::new(KekFault::Misconfigured, error.to_string()))?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_mount_and_key() {
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
