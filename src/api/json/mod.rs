//! The JSON format: one item, or a batch whose items succeed or fail individually.

mod parse;

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Response;
use serde::Serialize;
use zeroize::Zeroizing;

use self::parse::{CiphertextItem, DataKeyRequest, JsonBody, PlaintextItem, Text, invalid};
use super::{error::RequestError, job::Job};
use crate::{
    config::Limits,
    crypto::{PREFIX_LEN, SecretKey, from_text, to_text},
    encoding::{NotBase64, decode_base64},
    http::{body::BufferedBody, payload::Payload, problem::Problem, response::ResponseBody},
    model::Operation,
    refresh::Keyring,
    session::{ItemProcessor, message_buffer},
    wire::{Code, JSON},
};

/// By how much the result of an item is usually longer than the item, at most.
const OVERHEAD: usize = 128;

#[derive(Serialize)]
#[serde(untagged)]
enum ItemResult {
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
struct DataKey {
    plaintext: Zeroizing<String>,
    ciphertext: String,
    key_version: u32,
}

/// Performs the job on an item or a batch.
pub(crate) async fn perform(
    job: &Job<'_>,
    body: BufferedBody,
) -> Result<Response<ResponseBody>, RequestError> {
    let session = job.session()?;
    let mut share = body.share;
    let text = utf8(&body.bytes)?;
    let (json, version) = match parse::body(text, job.limits.batch_items)? {
        JsonBody::Item(item) => {
            let mut processor = ItemProcessor::new(job.operation, session)?;
            let (result, version) = perform_item(&mut processor, item, job.limits.body).await?;
            let mut json = Vec::with_capacity(text.len() + OVERHEAD);
            write_json(&mut json, &result)?;
            (json, Some(version))
        }
        JsonBody::Batch(items) => {
            // The response to a tiny item is many times longer.
            let memory = Limits::JSON_COST * text.len() + Limits::JSON_ITEM_COST * items.len();
            share.grow_to(job.account, memory).await?;
            let mut processor = ItemProcessor::new(job.operation, session)?;
            let mut json = Vec::with_capacity(text.len() + OVERHEAD * items.len());
            json.extend_from_slice(b"{\"batch\":[");
            for (at, item) in items.into_iter().enumerate() {
                let result = perform_item(&mut processor, item.get(), job.limits.body).await;
                let result = result.map(|(result, _)| result).unwrap_or_else(|error| {
                    job.item_failed(error.problem.code, error.version);
                    ItemResult::Failure {
                        error: error.problem,
                    }
                });
                if at > 0 {
                    json.push(b',');
                }
                write_json(&mut json, &result)?;
            }
            json.extend_from_slice(b"]}");
            (json, processor.encrypting_version())
        }
    };
    let payload = Payload::new(json, share);
    Ok(job.respond(body.length, payload, JSON, version))
}

/// Returns the item's result and the version used.
async fn perform_item(
    processor: &mut ItemProcessor<&Keyring>,
    item: &str,
    max_plaintext: usize,
) -> Result<(ItemResult, u32), RequestError> {
    let (mut buffer, aad) = if processor.operation() == Operation::Encrypt {
        plaintext_buffer(item, max_plaintext)?
    } else {
        let item: CiphertextItem<'_> = parse::item(item)?;
        let aad = decode_aad(item.aad.as_ref())?;
        // A line break at the end comes from a file.
        let message = from_text(item.ciphertext.trim_ascii()).map_err(Problem::from)?;
        (message, aad)
    };
    let version = processor.process(&aad, &mut buffer, 0).await?;
    let result = if processor.encrypting_version().is_some() {
        ItemResult::Ciphertext {
            ciphertext: to_text(&buffer),
            key_version: version,
        }
    } else {
        ItemResult::Plaintext {
            plaintext: STANDARD.encode(&buffer[PREFIX_LEN..]),
            key_version: version,
        }
    };
    Ok((result, version))
}

/// Returns a buffer with room for a message around the item's plaintext, and the item's AAD.
fn plaintext_buffer(item: &str, max_plaintext: usize) -> Result<(Vec<u8>, Vec<u8>), Problem> {
    let item: PlaintextItem<'_> = parse::item(item)?;
    let aad = decode_aad(item.aad.as_ref())?;
    let mut buffer = message_buffer(item.plaintext.len() / 4 * 3 + 3);
    decode("plaintext", &item.plaintext, &mut buffer)?;
    // A longer plaintext would become a message that no format accepts for decryption.
    if buffer.len() > PREFIX_LEN + max_plaintext {
        return Err(Problem::new(
            Code::BodyTooLarge,
            format!("the plaintext of an item may have at most {max_plaintext} bytes"),
        ));
    }
    Ok((buffer, aad))
}

/// Responds with a fresh 256-bit key, in plaintext and encrypted under the primary.
pub(crate) fn data_key(
    job: &Job<'_>,
    body: BufferedBody,
) -> Result<Response<ResponseBody>, RequestError> {
    let session = job.session()?;
    let text = utf8(&body.bytes)?;
    let aad = if text.is_empty() {
        Vec::new()
    } else {
        decode_aad(parse::item::<DataKeyRequest<'_>>(text)?.aad.as_ref())?
    };
    let mut encryptor = session.encryptor()?;
    let key = SecretKey::generate().map_err(Problem::from)?;
    let mut message = message_buffer(key.expose().len());
    message.extend_from_slice(key.expose());
    encryptor.encrypt(&aad, &mut message, 0);
    let key_version = encryptor.version();
    let json = to_json(&DataKey {
        plaintext: Zeroizing::new(STANDARD.encode(key.expose())),
        ciphertext: to_text(&message),
        key_version,
    })?;
    Ok(job.respond(body.length, json, JSON, Some(key_version)))
}

/// Returns a body's text, without the byte order mark that some clients put in front (RFC 8259 §8.1
/// lets us ignore it).
fn utf8(body: &[u8]) -> Result<&str, Problem> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    std::str::from_utf8(body).map_err(|_| invalid("the body is not UTF-8"))
}

fn decode_aad(text: Option<&Text<'_>>) -> Result<Vec<u8>, Problem> {
    let mut aad = Vec::new();
    if let Some(text) = text {
        decode("aad", text, &mut aad)?;
    }
    Ok(aad)
}

/// Decodes the member `name` behind what `bytes` holds.
fn decode(name: &str, text: &str, bytes: &mut Vec<u8>) -> Result<(), Problem> {
    decode_base64(text.as_bytes(), bytes)
        .map_err(|NotBase64| invalid(format!("`{name}` is {}", NotBase64::EXPECTED)))
}

fn write_json(json: &mut Vec<u8>, value: &impl Serialize) -> Result<(), Problem> {
    serde_json::to_writer(json, value)
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))
}

/// Serializes a response.
pub(crate) fn to_json(value: &impl Serialize) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(value).map_err(|error| Problem::new(Code::Internal, error.to_string()))
}
