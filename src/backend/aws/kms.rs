//! `aws-kms:…`: a symmetric key of AWS KMS.

use std::{collections::HashMap, sync::Arc};

use aws_config::Region;
use aws_sdk_kms::{
    operation::{decrypt::DecryptError, encrypt::EncryptError},
    primitives::Blob,
};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use super::{Client, dates::DateRecorder, errors::explain, retries::AttemptRecorder};
use crate::{
    backend::{BackendError, ErrorKind, Kek, error::Failure},
    crypto::{Dek, WrapContext},
    model::KekUri,
};

/// A KMS key.
///
/// A wrap is the ARN of the key that made it, a zero byte and KMS's ciphertext. Pointing an alias
/// to another key therefore doesn't invalidate the wraps made before.
pub(super) struct KmsKek {
    uri: KekUri,
    key: KeyName,
    client: Arc<Client>,
    kms: OnceCell<aws_sdk_kms::Client>,
}

/// The name of a key: an id, an alias or the ARN of either.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KeyName {
    /// The form that KMS accepts as `KeyId`.
    id: String,
    /// The region and account of an ARN.
    home: Option<(String, String)>,
    is_alias: bool,
}

impl KeyName {
    fn parse(text: &str) -> Option<Self> {
        let (resource, home) = match text.strip_prefix("arn:") {
            None => (text, None),
            Some(arn) => {
                let [partition, "kms", region, account, resource] =
                    arn.splitn(5, ':').collect::<Vec<_>>()[..]
                else {
                    return None;
                };
                let is_word = |text: &str| {
                    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
                };
                if !is_word(partition)
                    || !is_word(region)
                    || account.len() != 12
                    || !account.chars().all(|c| c.is_ascii_digit())
                {
                    return None;
                }
                (resource, Some((region.to_owned(), account.to_owned())))
            }
        };
        let is_alias = resource.starts_with("alias/");
        let name = match (is_alias, home.is_some()) {
            (true, _) => resource.strip_prefix("alias/")?,
            (false, true) => resource.strip_prefix("key/")?,
            (false, false) => resource,
        };
        let fits =
            |c: char| c.is_ascii_alphanumeric() || c == '-' || is_alias && matches!(c, '/' | '_');
        let is_name = !name.is_empty() && name.len() <= 256 && name.chars().all(fits);
        is_name.then(|| Self {
            id: text.to_owned(),
            home,
            is_alias,
        })
    }

    /// Whether this name may refer to the key with `arn`.
    fn refers_to(&self, arn: &str) -> bool {
        let Some(Self {
            home: Some((_, account)),
            is_alias: false,
            ..
        }) = Self::parse(arn)
        else {
            return false;
        };
        match (&self.home, self.is_alias) {
            (Some(_), false) => self.id == arn,
            (None, false) => arn.rsplit_once('/').is_some_and(|(_, id)| id == self.id),
            (Some((_, ours)), true) => *ours == account,
            (None, true) => true,
        }
    }
}

/// The encryption context binds a wrap to its keyring and version.
fn encryption_context(context: WrapContext) -> HashMap<String, String> {
    HashMap::from([
        ("sidekey:keyring".into(), context.keyring.to_string()),
        ("sidekey:version".into(), context.version.to_string()),
    ])
}

impl KmsKek {
    pub(super) fn new(uri: &KekUri, client: Arc<Client>) -> Result<Self, Failure> {
        let key = KeyName::parse(uri.rest()).ok_or_else(|| {
            let message = "expected aws-kms: and a key id, alias/NAME, or the ARN of either \
                           (arn:aws:kms:REGION:ACCOUNT:key/ID)";
            Failure::new(ErrorKind::Misconfigured, message)
        })?;
        Ok(Self {
            uri: uri.clone(),
            key,
            client,
            kms: OnceCell::new(),
        })
    }

    async fn kms(&self) -> Result<&aws_sdk_kms::Client, Failure> {
        let create = async || {
            let mut config = aws_sdk_kms::config::Builder::from(self.client.sdk().await?);
            if let Some((region, _)) = &self.key.home {
                config = config.region(Region::new(region.clone()));
            }
            let config = config
                .interceptor(DateRecorder::new(&self.client.clock))
                .interceptor(AttemptRecorder::<DecryptError>::new(
                    &self.client.credentials,
                ))
                .interceptor(AttemptRecorder::<EncryptError>::new(
                    &self.client.credentials,
                ));
            Ok(aws_sdk_kms::Client::from_conf(config.build()))
        };
        self.kms.get_or_try_init(create).await
    }

