//! Sessions with a token, and the operations in them.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cryptoki::{
    context::Pkcs11,
    error::{Error, RvError},
    mechanism::{
        Mechanism, MechanismType,
        aead::GcmParams,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
    },
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};
use zeroize::Zeroizing;

use super::{
    Library,
    error::TokenError,
    uri::{KeyUri, Kind},
};
use crate::{
    backend::{BackendError, ErrorKind},
    crypto::{Dek, WrapContext, bind_dek, random, unbind_dek},
    model::KekUri,
};

/// The first byte of a wrap: the algorithm.
const AES_GCM: u8 = 1;
const OAEP_SHA256: u8 = 2;
/// For tokens without OAEP-SHA256. OAEP doesn't depend on collision resistance (RFC 8017 §7.1).
const OAEP_SHA1: u8 = 3;

const NONCE_LEN: usize = 12;
const TAG_BITS: std::ffi::c_ulong = 128;

/// A key in a token, and its open sessions.
pub(super) struct Token {
    kek: KekUri,
    uri: KeyUri,
    library: Arc<Library>,
    idle: Mutex<Vec<Session>>,
    /// A PIN that the token rejected. Another attempt could lock the token.
    rejected_pin: Mutex<Option<Zeroizing<String>>>,
}

impl Token {
    pub(super) fn new(kek: KekUri, uri: KeyUri, library: Arc<Library>) -> Self {
        Self {
            kek,
            uri,
            library,
            idle: Mutex::default(),
            rejected_pin: Mutex::default(),
        }
    }

    /// Encrypts a data key. The wrap is one byte for the algorithm, the nonce (AES-GCM only) and
    /// the ciphertext.
    pub(super) fn wrap(&self, dek: &Dek, context: WrapContext) -> Result<Vec<u8>, BackendError> {
        let nonce = random::<NONCE_LEN>().map_err(|error| {
            BackendError::new(ErrorKind::Unavailable, &self.kek, error.to_string())
        })?;
        self.in_session(|session| match self.kind(session)? {
            Kind::Secret => {
                let key = self.key(session, ObjectClass::SECRET_KEY)?;
                let mut iv = nonce;
                let aad = context.to_bytes();
                let gcm = Mechanism::AesGcm(GcmParams::new(&mut iv, &aad, TAG_BITS.into())?);
                let ciphertext = session.encrypt(&gcm, key, dek.expose())?;
                Ok([&[AES_GCM][..], &nonce, &ciphertext].concat())
            }
            Kind::Private => {
                let key = self.key(session, ObjectClass::PUBLIC_KEY)?;
                let bound = bind_dek(dek, context);
                match session.encrypt(&oaep(OAEP_SHA256)?, key, &bound) {
                    Err(Error::Pkcs11(
                        RvError::MechanismParamInvalid | RvError::ArgumentsBad,
                        _,
                    )) => {
                        let ciphertext = session.encrypt(&oaep(OAEP_SHA1)?, key, &bound)?;
                        Ok([&[OAEP_SHA1][..], &ciphertext].concat())
                    }
                    ciphertext => Ok([&[OAEP_SHA256][..], &ciphertext?].concat()),
                }
            }
        })
    }

    pub(super) fn unwrap(&self, wrap: &[u8], context: WrapContext) -> Result<Dek, BackendError> {
        self.in_session(|session| match wrap {
            [AES_GCM, rest @ ..] => {
                let (nonce, ciphertext) =
                    rest.split_first_chunk::<NONCE_LEN>().ok_or_else(foreign)?;
                let key = self.key(session, ObjectClass::SECRET_KEY)?;
                let mut iv = *nonce;
                let aad = context.to_bytes();
                let gcm = Mechanism::AesGcm(GcmParams::new(&mut iv, &aad, TAG_BITS.into())?);
                let dek = decrypt(session, &gcm, key, ciphertext)?;
                Dek::from_slice(&dek).ok_or_else(foreign)
            }
            [hash @ (OAEP_SHA256 | OAEP_SHA1), ciphertext @ ..] => {
                let key = self.key(session, ObjectClass::PRIVATE_KEY)?;
                let bound = decrypt(session, &oaep(*hash)?, key, ciphertext)?;
                unbind_dek(&bound, context).ok_or_else(foreign)
            }
            _ => Err(foreign()),
        })
    }

