//! Sessions with a token, and what is done in them.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use cryptoki::{
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
    Library, Trouble,
    uri::{KeyUri, Kind},
};
use crate::{
    backend::{KekError, KekFault},
    crypto::{Dek, WrapContext, bind_dek, random, unbind_dek},
    model::KekUri,
};

/// The first byte of a wrap: how the rest was made.
const AES_GCM: u8 = 1;
const OAEP_SHA256: u8 = 2;
/// For tokens that know no other; OAEP doesn't need the hash to resist collisions (RFC 8017 §7.1).
const OAEP_SHA1: u8 = 3;

const NONCE_LEN: usize = 12;
const TAG_BITS: std::ffi::c_ulong = 128;

/// A key in a token, and the sessions that are open with it.
pub(super) struct Token {
    kek: KekUri,
    uri: KeyUri,
    library: Arc<Library>,
    idle: Mutex<Vec<Session>>,
    /// A PIN that the token refused. Trying it again would lock the token.
    refused_pin: Mutex<Option<Zeroizing<String>>>,
}

impl Token {
    pub(super) fn new(kek: KekUri, uri: KeyUri, library: Arc<Library>) -> Self {
        Self {
            kek,
            uri,
            library,
            idle: Mutex::default(),
            refused_pin: Mutex::default(),
        }
    }