    async fn encrypt(&self, dek: &Dek, context: WrapContext) -> Result<Vec<u8>, Failure> {
        // The SDK does not zeroize its copies of the plaintext.
        let response = self
            .kms()
            .await?
            .encrypt()
            .key_id(&self.key.id)
            .plaintext(Blob::new(dek.expose()))
            .set_encryption_context(Some(encryption_context(context)))
            .send()
            .await
            .map_err(|error| self.with_advice(explain(&error), "kms:Encrypt"))?;
        let (arn, ciphertext) = response
            .key_id
            .zip(response.ciphertext_blob)
            .ok_or_else(|| {
                let message = "AWS's response has no key id or no ciphertext";
                Failure::new(ErrorKind::Unavailable, message)
            })?;
        if !self.key.refers_to(&arn) {
            let message = format!("AWS encrypted with another key, {arn}");
            return Err(Failure::new(ErrorKind::Rejected, message));
        }
        Ok([arn.as_bytes(), &[0], ciphertext.as_ref()].concat())
    }

    async fn decrypt(&self, wrap: &[u8], context: WrapContext) -> Result<Dek, Failure> {
        let foreign = || Failure::new(ErrorKind::Rejected, "not a wrap of this key");
        let at = wrap
            .iter()
            .position(|byte| *byte == 0)
            .ok_or_else(foreign)?;
        let (arn, ciphertext) = (&wrap[..at], &wrap[at + 1..]);
        let arn = std::str::from_utf8(arn)
            .ok()
            .filter(|arn| self.key.refers_to(arn))
            .ok_or_else(foreign)?;
        let response = self
            .kms()
            .await?
            .decrypt()
            .key_id(arn)
            .ciphertext_blob(Blob::new(ciphertext))
            .set_encryption_context(Some(encryption_context(context)))
            .send()
            .await
            .map_err(|error| self.with_advice(explain(&error), "kms:Decrypt"))?;
        let plaintext = response
            .plaintext
            .map(|plaintext| Zeroizing::new(plaintext.into_inner()));
        plaintext
            .and_then(|plaintext| Dek::from_slice(&plaintext))
            .ok_or_else(|| {
                let message = "AWS decrypted the wrap, but it does not contain a data key";
                Failure::new(ErrorKind::Rejected, message)
            })
    }

    /// Appends what to do about a failed operation that requires `permission`.
    fn with_advice(&self, mut failure: Failure, permission: &str) -> Failure {
        let message = &failure.message;
        let advice = match failure.kind {
            ErrorKind::Denied if message.contains("AccessDenied") => {
                let resource = if self.key.home.is_some() && !self.key.is_alias {
                    self.key.id.as_str()
                } else {
                    "THE KEY'S ARN"
                };
                format!(
                    "; the role needs: {{\"Effect\": \"Allow\", \"Action\": \"{permission}\", \
                     \"Resource\": \"{resource}\"}}, and the key's policy must delegate to the \
                     account's IAM policies"
                )
            }
            ErrorKind::Disabled => {
                "; the key is disabled or pending deletion: run aws kms enable-key or \
                 cancel-key-deletion"
                    .into()
            }
            ErrorKind::NotFound => "; check the key's region and account".into(),
            ErrorKind::Rejected => "; another key made the wrap, or it was modified".into(),
            ErrorKind::Misconfigured
                if message.contains("InvalidKeyUsage") || message.contains("Validation") =>
            {
                "; a KEK must be a symmetric key for ENCRYPT_DECRYPT".into()
            }
            _ => String::new(),
        };
        failure.message += &advice;
        failure
    }
}

impl Kek for KmsKek {
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

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";
    const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    #[test]
    fn a_key_is_named_by_id_alias_or_arn() {
        for name in [
            ID,
            ARN,
            "mrk-1234abcd12ab34cd56ef1234567890ab",
            "alias/orders/a_1",
            "arn:aws-cn:kms:cn-north-1:111122223333:alias/o",
        ] {
            KeyName::parse(name).expect(name);
        }
        for malformed in [
            "",
            "alias/",
            "key/a",
            "a b",
            "arn:aws:kms:eu-west-1:1:key/a",
            "arn:aws:s3:::bucket",
            "arn:aws:kms:eu-west-1:111122223333:a",
            "../x",
        ] {
            assert_eq!(KeyName::parse(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn a_wrap_belongs_to_the_key_named_by_its_arn() {
        let refers = |name: &str, arn: &str| KeyName::parse(name).expect("name").refers_to(arn);
        assert!(refers(ID, ARN) && refers(ARN, ARN) && refers("alias/a", ARN));
        assert!(refers("arn:aws:kms:eu-west-1:111122223333:alias/a", ARN));
        assert!(
            !refers("arn:aws:kms:eu-west-1:444455556666:alias/a", ARN),
            "another account"
        );
        assert!(!refers("5678abcd-12ab-34cd-56ef-1234567890ab", ARN));
        assert!(!refers(
            ARN,
            "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
        ));
        assert!(!refers("alias/a", "not an ARN"));
    }
}
