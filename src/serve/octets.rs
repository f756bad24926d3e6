//! The octet-stream form: bytes in, bytes out, AAD in a header.

use base64::Engine;
use bytes::Bytes;
use hyper::{HeaderMap, header::HeaderName};

use super::{
    ANY_PADDING,
    body::Read,
    problem::{Code, Problem},
    session::Session,
};
use crate::{
    config::Operation,
    crypto::{OVERHEAD, PREFIX_LEN},
};

/// Carries the AAD in base64.
pub(super) const AAD_HEADER: HeaderName = HeaderName::from_static("sidekey-aad");

/// An answer: its body and the version that made it.
pub(super) type Answer = (Bytes, u32);

pub(super) fn aad(headers: &HeaderMap) -> Result<Vec<u8>, Problem> {
    let mut values = headers.get_all(AAD_HEADER).iter();
    let Some(value) = values.next() else { return Ok(Vec::new()) };
    let invalid = |detail| Problem::new(Code::InvalidRequest, detail);
    if values.next().is_some() {
        return Err(invalid("the header Sidekey-Aad stands there twice"));
    }
    ANY_PADDING.decode(value).map_err(|_| invalid("the header Sidekey-Aad is not base64"))
}

/// Does an operation on a body; a plaintext stands behind the room that [`super::session::message_buffer`] leaves.
pub(super) async fn perform(operation: Operation, session: &mut Session<'_>, aad: &[u8], body: Read) -> Result<Answer, Problem> {
    let Read { mut bytes, share, .. } = body;
    match operation {
        Operation::Encrypt => {
            let mut encryptor = session.encryptor()?;
            encryptor.encrypt(aad, &mut bytes);
            Ok((share.keep_for(bytes), encryptor.version))
        }
        Operation::Rewrap => {
            session.decrypt(aad, &mut bytes).await?;
            let mut encryptor = session.encryptor()?;
            // The plaintext already stands where the new message needs it.
            bytes.truncate(bytes.len() - (OVERHEAD - PREFIX_LEN));
            encryptor.encrypt(aad, &mut bytes);
            Ok((share.keep_for(bytes), encryptor.version))
        }
        Operation::Decrypt | Operation::Inspect => {
            let (plaintext, version) = session.decrypt(aad, &mut bytes).await?;
            let length = plaintext.len();
            Ok((share.keep_for(bytes).slice(PREFIX_LEN..PREFIX_LEN + length), version))
        }
    }
}