    /// Runs an operation in an idle session, or in a new one if there is none or the idle one turns
    /// out to be dead.
    fn in_session<T>(
        &self,
        operation: impl Fn(&Session) -> Result<T, TokenError>,
    ) -> Result<T, BackendError> {
        let failed = |error: TokenError| error.failure.on(&self.kek);
        // A separate statement, so that the lock isn't held during the operation.
        let idle = self.idle().pop();
        if let Some(session) = idle {
            match operation(&session) {
                Err(error) if error.is_session_error => {
                    // The token may have dropped the login of all sessions.
                    let others = std::mem::take(&mut *self.idle());
                    drop((session, others));
                }
                result => {
                    self.idle().push(session);
                    return result.map_err(failed);
                }
            }
        }
        let in_new_session = || {
            let session = self.open()?;
            let result = operation(&session)?;
            self.idle().push(session);
            Ok(result)
        };
        in_new_session().map_err(failed)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<Session, TokenError> {
        let library = self.library.get()?;
        let mut matching = Vec::new();
        for slot in library.get_slots_with_initialized_token()? {
            if self.matches(&library, slot)? {
                matching.push(slot);
            }
        }
        let slot = match matching[..] {
            [slot] => slot,
            [] => {
                let message = "0 tokens match the URI; is the token present?";
                return Err(TokenError::new(ErrorKind::NotFound, message));
            }
            _ => {
                let count = matching.len();
                let message = format!("{count} tokens match the URI; add serial=… to select one");
                return Err(TokenError::new(ErrorKind::Misconfigured, message));
            }
        };
        let session = library.open_ro_session(slot)?;
        if let Some(file) = &self.uri.pin_source {
            self.log_in(&session, file)?;
        }
        Ok(session)
    }

    fn matches(&self, library: &Pkcs11, slot: Slot) -> Result<bool, TokenError> {
        let info = library.get_token_info(slot)?;
        let is = |expected: &Option<String>, actual: &str| {
            expected
                .as_ref()
                .is_none_or(|expected| expected == actual.trim_end())
        };
        Ok(is(&self.uri.token, info.label())
            && is(&self.uri.serial, info.serial_number())
            && is(&self.uri.manufacturer, info.manufacturer_id())
            && is(&self.uri.model, info.model()))
    }

    fn log_in(&self, session: &Session, file: &Path) -> Result<(), TokenError> {
        let unreadable = |error| {
            let message = format!(
                "can't read the PIN (pin-source {}): {error}",
                file.display()
            );
            TokenError::new(ErrorKind::Denied, message)
        };
        let text = Zeroizing::new(fs::read_to_string(file).map_err(unreadable)?);
        let pin = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
        // Locked throughout, so that concurrent sessions try a wrong PIN only once.
        let mut rejected = self
            .rejected_pin
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if rejected.as_ref() == Some(&pin) {
            let message = format!(
                "the token rejected the PIN in {}; it is not tried again until the file changes, \
                 because the token could lock",
                file.display()
            );
            return Err(TokenError::new(ErrorKind::Denied, message));
        }
        match session.login(UserType::User, Some(&AuthPin::from(pin.as_str()))) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
                *rejected = None;
                Ok(())
            }
            Err(error) => {
                if matches!(
                    error,
                    Error::Pkcs11(
                        RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange,
                        _
                    )
                ) {
                    *rejected = Some(pin);
                }
                Err(error.into())
            }
        }
    }

    /// Returns the kind of key in the URI, or else of the key in the token.
    fn kind(&self, session: &Session) -> Result<Kind, TokenError> {
        if let Some(kind) = self.uri.kind {
            return Ok(kind);
        }
        let secret = session.find_objects(&self.template(ObjectClass::SECRET_KEY))?;
        Ok(if secret.is_empty() {
            Kind::Private
        } else {
            Kind::Secret
        })
    }

    fn template(&self, class: ObjectClass) -> Vec<Attribute> {
        let key_type = if class == ObjectClass::SECRET_KEY {
            KeyType::AES
        } else {
            KeyType::RSA
        };
        let mut template = vec![Attribute::Class(class), Attribute::KeyType(key_type)];
        let label = self.uri.object.clone();
        template.extend(label.map(|label| Attribute::Label(label.into_bytes())));
        template.extend(self.uri.id.clone().map(Attribute::Id));
        template
    }

    fn key(&self, session: &Session, class: ObjectClass) -> Result<ObjectHandle, TokenError> {
        match session.find_objects(&self.template(class))?[..] {
            [key] => Ok(key),
            [] => {
                let what = match class {
                    ObjectClass::SECRET_KEY => "AES key",
                    ObjectClass::PUBLIC_KEY => "RSA public key",
                    _ => "RSA private key",
                };
                let login = if self.uri.pin_source.is_none() {
                    "; without pin-source, private objects are hidden"
                } else {
                    ""
                };
                let message = format!("the token has no such {what}{login}");
                Err(TokenError::new(ErrorKind::NotFound, message))
            }
            _ => {
                let message = "several keys match the URI; add id=… to select one";
                Err(TokenError::new(ErrorKind::Misconfigured, message))
            }
        }
    }
}

/// Decrypts a wrap. Some libraries report a failed authentication as a general error.
fn decrypt(
    session: &Session,
    mechanism: &Mechanism<'_>,
    key: ObjectHandle,
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, TokenError> {
    match session.decrypt(mechanism, key, ciphertext) {
        Ok(plaintext) => Ok(Zeroizing::new(plaintext)),
        Err(Error::Pkcs11(RvError::GeneralError | RvError::FunctionFailed, _)) => Err(foreign()),
        Err(other) => Err(other.into()),
    }
}

fn foreign() -> TokenError {
    let message = "not a wrap of this token's key, or one of another keyring or version";
    TokenError::new(ErrorKind::Rejected, message)
}

fn oaep(hash: u8) -> Result<Mechanism<'static>, TokenError> {
    let (hash, mask) = match hash {
        OAEP_SHA1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        _ => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
    };
    Ok(Mechanism::RsaPkcsOaep(PkcsOaepParams::new(
        hash,
        mask,
        PkcsOaepSource::empty(),
    )))
}
