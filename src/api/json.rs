//! The JSON form: one item, or a batch whose items succeed and fail each on its own.

use std::{borrow::Cow, fmt};

use base64::Engine;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, DeserializeSeed, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::{ANY_PADDING, STANDARD};
use crate::http::problem::{Code, Problem};
use crate::session::{Encryptor, Session, message_buffer};
use crate::{
    config::Limits,
    crypto::{PREFIX_LEN, SecretKey, from_text, to_text},
    model::Operation,
};

/// An answer's body, the version that made all of it (if one did), and what went wrong with items, with the versions that were refused.
pub(crate) struct Answer {
    pub(crate) body: Vec<u8>,
    pub(crate) version: Option<u32>,
    pub(crate) failures: Vec<(Code, Option<u32>)>,
}

/// Tells a batch from an item.
#[derive(Deserialize)]
struct Probe<'a> {
    #[serde(borrow)]
    batch: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch<'a> {
    #[serde(borrow)]
    batch: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlaintextItem<'a> {
    #[serde(borrow)]
    plaintext: Cow<'a, str>,
    #[serde(borrow, default)]
    aad: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CiphertextItem<'a> {
    #[serde(borrow)]
    ciphertext: Cow<'a, str>,
    #[serde(borrow, default)]
    aad: Cow<'a, str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Ciphertext {
        ciphertext: String,
        key_version: u32,
    },
    Plaintext {
        plaintext: String,
        key_version: u32,
    },
    Failure {
        error: Problem,
    },
}

#[derive(Serialize)]
struct BatchAnswer {
    batch: Vec<Outcome>,
}

/// Does an operation on a JSON body.
pub(crate) async fn perform(
    operation: Operation,
    session: &mut Session<'_>,
    body: &[u8],
    limits: &Limits,
) -> Result<Answer, Problem> {
    let text = std::str::from_utf8(body).map_err(|_| invalid("the body is not UTF-8"))?;
    let whole: &RawValue = serde_json::from_str(text).map_err(|error| invalid(place(&error)))?;
    // Only a batch is looked into for a member `batch`; a single item with unknown members says so itself.
    match batch_of(whole)? {
        Some(batch) => {
            let items = split(batch, limits.batch_items)?;
            let mut worker = Worker::new(operation, session, limits)?;
            let mut outcomes = Vec::with_capacity(items.len());
            let mut failures = Vec::new();
            for item in items {
                outcomes.push(worker.perform(item.get()).await.unwrap_or_else(|error| {
                    failures.push((error.code, error.version));
                    Outcome::Failure { error }
                }));
            }
            let version = worker.encryptor.map(|encryptor| encryptor.version());
            Ok(Answer {
                body: to_json(&BatchAnswer { batch: outcomes })?,
                version,
                failures,
            })
        }
        None => {
            let outcome = Worker::new(operation, session, limits)?
                .perform(whole.get())
                .await?;
            let version = match &outcome {
                Outcome::Ciphertext { key_version, .. }
                | Outcome::Plaintext { key_version, .. } => Some(*key_version),
                Outcome::Failure { .. } => None,
            };
            Ok(Answer {
                body: to_json(&outcome)?,
                version,
                failures: Vec::new(),
            })
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DataKeyRequest<'a> {
    #[serde(borrow, default)]
    aad: Cow<'a, str>,
}

#[derive(Serialize)]
struct DataKey {
    plaintext: Zeroizing<String>,
    ciphertext: String,
    key_version: u32,
}

/// A fresh 256-bit key, plain and as a message under the primary.
pub(crate) fn data_key(session: &Session<'_>, body: &[u8]) -> Result<Answer, Problem> {
    let text = std::str::from_utf8(body).map_err(|_| invalid("the body is not UTF-8"))?;
    let aad = if text.is_empty() {
        Vec::new()
    } else {
        decode("aad", &parse::<DataKeyRequest<'_>>(text)?.aad)?
    };
    let mut encryptor = session.encryptor()?;
    let key = SecretKey::generate()?;
    let message = encryptor.encrypt_copy(&aad, key.expose());
    let (plaintext, key_version) = (
        Zeroizing::new(STANDARD.encode(key.expose())),
        encryptor.version(),
    );
    let body = to_json(&DataKey {
        plaintext,
        ciphertext: to_text(&message),
        key_version,
    })?;
    Ok(Answer {
        body,
        version: Some(key_version),
        failures: Vec::new(),
    })
}

fn batch_of(whole: &RawValue) -> Result<Option<&RawValue>, Problem> {
    let probe: Probe<'_> = parse(whole.get())?;
    if probe.batch.is_none() {
        return Ok(None);
    }
    let batch: Batch<'_> = parse(whole.get())?;
    Ok(Some(batch.batch))
}

/// The items of a batch, as they stand, without looking further than the limit.
fn split(batch: &RawValue, most: usize) -> Result<Vec<&RawValue>, Problem> {
    struct Items(usize);
    impl<'de> Visitor<'de> for Items {
        type Value = Option<Vec<&'de RawValue>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array of items")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = sequence.next_element()? {
                if items.len() == self.0 {
                    // Too many; the rest only has to be skipped.
                    while sequence.next_element::<de::IgnoredAny>()?.is_some() {}
                    return Ok(None);
                }
                items.push(item);
            }
            Ok(Some(items))
        }
    }
    impl<'de> DeserializeSeed<'de> for Items {
        type Value = Option<Vec<&'de RawValue>>;

        fn deserialize<D: Deserializer<'de>>(
            self,
            deserializer: D,
        ) -> Result<Self::Value, D::Error> {
            deserializer.deserialize_seq(self)
        }
    }
    let items = Items(most).deserialize(&mut serde_json::Deserializer::from_str(batch.get()));
    items
        .map_err(|error| invalid(format!("batch: {}", reason(&error))))?
        .ok_or_else(|| {
            Problem::new(
                Code::BatchTooLarge,
                format!("a batch has at most {most} items"),
            )
        })
}

