//! `pkcs11:…` (RFC 7512): a KEK in a hardware security module, reached through the vendor's PKCS#11 library.
//!
//! An AES key encrypts with AES-GCM (the wrap's context is its AAD), an RSA key with OAEP (the context's hash is encrypted along).

mod token;
mod uri;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
};
use futures_util::future::BoxFuture;

use self::{token::Token, uri::KeyUri};
use super::{Kek, KekError, KekFault, lane::Lane};
use crate::{
    config,
    crypto::{Dek, WrapContext},
    model::KekUri,
};

/// How many operations one KEK has under way at once, each in a session of its own.
const WIDTH: usize = 4;

/// The vendor's library, loaded once for the whole process.
pub(super) struct Library {
    path: Option<PathBuf>,
    loaded: Mutex<Option<Pkcs11>>,
}

impl Library {
    /// The library that the settings name, or else the variable `PKCS11_MODULE_PATH`.
    pub(super) fn new(settings: &config::Pkcs11) -> Arc<Self> {
        let path = settings
            .module
            .clone()
            .or_else(|| std::env::var_os("PKCS11_MODULE_PATH").map(PathBuf::from));
        Arc::new(Self {
            path,
            loaded: Mutex::default(),
        })
    }

    /// The KEK that a URI names.
    pub(super) fn kek(self: &Arc<Self>, kek: &KekUri) -> Result<Arc<dyn Kek>, KekError> {
        let misconfigured =
            |reason: String| KekError::new(KekFault::Misconfigured, format!("{kek}: {reason}"));
        let uri = KeyUri::parse(kek.rest()).map_err(misconfigured)?;
        let path = self.path.as_deref().ok_or_else(|| {
            misconfigured("name the token's library: `pkcs11.module` in the config, or the variable PKCS11_MODULE_PATH".into())
        })?;
        // A manifest must not choose what code this process loads.
        if uri.module.as_deref().is_some_and(|module| module != path) {
            let path = path.display();
            return Err(misconfigured(format!(
                "module-path is another library than the one that is configured, {path}"
            )));
        }
        let token = Token::new(kek.clone(), uri, Arc::clone(self));
        Ok(Arc::new(TokenKek {
            token: Arc::new(token),
            lane: Lane::new(WIDTH),
        }))
    }

    /// Loads the library unless it is loaded.
    fn get(&self) -> Result<Pkcs11, Trouble> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = &*loaded {
            return Ok(library.clone());
        }
        let path = self.path.as_deref().unwrap_or(Path::new(""));
        let library = Pkcs11::new(path).map_err(|error| {
            Trouble::new(
                KekFault::Misconfigured,
                format!("can't load {}: {error}", path.display()),
            )
        })?;
        match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            // By an earlier value of this type; the library knows one user a process.
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(error.into()),
        }
        *loaded = Some(library.clone());
        Ok(library)
    }
}

/// A key in a token.
struct TokenKek {
    token: Arc<Token>,
    lane: Lane,
}

impl Kek for TokenKek {
    fn wrap<'a>(
        &'a self,
        dek: &'a Dek,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Vec<u8>, KekError>> {
        Box::pin(async move {
            let token = Arc::clone(&self.token);
            let Some(dek) = Dek::from_slice(dek.expose()) else {
                unreachable!("a data key is as long as a data key")
            };
            self.lane.run(move || token.wrap(&dek, context)).await
        })
    }

    fn unwrap<'a>(
        &'a self,
        wrap: &'a [u8],
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Dek, KekError>> {
        Box::pin(async move {
            let (token, wrap) = (Arc::clone(&self.token), wrap.to_vec());
            self.lane.run(move || token.unwrap(&wrap, context)).await
        })
    }
}

/// What is wrong with a token, before it is known for which KEK.
struct Trouble {
    fault: KekFault,
    reason: String,
    /// Whether a new session may help.
    is_of_the_session: bool,
}

impl Trouble {
    fn new(fault: KekFault, reason: impl Into<String>) -> Self {
        Self {
            fault,
            reason: reason.into(),
            is_of_the_session: false,
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        use RvError as Rv;
        let Error::Pkcs11(code, _) = &error else {
            return Self::new(
                KekFault::Unavailable,
                format!("the token's library failed: {error}"),
            );
        };
        let (fault, advice) = match code {
            Rv::PinIncorrect | Rv::PinInvalid | Rv::PinLenRange => {
                (KekFault::Denied, "the PIN is wrong")
            }
            Rv::PinLocked => (
                KekFault::Denied,
                "the token has locked the PIN; its security officer unlocks it",
            ),
            Rv::PinExpired | Rv::UserPinNotInitialized => {
                (KekFault::Denied, "the token wants a new PIN to be set")
            }
            Rv::UserNotLoggedIn => (
                KekFault::Denied,
                "the token wants a login; give pin-source in the URI",
            ),
            Rv::KeyFunctionNotPermitted => (
                KekFault::Misconfigured,
                "the key's attributes don't allow it: CKA_ENCRYPT and CKA_DECRYPT must be true",
            ),
            Rv::KeyTypeInconsistent
            | Rv::MechanismInvalid
            | Rv::MechanismParamInvalid
            | Rv::KeySizeRange => (
                KekFault::Misconfigured,
                "the token can't do AES-GCM, or RSA-OAEP, with this key",
            ),
            Rv::EncryptedDataInvalid
            | Rv::EncryptedDataLenRange
            | Rv::DataInvalid
            | Rv::DataLenRange => (
                KekFault::Refused,
                "this key doesn't open the wrap: it is another key, or the wrap was changed",
            ),
            Rv::TokenNotPresent | Rv::TokenNotRecognized | Rv::DeviceRemoved => {
                (KekFault::Unavailable, "the token is gone")
            }
            _ => (KekFault::Unavailable, "the token failed"),
        };
        let is_of_the_session = fault == KekFault::Unavailable || *code == Rv::UserNotLoggedIn;
        Self {
            fault,
            reason: format!("{advice} ({error})"),
            is_of_the_session,
        }
    }
}
