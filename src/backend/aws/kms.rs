//! `aws-kms:…`: a symmetric key of AWS KMS.

use std::{collections::HashMap, sync::Arc};

use aws_config::Region;
use aws_sdk_kms::{
    Client,
    operation::{decrypt::DecryptError, encrypt::EncryptError},
    primitives::Blob,
};
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use super::{Fault, Listener, Room, fault};
use crate::{
    backend::{Kek, KekError, KekFault},
    crypto::{Dek, WrapContext},
    model::KekUri,
};

/// A key of KMS. A wrap is the ARN of the key that made it, a zero byte, and KMS' ciphertext: an alias that is pointed to another key
/// later thus doesn't keep what it wrapped before from opening.
pub(super) struct KmsKek {
    uri: KekUri,
    key: KeyName,
    room: Arc<Room>,
    client: OnceCell<Client>,
}

/// How a key is named.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KeyName {
    /// As KMS takes it.
    id: String,
    /// The region and account in an ARN.
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

    /// Whether a wrap that `arn` made is this key's own.
    fn made(&self, arn: &str) -> bool {
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

fn context_of(context: WrapContext) -> HashMap<String, String> {
    HashMap::from([
        ("sidekey:keyring".into(), context.keyring.to_string()),
        ("sidekey:version".into(), context.version.to_string()),
    ])
}

impl KmsKek {
    pub(super) fn new(uri: &KekUri, room: Arc<Room>) -> Result<Self, Fault> {
        let key = KeyName::parse(uri.rest()).ok_or_else(|| {
            let forms =
                "a key id, alias/NAME, or the ARN of either (arn:aws:kms:REGION:ACCOUNT:key/ID)";
            Fault::new(
                KekFault::Misconfigured,
                format!("write aws-kms: and {forms}"),
            )
        })?;
        Ok(Self {
            uri: uri.clone(),
            key,
            room,
            client: OnceCell::new(),
        })
    }

    async fn client(&self) -> Result<&Client, Fault> {
        let make = async || {
            let mut config = aws_sdk_kms::config::Builder::from(self.room.sdk().await?);
            if let Some((region, _)) = &self.key.home {
                config = config.region(Region::new(region.clone()));
            }
            let config = config
                .interceptor(Listener::<DecryptError>::new())
                .interceptor(Listener::<EncryptError>::new());
            Ok(Client::from_conf(config.build()))
        };
        self.client.get_or_try_init(make).await
    }

    async fn encrypt(&self, dek: &Dek, context: WrapContext) -> Result<Vec<u8>, Fault> {
        // The SDK keeps its copies of the plaintext in memory that it doesn't zeroize.
        let request = self
            .client()
            .await?
            .encrypt()
            .key_id(&self.key.id)
            .plaintext(Blob::new(dek.expose()));
        let answer = request
            .set_encryption_context(Some(context_of(context)))
            .send()
            .await;
        let answer = answer.map_err(|error| self.explain(fault(&error), "kms:Encrypt"))?;
        let incomplete = || {
            Fault::new(
                KekFault::Unavailable,
                "AWS answered without a key or a ciphertext",
            )
        };
        let (arn, ciphertext) = answer
            .key_id
            .zip(answer.ciphertext_blob)
            .ok_or_else(incomplete)?;
        if !self.key.made(&arn) {
            return Err(Fault::new(
                KekFault::Refused,
                format!("AWS encrypted with another key, {arn}"),
            ));
        }
        Ok([arn.as_bytes(), &[0], ciphertext.as_ref()].concat())
    }

    async fn decrypt(&self, wrap: &[u8], context: WrapContext) -> Result<Dek, Fault> {
        let foreign = || Fault::new(KekFault::Refused, "this is no wrap of this key");
        let at = wrap
            .iter()
            .position(|byte| *byte == 0)
            .ok_or_else(foreign)?;
        let (arn, ciphertext) = (&wrap[..at], &wrap[at + 1..]);
        let arn = std::str::from_utf8(arn)
            .ok()
            .filter(|arn| self.key.made(arn))
            .ok_or_else(foreign)?;
        let request = self
            .client()
            .await?
            .decrypt()
            .key_id(arn)
            .ciphertext_blob(Blob::new(ciphertext));
        let answer = request
            .set_encryption_context(Some(context_of(context)))
            .send()
            .await;
        let answer = answer.map_err(|error| self.explain(fault(&error), "kms:Decrypt"))?;
        let plaintext = answer
            .plaintext
            .map(|plaintext| Zeroizing::new(plaintext.into_inner()));
        let dek = plaintext.and_then(|plaintext| Dek::from_slice(&plaintext));
        dek.ok_or_else(|| {
            Fault::new(
                KekFault::Refused,
                "AWS opened the wrap, and it holds no data key",
            )
        })
    }

    /// What to do about a failure.
    fn explain(&self, fault: Fault, right: &str) -> Fault {
        let Fault { kind, reason } = fault;
        let advice = match kind {
            KekFault::Denied if reason.contains("AccessDenied") => {
                let resource = if self.key.home.is_some() && !self.key.is_alias { self.key.id.as_str() } else { "THE KEY'S ARN" };
                format!(
                    "; the role needs: {{\"Effect\": \"Allow\", \"Action\": \"{right}\", \"Resource\": \"{resource}\"}}, and the key's \
                     policy must let the account's IAM policies decide"
                )
            }
            KekFault::Disabled => {
                "; the key is disabled or about to be deleted: aws kms enable-key, or cancel-key-deletion".into()
            }
            KekFault::Missing => "; is this the key's region and account?".into(),
            KekFault::Refused => "; the wrap is another key's, or was changed".into(),
            KekFault::Misconfigured if reason.contains("InvalidKeyUsage") || reason.contains("Validation") => {
                "; a KEK is a symmetric key for ENCRYPT_DECRYPT".into()
            }
            _ => String::new(),
        };
        Fault::new(kind, reason + &advice)
    }
}

impl Kek for KmsKek {
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

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";
    const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    #[test]
    fn keys_are_named_by_id_alias_or_arn() {
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
    fn a_wrap_belongs_to_the_key_that_its_arn_names() {
        let made = |name: &str, arn: &str| KeyName::parse(name).expect("name").made(arn);
        assert!(made(ID, ARN) && made(ARN, ARN) && made("alias/a", ARN));
        assert!(made("arn:aws:kms:eu-west-1:111122223333:alias/a", ARN));
        assert!(
            !made("arn:aws:kms:eu-west-1:444455556666:alias/a", ARN),
            "another account's"
        );
        assert!(!made("5678abcd-12ab-34cd-56ef-1234567890ab", ARN));
        assert!(!made(
            ARN,
            "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
        ));
        assert!(!made("alias/a", "not an ARN"));
    }
}