struct Worker<'s, 'k> {
    operation: Operation,
    session: &'s mut Session<'k>,
    encryptor: Option<Encryptor>,
    /// The most bytes of a plaintext.
    most: usize,
}

impl<'s, 'k> Worker<'s, 'k> {
    fn new(
        operation: Operation,
        session: &'s mut Session<'k>,
        limits: &Limits,
    ) -> Result<Self, Problem> {
        let encryptor = match operation {
            Operation::Encrypt | Operation::Rewrap => Some(session.encryptor()?),
            Operation::Decrypt | Operation::DataKey | Operation::Inspect => None,
        };
        Ok(Self {
            operation,
            session,
            encryptor,
            most: limits.body,
        })
    }

    async fn perform(&mut self, item: &str) -> Result<Outcome, Problem> {
        if self.operation == Operation::Encrypt {
            let item: PlaintextItem<'_> = parse(item)?;
            let aad = decode("aad", &item.aad)?;
            let mut buffer = message_buffer(item.plaintext.len() / 4 * 3 + 3);
            ANY_PADDING
                .decode_vec(&*item.plaintext, &mut buffer)
                .map_err(|_| not_base64("plaintext"))?;
            // A longer one would make a message that no form takes back.
            if buffer.len() > PREFIX_LEN + self.most {
                return Err(Problem::new(
                    Code::BodyTooLarge,
                    format!("a plaintext of an item has at most {} bytes", self.most),
                ));
            }
            return Ok(self.encrypted(|encryptor| {
                encryptor.encrypt(&aad, &mut buffer);
                buffer
            }));
        }
        let item: CiphertextItem<'_> = parse(item)?;
        let aad = decode("aad", &item.aad)?;
        let mut message = from_text(&item.ciphertext)?;
        let (plaintext, key_version) = self.session.decrypt(&aad, &mut message).await?;
        if self.operation == Operation::Rewrap {
            return Ok(self.encrypted(|encryptor| encryptor.encrypt_copy(&aad, plaintext)));
        }
        Ok(Outcome::Plaintext {
            plaintext: STANDARD.encode(plaintext),
            key_version,
        })
    }

    fn encrypted(&mut self, encrypt: impl FnOnce(&mut Encryptor) -> Vec<u8>) -> Outcome {
        let Some(encryptor) = &mut self.encryptor else {
            unreachable!("made in `new` for operations that encrypt")
        };
        let message = encrypt(encryptor);
        Outcome::Ciphertext {
            ciphertext: to_text(&message),
            key_version: encryptor.version(),
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(item: &'a str) -> Result<T, Problem> {
    // A list of a struct's values would do for serde.
    if !item.trim_ascii_start().starts_with('{') {
        return Err(invalid("an object is expected here"));
    }
    serde_json::from_str(item).map_err(|error| invalid(reason(&error)))
}

fn decode(member: &str, text: &str) -> Result<Vec<u8>, Problem> {
    ANY_PADDING.decode(text).map_err(|_| not_base64(member))
}

fn not_base64(member: &str) -> Problem {
    invalid(format!("`{member}` is not base64"))
}

fn invalid(detail: impl Into<Cow<'static, str>>) -> Problem {
    Problem::new(Code::InvalidRequest, detail)
}

/// What is wrong with the members. serde's own words may quote a value, and a value may be a secret.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    for safe in ["missing field", "unknown field", "duplicate field"] {
        if text.starts_with(safe) {
            // The names of unknown members come from the caller, but a secret may stand in the wrong place.
            let known = text.split_once("expected").map(|(_, known)| {
                known
                    .split(" at line")
                    .next()
                    .unwrap_or_default()
                    .trim_start_matches(" one of")
                    .trim()
            });
            return match (safe, known) {
                ("unknown field", Some(known)) => format!("a member is unknown; known: {known}"),
                ("unknown field", None) => "a member is unknown".into(),
                _ => text.split(" at line").next().unwrap_or(safe).to_owned(),
            };
        }
    }
    format!("a value has the wrong type{}", at(error))
}

fn place(error: &serde_json::Error) -> String {
    format!("the body is not JSON{}", at(error))
}

fn at(error: &serde_json::Error) -> String {
    format!(" (line {}, column {})", error.line(), error.column())
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(value).map_err(|error| Problem::new(Code::Internal, error.to_string()))
}