    /// Encrypts a data key. One byte tells how, then come a nonce (AES alone) and the ciphertext.
    pub(super) fn wrap(&self, dek: &Dek, context: WrapContext) -> Result<Vec<u8>, KekError> {
        let nonce = random::<NONCE_LEN>()
            .map_err(|error| KekError::new(KekFault::Unavailable, error.to_string()))?;
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

    pub(super) fn unwrap(&self, wrap: &[u8], context: WrapContext) -> Result<Dek, KekError> {
        let refused = || {
            Trouble::new(
                KekFault::Refused,
                "this is no wrap of a token's key, or of another keyring or version",
            )
        };
        self.in_session(|session| match wrap {
            [AES_GCM, rest @ ..] => {
                let (nonce, ciphertext) =
                    rest.split_first_chunk::<NONCE_LEN>().ok_or_else(refused)?;
                let key = self.key(session, ObjectClass::SECRET_KEY)?;
                let mut iv = *nonce;
                let aad = context.to_bytes();
                let gcm = Mechanism::AesGcm(GcmParams::new(&mut iv, &aad, TAG_BITS.into())?);
                // Some libraries have no better word for a tag that doesn't match.
                let opened = session
                    .decrypt(&gcm, key, ciphertext)
                    .map_err(|error| match error {
                        Error::Pkcs11(RvError::GeneralError | RvError::FunctionFailed, _) => {
                            refused()
                        }
                        other => other.into(),
                    });
                Dek::from_slice(&Zeroizing::new(opened?)).ok_or_else(refused)
            }
            [hash @ (OAEP_SHA256 | OAEP_SHA1), ciphertext @ ..] => {
                let key = self.key(session, ObjectClass::PRIVATE_KEY)?;
                let opened = session
                    .decrypt(&oaep(*hash)?, key, ciphertext)
                    .map_err(|error| match error {
                        Error::Pkcs11(RvError::GeneralError | RvError::FunctionFailed, _) => {
                            refused()
                        }
                        other => other.into(),
                    });
                unbind_dek(&Zeroizing::new(opened?), context).ok_or_else(refused)
            }
            _ => Err(refused()),
        })
    }

    /// Does work in a session that is open, or in a new one if there is none or the open one turns out to be dead.
    fn in_session<T>(&self, work: impl Fn(&Session) -> Result<T, Trouble>) -> Result<T, KekError> {
        // A statement of its own, or the lock would be held all through.
        let idle = self.idle().pop();
        if let Some(session) = idle {
            match work(&session) {
                Err(trouble) if trouble.is_of_the_session => {
                    // The others are as old, and the token may have forgotten the login of all.
                    let others = std::mem::take(&mut *self.idle());
                    drop((session, others));
                }
                result => {
                    self.idle().push(session);
                    return result.map_err(|trouble| self.error(trouble));
                }
            }
        }
        let fresh = || {
            let session = self.open()?;
            let result = work(&session)?;
            self.idle().push(session);
            Ok(result)
        };
        fresh().map_err(|trouble| self.error(trouble))
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, trouble: Trouble) -> KekError {
        KekError::new(trouble.fault, format!("{}: {}", self.kek, trouble.reason))
    }

    fn open(&self) -> Result<Session, Trouble> {
        let library = self.library.get()?;
        let mut found = Vec::new();
        for slot in library.get_slots_with_initialized_token()? {
            if self.is_in(&library, slot)? {
                found.push(slot);
            }
        }
        let [slot] = found[..] else {
            let reason = format!("{} tokens match the URI; one must", found.len());
            return Err(Trouble::new(
                if found.is_empty() {
                    KekFault::Missing
                } else {
                    KekFault::Misconfigured
                },
                reason,
            ));
        };
        let session = library.open_ro_session(slot)?;
        if let Some(file) = &self.uri.pin_source {
            self.log_in(&session, file)?;
        }
        Ok(session)
    }

    fn is_in(&self, library: &cryptoki::context::Pkcs11, slot: Slot) -> Result<bool, Trouble> {
        let info = library.get_token_info(slot)?;
        let is = |wanted: &Option<String>, found: &str| {
            wanted
                .as_ref()
                .is_none_or(|wanted| wanted == found.trim_end())
        };
        Ok(is(&self.uri.token, info.label())
            && is(&self.uri.serial, info.serial_number())
            && is(&self.uri.manufacturer, info.manufacturer_id())
            && is(&self.uri.model, info.model()))
    }

    fn log_in(&self, session: &Session, file: &Path) -> Result<(), Trouble> {
        let unreadable = |error| {
            Trouble::new(
                KekFault::Denied,
                format!(
                    "can't read the PIN (pin-source {}): {error}",
                    file.display()
                ),
            )
        };
        let text = Zeroizing::new(fs::read_to_string(file).map_err(unreadable)?);
        let pin = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
        // Held to the end, so that a wrong PIN costs the token one try, however many sessions are opened at once.
        let mut refused = self
            .refused_pin
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if refused.as_ref() == Some(&pin) {
            let reason = format!(
                "the token refused the PIN in {}; it is not tried again until the file changes, or the token would lock",
                file.display()
            );
            return Err(Trouble::new(KekFault::Denied, reason));
        }
        match session.login(UserType::User, Some(&AuthPin::from(pin.as_str()))) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
                *refused = None;
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
                    *refused = Some(pin);
                }
                Err(error.into())
            }
        }
    }

    /// What the URI says, or else what is there.
    fn kind(&self, session: &Session) -> Result<Kind, Trouble> {
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
        let mut template = vec![
            Attribute::Class(class),
            Attribute::KeyType(if class == ObjectClass::SECRET_KEY {
                KeyType::AES
            } else {
                KeyType::RSA
            }),
        ];
        template.extend(
            self.uri
                .object
                .as_ref()
                .map(|label| Attribute::Label(label.clone().into_bytes())),
        );
        template.extend(self.uri.id.clone().map(Attribute::Id));
        template
    }

    fn key(&self, session: &Session, class: ObjectClass) -> Result<ObjectHandle, Trouble> {
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
                Err(Trouble::new(
                    KekFault::Missing,
                    format!("the token has no such {what}{login}"),
                ))
            }
            _ => Err(Trouble::new(
                KekFault::Misconfigured,
                "several keys match the URI; add id=…",
            )),
        }
    }
}

fn oaep(hash: u8) -> Result<Mechanism<'static>, Trouble> {
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
